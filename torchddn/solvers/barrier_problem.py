r"""The problem that an interior-point method solves for one value of ``mu``, and the point at which it stands.

With the terms of ``barrier.py``, ``P`` for the rows ``c = (h, g)`` and logarithms for the gaps to the bounds, the
method minimizes ::

    phi(y) = w f(y) + sum_i P(c_i(y)) + sum_j (pull_j gap_j(y) - mu log(gap_j(y)))

where ``w`` is 1, or 0 while nothing but the violation of the rows is minimized.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.fusion import fused
from torchddn.problem import BatchedProblem
from torchddn.solvers.barrier import DAMPING, Box, Rows
from torchddn.solvers.base import Inputs
from torchddn.solvers.expansion import Expansion
from torchddn.solvers.vectors import largest, times

__all__ = [
    "Barrier",
    "Iterate",
    "Point",
    "expand",
    "is_equality",
    "positive",
    "violations",
]


class Point(NamedTuple):
    """The problem around a point. Differentiable but for ``f``, which only decides."""

    y: Tensor  # (B, m)
    f: Tensor  # (B,)
    c: Tensor  # (B, p + q)
    f_y: Tensor  # (B, m)
    c_y: Tensor  # (B, p + q, m)
    L_yy: Tensor  # (B, m, m)


class Iterate(NamedTuple):
    """Where an item is, and what it has learned on its way."""

    point: Point
    dual: Tensor  # (B, p + q)
    z: Tensor  # (B, 2, m): multipliers of the bounds
    mu: Tensor  # (B,)
    price: Tensor  # (B,): of violation, in units of the objective's slope
    bend: Tensor  # (B, p + q): curvature of the rows along the step that was just rejected
    w: Tensor  # (B, m): direction of least curvature, unit
    shift: Tensor  # (B,): tau that last made an indefinite Hessian definite
    reach: Tensor  # (B,): longest step to try; infinite until a step fails
    steepness: Tensor  # (B, p + q): longest gradient of each row so far
    scale: Tensor  # (B,): largest |y| so far
    unit: Tensor  # (B,): of the objective
    span: Tensor  # (B,): length scale at the start
    goal: Tensor  # (B,): violation at which the objective is taken up again; zero while it has not been dropped
    verdict: Tensor  # (B,): Status or RUNNING

    @property
    def restores(self) -> Tensor:
        """Whether the objective has been dropped."""
        return self.goal > 0


class Barrier(NamedTuple):
    """The barrier problem at a point."""

    box: Box
    rows: Rows
    gaps: Tensor  # (B, 2, m)
    mu: Tensor
    mu_z: Tensor  # (B, 2, m): mu where there is a bound
    pull: Tensor  # (B, 2, m): price of distance from a bound
    weight: Tensor  # (B,): w
    least: Tensor  # (B,): gap of a point on a bound, where the last step leads and more may follow

    @staticmethod
    def of(problem: BatchedProblem, iterate: Iterate, box: Box) -> "Barrier":
        """The problem that belongs to an iterate, where it stands."""
        mu, per_length = iterate.mu, iterate.mu / iterate.span
        steepness = positive(iterate.steepness)
        rho = (iterate.price * iterate.unit / iterate.span)[:, None] / steepness
        kappa = rho
        if problem.q:
            kappa = torch.where(is_equality(problem, rho), rho, DAMPING * per_length[:, None] / steepness)
        rows = Rows.of(iterate.point.c, mu, rho, kappa)
        mu_z = torch.where(box.present, mu[:, None, None], 0.0)
        weight = torch.where(iterate.restores, 0.0, torch.ones_like(mu))
        least = 1e-4 * mu * iterate.span / iterate.unit
        gaps = box.gaps(iterate.point.y, least)
        return Barrier(box, rows, gaps, mu, mu_z, box.damping(per_length), weight, least)

    def at(self, point: Point) -> "Barrier":
        """The same problem at another point."""
        rows = Rows.of(point.c, self.mu, self.rows.rho, self.rows.kappa)
        return self._replace(rows=rows, gaps=self.box.gaps(point.y, self.least))

    def merit(self, point: Point) -> Tensor:
        """``phi``."""
        value = torch.where(self.weight > 0, point.f, 0.0) + self.rows.cost
        if not self.box.exists:
            return value
        gaps = self.gaps.detach()
        return value + (self.pull * gaps - self.mu_z * gaps.log()).sum((1, 2))

    def f_y(self, point: Point) -> Tensor:
        """The gradient of what rows and logarithms are added to."""
        return self.weight[:, None] * point.f_y + self.box.fold(self.pull)

    def slope(self, point: Point) -> Tensor:
        """``phi_y``."""
        slope = self.f_y(point) + times(point.c_y.mT, self.rows.slope) - self.box.fold(self.mu_z / self.gaps)
        return self.box.free(slope).detach()

    def error(self, point: Point, dual: Tensor, z: Tensor, extent: Tensor) -> Tensor:
        """How far the optimality conditions are from holding, in units of the objective: slopes over an extent."""
        L_y = self.f_y(point) + times(point.c_y.mT, dual) - self.box.fold(z)
        error = torch.maximum(largest(self.box.free(L_y)) * extent, largest(self.rows.error(dual, self.mu)))
        return torch.maximum(error, largest((z * self.gaps - self.mu_z).flatten(1)))

    def center(self, iterate: Iterate, spread: float) -> Iterate:
        """The iterate with every product of a multiplier and its distance within a factor ``spread`` of ``mu``."""
        dual = self.rows.center(iterate.dual, self.mu, spread)
        primal = (self.mu_z / self.gaps).detach()
        z = torch.minimum(torch.maximum(iterate.z, primal / spread), primal * spread)
        return iterate._replace(dual=dual, z=z)


@fused
def expand(problem: BatchedProblem, x: Inputs, y: Tensor, weights: Tensor, box: Box) -> Point:
    """The point, with the Hessian of ``weights . (f, c)``."""
    at = Expansion(lambda y: problem.values(y, x), y, problem.work(x))
    values, slopes, L_yy = at.value, at.slopes, at.curvature(weights.detach())
    if box.exists:
        free = (~box.fixed).to(y.dtype)
        slopes = slopes * free[:, None]
        L_yy = L_yy * free[:, None] * free[:, :, None]
    return Point(y, values[:, 0].detach(), values[:, 1:], slopes[:, 0], slopes[:, 1:], L_yy)


def is_equality(problem: BatchedProblem, rows: Tensor) -> Tensor:
    """Which rows are equalities, ``(p + q,)``."""
    return torch.arange(rows.shape[-1], device=rows.device) < problem.p


def violations(problem: BatchedProblem, c: Tensor, steepness: Tensor) -> Tensor:
    """Of each row, as a length in ``y``, for decisions."""
    c = c.detach()
    return torch.where(is_equality(problem, c), c.abs(), c.clamp(min=0)) / positive(steepness)


def positive(size: Tensor) -> Tensor:
    """``size``, one where it is zero."""
    return torch.where(size > 0, size, 1.0)
