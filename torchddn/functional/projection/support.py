r"""The projections onto simplices, as formulas.

With a mask ``s`` of the coordinates that are free to move, ``k`` their number and any direction ``v``::

    simplex:         Dy v = s (v - s.v / k),                                y_radius = s / k
    entmax, 1.5:     Dy v = g (v - g.v / 1.g),      g = sqrt(y)
    capped simplex:  as the simplex, and for the coordinates c at their upper bound  y_upper dupper = c - s (c.1) / k
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.pooling.bracket import find_root
from torchddn.functional.pooling.descent import NOISE
from torchddn.functional.projection.threshold import find_level
from torchddn.functional.projection.vectors import along, answer_of, clean, finite_rows, nan_unless, outline_of
from torchddn.status import Status

__all__ = ["CappedSimplex", "Entmax15", "Simplex"]

_MAX_STEPS = 100  # Newton on a parabola halves the distance at worst; 10 are usual


@dataclasses.dataclass(frozen=True)
class Simplex:
    """The formula of ``y`` from ``x``, ``(R, m)``, and ``radius``, ``(R, 1)``."""

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``, status, steps, violation."""
        x, radius = inputs
        finite = finite_rows(x)
        # Taken from the largest, the numbers of the support are no larger than the radius, and so are their errors.
        below = x - x.amax(dim=1, keepdim=True)
        low = torch.maximum((below.sum(dim=1, keepdim=True) - radius) / x.shape[1], -radius)
        level, num_steps = find_level(below, radius, low)
        y = below.sub_(nan_unless(finite, level)).clamp_(min=0)
        return answer_of(y, finite, num_steps)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return outline_of(inputs[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        y, kept, failed = clean(y, v)
        s, k = _support(y)
        dradius = along(s, v, failed) / k
        return s * (kept - dradius) if needed[0] else None, dradius

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        dx, dradius = tangents
        dx = torch.zeros_like(y) if dx is None else dx
        y, kept, failed = clean(y, dx)
        s, k = _support(y)
        grown = 0 if dradius is None else torch.where(failed, 0, dradius / k)
        return s * (kept - along(s, dx, failed) / k + grown)


def _usable(finite: Tensor | None, x: Tensor) -> Tensor:
    """``x``, with zeros in the rows that are not finite."""
    return x if finite is None else torch.where(finite, x, 0)


def _support(y: Tensor) -> tuple[Tensor, Tensor]:
    """The mask of ``y > 0``, as floats, which are faster than bool on CPU; and how many these are, at least 1."""
    s = y.detach().sign()
    return s, s.sum(dim=1, keepdim=True).clamp(min=1)


@dataclasses.dataclass(frozen=True)
class Entmax15:
    """The formula of ``y = max(x / 2 - tau, 0)^2`` from ``x``, ``(R, m)``, where tau makes the sum one."""

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``, status, steps, violation."""
        (x,) = inputs
        finite = finite_rows(x)
        z = _usable(finite, (x - x.amax(dim=1, keepdim=True)) / 2)
        # The largest alone, and the mean by the inequality of Cauchy and Schwarz, bound tau from below. The sum of
        # squares is convex in tau and falls, so that Newton from there ascends to the root.
        tau = (z.mean(dim=1, keepdim=True) - x.shape[1] ** -0.5).clamp(min=-1)
        running = torch.ones_like(tau, dtype=torch.bool)
        num_steps = torch.zeros_like(tau, dtype=torch.int64)
        for _ in range(_MAX_STEPS):
            t = (z - tau).clamp_(min=0)
            first, second = t.sum(dim=1, keepdim=True), t.square().sum(dim=1, keepdim=True)
            num_steps += running
            step = (second - 1) / (2 * first)
            tau = torch.where(running, tau + step, tau)
            running = running & (step > 16 * torch.finfo(x.dtype).eps)
            if not bool(running.any()):
                break
        # With the support known, tau is the root of a quadratic equation.
        t = (z - tau).clamp_(min=0)
        first, excess = t.sum(dim=1, keepdim=True), t.square().sum(dim=1, keepdim=True) - 1
        k = t.sign().sum(dim=1, keepdim=True)
        tau = tau + excess / (first + (first.square() - k * excess).clamp(min=0).sqrt())
        y = (z - nan_unless(finite, tau)).clamp_(min=0).square_()
        return answer_of(y, finite, num_steps.squeeze(1))

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return outline_of(inputs[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        return (self._tangent(y, v),)

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        (dx,) = tangents
        return torch.zeros_like(y) if dx is None else self._tangent(y, dx)

    def _tangent(self, y: Tensor, v: Tensor) -> Tensor:
        y, kept, failed = clean(y, v)
        s, _ = _support(y)
        g = (y + (1 - s)).sqrt() * s  # the root, with derivatives of zero where y is zero
        total = g.sum(dim=1, keepdim=True)
        return g * (kept - along(g, v, failed) / torch.where(failed, 1, total))


@dataclasses.dataclass(frozen=True)
class CappedSimplex:
    """The formula of ``y`` from ``x``, ``(R, m)``, ``radius``, ``(R, 1)``, and ``upper``, ``(R, m)``."""

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``, status, steps, violation."""
        x, radius, upper = inputs
        finite = finite_rows(x)
        below = _usable(finite, x - x.amax(dim=1, keepdim=True))
        most = upper.sum(dim=1, keepdim=True)
        total = torch.minimum(radius, most)

        def above(tau: Tensor) -> Tensor:
            return torch.minimum((below - tau).clamp_(min=0), upper)

        def look(tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = above(tau)
            free = y.sign() * (upper - y).sign()
            error = NOISE * torch.finfo(x.dtype).eps * (total + tau.abs())
            return total - y.sum(dim=1, keepdim=True), free.sum(dim=1, keepdim=True), error

        low = below.amin(dim=1, keepdim=True) - total  # where every coordinate is at least as large as the sum, or full
        tau, num_steps, _ = find_root(look, low, torch.zeros_like(low), -total / x.shape[1])
        # With the free coordinates known, tau is exact.
        y = above(tau)
        free = y.sign() * (upper - y).sign()
        k = free.sum(dim=1, keepdim=True)
        correction = (y.sum(dim=1, keepdim=True) - total) / k.clamp(min=1)
        y = above(torch.where(k > 0, tau + correction, tau))
        feasible = radius <= most * (1 + NOISE * torch.finfo(x.dtype).eps)
        y = nan_unless(finite, torch.where(feasible, y, upper))
        y, status, num_steps, violation = answer_of(y, finite, num_steps.squeeze(1))
        lacking = ~feasible if finite is None else finite & ~feasible
        status = torch.where(lacking.squeeze(1), int(Status.INFEASIBLE), status)
        return y, status, num_steps, violation + (radius - total).squeeze(1)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return outline_of(inputs[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        y, kept, failed = clean(y, v)
        free, full, k = self._masks(y, inputs[2])
        dradius = along(free, v, failed) / k
        return free * (kept - dradius) if needed[0] else None, dradius, full * (kept - dradius) if needed[2] else None

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        dx, dradius, dupper = tangents
        dx = torch.zeros_like(y) if dx is None else dx
        y, kept, failed = clean(y, dx)
        free, full, k = self._masks(y, inputs[2])
        grown = 0 if dradius is None else torch.where(failed, 0, dradius)
        moved = 0 if dupper is None else full * torch.where(failed, 0, dupper)
        taken = 0 if dupper is None else (full * dupper).sum(dim=1, keepdim=True)
        taken = torch.where(failed, 0, along(free, dx, failed) + taken - grown)
        return free * (kept - taken / k) + moved

    def _masks(self, y: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The coordinates strictly inside their bounds, those at the upper one, and the number of the first."""
        at = y.detach()
        positive = at.sign()
        free = positive * (upper.detach() - at).sign()
        return free, positive - free, free.sum(dim=1, keepdim=True).clamp(min=1)
