r"""The systems whose roots make a gradient: that of a solution, and the linear one of its backward pass.

A solution ``z = (y, dual)`` is the root of a residual ``R(z, x)`` (``optimality.py``), and :class:`ImplicitRoot` asks
for the solution ``u`` of ``K' u = v`` with ``K = R_z``. For a minimization ``K`` is symmetric and this is the
saddle-point system of the Lagrangian ``L = f + nu.h + lam.g`` with the constraints that are active at each item;
neither ``L_xy`` nor ``c_x`` is ever formed. (Gould et al. write ``L = f - lambda.h``: their multipliers are ours
negated. Their formula ``H^-1 A' (A H^-1 A')^-1 (A H^-1 B - C) - H^-1 B`` is the Schur-complement way of solving the
same system, ``linear="schur"``.)
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from torchddn import optimality, structure
from torchddn.active_set import ActiveSet
from torchddn.derivatives import Linearization, gradient, jvp, private_graph, vjp
from torchddn.diagnostics import is_recording, timed
from torchddn.findings import Findings
from torchddn.fusion import fused, is_fused
from torchddn.implicit_root import ImplicitRoot, Unfold, fold
from torchddn.linear import Certified, Operator, choose, name_of, solve_certified, solve_once
from torchddn.linear import get as get_linear
from torchddn.problem import BatchedProblem, mend

__all__ = ["Forward", "Found", "LinearOptions", "Report", "SolutionSystem"]


class LinearOptions(NamedTuple):
    """How the adjoint system is solved; the words are those of :class:`torchddn.Implicit`."""

    linear: Any
    on_singular: str
    damping: float
    rtol: float | None
    weakly_active: str
    structure: Any


class Report(NamedTuple):
    """What a forward solve tells beside the answer, ``(B,)`` each."""

    objective: Tensor
    status: Tensor
    num_steps: Tensor
    stationarity: Tensor
    feasibility: Tensor
    complementarity: Tensor


class Found(NamedTuple):
    """What a forward solve finds: plain tensors, no graph. ``active`` is None where there are equalities only."""

    y: Tensor  # (B, m)
    dual: Tensor  # (B, p + q)
    active: ActiveSet | None
    sound: Tensor  # (B,): finite in and out
    report: Report


class Given(NamedTuple):
    """Beside the inputs: constraints that hold as equations, and multipliers that do not move; None for neither."""

    held: optimality.Held | None
    dual: Tensor | None


class Forward(Protocol):
    """The forward pass of one call as an adjoint sees it; ``node.py`` supplies it.

    Attributes:
        all_sound: Whether no item so far had a number that is not finite, in or out; True before solving.
    """

    all_sound: bool

    def solve(self, problem: BatchedProblem, x: Sequence[Tensor]) -> Found:
        """The solution of every item, as far as there is one."""
        ...

    def unroll(
        self, problem: BatchedProblem, x: Sequence[Tensor], y: Tensor | None, num_steps: int | None
    ) -> tuple[Tensor, Tensor]:
        """``num_steps`` differentiable steps of the solver from ``y`` (None: from the start, all steps)."""
        ...


@dataclasses.dataclass(frozen=True)
class SolutionSystem:
    """The solution of a problem as a root.

    Constants: which items are sound, the active set if there are inequalities or bounds, and ``dual`` if it is held
    fixed, because the constraints are ignored.
    """

    problem: BatchedProblem
    solver: Forward
    options: LinearOptions
    constrained: bool
    poison: bool

    @property
    def size(self) -> int:
        return self.problem.size

    @property
    def num_constants(self) -> int:
        return 1 + len(ActiveSet._fields) * self.problem.is_inequality_constrained + (not self.constrained)

    @property
    def num_outputs(self) -> int:
        return 1 + self.num_constants + len(Report._fields)

    @property
    def symmetric(self) -> bool:
        return self.problem.kind == "minimize"

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        y, dual, active, sound, report = self.solver.solve(self.problem, x)
        constants = (sound, *(active or ()))
        if not self.constrained:
            return (y, *constants, dual, *report)
        return (torch.cat([y, dual], dim=1) if dual.shape[1] else y, *constants, *report)

    def active(self, constants: Sequence[Tensor]) -> ActiveSet | None:
        """The active set among the constants."""
        if not self.problem.is_inequality_constrained:
            return None
        return ActiveSet(*constants[1 : 1 + len(ActiveSet._fields)])

    def held(self, constants: Sequence[Tensor]) -> optimality.Held | None:
        """The constraints that the residual takes for equations."""
        active = self.active(constants) if self.constrained else None
        return None if active is None else active.held(self.problem, self.options.weakly_active == "active")

    def residual(self, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
        """``R``, with the data of a sound item in place of those of each that is not."""
        z, constants, x = self.mend(z, constants, x)
        return self.sound_residual(z, self.given(constants), x)

    def given(self, constants: Sequence[Tensor]) -> Given:
        """What the residual is told of the constants."""
        return Given(self.held(constants), None if self.constrained else constants[-1])

    def sound_residual(self, z: Tensor, given: Given, x: Sequence[Tensor]) -> Tensor:
        """``R`` of data without items that are not sound."""
        dual = given.dual
        if dual is None:
            return optimality.residual(self.problem, z, x, given.held)
        return gradient(lambda y: optimality.lagrangian(self.problem, y, dual, x), z)

    def mend(
        self, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        """All three without the numbers of items that are not sound."""
        if self.solver.all_sound:
            return z, constants, x
        sound, *others = constants
        z, *others = (mend(tensor, sound) for tensor in (z, *others))
        return z, (torch.ones_like(sound), *others), self.problem.mend(x, sound)

    def pull_at_once(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], moving: Sequence[int]
    ) -> Sequence[Tensor]:
        """``-u . R_x`` for the tensors ``moving``, with ``K' u = v``, from one evaluation of R; it leaves no graph."""
        with private_graph():
            _, pulled = _LinearSystem(self, transpose=not self.symmetric).solve(v, z.detach(), constants, x, moving)
            return [torch.zeros_like(x[i]) if p is None else p for i, p in zip(moving, pulled, strict=True)]

    def solve_linear(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], transpose: bool
    ) -> Tensor:
        system = _LinearSystem(self, transpose and not self.symmetric)
        return ImplicitRoot.apply(system, v, z, *constants, *x)[0]

    def finish_gradient(self, grad: Tensor, i: int, constants: Sequence[Tensor]) -> Tensor:
        if not (self.poison and self.problem.batched[i]):
            return grad
        sound = constants[0].reshape(-1, *[1] * (grad.dim() - 1))
        return torch.where(sound, grad, torch.nan)

    def split(self, saved: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        first = 1 + self.num_constants
        return saved[0], saved[1:first], saved[first:]

    def fold(
        self, times: int, in_dims: Sequence[int | None], x: Sequence[Tensor]
    ) -> tuple["SolutionSystem", list[Tensor], Unfold]:
        tensors, batched, unfold = fold(times, self.size, in_dims, x, self.problem.batched)
        return dataclasses.replace(self, problem=self.problem.rebatched(times * self.size, batched)), tensors, unfold


@dataclasses.dataclass(frozen=True)
class _LinearSystem:
    """``u`` with ``K u = v`` (or ``K' u = v``) at a solution; its inputs are ``(v, z, *constants, *x)``.

    ``v`` is ``(B, s)``, or ``(B, s, k)`` for k right-hand sides. Its residual ``K u - v`` is linear in ``u``, so that
    its own linearization is ``K`` again.
    """

    base: SolutionSystem
    transpose: bool

    num_constants = 0
    num_outputs = 1

    @property
    def size(self) -> int:
        return self.base.size

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        v, z, constants, x = self._unpack(x)
        return (self.solve(v, z, constants, x)[0],)

    def solve(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], moving: Sequence[int] = ()
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """``u``, certified, and ``-u . R_x`` for the tensors ``moving`` of ``x``; None for zero."""
        base, sound = self.base, constants[0]
        v = v if base.solver.all_sound else _where_sound(sound, v)
        with timed() as file:
            rung = self._first_rung_by_kernels(v, z, constants, x, moving)
            if rung is not None and bool(rung.is_clear) and not is_recording():
                return rung.u, rung.pulled
            if rung is not None and bool(rung.is_certified.all()):
                solved = rung.as_solved()
            else:
                solved = self._solve(v, z, constants, x, moving)
            certified, pulled, operator, name, notes = solved
            active = base.active(constants)
            weak = active.weak_items(base.problem) & sound if active is not None else None
            findings = Findings(base.problem, certified, sound, active, weak, operator, v, name, notes)
            file(findings.record)
        findings.warn()
        return certified.solution, pulled

    def _solve(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], moving: Sequence[int]
    ) -> "_Solved":
        """One rung of the ladder after the other, until every item is certified."""
        x, leaves = _with_leaves(x, moving)
        # Mended now, so that K is a donor's K and not zero.
        with torch.set_grad_enabled(bool(leaves)):
            z, constants, x = self.base.mend(z, constants, x)
        given, options = self.base.given(constants), self.base.options
        believed, pullback = self.believed(self.linearize(z, given, x), z, given, x, leaves)
        certified = solve_certified(
            believed.operator,
            v,
            apply=believed.truth,
            again=believed.reread,
            linear=believed.linear,
            rtol=options.rtol,
            on_singular=options.on_singular,
            damping=options.damping,
        )
        notes = believed.review(certified)
        return _Solved(certified, pullback.of(certified.solution), believed.operator, believed.name, notes)

    def _first_rung_by_kernels(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], moving: Sequence[int]
    ) -> "_FirstRung | None":
        """The first attempt if the node is compiled and it is known which one that is; None if not.

        A direct method is one kernel, and of an iterative one each product.
        """
        base, problem, options = self.base, self.base.problem, self.base.options
        if not is_fused(problem) or not base.solver.all_sound:
            return None
        state = structure.settled(
            problem,
            z,
            declared=options.structure,
            linear=options.linear,
            symmetric=base.symmetric,
            has_bounds=base.constrained and problem.has_bounds,
        )
        if state is None:
            return None
        way = _Way(options, base.constrained, self.transpose, tuple(moving), state)
        numbers = [each.to(z.dtype) for each in constants]  # which a kernel compares faster
        if state == structure.MATRIX_FREE:
            x, leaves = _with_leaves(x, moving)
            return self.first_rung(_Products(problem, x, z, numbers, way), v, z, constants, x, leaves)
        return _first_rung(problem, x, v, z, numbers, way)

    def first_rung(
        self,
        K: "Linearization | _Products",
        v: Tensor,
        z: Tensor,
        constants: Sequence[Tensor],
        x: Sequence[Tensor],
        leaves: Sequence[Tensor],
    ) -> "_FirstRung":
        """The first attempt, of which nothing is read."""
        base = self.base
        believed, pullback = self.believed(K, z, base.given(constants), x, leaves)
        linear = get_linear(believed.linear) or choose(believed.operator)
        u, residual, is_certified = solve_once(
            believed.operator, v, apply=believed.truth, linear=linear, rtol=base.options.rtol
        )
        active, is_clear = base.active(constants), is_certified
        if active is not None:
            is_clear = is_clear & ~active.weak_items(base.problem)
        return _FirstRung(
            u,
            residual,
            is_certified,
            is_clear.all(),
            tuple(pullback.of(u)),
            name_of(linear),
            believed.name,
            believed.notes,
        )

    def linearize(self, z: Tensor, given: Given, x: Sequence[Tensor]) -> Linearization:
        """K, by its products, of data without items that are not sound."""
        return Linearization(lambda z: self.base.sound_residual(z, given, x), z, self.base.problem.work(x))

    def believed(
        self,
        K: "Linearization | _Products",
        z: Tensor,
        given: Given,
        x: Sequence[Tensor],
        leaves: Sequence[Tensor],
    ) -> tuple[structure.Believed, "_Pullback"]:
        """K as it is believed to be, and its product that pulls back to ``leaves``."""
        base, problem, held = self.base, self.base.problem, given.held
        product, transposed = (K.vjp, K.jvp) if self._by_vjp else (K.jvp, K.vjp)
        pullback = _Pullback(K, leaves)
        believed = structure.operator(
            problem,
            product,
            K.value.detach(),
            active=None if held is None else held.rows,
            free=~held.variables if held is not None and problem.has_bounds else None,
            unmasked=self._unmasked(z, x, held),
            declared=base.options.structure,
            linear=base.options.linear,
            symmetric=base.symmetric,
            rproduct=None if base.symmetric else transposed,
            witness=pullback if leaves else None,
            work=problem.work(x),
        )
        return believed, pullback

    def residual(self, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
        v, point, inner, x = self._unpack(x)

        def R(point: Tensor) -> Tensor:
            return self.base.residual(point, inner, x)

        def K(u: Tensor) -> Tensor:
            return vjp(R, (point,), u)[0] if self._by_vjp else jvp(R, (point,), (u,))

        product = K(z) if z.dim() == 2 else torch.func.vmap(K, -1, -1)(z)
        return product - _where_sound(inner[0], v)

    def solve_linear(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], transpose: bool
    ) -> Tensor:
        flipped = (self.transpose ^ transpose) and not self.base.symmetric
        return ImplicitRoot.apply(_LinearSystem(self.base, flipped), v, *x[1:])[0]

    def pull_at_once(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], moving: Sequence[int]
    ) -> None:
        return None

    def finish_gradient(self, grad: Tensor, i: int, constants: Sequence[Tensor]) -> Tensor:
        return grad

    def split(self, saved: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        return saved[0], (), saved[1:]

    def fold(
        self, times: int, in_dims: Sequence[int | None], x: Sequence[Tensor]
    ) -> tuple["_LinearSystem", list[Tensor], Unfold]:
        if in_dims[0] is not None and all(dim is None for dim in in_dims[1:]):
            # One matrix and many right-hand sides, as for a Jacobian: columns of v, and K is factored once.
            v = x[0].movedim(in_dims[0], -1)
            return self, [v.flatten(2), *x[1:]], lambda out: (out.reshape(v.shape), v.dim() - 1)
        own = 2 + self.base.num_constants
        batched = (True,) * own + self.base.problem.batched
        tensors, batched, unfold = fold(times, self.size, in_dims, x, batched)
        problem = self.base.problem.rebatched(times * self.size, batched[own:])
        return dataclasses.replace(self, base=dataclasses.replace(self.base, problem=problem)), tensors, unfold

    @property
    def _by_vjp(self) -> bool:
        # The cheaper product: one reverse pass where a forward one costs two.
        return self.base.symmetric or self.transpose

    def _unmasked(
        self, z: Tensor, x: Sequence[Tensor], held: optimality.Held | None
    ) -> Callable[[], structure.Product] | None:
        """Makes the product with a K that does not depend on what is active, for its structure."""
        base, m = self.base, self.base.problem.m
        if not base.constrained or (held is None and z.shape[1] == m):
            return None

        return lambda: structure.unmasked(base.problem, z, x)

    def _unpack(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]]:
        v, *saved = x
        return (v, *self.base.split(saved))


class _Solved(NamedTuple):
    """A linear solve, and what there is to say of it."""

    certified: Certified
    pulled: Sequence[Tensor | None]
    operator: Operator | None
    name: str
    notes: tuple[str, ...]


class _FirstRung(NamedTuple):
    """``u``, its residual, which items are certified, ``-u . R_x``, and in words how and with what.

    ``is_clear`` says whether all are and none has a weakly active constraint, so that there is nothing to tell.
    """

    u: Tensor
    residual: Tensor
    is_certified: Tensor
    is_clear: Tensor
    pulled: tuple[Tensor | None, ...]
    method: str
    name: str
    notes: tuple[str, ...]

    def as_solved(self) -> _Solved:
        """The end of the ladder, if every item is certified."""
        no, none = ~self.is_certified, torch.zeros_like(self.is_certified, dtype=torch.int64)
        method = (self.method,) * len(no)
        certified = Certified(self.u, self.residual, self.is_certified, no, no, method, none)
        return _Solved(certified, self.pulled, None, self.name, self.notes)


@dataclasses.dataclass(frozen=True)
class _Way:
    """How a system is solved, and for what: it chooses the kernel. ``state`` is that of a belief which has settled."""

    options: LinearOptions
    constrained: bool
    transpose: bool
    moving: tuple[int, ...]
    state: Hashable

    def system(self, problem: BatchedProblem) -> _LinearSystem:
        """The system, of items that are sound."""
        forward = cast("Forward", SimpleNamespace(all_sound=True))
        base = SolutionSystem(problem, forward, self.options, self.constrained, poison=False)
        return _LinearSystem(base, self.transpose)


@fused
def _first_rung(
    problem: BatchedProblem, x: Sequence[Tensor], v: Tensor, z: Tensor, constants: Sequence[Tensor], way: _Way
) -> _FirstRung:
    """The first rung of sound items with a direct method."""
    system, (x, leaves) = way.system(problem), _with_leaves(x, way.moving)
    K = system.linearize(z, system.base.given(constants), x)
    return system.first_rung(K, v, z, constants, x, leaves)


@fused
def _product(
    problem: BatchedProblem,
    x: Sequence[Tensor],
    u: Tensor,
    z: Tensor,
    constants: Sequence[Tensor],
    way: _Way,
    forward: bool,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """``K u`` if ``forward``, else ``u K`` and ``u . R_x`` for what moves, of sound items."""
    system, (x, leaves) = way.system(problem), _with_leaves(x, way.moving)
    K = system.linearize(z, system.base.given(constants), x)
    if forward:
        return K.jvp(u), ()
    product, pulled = K.vjp_and(u, leaves)
    return product, tuple(pulled)


def _with_leaves(x: Sequence[Tensor], moving: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs, and those of them to pull back to."""
    inputs = list(x)
    for i in moving:
        inputs[i] = x[i].detach().requires_grad_()
    return inputs, [inputs[i] for i in moving]


class _Products:
    """What :class:`Linearization` is, one kernel for each product."""

    def __init__(
        self, problem: BatchedProblem, x: Sequence[Tensor], z: Tensor, constants: Sequence[Tensor], way: _Way
    ) -> None:
        self.value = z
        self._problem, self._x, self._point, self._way = problem, x, (z, constants), way
        self._alone = dataclasses.replace(way, moving=())

    def vjp(self, v: Tensor) -> Tensor:
        """``v K``."""
        return _product(self._problem, self._x, v, *self._point, self._alone, False)[0]

    def vjp_and(self, v: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor | None]]:
        """``v K``, and what is pulled back to ``others``, those inputs for which this was made."""
        return _product(self._problem, self._x, v, *self._point, self._way, False)

    def jvp(self, t: Tensor) -> Tensor:
        """``K t``."""
        return _product(self._problem, self._x, t, *self._point, self._alone, True)[0]


class _Pullback:
    """``u K`` for the certificate, which keeps ``u . R_x`` from the same pass: the last one is for the solution."""

    def __init__(self, K: Linearization | _Products, leaves: Sequence[Tensor]) -> None:
        self._K, self._leaves = K, leaves
        self._u: Tensor | None = None
        self._pulled: Sequence[Tensor | None] = ()

    def __call__(self, u: Tensor) -> Tensor:
        product, self._pulled = self._K.vjp_and(u, self._leaves)
        self._u = u
        return product

    def of(self, u: Tensor) -> Sequence[Tensor | None]:
        """``-u . R_x`` for each leaf, None for zero."""
        if self._leaves and self._u is not u:
            self(u)
        return [None if pulled is None else -pulled for pulled in self._pulled]


def _where_sound(sound: Tensor, v: Tensor) -> Tensor:
    """``v`` with zeros for the items that are not sound."""
    return torch.where(sound.reshape(-1, *[1] * (v.dim() - 1)), v, 0.0)
