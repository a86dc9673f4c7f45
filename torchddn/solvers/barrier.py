r"""What an interior-point method makes of constraints: smooth terms that keep, or bring, a point inside.

A constraint is a *row* ``c`` with a price for leaving ``c = 0`` in either direction, ``rho`` upwards and ``kappa``
downwards: ``kappa = rho`` for an equality, ``kappa`` almost zero for an inequality ``c <= 0``. With the two distances
``r, s > 0`` the price is a problem by itself, ::

    P(c) = min_{r, s}  rho r + kappa s - mu (log r + log s)   subject to   c = r - s

whose solution is known: with ``a = 2 mu / (rho + kappa)``, ``r, s = (a +- c + sqrt(a^2 + c^2)) / 2``. ``P`` is
convex and smooth, and tends to ``rho max(c, 0) + kappa max(-c, 0)`` as ``mu -> 0``. The multiplier ``dual`` of the row
lies between ``-kappa`` and ``rho`` and satisfies, at the minimum, ``r (rho - dual) = mu = s (dual + kappa)``.

A bound on ``y`` costs ``-mu log(gap)``, with ``gap`` the distance to it and a multiplier ``z`` with ``z gap = mu``.
Logarithms alone would drive a point along a set of solutions to infinity. So an inequality has its small ``kappa``, and
the gap of a variable with one bound a small price, both proportional to ``mu``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.problem import BatchedProblem
from torchddn.solvers.base import Inputs

__all__ = ["DAMPING", "Box", "Rows"]

# Price of distance from an inequality or a single bound, in units of mu per length scale of the problem: logarithms
# are in balance with it a hundred lengths away, where no solution is disturbed by it.
DAMPING = 1e-2


class Rows(NamedTuple):
    """Rows at a point, ``(B, p + q)`` each. Derivatives flow through ``slope`` alone."""

    r: Tensor
    s: Tensor
    slope: Tensor  # P'(c)
    cost: Tensor  # (B,): sum of P
    rho: Tensor
    kappa: Tensor

    @staticmethod
    def of(c: Tensor, mu: Tensor, rho: Tensor, kappa: Tensor) -> "Rows":
        mu, a = mu[:, None], 2 * mu[:, None] / (rho + kappa)
        size = c.abs()
        root = torch.hypot(a, c)
        far = 0.5 * (a + size + root)
        near = 0.5 * (a + a * (a / (root + size)))  # the same with -size, without the cancellation
        above = c > 0
        r, s = torch.where(above, far, near), torch.where(above, near, far)
        # The quotient by the larger distance is the accurate one.
        slope = torch.where(above, rho - mu / r, mu / s - kappa)
        r, s = r.detach(), s.detach()
        cost = (rho * r + kappa * s - mu * (r.log() + s.log())).sum(-1)
        return Rows(r, s, slope, cost, rho, kappa)

    def margins(self, dual: Tensor) -> tuple[Tensor, Tensor]:
        """``rho - dual`` and ``dual + kappa``, positive even where rounding makes a multiplier a price."""
        eps = torch.finfo(dual.dtype).eps
        return torch.maximum(self.rho - dual, eps * self.rho), torch.maximum(dual + self.kappa, eps * self.kappa)

    def compliance(self, dual: Tensor) -> Tensor:
        """``D``, by how much ``c`` yields per unit of ``dual``: ``A d - D ddual = D (dual - slope)``."""
        above, below = self.margins(dual)
        return self.r / above + self.s / below

    def center(self, dual: Tensor, mu: Tensor, spread: float) -> Tensor:
        """``dual`` where both products are within a factor ``spread`` of ``mu``, else the nearest such."""
        mu = mu[:, None]
        least = torch.maximum(mu / (spread * self.s) - self.kappa, self.rho - spread * mu / self.r)
        most = torch.minimum(spread * mu / self.s - self.kappa, self.rho - mu / (spread * self.r))
        return torch.minimum(torch.maximum(dual, least), most)

    def error(self, dual: Tensor, mu: Tensor) -> Tensor:
        """Deviations of the products from ``mu``, ``(B, p + q)``."""
        above, below = self.margins(dual)
        return torch.maximum((self.r * above - mu[:, None]).abs(), (self.s * below - mu[:, None]).abs())


class Box(NamedTuple):
    """The bounds: lower and upper are the two sides, ``(B, 2, m)``; ``(B, 0, m)`` without bounds."""

    bound: Tensor  # zero where there is none
    present: Tensor
    sign: Tensor  # (2, 1): 1 for lower, -1 for upper
    fixed: Tensor  # (B, m): lower == upper: no variable at all
    crossed: Tensor  # (B,): lower > upper somewhere

    @staticmethod
    def of(problem: BatchedProblem, x: Inputs, y: Tensor) -> "Box":
        if not problem.has_bounds:
            none = y.new_zeros(y.shape[0], 0, y.shape[1])
            fixed = torch.zeros_like(y, dtype=torch.bool)
            return Box(none, none > 0, y.new_zeros(0, 1), fixed, fixed[:, 0])
        sides = torch.stack(problem.bounds(x), dim=1)
        lower, upper = sides.detach().unbind(1)
        # Bounds whose distance is rounding leave no room for an interior.
        room = 16 * torch.finfo(y.dtype).eps * torch.maximum(lower.abs(), upper.abs())
        finite = sides.isfinite()
        fixed = (upper - lower <= room) & finite.all(1)
        crossed = (lower > upper + room) | (lower == torch.inf) | (upper == -torch.inf)
        sign = torch.tensor([[1.0], [-1.0]], dtype=y.dtype, device=y.device)
        return Box(torch.where(finite, sides, 0.0), finite & ~fixed[:, None], sign, fixed, crossed.any(-1))

    @property
    def exists(self) -> bool:
        return bool(self.bound.shape[1])

    def gaps(self, y: Tensor, least: Tensor | None = None) -> Tensor:
        """Distances to the bounds, one where there is none; positive even where ``y`` is a bound.

        Args:
            y: Point, ``(B, m)``.
            least: What is taken for a distance that is less, ``(B,)``.
        """
        info = torch.finfo(y.dtype)
        floor = info.eps * self.bound.abs() + info.tiny**0.9
        if least is not None:
            floor = torch.maximum(floor, least[:, None, None])
        return torch.where(self.present, torch.maximum(self.sign * (y[:, None] - self.bound), floor), 1.0)

    def clip(self, y: Tensor) -> Tensor:
        """The nearest point of the box."""
        return self.push(y, torch.zeros_like(y)) if self.exists else y

    def push(self, y: Tensor, margin: Tensor) -> Tensor:
        """``y`` moved inside, ``margin`` from a bound, or a hundredth of the width of the box where that is less."""
        (lower, upper), (has_lower, has_upper) = self.bound.unbind(1), self.present.unbind(1)
        margin = torch.where(has_lower & has_upper, torch.minimum(margin, 0.01 * (upper - lower)), margin)
        y = torch.where(has_lower, torch.maximum(y, lower + margin), y)
        y = torch.where(has_upper, torch.minimum(y, upper - margin), y)
        return torch.where(self.fixed, lower, y)

    def free(self, vector: Tensor) -> Tensor:
        """``vector``, ``(B, m)``, zero where the variable is fixed."""
        return torch.where(self.fixed, 0.0, vector) if self.exists else vector

    def fold(self, sides: Tensor) -> Tensor:
        """Lower minus upper, ``(B, m)``."""
        return (self.sign * sides).sum(1)

    def damping(self, mu: Tensor) -> Tensor:
        """Price of the gap of a variable that has one bound only, ``(B, 2, m)``; ``mu`` per length."""
        single = self.present & ~self.present.all(1, keepdim=True)
        return torch.where(single, DAMPING * mu[:, None, None], 0.0)

    def shrinkage(self, gaps: Tensor, moved: Tensor) -> Tensor:
        """The largest part of a gap that a step takes away, ``(B,)``; negative where all grow."""
        if not self.exists:
            return moved.new_zeros(moved.shape[0])
        return torch.where(self.present, -(self.sign * moved[:, None]) / gaps, -1.0).amax((1, 2))
