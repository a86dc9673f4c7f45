r"""Least squares and square systems of equations.

Solves, for each item::

    y = argmin_y 1/2 |F(y)|^2           or          F(y) = 0

``F`` is linearized, and the step minimizes ``|F + J d|^2 + tau |d|^2`` with ``J = F_y``: for a regular square ``J``
and ``tau = 0`` Newton's step for the equations. With ``tau = 0`` a QR factorization of ``J`` is used, so that the
error grows with the condition of ``J`` and not with its square. Where ``J`` is singular to working precision a tiny
``tau`` picks (nearly) the shortest step.

The two methods differ in how they make a step shorter after one that did not reduce ``|F|``. :class:`GaussNewton`
scales it. :class:`LevenbergMarquardt` takes ``tau = |J^T F| / reach`` where the full step is longer than ``reach``,
which bounds the step by ``reach`` and turns it towards steepest descent.

References:
    Nocedal, Wright, Numerical Optimization, 2nd edition, sections 10.3 and 11.2. More, The Levenberg-Marquardt
    algorithm: implementation and theory, 1978.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchddn.problem import BatchedProblem
from torchddn.solvers.base import RUNNING, Inputs, is_differentiated
from torchddn.solvers.expansion import value_and_jacobian
from torchddn.solvers.options import check_suits, check_termination, default_rtol, far
from torchddn.solvers.vectors import back_substitute, divide, identity_like, largest, length, times
from torchddn.status import Status

__all__ = ["GaussNewton", "LevenbergMarquardt", "inverse"]

_KINDS = ("minimize", "root", "fixed_point")


class LeastSquaresState(NamedTuple):
    """Where an item is, and how far it dares to go."""

    y: Tensor  # (B, m)
    F: Tensor  # (B, r)
    J: Tensor  # (B, r, m)
    reach: Tensor  # (B,): longest step to try; infinite until a step fails
    scale: Tensor  # (B,): largest |y| so far
    span: Tensor  # (B,): length scale at the start
    verdict: Tensor  # (B,): Status or RUNNING


def _check(self: Any, problem: BatchedProblem) -> None:
    check_suits(self, problem, kinds=_KINDS, residual=True)


def _init(self: Any, problem: BatchedProblem, x: Inputs, y: Tensor) -> LeastSquaresState:
    F, J = _expand(problem, x, y)
    size = length(F)
    span = torch.maximum(length(y), divide(size, _size(J)))
    return LeastSquaresState(
        y=y,
        F=F,
        J=J,
        reach=torch.full_like(size, torch.inf),
        scale=largest(y),
        span=torch.where(span > 0, span, 1.0),
        verdict=torch.full_like(size, RUNNING, dtype=torch.int64),
    )


def _status(self: Any, problem: BatchedProblem, x: Inputs, state: LeastSquaresState) -> Tensor:
    return torch.where(_is_finite(state.y, state.F, state.J), state.verdict, int(Status.NON_FINITE))


def _finish(self: Any, problem: BatchedProblem, x: Inputs, state: LeastSquaresState) -> tuple[Tensor, Tensor]:
    return state.y, state.y.new_zeros(state.y.shape[0], 0)


@dataclasses.dataclass(frozen=True)
class GaussNewton:
    r"""``y = argmin_y 1/2 |F(y)|^2``, or ``y`` with ``F(y) = 0``, by Gauss-Newton steps that are scaled to descend.

    Quadratic convergence for roots and where ``F`` vanishes at the solution, else linear, faster the smaller ``F``
    is there. Finds stationary points: it cannot tell a minimum of ``|F|`` from a maximum. Cost O((r + m) m^2) per
    item and step.

    Args:
        rtol: Converged when a full step changes no entry of ``y`` by more than ``rtol`` times the largest entry so
            far; None for a value fitting the dtype.
        atol: Added to that, in units of ``y``.
        max_steps: Most steps for an item.

    Status:
        STALLED: Rounding stops progress, or (roots) ``|F|`` has a minimum here that is not zero: start elsewhere.
        UNBOUNDED: ``|F|`` fell until ``y`` was eps^-0.7 times the scale of the start away.
        MAX_STEPS: Start closer, raise ``max_steps``, or use ``Newton`` if ``F`` is large at the solution.

    References:
        Nocedal, Wright, Numerical Optimization, 2nd edition, section 10.3.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_termination(self)

    check, init, status, finish = _check, _init, _status, _finish

    def step(self, problem: BatchedProblem, x: Inputs, state: LeastSquaresState) -> LeastSquaresState:
        d = _direction(state, torch.full_like(state.reach, torch.inf))
        return _move(self, problem, x, state, d, (state.reach / length(d)).nan_to_num(nan=1.0).clamp(max=1.0))


@dataclasses.dataclass(frozen=True)
class LevenbergMarquardt:
    r"""``y = argmin_y 1/2 |F(y)|^2``, or ``y`` with ``F(y) = 0``, by damped Gauss-Newton steps.

    More robust than :class:`GaussNewton` far from the solution and where ``J`` loses rank. Convergence as there.

    Args:
        rtol: Converged when a full step changes no entry of ``y`` by more than ``rtol`` times the largest entry so
            far; None for a value fitting the dtype.
        atol: Added to that, in units of ``y``.
        max_steps: Most steps for an item.

    Status:
        As for :class:`GaussNewton`.

    References:
        More, The Levenberg-Marquardt algorithm: implementation and theory, 1978. Where we differ: ``tau`` comes from
        a bound on the step and not from an iteration, so that each step costs one factorization.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_termination(self)

    check, init, status, finish = _check, _init, _status, _finish

    def step(self, problem: BatchedProblem, x: Inputs, state: LeastSquaresState) -> LeastSquaresState:
        return _move(self, problem, x, state, _direction(state, state.reach), torch.ones_like(state.reach))


def _move(
    self: Any, problem: BatchedProblem, x: Inputs, state: LeastSquaresState, d: Tensor, alpha: Tensor
) -> LeastSquaresState:
    """The next state, for a step ``alpha d`` that is taken if it reduces ``|F|`` as the linear model says."""
    y = state.y + alpha[:, None] * d
    F, J = _expand(problem, x, y)
    step_size, walked = alpha * largest(d), alpha * length(d)
    eps = torch.finfo(y.dtype).eps
    tolerance = default_rtol(y.dtype) if self.rtol is None else self.rtol

    f, f_next, size = _half_square(state.F), _half_square(F), _size(state.J)
    model = state.F + alpha[:, None] * times(state.J, d)
    predicted, actual = (f - _half_square(model)).clamp(min=0), f - f_next
    # Where y = 0 by cancellation, y itself is no scale; the length at which F would double is.
    reference = torch.maximum(state.scale, divide(length(state.F), size))
    tolerance = tolerance * reference + self.atol
    near = step_size <= eps**0.4 * reference
    error, error_next = _error(state.F, state.J, size), _error(F, J, size)
    at_rounding = 16 * eps * reference
    # Here the sum of squares cannot show progress any more; its gradient can.
    too_small = near | (predicted <= 10 * eps * (f + f_next))
    contracts = error_next <= torch.maximum(error, at_rounding)
    falls = actual >= 1e-4 * predicted
    accepted = _is_finite(y, F, J) & (falls | (too_small & contracts) | (step_size <= tolerance))

    small = (alpha >= 1) & (step_size <= tolerance) & (length(d) <= 0.5 * state.reach)
    stuck = ~accepted & near
    as_good = stuck & ((error <= eps**0.5 * reference) | (predicted <= 10 * eps * (f + f_next)))
    solved = torch.ones_like(stuck)
    if problem.kind != "minimize":
        solved = (length(state.F) <= 100 * eps * size * reference) | (length(model) <= 0.1 * length(state.F))
    stops = small | (error <= at_rounding) | stuck
    verdict = torch.where(stops, int(Status.STALLED), RUNNING)
    verdict = torch.where((small | (error <= at_rounding) | as_good) & solved, int(Status.CONVERGED), verdict)
    unbounded = accepted & (largest(y) > far(y.dtype) * state.span)
    verdict = torch.where(unbounded, int(Status.UNBOUNDED), verdict)

    shrinkage = (0.5 * predicted / (predicted - actual)).nan_to_num(nan=0.1).clamp(0.05, 0.5)
    grown = torch.where(actual >= 0.25 * predicted, torch.maximum(state.reach, 4 * walked), state.reach)
    return LeastSquaresState(
        y=torch.where(accepted[:, None], y, state.y),
        F=torch.where(accepted[:, None], F, state.F),
        J=torch.where(accepted[:, None, None], J, state.J),
        reach=torch.where(accepted, grown, walked * shrinkage),
        scale=torch.where(accepted, torch.maximum(state.scale, largest(y)), state.scale),
        span=state.span,
        verdict=verdict,
    )


def _direction(state: LeastSquaresState, limit: Tensor) -> Tensor:
    """``argmin_d |F + J d|^2``, damped where that is not unique or longer than ``limit``; differentiable."""
    F, J = state.F.detach(), state.J.detach()
    Q, R, regular = _orthogonal_factor(J)
    newton = -torch.linalg.solve_triangular(R, Q.mT @ F[..., None], upper=True)[..., 0]
    slope = times(J.mT, F)
    tau = torch.maximum(length(slope) / limit, _tiny(J))
    L = _damped_factor(J, tau)
    free = regular & (length(newton) <= limit)
    tau = torch.where(free, 0.0, tau)
    d = torch.where(free[:, None], newton, -back_substitute(L, slope))
    if not is_differentiated():
        return d
    # K = J^T J + tau I = L L^T. Each pass with the constant L makes one more order of derivatives exact, and leaves
    # the value alone, which is better than the normal equations would make it.
    L = torch.where(free[:, None, None], R.mT, L)
    for _ in range(2):
        residual = -times(state.J.mT, state.F + times(state.J, d)) - tau[:, None] * d
        d = d + back_substitute(L, residual - residual.detach())
    return d


def inverse(J: Tensor) -> Tensor:
    """The inverse of each square matrix, (nearly) the pseudo-inverse where it is singular; a constant."""
    J = J.detach()
    Q, R, regular = _orthogonal_factor(J)
    exact = torch.linalg.solve_triangular(R, Q.mT, upper=True)
    damped = torch.cholesky_solve(J.mT, _damped_factor(J, _tiny(J)))
    return torch.where(regular[:, None, None], exact, damped)


def _orthogonal_factor(J: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``J = Q R`` with square ``R``, and whether the columns are independent to working precision."""
    num_rows, m = J.shape[1:]
    if num_rows < m:
        J = torch.nn.functional.pad(J, (0, 0, 0, m - num_rows))
    Q, R = torch.linalg.qr(J)
    pivots, size = R.diagonal(dim1=-2, dim2=-1).abs(), J.square().sum(1).sqrt()
    return Q[:, :num_rows], R, (pivots > torch.finfo(J.dtype).eps ** 0.85 * size).all(-1)


def _damped_factor(J: Tensor, tau: Tensor) -> Tensor:
    """The Cholesky factor of ``J^T J + tau I``, for a ``tau`` that keeps it regular."""
    identity = identity_like(J)
    return torch.linalg.cholesky_ex(J.mT @ J + tau[:, None, None] * identity)[0]


def _tiny(J: Tensor) -> Tensor:
    """The least ``tau`` with which ``J^T J + tau I`` is regular, whatever ``J``."""
    size = _size(J).square()
    return torch.finfo(J.dtype).eps ** 0.5 * torch.where(size > 0, size, 1.0)


def _expand(problem: BatchedProblem, x: Inputs, y: Tensor) -> tuple[Tensor, Tensor]:
    return value_and_jacobian(lambda y: problem.residual(y, x), y, problem.work(x))


def _error(F: Tensor, J: Tensor, size: Tensor) -> Tensor:
    """How far ``J^T F`` is from zero, as a length in ``y``."""
    return divide(length(times(J.mT, F)), size.square())


def _size(J: Tensor) -> Tensor:
    return J.detach().square().sum((-1, -2)).sqrt()


def _half_square(F: Tensor) -> Tensor:
    return 0.5 * F.detach().square().sum(-1)


def _is_finite(y: Tensor, F: Tensor, J: Tensor) -> Tensor:
    return (y.sum(-1) + F.sum(-1) + J.sum((-1, -2))).detach().isfinite()
