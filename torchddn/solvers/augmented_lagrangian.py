r"""The augmented Lagrangian method, first-order inside: equality constraints and many variables.

Solves, for each item::

    y = argmin_y f(y)   subject to   h(y) = 0

by minimizing, with :class:`LBFGS`, ::

    Phi(y) = f(y) + nu.h(y) + 1/2 sum_i rho_i h_i(y)^2

until its gradient is small compared with ``|h|``; then ``nu <- nu + rho h``, and ``rho`` grows if ``|h|`` did not
shrink to a quarter. Each step is one evaluation of ``Phi``, and each item is in its own round.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.derivatives import jacobian, vjp
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
    nu: Tensor  # (B, p)
    rho: Tensor  # (B, p)
    row_scale: Tensor  # (B, p): length of each row of h_y at the start
    violation: Tensor  # (B,): |h| at the end of the last round, as a length in y
    growth: Tensor  # (B,): by how much rho has grown
    curvature: Tensor  # (B,): of the objective at the start
    verdict: Tensor  # (B,): Status or RUNNING


@dataclasses.dataclass(frozen=True)
class AugmentedLagrangian:
    r"""``y = argmin_y f(y)`` subject to ``h(y) = 0`` by the method of multipliers.

    Needs products with derivatives only (and ``h_y`` once, for its scale): for more variables than :class:`SQP` can
    factor. Linear convergence of the rounds, hundreds of steps; a first-order method, it does not tell a minimum
    from a saddle. Cost O(history m) per item and step beside two gradients. When it is unrolled, the derivative is
    that of the steps until convergence, a few digits less accurate than the answer.

    Args:
        history: Memory of the inner :class:`LBFGS`.
        rtol: Converged when the gradient of the Lagrangian and the violation, both as lengths in ``y``, are at most
            ``rtol`` times the largest entry of ``y`` so far; None for a value fitting the dtype.
        atol: Added to that, in units of ``y``.
        max_steps: Most steps, each one evaluation of ``Phi``, for an item.

    Status:
        INFEASIBLE: The largest penalty does not bring ``h`` to zero.
        UNBOUNDED: ``Phi`` falls without limit under the largest penalty.
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
        check_suits(self, problem, kinds=("minimize",), constrained=True)

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> AugmentedLagrangianState:
        h = problem.equality(y, x).detach()
        h_y = jacobian(lambda y: problem.equality(y, x), y, problem.work(x)).detach()
        row_scale = length(h_y)
        row_scale = torch.where(row_scale > 0, row_scale, 1.0)
        objective = minimize_init(self._inner(), lambda y: problem.objective(y, x), y)
        distance = torch.maximum(length(y), length(h / row_scale))
        distance = torch.where(distance > 0, distance, 1.0)
        # A penalty as curved as the objective; where that is linear, as would change it over a typical length.
        curvature = torch.maximum(objective.bend, objective.steepness / distance)
        curvature = torch.where(curvature > 0, curvature, 1.0)
        nu, rho = torch.zeros_like(h), 10 * curvature[:, None] / row_scale.square()
        infinite = torch.full_like(distance, torch.inf)
        return AugmentedLagrangianState(
            inner=minimize_init(self._inner(), _augmented(problem, x, nu, rho), y),
            nu=nu,
            rho=rho,
            row_scale=row_scale,
            violation=infinite,
            growth=torch.ones_like(distance),
            curvature=curvature,
            verdict=torch.full_like(distance, RUNNING, dtype=torch.int64),
        )

    def step(self, problem: BatchedProblem, x: Inputs, state: AugmentedLagrangianState) -> AugmentedLagrangianState:
        inner = minimize_step(self._inner(), _augmented(problem, x, state.nu, state.rho), state.inner)
        eps = torch.finfo(inner.y.dtype).eps
        h = problem.equality(inner.y, x)
        violation = largest(h / state.row_scale)
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

        nu = torch.where((over & ~unbounded)[:, None], state.nu + state.rho * h, state.nu)
        rho = torch.where(grows[:, None], _GROWTH * state.rho, state.rho)
        optimal = flat & (violation <= tolerance)
        as_good = failed & (error <= eps**0.5 * reference) & (violation <= 100 * tolerance)
        verdict = torch.full_like(state.verdict, RUNNING)
        for holds, status in (
            (failed & ~unbounded & ~grows & (violation <= tolerance), Status.STALLED),
            (exhausted, Status.STALLED),
            (exhausted & (violation > eps**0.4 * reference), Status.INFEASIBLE),
            (exhausted & unbounded, Status.UNBOUNDED),
            (optimal | as_good, Status.CONVERGED),
        ):
            verdict = torch.where(holds, int(status), verdict)
        state_next = AugmentedLagrangianState(
            inner=self._next_round(problem, x, inner, h, state, nu, rho, over),
            nu=nu,
            rho=rho,
            row_scale=state.row_scale,
            violation=torch.where(over & ~unbounded, violation, state.violation),
            growth=torch.where(grows, _GROWTH * state.growth, state.growth),
            curvature=state.curvature,
            verdict=verdict,
        )
        # A round that begins at the solution has nothing to go by but rounding, which the derivative would amplify.
        return freeze(state.verdict == RUNNING, state_next, state)

    def status(self, problem: BatchedProblem, x: Inputs, state: AugmentedLagrangianState) -> Tensor:
        inner = state.inner
        finite = (inner.f + inner.y.sum(-1) + inner.f_y.sum(-1)).isfinite()
        return torch.where(finite, state.verdict, int(Status.NON_FINITE))

    def finish(self, problem: BatchedProblem, x: Inputs, state: AugmentedLagrangianState) -> tuple[Tensor, Tensor]:
        return state.inner.y, state.nu

    def _inner(self) -> LBFGS:
        return LBFGS(self.history, rtol=0.0)

    def _next_round(
        self,
        problem: BatchedProblem,
        x: Inputs,
        inner: LBFGSState,
        h: Tensor,
        state: AugmentedLagrangianState,
        nu: Tensor,
        rho: Tensor,
        over: Tensor,
    ) -> LBFGSState:
        """The inner state for the changed ``Phi``, without another evaluation of ``f``."""
        more_nu, more_rho = nu - state.nu, rho - state.rho
        f = inner.f + (more_nu * h + 0.5 * more_rho * h.square()).sum(-1).detach()
        (change,) = vjp(lambda y: problem.equality(y, x), (inner.y,), more_nu + more_rho * h)
        return minimize_restart(self._inner(), inner, f, inner.f_y + change, over)


def _augmented(problem: BatchedProblem, x: Inputs, nu: Tensor, rho: Tensor) -> Callable[[Tensor], Tensor]:
    def Phi(y: Tensor) -> Tensor:
        h = problem.equality(y, x)
        return problem.objective(y, x) + (nu * h + 0.5 * rho * h.square()).sum(-1)

    return Phi
