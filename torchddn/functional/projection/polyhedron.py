r"""Euclidean projection onto a polyhedron.

Solves, for each item::

    y = argmin_y  1/2 |y - x|^2   subject to   A y = b,   G y <= h,   lower <= y <= upper

a quadratic program with the identity for Q. Without limits and with no more rows than variables, E of A and G stacked,
d of b and h, that is a program of the multipliers, one number for each row::

    z = argmin_z  1/2 |E'z|^2 - z.(E x - d)   subject to   z_i >= 0 for the rows of G,     y = x - E'z

whose matrices have the size of the rows. A row whose multiplier is zero and held there does not count in the
derivative; one that holds with a multiplier of zero is weakly active in both programs, on the other side of each.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from torchddn.diagnostics import timed
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_choice, check_flag, check_floating
from torchddn.functional.nodes.outcome import conclude, solution_of
from torchddn.functional.programs.data import ProgramData, check_given, check_limits
from torchddn.functional.programs.node import (
    INFEASIBLE_POLICIES,
    SIDES,
    ProgramNode,
    ProgramOptions,
    cannot_read,
    run,
)
from torchddn.functional.programs.point import QuadraticPoint
from torchddn.functional.programs.solver import QuadraticSolver
from torchddn.quadratic.backends import OWN
from torchddn.solvers.vectors import times
from torchddn.status import Solution, Status, check_failure_policy

__all__ = ["project_polyhedron"]


@overload
def project_polyhedron(
    x: Tensor,
    G: Tensor | None = ...,
    h: Tensor | None = ...,
    A: Tensor | None = ...,
    b: Tensor | None = ...,
    lower: Tensor | float | None = ...,
    upper: Tensor | float | None = ...,
    *,
    weakly_active: str = ...,
    infeasible: str = ...,
    max_steps: int = ...,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def project_polyhedron(
    x: Tensor,
    G: Tensor | None = ...,
    h: Tensor | None = ...,
    A: Tensor | None = ...,
    b: Tensor | None = ...,
    lower: Tensor | float | None = ...,
    upper: Tensor | float | None = ...,
    *,
    weakly_active: str = ...,
    infeasible: str = ...,
    max_steps: int = ...,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def project_polyhedron(
    x: Tensor,
    G: Tensor | None = None,
    h: Tensor | None = None,
    A: Tensor | None = None,
    b: Tensor | None = None,
    lower: Tensor | float | None = None,
    upper: Tensor | float | None = None,
    *,
    weakly_active: str = "active",
    infeasible: str = "warn",
    max_steps: int = 60,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the point of a polyhedron nearest to each vector of ``x``.

    y = argmin_y 1/2 |y - x|^2 subject to ``A y = b, G y <= h, lower <= y <= upper``, by the method of
    :func:`quadratic_program`, exact. Without limits and with no more rows than variables a step costs a Cholesky factor
    of the size of the rows, else of that of the variables.

    Every argument may have the batch axes or not; one that has not belongs to all items, and its gradient is the sum
    over them. Rows may depend on each other.

    Args:
        x: Points, ``(*B, m)``.
        G: ``(*B, q, m)``; with ``h``.
        h: ``(*B, q)``; infinite where a row does not count.
        A: ``(*B, p, m)``; with ``b``.
        b: ``(*B, p)``.
        lower: ``(*B, m)`` or a number; minus infinity where there is none.
        upper: ``(*B, m)`` or a number; infinity where there is none.
        weakly_active: Whether a row that holds with equality and has multiplier zero counts as ``"active"`` or
            ``"inactive"`` in the derivative, which is one-sided there.
        infeasible: What an item whose rows contradict each other gets: as of :func:`quadratic_program`. ``"closest"``
            is the point nearest to x among those that violate the rows least, in the sense of least squares.
        max_steps: Most steps for an item.
        on_failure: What to do about other items that fail: ``"warn"``, ``"raise"``, ``"nan"`` or ``"ignore"``.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``, with differentiable multipliers.

    Returns:
        ``y``, ``(*B, m)``, of the dtype of ``x`` (half precision computes in float32).

    Raises:
        InvalidInputError: If an argument is wrong, or ``lower`` exceeds ``upper``.
        InfeasibleError: If an item is infeasible and ``infeasible="raise"``.
        SolveError: If an item fails otherwise and ``on_failure="raise"``.

    Status:
        INFEASIBLE: There is a proof that no y satisfies the rows. See ``infeasible``.
        MAX_STEPS, STALLED: Neither a solution nor a proof; check the scales of the data, or use float64.
        NON_FINITE: The item contains NaN, or infinity where it means nothing. The answer is NaN, its gradient zero.

    Gradients:
        Exact in every argument, of every order and in every mode. The answer is unique, and so is its gradient, also
        where rows depend on each other; that of multipliers is then the one of minimum norm, with a
        DegenerateGradientWarning. Where a row is active with multiplier zero one-sided, see ``weakly_active``.

    Example:
        >>> G, h = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([1.0, 1.0])
        >>> project_polyhedron(torch.tensor([[2.0, 2.0], [0.5, 2.0]]), G, h)
        tensor([[ 0.5000,  0.5000],
                [-0.2500,  1.2500]])

    References:
        Gould, Hartley, Campbell, Deep Declarative Networks, proposition 4.6, for active rows.
    """
    call = "project_polyhedron"
    check_choice(call, "weakly_active", weakly_active, SIDES)
    check_choice(call, "infeasible", infeasible, INFEASIBLE_POLICIES)
    check_flag(call, "solution", solution)
    check_failure_policy(call, on_failure)
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise InvalidInputError(f"`{call}(max_steps=...)` must be a positive integer, got {max_steps!r}.")
    given = {"A": A, "b": b, "G": G, "h": h, "lower": lower, "upper": upper}
    tensors = _checked(call, x, given)
    options = ProgramOptions(0.0, weakly_active == "active", OWN, infeasible, False, max_steps, on_failure, solution)
    num_rows = sum(tensors[name].shape[-1] for name in ("b", "h") if name in tensors)
    if 0 < num_rows <= x.shape[-1] and lower is None and upper is None:
        return _by_multipliers(call, x.dtype, tensors, options)
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    found = run(call, {"Q": eye, "q": -x, **given}, options)
    if isinstance(found, Solution):
        return dataclasses.replace(found, objective=found.objective + 0.5 * x.detach().square().sum(dim=-1))
    return found


def _checked(call: str, x: Tensor, given: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that are there, in the dtype to compute in, if their sizes fit together; x as ``q``."""
    check_floating(call, "x", x, "(*B, m)", 1)
    if x.shape[-1] == 0:
        raise InvalidInputError(f"`{call}(x=...)` must have coordinates, got shape {tuple(x.shape)}.")
    try:
        tensors = check_given(call, {"q": x, **given})
    except InvalidInputError as error:
        raise InvalidInputError(str(error).replace("`q`", "`x`").replace(".to(q)", ".to(x)")) from None
    if "lower" in tensors and "upper" in tensors:
        check_limits(call, *(t.unsqueeze(0) for t in torch.broadcast_tensors(tensors["lower"], tensors["upper"])))
    return tensors


class _Rows(NamedTuple):
    """Points and rows, flat, ``(R, ...)``, zero where they are not finite."""

    x: Tensor  # (R, m)
    E: Tensor  # (R, r, m)
    d: Tensor  # (R, r)
    gram: Tensor  # (R, r, r): E E'
    counts: Tensor  # (R, r): rows that do
    sound: Tensor  # (R,): items that are finite
    p: int  # how many rows are equalities

    @classmethod
    def of(cls, tensors: dict[str, Tensor], batch: torch.Size) -> "_Rows":
        """What was given; an infinite h stands for a row that does not count."""
        x, R = tensors["q"], batch.numel()
        E, d = (_stacked([tensors[name] for name in names if name in tensors], axes) for names, axes in _STACKS)
        r, m = E.shape[-2:]
        finite_E = E.isfinite().flatten(-2).all(dim=-1)
        x, d = x.expand(*batch, m).reshape(R, m), d.expand(*batch, r).reshape(R, r)
        counts = d != torch.inf
        sound = x.isfinite().all(dim=1) & (d.isfinite() | ~counts).all(dim=1) & finite_E.expand(batch).reshape(R)
        x, d, E = (torch.where(t.isfinite(), t, 0) for t in (x, d, E))
        # Of rows that all items share the products are taken once.
        gram = (E @ E.mT).expand(*batch, r, r).reshape(R, r, r)
        p = tensors["b"].shape[-1] if "b" in tensors else 0
        return cls(x, E.expand(*batch, r, m).reshape(R, r, m), d, gram, counts, sound, p)

    def of_multipliers(self) -> ProgramData:
        """The program of z; those of rows that do not count are zero."""
        x, E, d, gram, counts, _, p = self
        both = counts.unsqueeze(2) & counts.unsqueeze(1)
        Q = torch.where(both, gram, torch.diag_embed((~counts).to(gram.dtype)))
        q = torch.where(counts, d - times(E, x), 0)
        lower = torch.zeros_like(q)
        lower[:, :p] = -torch.inf
        return ProgramData(Q, q, Q[:, :0], q[:, :0], lower, torch.full_like(q, torch.inf))

    def of_points(self) -> ProgramData:
        """The program of y."""
        m, limit = self.x.shape[1], torch.full_like(self.x, torch.inf)
        eye = torch.eye(m, dtype=self.x.dtype, device=self.x.device).expand(len(self.x), m, m)
        return ProgramData(eye, -self.x, self.E, torch.where(self.counts, self.d, torch.inf), -limit, limit)


_STACKS = ((("A", "G"), 2), (("b", "h"), 1))


def _stacked(parts: list[Tensor], axes: int) -> Tensor:
    """One below the other, with the batch axes of both."""
    batch = torch.broadcast_shapes(*(part.shape[:-axes] for part in parts))
    return torch.cat([part.expand(*batch, *part.shape[-axes:]) for part in parts], dim=-axes)


def _by_multipliers(
    call: str, dtype: torch.dtype, tensors: dict[str, Tensor], options: ProgramOptions
) -> Tensor | Solution:
    batch = torch.broadcast_shapes(*(t.shape[: -2 if name in "AG" else -1] for name, t in tensors.items()))
    rows, max_steps, name = _Rows.of(tensors, batch), options.max_steps, "PrimalDual of multipliers"
    (r, m), sound = rows.E.shape[1:], rows.sound
    node = ProgramNode(call, QuadraticSolver(0, True, max_steps, OWN), QuadraticPoint(call), not options.holds_weak)
    with timed() as file:
        found = node.solve(rows.of_multipliers())
        z = torch.where(rows.counts, found.z, 0)
        y = rows.x - times(rows.E.mT, z)
        # Without a bound, the multipliers are the proof that no y satisfies the rows.
        status = torch.where(found.status == int(Status.UNBOUNDED), int(Status.INFEASIBLE), found.status)
        status = failed = torch.where(sound, status, int(Status.NON_FINITE))
        lost, whole = status == int(Status.INFEASIBLE), torch.cat([y, z], dim=1)
        if cannot_read():
            whole = torch.where(lost.unsqueeze(1), torch.nan, whole)
        elif bool(lost.any()):
            of_points = QuadraticSolver(rows.p, False, max_steps, OWN)
            other = ProgramNode(call, of_points, QuadraticPoint(call), options.holds_weak)
            whole = other.settle(rows.of_points(), whole, lost, options.infeasible)
            failed = torch.where(lost, int(Status.CONVERGED), status)
        whole = torch.where(sound.unsqueeze(1), whole, torch.nan)
        num_steps, error = found.num_steps, found.error
        whole = conclude(call, whole, failed, error, options.on_failure, num_steps=num_steps, solver=name, file=file)
    y, z = whole.split((m, r), dim=1)
    if not options.solution:
        return y.reshape(*batch, m).to(dtype)
    plain, slack = y.detach(), (times(rows.E, y) - rows.d).detach() * rows.counts
    violation = torch.cat([slack[:, : rows.p].abs(), slack[:, rows.p :].clamp(min=0)], dim=1)
    fields = {
        "objective": (plain - rows.x.detach()).square().sum(dim=1) / 2,
        "status": status,
        "num_steps": num_steps,
        "stationarity": (plain - rows.x + times(rows.E.mT, z)).detach().abs().amax(dim=1),
        "feasibility": violation.amax(dim=1),
        "complementarity": (z.detach() * slack)[:, rows.p :].abs().sum(dim=1),
        "equality_multipliers": z[:, : rows.p].to(dtype),
        "inequality_multipliers": z[:, rows.p :].to(dtype),
    }
    shaped = {field: value.reshape(batch + value.shape[1:]) for field, value in fields.items()}
    return solution_of(y.reshape(*batch, m).to(dtype), solver=name, **shaped)
