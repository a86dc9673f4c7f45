r"""Newton's method for minimization, with or without equality constraints.

Solves, for each item::

    y = argmin_y f(y)   subject to   h(y) = 0            L = f + nu.h

Each step takes the Newton step of the optimality conditions ``L_y = 0, h = 0``, with the multipliers ``nu`` that fit
``L_y = 0`` best, ::

    [ K     A^T    ] [ d   ]     [ L_y + rho A^T h ]      K = L_yy + rho A^T A + tau I
    [ A   -delta I ] [ dnu ] = - [ h               ]      A = h_y

whose solution does not depend on ``rho`` (but for ``delta``), because ``rho A^T (A d + h) = 0``. The constraints'
own scale is taken out first: rows of ``A`` have length one, so that ``h`` is a distance in ``y``. ``delta`` is tiny
and makes redundant rows harmless.

A minimum needs curvature: ``L_yy`` positive definite along the constraints, which it is exactly if ``K`` is positive
definite for a large ``rho``. So a Cholesky factorization is all that is needed to solve and to decide. Of a short
list of pairs ``(tau, rho)``, each item takes the first whose factorization succeeds: ``tau = 0``, which is pure
Newton; ``tau`` at rounding level, for a singular Hessian; a ``tau`` carried from step to step, for an indefinite
one; and a bound on all eigenvalues. Where the Hessian is indefinite, inverse iteration with the same factor finds
the direction ``w`` of least curvature along the constraints. Near a saddle or a maximum, where ``d`` vanishes, the
step follows ``w``: what is returned is a minimum.

The step is shortened until the merit ``f + sigma.|h|`` falls as predicted. A correction by the same factor, ``c``
with ``A c = h + h_y d - h(y + d)``, brings the trial point back to the curved constraint first, so that this merit
does not reject good steps (the Maratos effect) and a step along ``w`` can be seen to descend. Below the level where
rounding decides about the merit, the optimality residual decides instead. Where the gradients of the constraints
become dependent before the constraints hold, steps get short and the objective is forgotten for a while: a
Levenberg-Marquardt method for ``|h|^2`` either finds a way on or shows that there is none.

Everything is judged relative to the problem's own scales: multiplying ``f`` or a row of ``h`` by a constant, or
``y`` and the start by one, changes neither steps nor status.

References:
    Nocedal, Wright, Numerical Optimization, 2nd edition, algorithms 18.3 and 3.3, section 18.3 (second-order
    correction) and theorem 16.3 (inertia). Gill, Robinson, A primal-dual augmented Lagrangian, 2012 (``delta``).
"""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchddn.derivatives import gradient, jacobian, value_and_gradient
from torchddn.problem import BatchedProblem
from torchddn.solvers.base import RUNNING, Inputs, is_differentiated
from torchddn.solvers.expansion import value_and_jacobian, value_gradient_hessian
from torchddn.solvers.least_squares import LevenbergMarquardt
from torchddn.solvers.options import check_suits, check_termination, default_rtol, far
from torchddn.solvers.vectors import back_substitute, divide, identity_like, is_settled, largest, length, times
from torchddn.status import Status

__all__ = ["SQP", "Newton", "estimate_multipliers"]

# The merit must fall by this fraction of what the model predicts (Nocedal and Wright, below 3.4).
_DECREASE = 1e-4


class _Point(NamedTuple):
    """The problem around a point. Differentiable but for ``f``, which only decides."""

    y: Tensor  # (B, m)
    nu: Tensor  # (B, p)
    f: Tensor  # (B,)
    h: Tensor  # (B, p)
    h_y: Tensor  # (B, p, m)
    L_y: Tensor  # (B, m)
    L_yy: Tensor  # (B, m, m)


class SQPState(NamedTuple):
    """Where an item is, and what it has learned on its way."""

    point: _Point
    w: Tensor  # (B, m): direction of least curvature, unit
    shift: Tensor  # (B,): tau that last made an indefinite Hessian definite
    reach: Tensor  # (B,): longest step to try; infinite until a step fails
    sigma: Tensor  # (B, p): weights of |h| in the merit
    steepness: Tensor  # (B, p): longest gradient of each row of h so far
    scale: Tensor  # (B,): largest |y| so far
    goal: Tensor  # (B,): |h| at which the restoration of feasibility ends; zero outside of one
    span: Tensor  # (B,): length scale at the start
    verdict: Tensor  # (B,): Status or RUNNING


@dataclasses.dataclass(frozen=True)
class SQP:
    r"""``y = argmin_y f(y)`` subject to ``h(y) = 0``, by sequential quadratic programming.

    Newton's method on the optimality conditions, made to find minima; see the file's head. Quadratic convergence:
    answers are accurate to rounding. Works without an objective (any feasible point) and with redundant rows.
    Cost O(m^3 + p m^2) per item and step, memory O(m^2): for up to a few hundred variables.

    Args:
        rtol: Converged when a full step changes no entry of ``y`` by more than ``rtol`` times the largest entry so
            far; None for a value fitting the dtype. The step is still taken, so that the error is much smaller.
        atol: Added to that, in units of ``y``.
        max_steps: Most steps for an item.

    Status:
        INFEASIBLE: No step reduces ``|h|`` any more. Relax the constraints or start elsewhere.
        UNBOUNDED: ``y`` went eps^-0.7 times the scale of the start away while the merit fell, or ``f`` is -infinity.
        STALLED: Rounding stops progress before the step is small: kinks, or a precision too low for the problem.
        MAX_STEPS: Start closer, or raise ``max_steps``.

    References:
        Nocedal, Wright, Numerical Optimization, 2nd edition, chapter 18. Where we differ: no second evaluation
        decides about the correction, since it is always made; the inertia is controlled by Cholesky alone.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_termination(self)

    def check(self, problem: BatchedProblem) -> None:
        check_suits(self, problem, kinds=("minimize",), constrained=True)

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> SQPState:
        point = _expand(problem, x, y)
        scales = _measure(point, largest(y))
        num_items, num_rows = point.h.shape
        # Any vector that no symmetry of a problem is likely to have: it must not be orthogonal to a direction of
        # descent. The golden ratio's multiples are spread evenly, and the same every time.
        w = (torch.arange(1, problem.m + 1, device=y.device) * 0.6180339887498949).frac().to(y) - 0.5
        return SQPState(
            point=point,
            w=(w / w.square().sum().sqrt()).expand(num_items, -1),
            shift=scales.size / 32,
            reach=torch.full_like(point.f, torch.inf),
            sigma=y.new_zeros(num_items, num_rows),
            steepness=length(point.h_y),
            scale=largest(y),
            goal=torch.zeros_like(point.f),
            span=scales.distance,
            verdict=torch.full_like(point.f, RUNNING, dtype=torch.int64),
        )

    def step(self, problem: BatchedProblem, x: Inputs, state: SQPState) -> SQPState:
        move = _propose(problem, x, state)
        accepted, verdict = self._judge(state, move)
        trial, restoration = move.trial, move.restoration
        walked = move.alpha * length(move.d)
        reach = torch.where(accepted, torch.maximum(state.reach, 4 * walked), walked * move.merit.shrinkage)
        # Steps that become short where the constraints do not hold: their gradients depend on each other, almost.
        # Forget the objective until |h| is smaller.
        short = ~accepted & (reach <= 1e-2 * move.scales.distance)
        enters = short & ~restoration.active & restoration.is_needed(move.scales)
        leaves = accepted & restoration.active & (restoration.violation(trial) <= state.goal)
        goal = torch.where(enters, 0.5 * length(restoration.h), state.goal)
        return SQPState(
            point=_choose(accepted, trial, state.point),
            w=move.w,
            shift=move.system.next_shift(state.shift, move.curvature, move.scales),
            reach=torch.where(leaves | enters, torch.inf, reach),
            # Weights that a detour called for must not keep the rest of the way close to the constraints.
            sigma=_where(accepted, 0.25 * move.sigma, move.sigma),
            steepness=_where(accepted, torch.maximum(state.steepness, length(trial.h_y)), state.steepness),
            scale=torch.where(accepted, torch.maximum(state.scale, largest(trial.y)), state.scale),
            goal=torch.where(leaves, 0.0, goal),
            span=state.span,
            verdict=verdict,
        )

    def status(self, problem: BatchedProblem, x: Inputs, state: SQPState) -> Tensor:
        return torch.where(_is_finite(state.point), state.verdict, int(Status.NON_FINITE))

    def finish(self, problem: BatchedProblem, x: Inputs, state: SQPState) -> tuple[Tensor, Tensor]:
        return state.point.y, state.point.nu

    def _judge(self, state: SQPState, move: "_Move") -> tuple[Tensor, Tensor]:
        """Whether each item takes its step, and what it has come to."""
        point, trial, scales, system, restoration, merit = (
            state.point,
            move.trial,
            move.scales,
            move.system,
            move.restoration,
            move.merit,
        )
        eps = torch.finfo(point.y.dtype).eps
        rtol = default_rtol(point.y.dtype) if self.rtol is None else self.rtol
        tolerance = rtol * scales.reference + self.atol
        step_size = move.alpha * largest(move.d)
        near = step_size <= eps**0.4 * scales.reference
        error, at_rounding = _error(point, system, scales), 16 * eps * scales.reference
        contracts = (_error(trial, system, scales) <= torch.maximum(error, at_rounding)) & ~restoration.active
        hidden = near | merit.at_rounding
        accepted = _is_finite(trial) & (merit.falls | (hidden & contracts) | (step_size <= tolerance))

        violated = restoration.is_needed(scales)
        stuck = ~accepted & near
        optimal = (largest(move.d) <= tolerance) | (error <= at_rounding)
        optimal = optimal | (stuck & ((error <= eps**0.5 * scales.reference) | merit.at_rounding))
        runs_away = accepted & (largest(trial.y) > far(point.y.dtype) * state.span) & (merit.actual > 0)
        verdict = torch.full_like(state.verdict, RUNNING)
        for holds, status in (
            (stuck & ~violated, Status.STALLED),
            (optimal & system.convex & ~violated & ~restoration.active, Status.CONVERGED),
            (violated & (restoration.stationary | (stuck & restoration.active)), Status.INFEASIBLE),
            (runs_away | (trial.f == -torch.inf), Status.UNBOUNDED),
        ):
            verdict = torch.where(holds, int(status), verdict)
        return accepted, verdict


@dataclasses.dataclass(frozen=True)
class Newton:
    r"""``y = argmin_y f(y)``, or ``y`` with ``F(y) = 0``, by Newton's method.

    Minimization: :class:`SQP` without constraints. It finds minima: saddles and maxima are left along the direction
    of least curvature, and singular Hessians (minima that are not isolated) do no harm. Roots and fixed points:
    :class:`LevenbergMarquardt`, whose full step for a square regular system is Newton's. Quadratic convergence either
    way. Cost O(m^3) per item and step, memory O(m^2).

    Args:
        rtol: Converged when a full step changes no entry of ``y`` by more than ``rtol`` times the largest entry so
            far; None for a value fitting the dtype. The step is still taken, so that the error is much smaller.
        atol: Added to that, in units of ``y``.
        max_steps: Most steps for an item.

    Status:
        As for :class:`SQP` and :class:`LevenbergMarquardt`.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_termination(self)

    def check(self, problem: BatchedProblem) -> None:
        check_suits(self, problem, kinds=("minimize", "root", "fixed_point"))

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> Any:
        return self._method(problem).init(problem, x, y)

    def step(self, problem: BatchedProblem, x: Inputs, state: Any) -> Any:
        return self._method(problem).step(problem, x, state)

    def status(self, problem: BatchedProblem, x: Inputs, state: Any) -> Tensor:
        return self._method(problem).status(problem, x, state)

    def finish(self, problem: BatchedProblem, x: Inputs, state: Any) -> tuple[Tensor, Tensor]:
        return self._method(problem).finish(problem, x, state)

    def _method(self, problem: BatchedProblem) -> SQP | LevenbergMarquardt:
        method = SQP if problem.kind == "minimize" else LevenbergMarquardt
        return method(self.rtol, self.atol, self.max_steps)


def _expand(problem: BatchedProblem, x: Inputs, y: Tensor) -> _Point:
    work = problem.work(x)

    def objective(y: Tensor) -> Tensor:
        return problem.objective(y, x)

    if not problem.p:
        f, L_y, L_yy = value_gradient_hessian(objective, y, work)
        none = y.new_zeros(y.shape[0], 0)
        return _Point(y, none, f, none, y.new_zeros(*none.shape, problem.m), L_y, L_yy)

    f, f_y = value_and_gradient(objective, y)
    h, h_y = value_and_jacobian(lambda y: problem.equality(y, x), y, work)
    # Not the multipliers of the step that led here: those of a long step are huge where its model was wrong.
    nu = _multipliers(f_y, h_y)

    def L(y: Tensor) -> Tensor:
        return problem.objective(y, x) + (nu * problem.equality(y, x)).sum(-1)

    L_y, L_yy = value_and_jacobian(lambda y: gradient(L, y), y, work)
    return _Point(y, nu, f.detach(), h, h_y, L_y, L_yy)


def estimate_multipliers(problem: BatchedProblem, x: Inputs, y: Tensor) -> Tensor:
    """``nu`` that makes ``|f_y + h_y' nu|`` small, ``(B, p)``."""
    if not problem.p:
        return y.new_zeros(y.shape[0], 0)
    h_y = jacobian(lambda y: problem.equality(y, x), y, problem.work(x))
    return _multipliers(gradient(lambda y: problem.objective(y, x), y), h_y)


def _multipliers(f_y: Tensor, h_y: Tensor) -> Tensor:
    row_scale = _row_scale(h_y)
    A = h_y / row_scale[..., None]
    factor, _ = torch.linalg.cholesky_ex(_regularize((A @ A.mT).detach()))
    nu = torch.zeros_like(h_y[..., 0])
    # The normal equations, twice refined: exact derivatives up to the second order through a constant factor, and
    # an error that grows with the condition of A and not with its square.
    for _ in range(3):
        nu = nu - back_substitute(factor, times(A, f_y + times(A.mT, nu)))
    return nu / row_scale


class _Move(NamedTuple):
    """A step ``alpha d``, where it leads, and what it was made of."""

    d: Tensor
    alpha: Tensor
    trial: _Point
    merit: "_Merit"
    sigma: Tensor
    w: Tensor
    curvature: Tensor  # along w
    scales: "_Scales"
    system: "_System"
    restoration: "_Restoration"


def _propose(problem: BatchedProblem, x: Inputs, state: SQPState) -> _Move:
    point = state.point
    scales = _measure(point, state.scale)
    system = _make_convex(point, state.shift, scales)
    d, nu = system.newton_step(point)
    sigma = _weights(point, d, nu, state.sigma, system)
    w, curvature = _least_curvature(system, state.w)

    # Near a saddle or maximum: leave along w, downhill if that is a question.
    escapes = ~system.convex & (curvature < 0) & (length(d) <= 0.1 * scales.distance)
    if not is_settled(~escapes):
        downhill = torch.where((point.L_y.detach() * w).sum(-1) > 0, -1.0, 1.0)
        leap = torch.where(escapes, torch.minimum(0.5 * scales.distance, state.reach), 0.0)
        d = d + (leap * downhill)[:, None] * w
    restoration = _Restoration.of(state)
    if problem.p:
        d = _where(restoration.active, restoration.d, d)

    # Where tau had to be made up, so was the length of d.
    limit = torch.where(system.tau > 0, torch.minimum(state.reach, 10 * scales.distance), state.reach)
    alpha = (limit / length(d)).nan_to_num(nan=1.0).clamp(max=1.0)
    moved = alpha[:, None] * d
    y = point.y + moved
    if problem.p:
        y = _where(restoration.active, y, _correct(problem, x, point, system, moved))
    trial = _expand(problem, x, y)
    merit = _Merit.of(point, trial, d, alpha, sigma, system)
    if problem.p:
        merit = merit.where(restoration.active, restoration.merit(trial))
    return _Move(d, alpha, trial, merit, sigma, w, curvature, scales, system, restoration)


def _correct(problem: BatchedProblem, x: Inputs, point: _Point, system: "_System", moved: Tensor) -> Tensor:
    """``y + moved``, brought back to where the linearized constraints say it should be."""
    y = point.y + moved
    bend = problem.equality(y, x) - point.h - times(point.h_y, moved)
    c, _ = system.solve(torch.zeros_like(y), -bend / system.row_scale)
    usable = length(c) <= 0.5 * length(moved)  # False for NaN
    return _where(usable, y + c, y)


class _Scales(NamedTuple):
    """Units for everything that is compared, ``(B,)`` each."""

    curvature: Tensor  # of L: f over length squared
    size: Tensor  # |L_yy|
    distance: Tensor  # a typical length of y here
    reference: Tensor  # a length by which steps are small or not


def _measure(point: _Point, scale: Tensor) -> _Scales:
    size, slope = _norm(point.L_yy), length(point.L_y)
    # Where y = 0 by cancellation, y itself is no scale; the length over which f changes by itself is.
    f_y = length(point.L_y - times(point.h_y.mT, point.nu))
    change = torch.minimum((point.f.abs() / size).sqrt(), point.f.abs() / f_y)
    reference = torch.maximum(scale, change.nan_to_num(nan=0.0, posinf=0.0))
    distance = torch.maximum(reference, torch.maximum(divide(slope, size), length(_distance(point))))
    distance = torch.where((distance > 0) & distance.isfinite(), distance, 1.0)
    curvature = torch.maximum(size, slope / distance)
    curvature = torch.where(curvature > 0, curvature, 1.0)
    return _Scales(curvature, size, distance, reference)


class _System(NamedTuple):
    """The matrix of the Newton step, factored. The factors are constants, derivatives come from refinement."""

    curvature: Tensor  # L_yy
    K: Tensor
    A: Tensor
    L: Tensor  # K = L L^T
    S: Tensor  # Cholesky factor of A K^-1 A^T + delta I
    row_scale: Tensor
    tau: Tensor
    rho: Tensor
    level: Tensor  # (B,): which pair (tau, rho) was taken
    num_convex: int  # levels below this mean: curved up along the constraints

    @property
    def convex(self) -> Tensor:
        return self.level < self.num_convex

    def newton_step(self, point: _Point) -> tuple[Tensor, Tensor]:
        """``d`` and ``nu + dnu``, differentiable in the point."""
        h = point.h / self.row_scale
        right = -(point.L_y + self.rho[:, None] * times(self.A.mT, h))
        d, dnu = self.solve(right.detach(), -h.detach())
        # Let K = K_0 + dK with the factored constant K_0. Each refinement makes one more order in dK exact, and takes
        # out the error that delta left, if there are constraints.
        for _ in range(2 if is_differentiated() else min(1, h.shape[-1])):
            residual = right - times(self.K, d) - times(self.A.mT, dnu)
            more_d, more_dnu = self.solve(residual, -h - times(self.A, d))
            d, dnu = d + more_d, dnu + more_dnu
        return d, point.nu + dnu / self.row_scale

    def solve(self, primal: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        """``(d, n)`` with ``K d + A' n = primal`` and ``A d - delta n = dual``."""
        u = back_substitute(self.L, primal)
        if not dual.shape[-1]:
            return u, dual
        A = self.A.detach()
        n = back_substitute(self.S, times(A, u) - dual)
        return back_substitute(self.L, primal - times(A.mT, n)), n

    def next_shift(self, shift: Tensor, curvature: Tensor, scales: _Scales) -> Tensor:
        """Closer to the least that will do: smaller after success, larger after failure."""
        worked, failed = self.level == self.num_convex, self.level > self.num_convex
        # Once w has converged, -curvature is what tau must exceed.
        lower = torch.maximum(shift / 4, -1.5 * curvature)
        return torch.where(worked, lower, torch.where(failed, (4 * shift).clamp(max=scales.size), shift))


def _make_convex(point: _Point, shift: Tensor, scales: _Scales) -> _System:
    eps = torch.finfo(point.y.dtype).eps
    row_scale = _row_scale(point.h_y)
    A = point.h_y / row_scale[..., None]
    L_yy = 0.5 * (point.L_yy + point.L_yy.mT)
    unit = scales.curvature
    none, tiny = torch.zeros_like(unit), eps**0.5 * unit
    bound = torch.where(scales.size > 0, 1.01 * scales.size, unit)
    if point.h.shape[-1]:
        weak, medium, strong = 2 * unit, 2 * eps ** (-1 / 6) * unit, 2 * eps ** (-1 / 3) * unit
        levels = [(none, weak), (none, medium), (none, strong), (tiny, medium), (shift, medium), (bound, medium)]
    else:
        levels = [(none, none), (tiny, none), (shift, none), (bound, none)]
    gram = A.mT @ A
    identity = identity_like(L_yy)
    taken = [torch.zeros_like(L_yy), none, none]  # L, tau, rho
    level = torch.full_like(unit, len(levels), dtype=torch.int64)
    for i, (tau, rho) in enumerate(levels):
        K = (L_yy + rho[:, None, None] * gram).detach() + tau[:, None, None] * identity
        L, info = torch.linalg.cholesky_ex(K)
        pivots, diagonal = L.diagonal(dim1=-2, dim2=-1).square(), K.diagonal(dim1=-2, dim2=-1)
        # Regular: no pivot is what rounding leaves of its diagonal entry (whatever the units of the variables).
        regular = ((pivots > eps**0.85 * diagonal) & (pivots > eps * unit[:, None])).all(-1)
        first = (info == 0) & (regular | (tau > 0)) & (level == len(levels))
        taken = [_where(first, new, old) for new, old in zip((L, tau, rho), taken, strict=True)]
        level = torch.where(first, i, level)
        if is_settled(level < len(levels)):
            break
    L, tau, rho = taken
    K = L_yy + tau[:, None, None] * identity + rho[:, None, None] * gram
    S = _regularize(A.detach() @ torch.cholesky_solve(A.mT.detach(), L))
    return _System(L_yy.detach(), K, A, L, torch.linalg.cholesky_ex(S)[0], row_scale, tau, rho, level, len(levels) - 2)


def _least_curvature(system: _System, w: Tensor) -> tuple[Tensor, Tensor]:
    """Two steps of inverse iteration along the constraints: unit ``w`` and ``w' L_yy w``; where convex, none."""
    for _ in range(0 if is_settled(system.convex) else 2):
        w_next, _ = system.solve(w, w.new_zeros(w.shape[0], system.A.shape[1]))
        w_next = w_next / length(w_next).clamp(min=torch.finfo(w.dtype).tiny)[:, None]
        w = _where(system.convex, w, w_next)
    return w, (w * times(system.curvature, w)).sum(-1)


def _weights(point: _Point, d: Tensor, nu: Tensor, sigma: Tensor, system: _System) -> Tensor:
    """``sigma`` of the merit, raised so far that the Newton step ``d`` descends."""
    if not sigma.shape[-1]:
        return sigma
    eps = torch.finfo(sigma.dtype).eps
    point, d = _detached(point), d.detach()
    sigma = torch.maximum(sigma, 1.5 * nu.detach().abs())
    f_y = point.L_y - times(point.h_y.mT, point.nu)
    gain = point.h.abs() - (point.h + times(point.h_y, d)).abs()  # of each |h| in the linear model
    distance = (gain / system.row_scale).sum(-1)
    curvature = (d * times(system.curvature, d)).sum(-1) + system.tau * d.square().sum(-1)
    # Nocedal and Wright, equation 18.36.
    missing = (f_y * d).sum(-1) + 0.5 * curvature.clamp(min=0) - 0.5 * (sigma * gain).sum(-1)
    # A step along the constraints descends by itself: what seems to be missing then is rounding.
    raised = torch.where((missing > 0) & (distance > eps**0.5 * length(d)), 2 * missing / distance, 0.0)
    return sigma + raised[:, None] / system.row_scale


class _Merit(NamedTuple):
    """The change of ``f + sigma.|h|`` from a point to a trial point, ``(B,)`` each."""

    actual: Tensor
    falls: Tensor  # as it should
    at_rounding: Tensor  # too little to be seen
    shrinkage: Tensor  # by how much to shorten the step if it is rejected

    @staticmethod
    def of(point: _Point, trial: _Point, d: Tensor, alpha: Tensor, sigma: Tensor, system: _System) -> "_Merit":
        point, trial, d = _detached(point), _detached(trial), d.detach()
        slope = ((point.L_y - times(point.h_y.mT, point.nu)) * d).sum(-1)
        gain = (sigma * (point.h.abs() - (point.h + times(point.h_y, d)).abs())).sum(-1)
        bent = (d * times(system.curvature, d)).sum(-1).clamp(max=0)
        predicted = alpha * (gain - slope) - 0.5 * alpha.square() * bent
        penalty, penalty_next = ((sigma * h.abs()).sum(-1) for h in (point.h, trial.h))
        actual = point.f - trial.f + penalty - penalty_next
        noise = 10 * torch.finfo(d.dtype).eps * (point.f.abs() + trial.f.abs() + penalty + penalty_next)
        # Minimum of the parabola through both values and the predicted slope.
        shrinkage = (0.5 * predicted / (predicted - actual)).nan_to_num(nan=0.1).clamp(0.05, 0.5)
        return _Merit(actual, actual >= _DECREASE * predicted.abs(), predicted.abs() <= noise, shrinkage)

    def where(self, condition: Tensor, other: "_Merit") -> "_Merit":
        """``other`` for the items for which the condition holds."""
        return _Merit(*(torch.where(condition, theirs, ours) for ours, theirs in zip(self, other, strict=True)))


class _Restoration(NamedTuple):
    """A Levenberg-Marquardt step for ``1/2 |h|^2``, with rows scaled by the steepest slope that they have had.

    The way out where the linearized constraints lead nowhere, and the judge of whether there is one.
    """

    active: Tensor
    d: Tensor
    h: Tensor
    A: Tensor
    row_scale: Tensor

    @staticmethod
    def of(state: SQPState) -> "_Restoration":
        row_scale = torch.where(state.steepness > 0, state.steepness, 1.0)
        h, A = state.point.h.detach() / row_scale, state.point.h_y.detach() / row_scale[..., None]
        slope = times(A.mT, h)
        if not h.shape[-1]:
            return _Restoration(state.goal > 0, slope, h, A, row_scale)
        size = A.square().sum((-1, -2))
        tau = length(slope) / state.reach + torch.finfo(h.dtype).eps ** 0.5 * torch.where(size > 0, size, 1.0)
        identity = identity_like(A)
        L, _ = torch.linalg.cholesky_ex(A.mT @ A + tau[:, None, None] * identity)
        return _Restoration(state.goal > 0, -back_substitute(L, slope), h, A, row_scale)

    def is_needed(self, scales: _Scales) -> Tensor:
        """Whether the constraints do not hold, and not by rounding alone."""
        return largest(self.h) > torch.finfo(self.h.dtype).eps ** 0.4 * scales.reference

    @property
    def stationary(self) -> Tensor:
        """Whether no direction reduces ``|h|`` to first order."""
        eps = torch.finfo(self.h.dtype).eps
        tolerance = torch.where(self.active, eps**0.3, eps**0.5)
        return length(times(self.A.mT, self.h)) <= tolerance * length(self.h)

    def violation(self, point: _Point) -> Tensor:
        return length(point.h / self.row_scale)

    def merit(self, trial: _Point) -> _Merit:
        before = 0.5 * self.h.square().sum(-1)
        predicted = before - 0.5 * (self.h + times(self.A, self.d)).square().sum(-1)
        actual = before - 0.5 * self.violation(trial).square()
        falls = actual >= _DECREASE * predicted
        return _Merit(actual, falls, torch.zeros_like(falls), torch.full_like(actual, 0.25))


def _error(point: _Point, system: _System, scales: _Scales) -> Tensor:
    """How far the optimality conditions are from holding, as a length in ``y``."""
    return length(point.L_y) / scales.curvature + length(point.h / system.row_scale)


def _is_finite(point: _Point) -> Tensor:
    total = point.f + point.y.sum(-1) + point.h.sum(-1) + point.L_y.sum(-1)
    return (total + point.h_y.sum((-1, -2)) + point.L_yy.sum((-1, -2))).detach().isfinite()


def _distance(point: _Point) -> Tensor:
    return point.h.detach() / _row_scale(point.h_y)


def _row_scale(h_y: Tensor) -> Tensor:
    size = length(h_y)
    return torch.where(size > 0, size, 1.0)


def _regularize(S: Tensor) -> Tensor:
    """``S + delta I`` with ``delta`` far below what matters and above rounding."""
    diagonal = S.detach().diagonal(dim1=-2, dim2=-1)
    delta = torch.finfo(S.dtype).eps ** (2 / 3) * largest(diagonal)
    delta = torch.where(delta > 0, delta, 1.0)
    return S + delta[:, None, None] * identity_like(S)


def _norm(matrix: Tensor) -> Tensor:
    """Largest row sum of magnitudes, which bounds every eigenvalue."""
    return matrix.detach().abs().sum(-1).amax(-1)


def _where(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(condition.reshape(-1, *[1] * (new.dim() - 1)), new, old)


def _detached(point: _Point) -> _Point:
    return _Point(*(leaf.detach() for leaf in point))


def _choose(condition: Tensor, new: _Point, old: _Point) -> _Point:
    if is_settled(condition):
        return new
    return _Point(*(_where(condition, *pair) for pair in zip(new, old, strict=True)))
