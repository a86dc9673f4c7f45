r"""A step of an interior-point method: where to, how far, and with which multipliers.

The step is Newton's for the optimality conditions of the barrier problem, with ``gap`` the distances to the bounds and
``s`` those to the rows, ::

    [ H      A^T ] [ d     ]     [ f_y + A^T dual - mu / gap ]      H = L_yy + z / gap + tau I
    [ A      -D  ] [ ddual ] = - [ D (P' - dual)             ]      D = r / (rho - dual) + s / (dual + kappa)

Whatever ``dual`` is, ``d`` descends on ``phi`` if ``H + A^T D^-1 A`` is positive definite; ``saddle.py`` sees to that.
Once ``mu`` is as small as it gets, Newton's step for the active constraints alone is tried instead.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.problem import BatchedProblem
from torchddn.solvers.barrier import Box, Rows
from torchddn.solvers.barrier_problem import Barrier, Iterate, Point, expand, is_equality, positive
from torchddn.solvers.barrier_units import Units, natural_error
from torchddn.solvers.base import Inputs
from torchddn.solvers.points import where_items
from torchddn.solvers.saddle import Saddle
from torchddn.solvers.vectors import is_settled, largest, length, times

__all__ = ["Move", "propose"]

# A step takes at most this part of a gap (Nocedal and Wright, equation 19.9), and more as mu becomes small.
_INSIDE = 0.995


class Move(NamedTuple):
    """A step, where it leads, and what it was made of."""

    moved: Tensor  # (B, m): without its correction
    trial: Point
    dual: Tensor  # at the trial point
    z: Tensor
    wanted: Tensor  # multipliers of the rows after a step of full length
    w: Tensor
    curvature: Tensor  # along w
    saddle: Saddle
    corrected: Tensor  # (B,): whether the step follows the bend of the rows
    polishes: Tensor  # (B,): whether it is the last one


def propose(problem: BatchedProblem, x: Inputs, iterate: Iterate, barrier: Barrier, units: Units) -> Move:
    """The next step; one on the active constraints is the last if it is no longer than the tolerance."""
    point, dual = iterate.point, iterate.dual
    box, rows, gaps = barrier.box, barrier.rows, barrier.gaps
    D = rows.compliance(dual.detach())
    stiffness = _stiffness(iterate.z / gaps, box, units)
    saddle = Saddle.of(point.L_yy, stiffness, point.c_y, D, iterate.shift, units.curvature)
    free_z = barrier.mu_z / gaps  # what z would be at this gap
    L_y = barrier.f_y(point) + times(point.c_y.mT, dual) - box.fold(free_z)
    d, more_dual = saddle.newton_step(-box.free(L_y), -D * (rows.slope - dual))

    # Near a saddle or maximum: leave along w, downhill if that is a question.
    w, curvature = saddle.least_curvature(iterate.w)
    slope = barrier.slope(point)
    escapes = ~saddle.convex & (curvature < 0) & (length(d) <= 0.1 * units.distance)
    if not is_settled(~escapes):
        downhill = torch.where((slope * w).sum(-1) > 0, -1.0, 1.0)
        leap = torch.where(escapes, torch.minimum(0.5 * units.distance, iterate.reach), 0.0)
        d = d + (leap * downhill)[:, None] * w

    inside = 1 - (iterate.mu / iterate.unit).clamp(max=1 - _INSIDE)
    alpha, part = _lengths(problem, iterate, barrier, units, saddle, d, more_dual, slope, inside)
    moved = alpha[:, None] * d
    if problem.p + problem.q and not is_settled(alpha >= 1):
        # A step that has to be short because it is long along the constraints need not be short across them, where it
        # leads away from those that are too close.
        excess = (rows.slope - dual).detach()
        excess = torch.where(is_equality(problem, dual), excess, excess.clamp(min=0))
        across = saddle.solve(torch.zeros_like(d), -D * excess)
        usable = (alpha < 1) & (length(across) <= 0.5 * length(moved)) & ((slope * across).sum(-1) < 0)
        usable = usable & (box.shrinkage(gaps, across) <= 0.5 * (1 - alpha * box.shrinkage(gaps, d)))
        moved = where_items(usable, moved + (1 - alpha)[:, None] * across, moved)
    y = point.y + moved
    corrected = (iterate.bend != 0).any(-1)
    if not is_settled(~corrected):
        # Rows yield as they will at the end of the step: a slack that it uses up is none to bend into.
        ahead = Rows.of(point.c + times(point.c_y, moved), iterate.mu, rows.rho, rows.kappa)
        stiff = saddle.stiffened(ahead.compliance(dual).detach())
        back = stiff.solve(torch.zeros_like(y), -iterate.bend)
        usable = (length(back) <= 0.5 * length(moved)) & (box.shrinkage(box.gaps(y), back) < inside)
        y = where_items(corrected & usable, y + back, y)

    dual_next = _toward(dual, dual + more_dual, barrier, inside)
    dual_next = dual + torch.where(is_equality(problem, dual), alpha.clamp(max=1.0)[:, None], part[:, None]) * (
        dual_next - dual
    )
    more_z = torch.where(box.present, free_z - iterate.z - (iterate.z / gaps) * (box.sign * d[:, None]), 0.0)
    shrinks = largest((-more_z / iterate.z.clamp(min=torch.finfo(d.dtype).tiny)).clamp(min=0).flatten(1))
    z_next = iterate.z + ((inside / shrinks.clamp(min=0.5)).clamp(max=1.0) * part)[:, None, None] * more_z

    # Not again where it was just rejected.
    polishes = (iterate.mu <= 2 * units.mu_last) & (iterate.reach == torch.inf) & ~iterate.restores
    if not is_settled(~polishes):
        short, y_last, dual_last = _last_step(problem, iterate, barrier, units)
        polishes = polishes & short
        y, dual_next = where_items(polishes, y_last, y), where_items(polishes, dual_last, dual_next)
    trial = expand(problem, x, box.clip(y), torch.cat([barrier.weight[:, None], dual_next], dim=1), box)
    return Move(moved, trial, dual_next, z_next, dual + more_dual, w, curvature, saddle, corrected, polishes)


def _lengths(
    problem: BatchedProblem,
    iterate: Iterate,
    barrier: Barrier,
    units: Units,
    saddle: Saddle,
    d: Tensor,
    more_dual: Tensor,
    slope: Tensor,
    inside: Tensor,
) -> tuple[Tensor, Tensor]:
    """The parts of ``d`` that ``y`` and the multipliers take."""
    box, rows = barrier.box, barrier.rows
    size = length(d)
    # Where tau had to be made up, so was the length of d.
    limit = torch.where(saddle.tau > 0, torch.minimum(iterate.reach, 10 * units.distance), iterate.reach)
    alpha = (limit / size).nan_to_num(nan=1.0)
    # Where nothing but a tiny tau curves, that length means little, and what is far away must be reached.
    loose = saddle.singular & (2 * saddle.tau * size.square() >= -(slope * d.detach()).sum(-1))
    loose = loose & (size >= 1e-2 * units.reference)
    part = alpha.clamp(max=1.0)
    alpha = torch.where(loose, alpha, part)
    blocked = box.shrinkage(barrier.gaps, d).detach()
    alpha = torch.minimum(alpha, inside / blocked.clamp(min=torch.finfo(d.dtype).tiny))
    if problem.q:
        # Slacks of inequalities: s + ds = (mu - s ddual) / (dual + kappa). Their barrier is soft, hence the floor.
        lost = 1 - (barrier.mu[:, None] / rows.s - more_dual.detach()) / rows.margins(iterate.dual.detach())[1]
        lost = largest(torch.where(is_equality(problem, lost), 0.0, lost.clamp(min=0)))
        held = (inside / lost.clamp(min=1e-3)).clamp(min=0.1)
        alpha = torch.where(loose, alpha, torch.minimum(alpha, held))
    return alpha, part


def _toward(dual: Tensor, wanted: Tensor, barrier: Barrier, inside: Tensor) -> Tensor:
    """``wanted``, but only a part of the way to the prices, between which ``dual`` lies."""
    rows = barrier.rows
    least, most = dual - inside[:, None] * (dual + rows.kappa), dual + inside[:, None] * (rows.rho - dual)
    return torch.minimum(torch.maximum(wanted, least), most)


def _last_step(
    problem: BatchedProblem, iterate: Iterate, barrier: Barrier, units: Units
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's step on the active constraints: whether it is nothing much, where it leads, and the multipliers there.

    Along a face of solutions the barrier moves a point on and on, and the other step is not small although all is
    done. Where an infimum is only approached at infinity this one is long, however small the gradient has become.
    """
    point, box, dual, rows = iterate.point, barrier.box, iterate.dual, barrier.rows
    eps = torch.finfo(dual.dtype).eps
    steepness = positive(length(point.c_y))
    # Active: the multiplier is nearer to its unit than the distance is to its own, and the distance is small at all
    # (where multipliers are fading to nothing, they may lag behind).
    compliance = (units.extent / units.strength).nan_to_num(nan=1.0, posinf=1.0)[:, None]
    close = (eps**0.25 * units.extent)[:, None]
    holds = (dual.detach().abs() * steepness.square() * compliance >= rows.s) & (rows.s <= close * steepness)
    holds = holds | is_equality(problem, holds)
    holds_z = (iterate.z * compliance[:, None] >= barrier.gaps) & (barrier.gaps <= close[:, None]) & box.present

    D = torch.where(holds, 0.0, torch.full_like(dual, torch.finfo(dual.dtype).max ** 0.4)).detach()
    stiffness = _stiffness(torch.where(holds_z, iterate.z / barrier.gaps, 0.0), box, units)
    saddle = Saddle.of(point.L_yy, stiffness, point.c_y, D, iterate.shift, units.curvature)
    kept, missing = torch.where(holds, dual, 0.0), torch.where(holds, point.c, 0.0)
    L_y = box.free(point.f_y + times(point.c_y.mT, kept))
    d, more = saddle.newton_step(-L_y, -missing)

    # At a minimum with a singular Hessian steps become short slowly, and errors vanish before.
    vanishes = natural_error(problem, point, dual, box, units) <= 16 * eps
    short = (largest(d) <= units.tolerance) | (vanishes & (largest(d) <= eps ** (1 / 3) * units.reference))
    change = (L_y * d).sum(-1).detach().abs()
    # Where nothing but a tiny tau curves, d is short by that alone.
    short = short & ~(saddle.singular & (saddle.tau * d.detach().square().sum(-1) >= 0.5 * change))
    # Where the objective cannot be seen to change along d, its length is made of rounding errors.
    idle = change <= 100 * eps * (point.f.abs() + (point.f_y * point.y).detach().abs().sum(-1))
    if not is_settled(short | ~idle):
        d = where_items(idle & ~short, saddle.solve(torch.zeros_like(d), -missing), d)
    y = point.y + d
    for side in range(holds_z.shape[1]):
        y = torch.where(holds_z[:, side], box.bound[:, side], y)
    return saddle.convex & (short | idle), y, torch.where(holds, dual + more, 0.0)


def _stiffness(sigma: Tensor, box: Box, units: Units) -> Tensor:
    """Diagonal of the bounds, ``(B, m)``; a fixed variable gets an equation of its own."""
    return sigma.detach().sum(1) + box.fixed * units.curvature[:, None]
