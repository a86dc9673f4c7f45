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

A small gradient is no minimum where the steps do not become short (``stride.py``). Where a tiny ``tau`` made them
short, the point is tried once more without it, in case that variables have curvatures wide apart.

Everything is judged relative to the problem's own scales: multiplying ``f`` or a row of ``h`` by a constant, or
``y`` and the start by one, changes neither steps nor status.

References:
    Nocedal, Wright, Numerical Optimization, 2nd edition, algorithms 18.3 and 3.3, section 18.3 (second-order
    correction) and theorem 16.3 (inertia). Gill, Robinson, A primal-dual augmented Lagrangian, 2012 (``delta``).
"""

import dataclasses
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchddn.problem import BatchedProblem
from torchddn.solvers.base import RUNNING, Delegate, Inputs
from torchddn.solvers.lagrangian import (
    Point,
    Scales,
    System,
    expand,
    fit_multipliers,
    least_curvature,
    make_convex,
    measure,
)
from torchddn.solvers.least_squares import LevenbergMarquardt
from torchddn.solvers.merit import DECREASE, Merit
from torchddn.solvers.options import check_suits, check_termination, default_rtol, falls_away, far
from torchddn.solvers.points import choose, detached, is_finite, where_items
from torchddn.solvers.stride import Stride
from torchddn.solvers.vectors import back_substitute, divide, identity_like, is_settled, largest, length, times
from torchddn.status import Status

__all__ = ["EqualitySQP", "Newton", "any_direction"]

# A model that is wrong by this factor says nothing, however short the step.
_ABSURD = 1e3


class SQPState(NamedTuple):
    """Where an item is, and what it has learned on its way."""

    point: Point
    w: Tensor  # (B, m): direction of least curvature, unit
    shift: Tensor  # (B,): tau that last made an indefinite Hessian definite
    reach: Tensor  # (B,): longest step to try; infinite until a step fails
    sigma: Tensor  # (B, p): weights of |h| in the merit
    steepness: Tensor  # (B, p): longest gradient of each row of h so far
    scale: Tensor  # (B,): largest |y| so far
    goal: Tensor  # (B,): |h| at which the restoration of feasibility ends; zero outside of one
    span: Tensor  # (B,): length scale at the start
    stride: Stride
    bold: Tensor  # (B,): whether a minimum was found, but with a singular Hessian
    verdict: Tensor  # (B,): Status or RUNNING


@dataclasses.dataclass(frozen=True)
class EqualitySQP:
    """What :class:`torchddn.solvers.SQP` is where there are neither inequalities nor bounds; documented there."""

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_termination(self)

    def check(self, problem: BatchedProblem) -> None:
        check_suits(self, problem, kinds=("minimize",), equality=True)

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> SQPState:
        point = expand(problem, x, y, fit_multipliers)
        scales = measure(point, largest(y))
        return SQPState(
            point=point,
            w=any_direction(y),
            shift=scales.size / 32,
            reach=torch.full_like(point.f, torch.inf),
            sigma=torch.zeros_like(point.h).detach(),
            steepness=length(point.h_y),
            scale=largest(y),
            goal=torch.zeros_like(point.f),
            span=scales.distance,
            stride=Stride.of(point.f),
            bold=torch.zeros_like(point.f, dtype=torch.bool),
            verdict=torch.full_like(point.f, RUNNING, dtype=torch.int64),
        )

    def step(self, problem: BatchedProblem, x: Inputs, state: SQPState) -> SQPState:
        move = _propose(problem, x, state)
        accepted, verdict, stride, bold = self._judge(state, move)
        trial, restoration = move.trial, move.restoration
        walked = move.alpha * length(move.d)
        reach = torch.where(accepted, torch.maximum(state.reach, 4 * walked), walked * move.merit.shrinkage)
        # Steps that become short where the constraints do not hold: their gradients depend on each other, almost.
        # Forget the objective until |h| is smaller.
        short = ~accepted & (reach <= 1e-2 * move.scales.distance)
        enters = short & ~restoration.active & restoration.is_needed(move.scales)
        trial_violation = restoration.violation(trial)
        leaves = accepted & restoration.active & (trial_violation <= state.goal)
        goal = torch.where(enters, 0.5 * length(restoration.h), state.goal)
        return SQPState(
            point=choose(accepted, trial, state.point),
            w=move.w,
            shift=move.system.next_shift(state.shift, move.curvature, move.scales),
            reach=torch.where(leaves | enters, torch.inf, reach),
            # Weights that a detour called for must not keep the rest of the way close to the constraints.
            sigma=where_items(
                accepted & (trial_violation <= 2 * restoration.violation(state.point)), 0.25 * move.sigma, move.sigma
            ),
            steepness=where_items(accepted, torch.maximum(state.steepness, length(trial.h_y)), state.steepness),
            scale=torch.where(accepted, torch.maximum(state.scale, largest(trial.y)), state.scale),
            goal=torch.where(leaves, 0.0, goal),
            span=state.span,
            stride=stride,
            bold=bold,
            verdict=verdict,
        )

    def status(self, problem: BatchedProblem, x: Inputs, state: SQPState) -> Tensor:
        return torch.where(is_finite(state.point), state.verdict, int(Status.NON_FINITE))

    def finish(self, problem: BatchedProblem, x: Inputs, state: SQPState) -> tuple[Tensor, Tensor]:
        return state.point.y, state.point.nu

    def _judge(self, state: SQPState, move: "_Move") -> tuple[Tensor, Tensor, Stride, Tensor]:
        """Whether each item takes its step, what it has come to, how its steps are, and whether to be bold next."""
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
        error_next = _error(trial, system, scales)
        contracts = (error_next <= torch.maximum(error, at_rounding)) & ~restoration.active
        hidden = near | merit.at_rounding
        accepted = is_finite(trial) & (merit.falls | (hidden & contracts) | (step_size <= tolerance))

        dares = state.bold & (system.tau == 0)
        accepted = torch.where(dares, is_finite(trial) & merit.falls & ~merit.at_rounding, accepted)

        violated = restoration.is_needed(scales)
        stuck = ~accepted & near
        # Rounding decides where the steps do not become shorter any more.
        size = divide(largest(move.d), scales.reference)
        newton = system.convex & (system.tau == 0)
        shrinks = newton & accepted & (size <= 0.5 * state.stride.last)
        small = largest(move.d) <= tolerance
        proved = small & newton
        optimal = small | ((error <= at_rounding) & ~shrinks)
        optimal = optimal | (stuck & ((error <= eps**0.5 * scales.reference) | merit.at_rounding))
        runs_away = accepted & (largest(trial.y) > far(point.y.dtype) * state.span) & (merit.actual > 0)
        optimal = optimal & system.convex & ~violated & ~restoration.active
        # Where a tiny tau limits the steps in units of other variables, they are short by its doing, perhaps.
        doubtful = optimal & (system.tau > 0) & ~state.bold
        # A step that leads nowhere near to what was predicted was made of rounding.
        absurd = dares & ~accepted & (merit.at_rounding | near | ~(merit.actual >= -_ABSURD * merit.predicted))
        optimal = torch.where(dares, optimal & proved, optimal & ~doubtful) | absurd
        bold = doubtful | (state.bold & ~absurd)
        stride = state.stride.next(size, accepted, newton & (move.alpha >= 1), divide(error_next, error))
        verdict = torch.full_like(state.verdict, RUNNING)
        for holds, status in (
            (stuck & ~violated, Status.STALLED),
            (optimal, Status.CONVERGED),
            (violated & (restoration.stationary | (stuck & restoration.active)), Status.INFEASIBLE),
            (runs_away | falls_away(trial.f) | (optimal & ~proved & state.stride.drifts), Status.UNBOUNDED),
        ):
            verdict = torch.where(holds, int(status), verdict)
        return accepted, verdict, stride, bold


@dataclasses.dataclass(frozen=True)
class Newton(Delegate):
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

    finds_minima: ClassVar[bool] = True  # its own test of convergence includes curvature

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_termination(self)

    def check(self, problem: BatchedProblem) -> None:
        check_suits(self, problem, kinds=("minimize", "root", "fixed_point"))

    def method(self, problem: BatchedProblem) -> EqualitySQP | LevenbergMarquardt:
        method = EqualitySQP if problem.kind == "minimize" else LevenbergMarquardt
        return method(self.rtol, self.atol, self.max_steps)


class _Move(NamedTuple):
    """A step ``alpha d``, where it leads, and what it was made of."""

    d: Tensor
    alpha: Tensor
    trial: Point
    merit: Merit
    sigma: Tensor
    w: Tensor
    curvature: Tensor  # along w
    scales: "Scales"
    system: "System"
    restoration: "_Restoration"


def _propose(problem: BatchedProblem, x: Inputs, state: SQPState) -> _Move:
    point = state.point
    scales = measure(point, state.scale)
    system = make_convex(point, state.shift, scales, bold=state.bold)
    d, nu = system.newton_step(point)
    sigma = _weights(point, d, nu, state.sigma, system)
    w, curvature = least_curvature(system, state.w)

    # Near a saddle or maximum: leave along w, downhill if that is a question.
    escapes = ~system.convex & (curvature < 0) & (length(d) <= 0.1 * scales.distance)
    if not is_settled(~escapes):
        downhill = torch.where((point.L_y.detach() * w).sum(-1) > 0, -1.0, 1.0)
        leap = torch.where(escapes, torch.minimum(0.5 * scales.distance, state.reach), 0.0)
        d = d + (leap * downhill)[:, None] * w
    restoration = _Restoration.of(state)
    if problem.p:
        d = where_items(restoration.active, restoration.d, d)

    # Where tau had to be made up, so was the length of d.
    limit = torch.where(system.tau > 0, torch.minimum(state.reach, 10 * scales.distance), state.reach)
    alpha = (limit / length(d)).nan_to_num(nan=1.0).clamp(max=1.0)
    moved = alpha[:, None] * d
    y = point.y + moved
    if problem.p:
        y = where_items(restoration.active, y, _correct(problem, x, point, system, moved))
    trial = expand(problem, x, y, fit_multipliers)
    merit = Merit.of(point, trial, d, alpha, sigma, system.curvature, problem.p)
    if problem.p:
        merit = merit.where(restoration.active, restoration.merit(trial))
    return _Move(d, alpha, trial, merit, sigma, w, curvature, scales, system, restoration)


def _correct(problem: BatchedProblem, x: Inputs, point: Point, system: "System", moved: Tensor) -> Tensor:
    """``y + moved``, brought back to where the linearized constraints say it should be."""
    y = point.y + moved
    bend = problem.equality(y, x) - point.h - times(point.h_y, moved)
    c, _ = system.solve(torch.zeros_like(y), -bend / system.row_scale)
    usable = length(c) <= 0.5 * length(moved)  # False for NaN
    return where_items(usable, y + c, y)


def _weights(point: Point, d: Tensor, nu: Tensor, sigma: Tensor, system: System) -> Tensor:
    """``sigma`` of the merit, raised so far that the Newton step ``d`` descends."""
    if not sigma.shape[-1]:
        return sigma
    eps = torch.finfo(sigma.dtype).eps
    point, d = detached(point), d.detach()
    sigma = torch.maximum(sigma, 1.5 * nu.detach().abs())
    gain = point.h.abs() - (point.h + times(point.h_y, d)).abs()  # of each |h| in the linear model
    distance = (gain / system.row_scale).sum(-1)
    curvature = (d * times(system.curvature, d)).sum(-1) + system.tau * d.square().sum(-1)
    # Nocedal and Wright, equation 18.36.
    missing = (point.f_y * d).sum(-1) + 0.5 * curvature.clamp(min=0) - 0.5 * (sigma * gain).sum(-1)
    # A step along the constraints descends by itself: what seems to be missing then is rounding.
    raised = torch.where((missing > 0) & (distance > eps**0.5 * length(d)), 2 * missing / distance, 0.0)
    return sigma + raised[:, None] / system.row_scale


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

    def is_needed(self, scales: Scales) -> Tensor:
        """Whether the constraints do not hold, and not by rounding alone."""
        return largest(self.h) > torch.finfo(self.h.dtype).eps ** 0.4 * scales.reference

    @property
    def stationary(self) -> Tensor:
        """Whether no direction reduces ``|h|`` to first order."""
        eps = torch.finfo(self.h.dtype).eps
        tolerance = torch.where(self.active, eps**0.3, eps**0.5)
        return length(times(self.A.mT, self.h)) <= tolerance * length(self.h)

    def violation(self, point: Point) -> Tensor:
        return length(point.h / self.row_scale)

    def merit(self, trial: Point) -> Merit:
        before = 0.5 * self.h.square().sum(-1)
        predicted = before - 0.5 * (self.h + times(self.A, self.d)).square().sum(-1)
        actual = before - 0.5 * self.violation(trial).square()
        falls = actual >= DECREASE * predicted
        return Merit(actual, predicted, falls, torch.zeros_like(falls), torch.full_like(actual, 0.25))


def any_direction(y: Tensor) -> Tensor:
    """A unit vector for each item that no symmetry of a problem is likely to have, ``(B, m)``.

    It must not be orthogonal to a direction of descent. The golden ratio's multiples are spread evenly, and the same
    every time.
    """
    w = (torch.arange(1, y.shape[1] + 1, device=y.device) * 0.6180339887498949).frac().to(y) - 0.5
    return (w / w.square().sum().sqrt()).expand_as(y)


def _error(point: Point, system: System, scales: Scales) -> Tensor:
    """How far the optimality conditions are from holding, as a length in ``y``."""
    return length(point.L_y) / scales.curvature + length(point.h / system.row_scale)
