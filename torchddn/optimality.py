r"""What holds at a solution, and how far a point is from it.

With ``z = (y, nu)`` the residual whose root is the solution is, for minimization and for root finding, ::

    R(z, x) = [ L_y(y, nu, x) ]        L = f + nu.h             R(z, x) = F(y, x)
              [ h(y, x)       ]

Its derivative with respect to ``z`` is the matrix ``K`` of DESIGN's gradient rule, symmetric in the first case.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.derivatives import gradient, hessian, jacobian, vjp
from torchddn.linear import Dense, LeastSquares
from torchddn.problem import BatchedProblem
from torchddn.status import Status

__all__ = [
    "Measures",
    "check_answer",
    "estimate_multipliers",
    "is_irregular",
    "lagrangian",
    "measure",
    "residual",
]

# Largest m for which the second-order condition of a user's own answer is checked: it needs the dense Hessian.
SECOND_ORDER_LIMIT = 64


def lagrangian(problem: BatchedProblem, y: Tensor, nu: Tensor, x: Sequence[Tensor]) -> Tensor:
    """``L = f + nu.h``, ``(B,)``."""
    value = problem.objective(y, x)
    return value + (nu * problem.equality(y, x)).sum(-1) if problem.p else value


def residual(problem: BatchedProblem, z: Tensor, x: Sequence[Tensor]) -> Tensor:
    """``R(z, x)``, shaped as ``z``, ``(B, m + p)``."""
    if problem.kind != "minimize":
        return problem.residual(z, x)
    if not problem.p:
        return gradient(lambda y: problem.objective(y, x), z)
    y, nu = z.split([problem.m, problem.p], dim=1)
    L_y = gradient(lambda y: lagrangian(problem, y, nu, x), y)
    return torch.cat([L_y, problem.equality(y, x)], dim=1)


class Measures(NamedTuple):
    """How good a point is, per item, ``(B,)`` each."""

    objective: Tensor
    stationarity: Tensor
    feasibility: Tensor


def measure(problem: BatchedProblem, y: Tensor, nu: Tensor, x: Sequence[Tensor]) -> Measures:
    """Objective, largest entry of the Lagrangian's gradient (or residual), largest violated equality."""
    if problem.kind != "minimize":
        zeros = y.new_zeros(y.shape[0])
        return Measures(zeros, _largest(problem.residual(y, x)), zeros)
    h = problem.equality(y, x)
    L_y = gradient(lambda y: lagrangian(problem, y, nu, x), y)
    return Measures(problem.objective(y, x), _largest(L_y), _largest(h))


def estimate_multipliers(problem: BatchedProblem, y: Tensor, x: Sequence[Tensor]) -> Tensor:
    """``nu`` that makes ``|f_y + h_y' nu|`` smallest (the shortest one where rows are redundant), ``(B, p)``."""
    if not problem.p:
        return y.new_zeros(y.shape[0], 0)
    f_y = gradient(lambda y: problem.objective(y, x), y)
    a = jacobian(lambda y: problem.equality(y, x), y, problem.work(x))
    solver = LeastSquares()
    # Normal equations square the condition of `a`; one step of refinement on the residual wins it back.
    state = solver.init(Dense(a @ a.mT, symmetric=True))
    nu = -solver.solve(state, _apply(a, f_y))
    return nu - solver.solve(state, _apply(a, f_y + _apply(a.mT, nu)))


def is_irregular(problem: BatchedProblem, y: Tensor, nu: Tensor, x: Sequence[Tensor], scale: Tensor) -> Tensor:
    """Whether the constraints lose their gradient at ``y`` as far as can be told in this precision, ``(B,)``.

    At such a point (a circle of radius zero) the multipliers, and with them every gradient, are meaningless
    although a solver that comes close to it sees nothing wrong. The test: moving ``y`` by the smallest distance that
    matters, ``eps^(1/2) scale``, changes ``h_y' nu`` by more than all of it.

    Args:
        problem: The batched problem.
        y: A solution, ``(B, m)``.
        nu: Its multipliers, ``(B, p)``.
        x: Inputs.
        scale: Size of ``y`` and of what a solver passed on its way, ``(B,)``.
    """
    if not problem.p:
        return torch.zeros(y.shape[0], dtype=torch.bool, device=y.device)

    def pull(y: Tensor) -> Tensor:
        return vjp(lambda y: problem.equality(y, x), (y,), nu)[0]

    # No symmetry of a problem makes this direction special: multiples of the golden ratio.
    step = (torch.arange(1, problem.m + 1, device=y.device) * 0.6180339887498949).frac().to(y) - 0.5
    (bend,) = vjp(pull, (y,), step.expand_as(y) / step.norm())
    return _largest(bend) * torch.finfo(y.dtype).eps ** 0.5 * scale > _largest(pull(y))


def check_answer(problem: BatchedProblem, y: Tensor, nu: Tensor, x: Sequence[Tensor]) -> Tensor:
    """Status ``(B,)`` of an answer that nobody vouches for, such as that of a user's own ``solve``.

    The tolerance is relative and loose, eps^(1/3): an answer that a decent solver found passes, another point
    does not. An infeasible one is INFEASIBLE, one that is not stationary, or a maximum or saddle, STALLED.
    """
    tolerance = torch.finfo(y.dtype).eps ** (1 / 3)
    status = torch.zeros(y.shape[0], dtype=torch.int64, device=y.device)
    if problem.kind == "minimize":
        poor = _is_not_stationary(problem, y, nu, x, tolerance) | _is_not_minimum(problem, y, nu, x)
        status = torch.where(poor, int(Status.STALLED), status)
        status = torch.where(_is_infeasible(problem, y, x, tolerance), int(Status.INFEASIBLE), status)
    else:
        status = torch.where(_is_no_root(problem, y, x, tolerance), int(Status.STALLED), status)
    return torch.where(y.isfinite().all(-1), status, int(Status.NON_FINITE))


def _is_no_root(problem: BatchedProblem, y: Tensor, x: Sequence[Tensor], tolerance: float) -> Tensor:
    F = problem.residual(y, x)
    (slope,) = vjp(lambda y: problem.residual(y, x), (y,), torch.ones_like(F))
    return _largest(F) > tolerance * (1 + _largest(y)) * (1 + _largest(slope))


def _is_not_stationary(problem: BatchedProblem, y: Tensor, nu: Tensor, x: Sequence[Tensor], tolerance: float) -> Tensor:
    def L_y(y: Tensor) -> Tensor:
        return gradient(lambda y: lagrangian(problem, y, nu, x), y)

    # What L_y would be at another point as large as y, and the constraints' part of it, are its scale.
    scale = sum(_largest(vjp(L_y, (y,), direction)[0]) for direction in (y, torch.ones_like(y)))
    if problem.p:
        scale = scale + _largest(vjp(lambda y: problem.equality(y, x), (y,), nu)[0])
    return _largest(L_y(y)) > tolerance * scale


def _is_infeasible(problem: BatchedProblem, y: Tensor, x: Sequence[Tensor], tolerance: float) -> Tensor:
    if not problem.p:
        return torch.zeros(y.shape[0], dtype=torch.bool, device=y.device)
    a = jacobian(lambda y: problem.equality(y, x), y, problem.work(x))
    steepness = a.abs().amax((1, 2)).clamp_min(torch.finfo(y.dtype).tiny)
    return _largest(problem.equality(y, x)) > tolerance * (1 + _largest(y)) * steepness


def _is_not_minimum(problem: BatchedProblem, y: Tensor, nu: Tensor, x: Sequence[Tensor]) -> Tensor:
    """Whether the Lagrangian curves down along some direction that keeps the constraints, ``(B,)``."""
    finite = y.isfinite().all(-1)
    if problem.m > SECOND_ORDER_LIMIT:
        return torch.zeros_like(finite)
    y = torch.where(finite[:, None], y, 0.0)
    L_yy = hessian(lambda y: lagrangian(problem, y, nu, x), y, problem.work(x))
    L_yy = torch.where(L_yy.isfinite(), L_yy, 0.0)
    size = L_yy.abs().amax((1, 2))
    if problem.p:
        a = jacobian(lambda y: problem.equality(y, x), y, problem.work(x))
        gram = Dense((a @ a.mT).nan_to_num(), symmetric=True)
        solver = LeastSquares()
        along = torch.eye(problem.m, dtype=y.dtype, device=y.device) - a.mT @ solver.solve(solver.init(gram), a)
        L_yy = along @ L_yy @ along  # normal directions get curvature zero, which never is the lowest below
    lowest = torch.linalg.eigvalsh(0.5 * (L_yy + L_yy.mT))[:, 0]
    return lowest < -(torch.finfo(y.dtype).eps ** 0.5) * size


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(-1) if rows.shape[-1] else rows.new_zeros(rows.shape[0])
