"""How gradients get through a solution: implicitly, by unrolling, by one step, or ignoring constraints."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchddn.active_set import ActiveSet
from torchddn.derivatives import inside_transform
from torchddn.errors import InvalidInputError
from torchddn.implicit import Forward, LinearOptions, Report, SolutionSystem
from torchddn.implicit_root import ImplicitRoot
from torchddn.linear import CG, MINRES, Cholesky, SchurComplement
from torchddn.linear import get as get_linear
from torchddn.problem import BatchedProblem, mend
from torchddn.structure import check_declared

__all__ = ["Adjoint", "Answer", "IgnoreConstraints", "Implicit", "OneStep", "Unrolled"]


class Answer(NamedTuple):
    """Decision ``(B, m)`` and multipliers ``(B, p + q)`` with what is known about them."""

    y: Tensor
    dual: Tensor
    active: ActiveSet | None
    sound: Tensor
    report: Report


class Adjoint(Protocol):
    """A way to differentiate a solution."""

    def answer(self, problem: BatchedProblem, forward: Forward, x: Sequence[Tensor], poison: bool) -> Answer:
        """The solution of ``problem`` at ``x``, differentiable in ``x``."""
        ...


@dataclasses.dataclass(frozen=True)
class Implicit:
    r"""The exact gradient of the solution, by the implicit function theorem, certified.

    Solves one linear system per item with the derivative ``K`` of the optimality conditions, then measures
    ``|K u - v| / |v|`` with a matrix-free product of the true ``K``. If that is above ``rtol`` the system is
    refined, then solved by a safer method; where ``K`` is singular ``on_singular`` decides and a
    :class:`~torchddn.DegenerateGradientWarning` says so. Memory ``O(n + m^2)`` per item.

    Args:
        linear: ``"auto"``, ``"cholesky"``, ``"lu"``, ``"schur"``, ``"cg"``, ``"minres"``, ``"gmres"``,
            ``"least_squares"`` or a solver of ``torchddn.linear``. The Krylov methods never form ``K``.
        on_singular: Where the solution is not isolated: ``"least_squares"`` (minimum norm, the pseudo-inverse),
            ``"damp"`` (a proximal term ``damping/2 |y - y*|^2``), ``"raise"`` (:class:`~torchddn.SingularError`).
        damping: Weight of the proximal term relative to the size of the Hessian, positive.
        rtol: Certificate above which a solve is not accepted; None for a value fitting the dtype.
        weakly_active: Where a constraint is active without a multiplier, the solution has a kink: ``"active"`` takes
            the derivative of the side on which the constraint stays active, ``"inactive"`` of the other.
        structure: What the Hessian of the Lagrangian looks like. ``"auto"`` takes the word of ``problem.structure``,
            and looks for one where it pays, above 32 unknowns; ``"dense"`` forms it; a declaration such as
            ``torchddn.linear.Diagonal()``, or a pair of one for it and one for the constraint rows, says what it is.
            A wrong one costs time, never the gradient.

    Raises:
        InvalidInputError: If an option is not one of the above.

    Gradients:
        Reverse and forward mode, of every order, of ``y`` and of the multipliers. At a degenerate item as
        ``on_singular`` says, at a kink as ``weakly_active`` says, both with a warning. An item whose
        input or answer is not finite gets gradient zero and leaves shared gradients alone (NaN under
        ``on_failure="nan"``).

    Example:
        >>> Implicit(linear="lu").on_singular
        'least_squares'

    References:
        Gould, Hartley, Campbell, Deep Declarative Networks: A New Hope, 2019, propositions 4.4 and 4.5.
    """

    linear: Any = "auto"
    on_singular: str = "least_squares"
    damping: float = 1e-6
    rtol: float | None = None
    weakly_active: str = "active"
    structure: Any = "auto"

    def __post_init__(self) -> None:
        get_linear(self.linear)
        if self.on_singular not in ("least_squares", "damp", "raise"):
            raise InvalidInputError(
                f"`Implicit(on_singular=...)` must be 'least_squares', 'damp' or 'raise', got {self.on_singular!r}."
            )
        if self.weakly_active not in ("active", "inactive"):
            raise InvalidInputError(
                f"`Implicit(weakly_active=...)` must be 'active' or 'inactive', got {self.weakly_active!r}."
            )
        _check_positive("Implicit", "damping", self.damping)
        if self.rtol is not None:
            _check_positive("Implicit", "rtol", self.rtol)
        check_declared("Implicit(structure=...)", self.structure)

    def answer(self, problem: BatchedProblem, forward: Forward, x: Sequence[Tensor], poison: bool) -> Answer:
        """The solution, differentiable by the rule above."""
        self._check_symmetry(problem)
        options = self._options(problem)
        problem = dataclasses.replace(problem, structure=options.structure)
        system = SolutionSystem(problem, forward, options, constrained=True, poison=poison)
        z, *others = ImplicitRoot.apply(system, *x)
        constants, report = others[: system.num_constants], others[system.num_constants :]
        y, dual = z[:, : problem.m], z[:, problem.m :]
        return Answer(y, dual, system.active(constants), constants[0], Report(*report))

    def _check_symmetry(self, problem: BatchedProblem) -> None:
        if problem.kind != "minimize" and isinstance(get_linear(self.linear), (CG, MINRES, Cholesky, SchurComplement)):
            raise InvalidInputError(
                f"`Implicit(linear=...)`: the derivative of a root or fixed point is not symmetric, which "
                f"{self.linear!r} needs. Use 'auto', 'lu' or 'gmres'."
            )

    def _options(self, problem: BatchedProblem) -> LinearOptions:
        structure = self.structure
        if isinstance(structure, str) and structure == "auto":
            structure = problem.template.structure
            check_declared(f"{type(problem.template).__name__}.structure", structure)
        damping = float(self.damping)
        return LinearOptions(self.linear, self.on_singular, damping, self.rtol, self.weakly_active, structure)


@dataclasses.dataclass(frozen=True)
class IgnoreConstraints:
    r"""The gradient ``-L_yy^-1 L_xy`` that forgets that the solution must stay feasible: an approximation.

    Cheap where ``L_yy`` has structure and the constraints spoil it; exact without constraints. It is what the
    papers compare the exact gradient with. The multipliers of the solution get no gradient.

    Args:
        linear: As for :class:`Implicit`, which also says what happens at singular systems.

    References:
        Gould, Campbell, Ben-Shabat, Koneputugodage, Xu, Exploiting Problem Structure in Deep Declarative
        Networks: Two Case Studies, 2022, figure 4, line 6.
    """

    linear: Any = "auto"

    def __post_init__(self) -> None:
        get_linear(self.linear)

    def answer(self, problem: BatchedProblem, forward: Forward, x: Sequence[Tensor], poison: bool) -> Answer:
        """The solution, differentiable as if it had no constraints."""
        system = SolutionSystem(
            problem, forward, Implicit(linear=self.linear)._options(problem), constrained=False, poison=poison
        )
        y, *others = ImplicitRoot.apply(system, *x)
        (*constants, dual), report = others[: system.num_constants], others[system.num_constants :]
        return Answer(y, dual, system.active(constants), constants[0], Report(*report))


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """The gradient of the solver's own steps, as automatic differentiation sees them.

    It is the gradient of what was computed rather than of the solution: the two agree as the solver converges.
    Memory grows with the number of steps. Inside ``torch.func.vmap`` nothing can be read, so that without
    ``num_steps`` all ``max_steps`` of the solver are run.

    Args:
        num_steps: None differentiates every step from the start; k solves first and differentiates k further
            steps from the solution (truncated back-propagation).
    """

    num_steps: int | None = None

    def __post_init__(self) -> None:
        if self.num_steps is not None and (
            not isinstance(self.num_steps, int) or isinstance(self.num_steps, bool) or self.num_steps < 1
        ):
            raise InvalidInputError(
                f"`Unrolled(num_steps=...)` must be a positive integer or None, got {self.num_steps!r}."
            )

    def answer(self, problem: BatchedProblem, forward: Forward, x: Sequence[Tensor], poison: bool) -> Answer:
        """The solution, with the graph of the steps that led to it."""
        return _unrolled(problem, forward, x, self.num_steps, poison)


@dataclasses.dataclass(frozen=True)
class OneStep:
    """The gradient of one solver step taken at the solution.

    Exact for a Newton-type step, whose derivative at the solution is that of the solution itself; for a
    first-order step an approximation as good as the step contracts.

    References:
        Bolte, Pauwels, Vaiter, One-step differentiation of iterative algorithms, 2023.
    """

    def answer(self, problem: BatchedProblem, forward: Forward, x: Sequence[Tensor], poison: bool) -> Answer:
        """The solution, with the graph of one further step."""
        return _unrolled(problem, forward, x, 1, poison)


def _unrolled(
    problem: BatchedProblem, forward: Forward, x: Sequence[Tensor], num_steps: int | None, poison: bool
) -> Answer:
    # The first solve gives the report and where to continue from; it is opaque, so that it runs under vmap.
    system = SolutionSystem(problem, forward, Implicit()._options(problem), constrained=True, poison=False)
    z, *others = ImplicitRoot.apply(system, *(tensor.detach() for tensor in x))
    constants, report = others[: system.num_constants], Report(*others[system.num_constants :])
    sound = constants[0]
    y = z[:, : problem.m].detach()
    safe_y, safe_x = (y, x) if forward.all_sound else (mend(y, sound), problem.mend(x, sound))
    if num_steps is not None:
        unrolled = forward.unroll(problem, safe_x, safe_y, num_steps)
    elif inside_transform():
        unrolled = forward.unroll(problem, safe_x, None, None)
    else:
        taken = int(report.num_steps.max()) if problem.size else 0
        unrolled = forward.unroll(problem, safe_x, None, max(1, taken))
    lost = torch.nan if poison else 0.0
    y, dual = (torch.where(sound[:, None], part, part.detach() * lost) for part in unrolled)
    y = torch.where(sound[:, None], y, torch.nan)
    return Answer(y, dual, system.active(constants), sound, report)


def _check_positive(call: str, name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise InvalidInputError(f"`{call}({name}=...)` must be a positive number, got {value!r}.")
