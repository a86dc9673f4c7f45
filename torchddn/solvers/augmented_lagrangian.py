r"""The augmented Lagrangian method, first-order inside: constraints and many variables.

Solves, for each item::

    y = argmin_y f(y)   subject to   h(y) = 0,   g(y) <= 0,   lower <= y <= upper

With ``c = (h, g, lower - y, y - upper)``, multipliers ``nu`` and weights ``rho`` of these rows, the *error* of a row
is ``e = c`` for an equality and ``e = max(c, -nu / rho)`` for an inequality: its violation or, where it is slack, what
is left of its multiplier. The method minimizes, with :class:`LBFGS`, ::

    Phi(y) = f(y) + sum_i nu_i e_i(y) + 1/2 sum_i rho_i e_i(y)^2

until its gradient is small compared with ``|e|``; then ``nu <- nu + rho e``, which keeps multipliers of inequalities
from becoming negative, and ``rho`` grows if ``|e|`` did not shrink to a quarter. Each step is one evaluation of
``Phi``, and each item is in its own round. Bounds are rows whose gradients nobody forms.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.derivatives import vjp
from torchddn.optimality import row_lengths
from torchddn.problem import BatchedProblem
from torchddn.solvers.base import RUNNING, Inputs, freeze
from torchddn.solvers.descent import LBFGS, LBFGSState, minimize_init, minimize_restart, minimize_step
from torchddn.solvers.options import check_count, check_suits, check_termination, default_rtol
from torchddn.solvers.vectors import largest, length
from torchddn.status import Status

__all__ = ["AugmentedLagrangian"]

_GROWTH = 8.0
_MOST_GROWTH = _GROWTH**8


class AugmentedLagrangianState(NamedTuple):
    """The inner minimization of ``Phi``, and what its round is about."""

    inner: LBFGSState
    nu: Tensor  # (B, r): of h, g and, if there are any, both bounds
    rho: Tensor  # (B, r)
    row_scale: Tensor  # (B, r): length of each row's gradient at the start
    violation: Tensor  # (B,): |e| at the end of the last round, as a length in y
    growth: Tensor  # (B,): by how much rho has grown
    curvature: Tensor  # (B,): of the objective at the start
    unit: Tensor  # (B,): of the objective, what it typically changes by
    verdict: Tensor  # (B,): Status or RUNNING


@dataclasses.dataclass(frozen=True)
class AugmentedLagrangian:
    r"""``y = argmin_y f(y)`` subject to constraints of every kind by the method of multipliers.

    Needs products with derivatives only: for more variables than :class:`SQP` or :class:`InteriorPoint` can factor.
    Linear convergence of the rounds, hundreds of steps; a first-order method, it does not tell a minimum from a
    saddle. Bounds hold in the answer, yet are left a little on the way, where the objective must be defined too. Cost
    O(history m) per item and step beside two gradients. When it is unrolled, the derivative is that of the steps
    until convergence, a few digits less accurate than the answer.

    Args:
        history: Memory of the inner :class:`LBFGS`.
        rtol: Converged when the gradient of the Lagrangian and the violation, both as lengths in ``y``, are at most
            ``rtol`` times the largest entry of ``y`` so far; None for a value fitting the dtype.
        atol: Added to that, in units of ``y``.
        max_steps: Most steps, each one evaluation of ``Phi``, for an item.

    Status:
        INFEASIBLE: The largest penalty does not bring the constraints to hold, or the bounds leave nothing between.
        UNBOUNDED: ``Phi`` falls without limit under the largest penalty, or while the constraints hold.
        STALLED: Rounding stops progress before the tolerance is met.
        MAX_STEPS: Raise ``max_steps``, or use ``SQP``.

    References:
        Nocedal, Wright, Numerical Optimization, 2nd edition, algorithm 17.3. Birgin, Martinez, Practical Augmented
        Lagrangian Methods for Constrained Optimization, 2014.
    """

    history: int = 10
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 5000

    def __post_init__(self) -> None:
        check_termination(self)
        check_count(self, "history", self.history, least=0)

    def check(self, problem: BatchedProblem) -> None:
        check_suits(self, problem, kinds=("minimize",), equality=True, inequality=True, bounds=True)

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> AugmentedLagrangianState:
        lower, upper = problem.bounds(x)
        crossed = (lower > upper).any(-1)
        y = torch.minimum(torch.maximum(y, lower), upper) if problem.has_bounds else y
        c = _rows(problem, x, y).detach()
        lengths = row_lengths(problem, y, x).detach()
        row_scale = torch.cat([lengths, torch.ones_like(c[:, lengths.shape[1] :])], dim=1)
        row_scale = torch.where(row_scale > 0, row_scale, 1.0)
        objective = minimize_init(self._inner(), lambda y: problem.objective(y, x), y)
        distance = torch.maximum(
            length(y), length(_error(problem, c, torch.zeros_like(c), torch.ones_like(c)) / row_scale)
        )
        distance = torch.where(distance > 0, distance, 1.0)
        # A penalty as curved as the objective; where that is linear, as would change it over a typical length.
        curvature = torch.maximum(objective.bend, objective.steepness / distance)
        curvature = torch.where(curvature > 0, curvature, 1.0)
        unit = curvature * distance.square()
        nu, rho = torch.zeros_like(c), 10 * curvature[:, None] / row_scale.square()
        infinite = torch.full_like(distance, torch.inf)
        return AugmentedLagrangianState(
            inner=minimize_init(self._inner(), _augmented(problem, x, nu, rho, unit), y),
            nu=nu,
            rho=rho,
            row_scale=row_scale,
            violation=infinite,
            growth=torch.ones_like(distance),
            curvature=curvature,
            unit=unit,
            verdict=torch.where(crossed, int(Status.INFEASIBLE), RUNNING),
        )

    def step(self, problem: BatchedProblem, x: Inputs, state: AugmentedLagrangianState) -> AugmentedLagrangianState:
        inner = minimize_step(self._inner(), _augmented(problem, x, state.nu, state.rho, state.unit), state.inner)
        eps = torch.finfo(inner.y.dtype).eps
        c = _rows(problem, x, inner.y)
        e = _error(problem, c, state.nu, state.rho)
        violation = largest(e / state.row_scale)
        error = largest(inner.f_y) / state.curvature
        reference = inner.scale
        rtol = default_rtol(inner.y.dtype) if self.rtol is None else self.rtol
        tolerance = rtol * reference + self.atol

        failed, unbounded = inner.verdict != RUNNING, inner.verdict == Status.UNBOUNDED
        flat = (error <= tolerance) | (largest(inner.f_y) <= 16 * eps * inner.bend * inner.scale)
        over = failed | flat | (error <= 0.1 * violation)
        shrunk = violation <= 0.25 * state.violation
        grows = over & (unbounded | ~shrunk) & (violation > tolerance)
        grows = grows & (state.growth < _MOST_GROWTH)
        exhausted = over & (unbounded | ~shrunk) & (state.growth >= _MOST_GROWTH)

        nu = torch.where((over & ~unbounded)[:, None], state.nu + state.rho * e, state.nu)
        rho = torch.where(grows[:, None], _GROWTH * state.rho, state.rho)
        optimal = flat & (violation <= tolerance)
        broken = largest(torch.where(e > c, 0.0, e) / state.row_scale) > eps**0.4 * reference
        as_good = failed & (error <= eps**0.5 * reference) & (violation <= 100 * tolerance)
        verdict = torch.full_like(state.verdict, RUNNING)
        for holds, status in (
            (failed & ~unbounded & ~grows & (violation <= tolerance), Status.STALLED),
            (exhausted, Status.STALLED),
            (exhausted & broken, Status.INFEASIBLE),
            (unbounded & (exhausted | (violation <= tolerance)), Status.UNBOUNDED),
            (optimal | as_good, Status.CONVERGED),
        ):
            verdict = torch.where(holds, int(status), verdict)
        state_next = AugmentedLagrangianState(
            inner=self._next_round(problem, x, inner, c, state, nu, rho, over),
            nu=nu,
            rho=rho,
            row_scale=state.row_scale,
            violation=torch.where(over & ~unbounded, violation, state.violation),
            growth=torch.where(grows, _GROWTH * state.growth, state.growth),
            curvature=state.curvature,
            unit=state.unit,
            verdict=verdict,
        )
        # A round that begins at the solution has nothing to go by but rounding, which the derivative would amplify.
        return freeze(state.verdict == RUNNING, state_next, state)

    def status(self, problem: BatchedProblem, x: Inputs, state: AugmentedLagrangianState) -> Tensor:
        inner = state.inner
        finite = (inner.f + inner.y.sum(-1) + inner.f_y.sum(-1)).isfinite()
        return torch.where(finite, state.verdict, int(Status.NON_FINITE))

    def finish(self, problem: BatchedProblem, x: Inputs, state: AugmentedLagrangianState) -> tuple[Tensor, Tensor]:
        y = state.inner.y
        if problem.has_bounds:
            lower, upper = problem.bounds(x)
            y = torch.minimum(torch.maximum(y, lower), upper)
        return y, state.nu[:, : problem.p + problem.q]

    def _inner(self) -> LBFGS:
        return LBFGS(self.history, rtol=0.0)

    def _next_round(
        self,
        problem: BatchedProblem,
        x: Inputs,
        inner: LBFGSState,
        c: Tensor,
        state: AugmentedLagrangianState,
        nu: Tensor,
        rho: Tensor,
        over: Tensor,
    ) -> LBFGSState:
        """The inner state for the changed ``Phi``, without another evaluation of ``f``."""
        old, new = (_error(problem, c, *weights) for weights in ((state.nu, state.rho), (nu, rho)))
        more = _penalty(new, nu, rho) - _penalty(old, state.nu, state.rho)
        more_force = (nu + rho * new) - (state.nu + state.rho * old)
        (change,) = vjp(lambda y: _rows(problem, x, y), (inner.y,), more_force)
        return minimize_restart(self._inner(), inner, inner.f + more.detach(), inner.f_y + change, over)


def _augmented(problem: BatchedProblem, x: Inputs, nu: Tensor, rho: Tensor, unit: Tensor) -> Callable[[Tensor], Tensor]:
    def Phi(y: Tensor) -> Tensor:
        e = _error(problem, _rows(problem, x, y), nu, rho)
        # The line search takes rounding to be in proportion to the value, which may be small by cancellation. With one
        # more unit it is not.
        return unit + problem.objective(y, x) + _penalty(e, nu, rho)

    return Phi


def _rows(problem: BatchedProblem, x: Inputs, y: Tensor) -> Tensor:
    """``c``, ``(B, r)``."""
    c = problem.constraints(y, x)
    if not problem.has_bounds:
        return c
    lower, upper = problem.bounds(x)
    return torch.cat([c, lower - y, y - upper], dim=1)


def _error(problem: BatchedProblem, c: Tensor, nu: Tensor, rho: Tensor) -> Tensor:
    """``e``: ``c``, but no more slack than the multiplier is worth."""
    if not problem.is_inequality_constrained:
        return c
    return torch.cat([c[:, : problem.p], torch.maximum(c, -nu / rho)[:, problem.p :]], dim=1)


def _penalty(e: Tensor, nu: Tensor, rho: Tensor) -> Tensor:
    return (nu * e + 0.5 * rho * e.square()).sum(-1)
