r"""What a solver hands over becomes a solution that may be differentiated, or a status that says why not.

Whoever found a point, three things follow. It is *polished*: a few steps of Newton's method on the equations of the
active constraints, ``R(z, x) = 0``, bring it to rounding; a constraint whose multiplier gets the wrong sign is dropped,
one that is violated is taken in. Its active set is *identified*. And it is *judged*: ``CONVERGED`` is left only to a
point that satisfies the first-order conditions and has no direction of negative curvature along the constraints.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.active_set import WEAK, ActiveSet, identify
from torchddn.derivatives import Linearization, hessian, jacobian, vjp
from torchddn.fusion import fused
from torchddn.linear import DenseMatrix, LeastSquares, Saddle, solve_certified
from torchddn.optimality import Held, Scales, kkt_error, lagrangian, residual, scales
from torchddn.problem import BatchedProblem
from torchddn.status import Status

__all__ = ["Verified", "check_answer", "verify"]

# Largest number of unknowns for which points are polished, and m for which the second-order condition of a point that
# came without it is checked: both need a dense matrix.
DENSE_LIMIT = 320
_MAX_STEPS = 6
# So many long steps in a row are a drift.
_SUSPICIOUS = 3


class Verified(NamedTuple):
    """A point that has been polished, with its active set (None without inequalities and bounds) and status.

    ``moved`` is how far polishing moved it, relative to its size, ``(B,)``.
    """

    y: Tensor
    dual: Tensor
    active: ActiveSet | None
    status: Tensor
    moved: Tensor


def verify(
    problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor], status: Tensor, exact: bool = False
) -> Verified:
    """Returns the point polished, identified and judged.

    Args:
        problem: A minimization.
        y: The point, ``(B, m)``.
        dual: Its multipliers, ``(B, p + q)``.
        x: Inputs; a solver's start last.
        status: What the solver says, ``(B,)``.
        exact: Whether a point without a noticeable error may be taken as it is. Otherwise a step is tried anyway: where
            the scales of variables are far apart, errors of the small ones are not noticed.
    """
    eps = torch.finfo(y.dtype).eps
    finite = y.isfinite().all(1) & dual.isfinite().all(1)
    point, multipliers = (torch.where(finite[:, None], part, 0.0) for part in (y, dual))
    units = scales(problem, point, multipliers, x)
    error, violation = kkt_error(problem, point, multipliers, x, units)
    # A solver that gave up close to a solution has found it.
    hopeful = finite & ((error <= eps ** (1 / 3)) | (status == Status.CONVERGED))
    hopeful = hopeful & (status != Status.INFEASIBLE) & (status != Status.UNBOUNDED)
    polished, polished_dual, active, polished_error, drifts = _polish(
        problem, point, multipliers, x, units, error, hopeful, eps**0.85 if exact else 0.0
    )
    moved = (polished - point).abs().amax(1) / units.length
    # What is too large to be polished is as good as its solver left it.
    enough = eps**0.5 if problem.m + dual.shape[1] <= DENSE_LIMIT else eps ** (1 / 3)
    solved = hopeful & (polished_error <= enough) & ~drifts
    status = torch.where(solved & (status != Status.NON_FINITE), int(Status.CONVERGED), status)
    unproved = (status == Status.CONVERGED) & ~solved
    status = torch.where(unproved & (violation > eps**0.5), int(Status.INFEASIBLE), status)
    status = torch.where(unproved & (violation <= eps**0.5), int(Status.STALLED), status)
    minimum = _is_minimum(problem, polished, polished_dual, x, active, status == Status.CONVERGED)
    status = torch.where(minimum, status, int(Status.STALLED))
    y = torch.where(finite[:, None], polished, y)
    dual = torch.where(finite[:, None], polished_dual, dual)
    return Verified(y, dual, active if problem.is_inequality_constrained else None, status, moved)


def check_answer(problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor]) -> Tensor:
    """Status ``(B,)`` of an answer that nobody vouches for, such as that of a user's own ``solve``.

    The tolerance is relative and loose, eps^(1/3): an answer that a decent solver found passes, another point
    does not. An infeasible one is INFEASIBLE, one that is not stationary STALLED.
    """
    tolerance = torch.finfo(y.dtype).eps ** (1 / 3)
    status = torch.zeros(y.shape[0], dtype=torch.int64, device=y.device)
    if problem.kind == "minimize":
        error, violation = kkt_error(problem, y, dual, x, scales(problem, y, dual, x))
        status = torch.where(error > tolerance, int(Status.STALLED), status)
        status = torch.where(violation > tolerance, int(Status.INFEASIBLE), status)
    else:
        status = torch.where(_is_no_root(problem, y, x, tolerance), int(Status.STALLED), status)
    return torch.where(y.isfinite().all(-1), status, int(Status.NON_FINITE))


def _polish(
    problem: BatchedProblem,
    y: Tensor,
    dual: Tensor,
    x: Sequence[Tensor],
    units: Scales,
    error: Tensor,
    hopeful: Tensor,
    goal: float,
) -> tuple[Tensor, Tensor, ActiveSet, Tensor, Tensor]:
    """The best point on a few Newton steps, with multipliers, active set, error, and whether it drifts away."""
    eps = torch.finfo(y.dtype).eps
    dense = problem.m + problem.p + problem.q <= DENSE_LIMIT
    items = torch.nonzero(hopeful & (error > goal)).flatten() if dense else hopeful.new_zeros(0, dtype=torch.int64)
    drifts = torch.zeros_like(hopeful)
    if len(items):
        part, part_x = (problem, x) if len(items) == len(y) else problem.select(x, items)
        own = Scales(*(unit[items] for unit in units))
        found = _newton(part, y[items], dual[items], part_x, own, error[items])
        before = (y, dual, error, drifts)
        y, dual, error, drifts = (whole.index_copy(0, items, rows) for whole, rows in zip(before, found, strict=True))
    # Errors of the point leave as much in what decides; of an unpolished one they are larger.
    weak = torch.where(error <= eps**0.5, eps**0.5, eps ** (1 / 3))
    active = identify(problem, y, dual, x, units, weak[:, None])
    if problem.is_inequality_constrained and len(y):
        held = active.held(problem)
        settled = (hopeful & (error <= eps**0.5))[:, None]
        y = torch.where(settled, held.put(problem, y, x), y)
        dual = torch.where(settled & ~held.rows, 0.0, dual)
    return y, dual, active, error, drifts


def _newton(
    problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor], units: Scales, error: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Newton's method on the equations of the active set, which follows the signs; the best point it passes.

    And whether its steps are long and stay so: on the way to an infimum at infinity gradients vanish, in proportion to
    the curvature.
    """
    eps = torch.finfo(y.dtype).eps
    held = identify(problem, y, dual, x, units, eps ** (1 / 3)).held(problem)
    best = (y, dual, error)
    z = torch.cat([y, dual], dim=1)
    stride, drifts = torch.zeros_like(error), torch.ones_like(error, dtype=torch.bool)
    for step in range(_MAX_STEPS):
        before, stride_before = y, stride
        z = _newton_step(problem, z, x, held)
        y, dual = z[:, : problem.m], z[:, problem.m :]
        y = held.put(problem, y, x)
        stride = (y - before).abs().amax(1) / units.length
        drifts = drifts & (stride > eps**0.25) & (stride >= 0.9 * stride_before)
        error = kkt_error(problem, y, torch.where(held.rows, dual, 0.0), x, units)[0].nan_to_num(nan=torch.inf)
        better = error < best[2]
        best = (
            torch.where(better[:, None], y, best[0]),
            torch.where(better[:, None] & held.rows, dual, torch.where(better[:, None], 0.0, best[1])),
            torch.where(better, error, best[2]),
        )
        held_next = _follow_signs(problem, y, dual, x, units, held)
        changed = torch.stack([(a ^ b).any(1) for a, b in zip(held_next, held, strict=True) if a.shape[1]]).any(0)
        held = held_next
        improving = (better | changed) & ((best[2] > eps**0.85) | (stride > eps**0.5))
        if not bool((improving | (drifts & (step < _SUSPICIOUS))).any()):
            break
    return *best, drifts


def _newton_step(problem: BatchedProblem, z: Tensor, x: Sequence[Tensor], held: Held) -> Tensor:
    m = problem.m
    r, top = _linearize(problem, z, x, held)
    if z.shape[1] > m:
        A = top[:, :, m:].mT.contiguous()
        system = Saddle(top[:, :, :m].contiguous(), A, held.rows)
    else:
        system = DenseMatrix(top, symmetric=True)
    return z - solve_certified(system, r).solution


@fused
def _linearize(problem: BatchedProblem, z: Tensor, x: Sequence[Tensor], held: Held) -> tuple[Tensor, Tensor]:
    """The residual, and the rows of K that belong to variables."""
    with torch.enable_grad():
        K = Linearization(lambda z: residual(problem, z, x, held), z.detach(), problem.work(x))
    return K.value.detach(), K.dense(problem.m).detach()


@fused
def _follow_signs(
    problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor], units: Scales, held: Held
) -> Held:
    """The constraints to hold next: without those that pull, with those that are violated."""
    if not problem.is_inequality_constrained:
        return held
    tolerance = torch.finfo(y.dtype).eps ** 0.5
    p = problem.p
    g = problem.inequality(y, x) / (units.rows[:, p:] * units.length[:, None])
    lam = dual[:, p:] * units.rows[:, p:] / units.force[:, None]
    active = torch.where(held.rows, dual, 0.0)
    (L_y,) = vjp(lambda y: lagrangian(problem, y, active, x), (y,), torch.ones_like(y[:, 0]))
    push = L_y / units.force[:, None]
    lower, upper = problem.bounds(x)
    below, above = ((gap / units.length[:, None]) > tolerance for gap in (lower - y, y - upper))
    fixed = lower == upper
    rows = torch.where(held.rows[:, p:], lam >= -tolerance, g > tolerance)
    return Held(
        torch.cat([held.rows[:, :p], rows], dim=1),
        (held.at_lower & (push >= -tolerance)) | below | fixed,
        (held.at_upper & (push <= tolerance)) | above | fixed,
    )


def _is_minimum(
    problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor], active: ActiveSet, asked: Tensor
) -> Tensor:
    """Whether no direction along the constraints has negative curvature, ``(B,)``; True for items not asked about."""
    minimum = torch.ones_like(asked)
    items = torch.nonzero(asked).flatten()
    if problem.m > DENSE_LIMIT or not len(items):
        return minimum
    if len(items) < len(y):
        problem, x = problem.select(x, items)
        y, dual, active = y[items], dual[items], ActiveSet(*(part[items] for part in active))
    H, a = _curvature_and_rows(problem, y, dual, x)
    a = a / a.square().sum(-1, keepdim=True).sqrt().clamp_min(torch.finfo(y.dtype).tiny)
    size = H.abs().amax((1, 2))
    strong = active.held(problem, weakly_active=False)
    H_free, a_strong = _restrict(H, a, strong.variables, strong.rows)
    # Definite with the constraints' own curvature added: definite along them. Most minima pass here.
    identity = torch.eye(problem.m, dtype=y.dtype, device=y.device)
    heavy = torch.where(size > 0, size, 1.0)[:, None, None]
    shown = H_free + 1e4 * heavy * (a_strong.mT @ a_strong) + strong.variables[:, None] * heavy * identity
    doubtful = torch.nonzero(torch.linalg.cholesky_ex(shown)[1] != 0).flatten()
    if not len(doubtful):
        return minimum
    tolerance = torch.finfo(y.dtype).eps ** 0.5 * size[doubtful]
    value, w = _lowest(H_free[doubtful], a_strong[doubtful])
    either_way = _is_admissible(w, a[doubtful], ActiveSet(*(part[doubtful] for part in active)), problem.p)
    kept = active.held(problem)
    inner, _ = _lowest(*_restrict(H[doubtful], a[doubtful], kept.variables[doubtful], kept.rows[doubtful]))
    bad = (inner < -tolerance) | ((value < -tolerance) & either_way)
    return minimum.index_put((items[doubtful],), ~bad)


@fused
def _curvature_and_rows(problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """``L_yy`` and ``c_y``."""
    work = problem.work(x)
    H = hessian(lambda y: lagrangian(problem, y, dual, x), y, work)
    return H, jacobian(lambda y: problem.constraints(y, x), y, work) if dual.shape[1] else H[:, :0]


def _restrict(H: Tensor, a: Tensor, variables: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """``H`` and ``a`` without held variables and without rows that are not held."""
    free = ~variables
    return H * free[:, None] * free[..., None], a * rows[..., None] * free[:, None]


def _lowest(H: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest curvature along ``a d = 0``, at most zero, and its direction."""
    if a.shape[1]:
        solver = LeastSquares()
        gram = DenseMatrix(a @ a.mT, symmetric=True)
        along = torch.eye(H.shape[1], dtype=H.dtype, device=H.device) - a.mT @ solver.solve(solver.init(gram), a)
        H = along @ H @ along  # normal directions get curvature zero, which never is the lowest below
    finite = H.isfinite().all(-1).all(-1)[:, None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, 0.5 * (H + H.mT), 0.0))
    return values[:, 0], vectors[:, :, 0]


def _is_admissible(w: Tensor, a: Tensor, active: ActiveSet, p: int) -> Tensor:
    """Whether ``w`` or ``-w`` leaves the weakly active constraints on the feasible side."""
    slope = torch.where(active.rows == WEAK, (a[:, p:] @ w[..., None])[..., 0], 0.0)
    slope = torch.cat([slope, torch.where(active.lower == WEAK, -w, 0.0), torch.where(active.upper == WEAK, w, 0.0)], 1)
    tolerance = torch.finfo(w.dtype).eps ** 0.5
    return (slope <= tolerance).all(1) | (slope >= -tolerance).all(1)


def _is_no_root(problem: BatchedProblem, y: Tensor, x: Sequence[Tensor], tolerance: float) -> Tensor:
    F = problem.residual(y, x)
    (slope,) = vjp(lambda y: problem.residual(y, x), (y,), torch.ones_like(F))
    largest = [rows.abs().amax(-1) for rows in (F, y, slope)]
    return largest[0] > tolerance * (1 + largest[1]) * (1 + largest[2])
