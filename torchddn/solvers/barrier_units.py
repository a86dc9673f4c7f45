r"""Units for an interior-point method: by what lengths, slopes and curvatures its decisions are measured.

Nothing is known of a problem but its functions. So a length is small beside the largest ``|y|`` so far, a slope beside
the forces ``f_y``, ``c_y^T dual`` and ``z`` that balance each other at a solution, a value of the objective beside
their product; and multiplying ``f``, a row or ``y`` by a constant changes no decision.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.problem import BatchedProblem
from torchddn.solvers.barrier import Box
from torchddn.solvers.barrier_problem import Iterate, Point, is_equality, positive, violations
from torchddn.solvers.options import default_rtol
from torchddn.solvers.points import detached
from torchddn.solvers.saddle import Saddle
from torchddn.solvers.vectors import back_substitute, divide, largest, length, row_sum_norm, times

__all__ = ["Guess", "Units", "measure", "natural_error"]


class Units(NamedTuple):
    """Units for everything that is compared, ``(B,)`` each."""

    curvature: Tensor  # of L: f over length squared
    size: Tensor  # |L_yy|
    distance: Tensor  # a typical length of y here
    reference: Tensor  # a length by which steps are small or not
    extent: Tensor  # a length by which slopes are errors of f
    strength: Tensor  # the largest of the forces that balance each other at a solution: a slope of f
    rounding: Tensor  # of the error
    mu_end: Tensor  # the last mu
    mu_last: Tensor  # where the last step may do
    tolerance: Tensor  # length of the last step
    accuracy: Tensor  # what Newton's method makes of that, relative


def measure(problem: BatchedProblem, iterate: Iterate, rtol: float, atol: float) -> Units:
    """The units at an iterate, for the accuracy that is asked for."""
    point, dual, z = iterate.point, iterate.dual, iterate.z
    eps = torch.finfo(iterate.mu.dtype).eps
    forces = point.c_y * dual[..., None]
    size, slope = row_sum_norm(point.L_yy), length(point.f_y + forces.sum(1))
    # Where y = 0 by cancellation, y itself is no scale; the length over which f changes by itself is.
    change = torch.minimum((point.f.abs() / size).sqrt(), point.f.abs() / length(point.f_y))
    reference = torch.maximum(iterate.scale, change.nan_to_num(nan=0.0, posinf=0.0))
    near = torch.maximum(reference, largest(violations(problem, point.c, length(point.c_y))))
    distance = _typical_length(near, slope, size)
    extent = torch.where(near > 0, near, distance)
    nearby = torch.maximum(largest(point.y), eps**0.5 * reference)
    strength = largest(torch.cat([point.f_y[:, None], forces, z], dim=1).flatten(1))
    # Without an objective all forces fade away.
    strength = torch.maximum(torch.maximum(strength, size * nearby), eps**0.75 * iterate.unit / iterate.span)
    # In a linear program nothing else says how much curvature is nothing.
    curvature = positive(torch.maximum(size, torch.maximum(slope, eps ** (1 / 3) * strength) / distance))
    tolerance = rtol**0.5 * reference + atol
    # A constraint that is active with a multiplier of zero is sqrt(mu) away.
    accuracy = (tolerance / extent).clamp(max=0.1).square().clamp(min=rtol)
    mu_end = 0.03 * torch.minimum(iterate.unit, nearby * strength)
    # The last step is tried early where little is asked for; if it fails, mu goes on to where it cannot be too early.
    parts = accuracy**0.75, min(rtol, default_rtol(iterate.mu.dtype))
    mu_last, mu_end = (torch.maximum(part * mu_end, eps**1.1 * iterate.unit) for part in parts)
    rounding = 16 * eps * strength * extent
    return Units(curvature, size, distance, reference, extent, strength, rounding, mu_end, mu_last, tolerance, accuracy)


def natural_error(problem: BatchedProblem, point: Point, dual: Tensor, box: Box, units: Units) -> Tensor:
    """Largest violation of the optimality conditions, ``(B,)``, without a barrier and relative to the units."""
    point, dual = detached(point), dual.detach()
    L_y = box.free(point.f_y + times(point.c_y.mT, dual)) / units.strength[:, None]
    parts = [L_y]
    if box.exists:
        # A slope that a bound holds counts no more than the distance to the bound.
        sides = torch.where(box.present, box.gaps(point.y) / units.extent[:, None, None], torch.inf)
        parts = [torch.minimum(L_y.clamp(min=0), sides[:, 0]), torch.minimum((-L_y).clamp(min=0), sides[:, 1])]
    if dual.shape[-1]:
        steepness = positive(length(point.c_y))
        c = point.c / steepness / units.extent[:, None]
        force = dual * steepness / units.strength[:, None]
        parts.append(torch.where(is_equality(problem, c), c, torch.minimum(-c, force)))
    return largest(torch.cat(parts, dim=1))


class Guess(NamedTuple):
    """What can be said at the start."""

    dual: Tensor  # (B, p + q)
    z: Tensor  # (B, 2, m)
    unit: Tensor  # (B,): of the objective
    span: Tensor  # (B,): a length
    distance: Tensor  # (B,): how far away a solution may be, 0 to 1 and more
    size: Tensor  # (B,): |L_yy|

    @staticmethod
    def of(problem: BatchedProblem, point: Point, box: Box, scale: Tensor) -> "Guess":
        """Judged at a point; ``scale`` is the size of what was given as a start."""
        point = detached(point)
        eps = torch.finfo(scale.dtype).eps
        steepness = positive(length(point.c_y))
        violation = violations(problem, point.c, steepness)
        size, slope = row_sum_norm(point.L_yy), length(point.f_y)
        near = torch.maximum(torch.maximum(scale, largest(point.y)), largest(violation))
        span = _typical_length(near, slope, size)
        unit = torch.maximum(slope * span, 1e-2 * size * span.square())
        unit = torch.where((unit > 0) & unit.isfinite(), unit, 1.0)

        # Multipliers by least squares, in which those of distant constraints are dear: with T the share of a variable
        # that its bounds leave free, minimize T |f_y + A' dual|^2 + |slack dual|^2.
        gaps = box.gaps(point.y) / span[:, None, None]
        share = torch.where(box.present, gaps.square() / (1 + gaps.square()), 1.0).prod(1)
        A = point.c_y / steepness[..., None]
        slack = point.c / steepness / span[:, None]
        slack = torch.where(is_equality(problem, slack), 0.0, slack.clamp(max=0))
        dual = slack
        if dual.shape[-1]:
            gram = (A * share[:, None]) @ A.mT
            factor, _ = torch.linalg.cholesky_ex(gram + torch.diag_embed(slack.square() + eps ** (2 / 3)))
            dual = -back_substitute(factor, times(A, share * point.f_y))
            dual = torch.where(is_equality(problem, dual), dual, dual.clamp(min=0)).nan_to_num(0.0)

        error = L_y = point.f_y + times(A.mT, dual)
        force = (box.sign * L_y[:, None]).clamp(min=0)  # towards each bound
        z = torch.where(box.present, force, 0.0)
        if box.exists:
            # A slope that a bound holds counts no more than the distance to the bound.
            error = box.free(torch.where(box.present, force * gaps.clamp(max=1.0), force).amax(1))
        parts = [error, dual * slack, violation * (unit / span.square())[:, None], (z * gaps).flatten(1)]
        distance = (largest(torch.cat(parts, dim=1)) * span / unit).nan_to_num(nan=1.0)

        # A stationary point that is no minimum is as far away as any other.
        stiffness = divide(z, box.gaps(point.y)).sum(1) + box.fixed * size[:, None]
        force = dual.abs() / span[:, None] + eps**0.5 * size[:, None]
        D = (slack.abs() + eps ** (2 / 3)) / force
        saddle = Saddle.of(point.L_yy, stiffness, A, D, size / 32, positive(size))
        distance = torch.where(saddle.convex, distance, 1.0)
        return Guess(dual / steepness, z, unit, span, distance, size)


def _typical_length(near: Tensor, slope: Tensor, size: Tensor) -> Tensor:
    """``near``, or the length of a step downhill where it is longer, but not out of all proportion."""
    downhill = divide(slope, size)
    downhill = torch.where(near > 0, torch.minimum(downhill, 100 * near), downhill)
    distance = torch.maximum(near, downhill)
    return torch.where((distance > 0) & distance.isfinite(), distance, 1.0)
