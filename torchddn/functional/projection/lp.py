r"""The projection onto the unit sphere of an Lp norm, 1 < p < inf, p not 2.

Solves, for each row of x::

    minimize over y   1/2 |y - x|^2   subject to   |y|_p = 1

The signs of y are those of x, so let x >= 0. With ``psi = y^(p-1)`` and the multiplier ``mu`` of ``|y|_p``,

    y + mu psi = x                                                                                                (1)

determines each coordinate from mu, and ``sum_i y_i^p = 1`` determines mu. Outside of the sphere ``mu > 0``. Inside,
``mu < 0``, and the problem is not convex:

* p < 2: (1) has one root y_i > 0, which grows with -mu; the other, y_i = 0 where x_i = 0, is no minimum. So there is
  one stationary point, and ``-1 <= mu``, since ``-mu = (y_i - x_i) / y_i^(p-1) <= y_i^(2-p)``.
* p > 2: (1) has two roots on either side of ``(-1 / (mu (p - 1)))^(1 / (p-2))``. A minimum on one constraint bears at
  most one coordinate of negative curvature, the larger root, and it must be that of the largest x_j (else exchanging
  two coordinates gains). That coordinate, ``t = y_j``, gives ``mu = -(t - x_j) / t^(p-1)``, and all others.

Derivatives. With ``E = 1 / (1 + mu (p - 1) |y|^(p-2))``, from (1) and ``psi . dy = 0``::

    dy = E dx - E psi (psi . E dx) / (psi . E psi)
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.nodes.blocks import block_size
from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.pooling.bracket import find_root
from torchddn.functional.pooling.descent import NOISE
from torchddn.status import Status

__all__ = ["LpSphere", "lp_norm", "multiplier"]

_NUM_INVERSE_STEPS = 12  # Newton for (1): quadratic, from within a factor two
_NUM_BRANCH_STEPS = 40  # ... for p > 2 inside, at most, where two roots may be close
_NUM_SCANNED = 64


@dataclasses.dataclass(frozen=True)
class LpSphere:
    """The formula of ``y``, ``(R, m)``, from ``x``, ``(R, m)``."""

    p: float

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``; status, steps, and the violation ``| |y|_p - 1 |``, ``(R,)`` each."""
        (x,) = inputs
        a = x.abs()
        inside = (lp_norm(a, self.p) < 1).squeeze(1) & (self.p > 2)
        y, num_steps, converged = torch.empty_like(a), inside.to(torch.int64), inside.clone()
        for which, method in ((~inside, self._along_multiplier), (inside, self._along_largest)):
            rows = which.nonzero().squeeze(1)
            if rows.numel():
                y[rows], num_steps[rows], converged[rows] = method(a[rows])
        y = torch.where(x < 0, -y, y)
        status = torch.where(converged, int(Status.CONVERGED), int(Status.STALLED))
        return y, status, num_steps, (lp_norm(y, self.p) - 1).squeeze(1).abs()

    def _along_multiplier(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """By the root of ``1 - sum y(mu)^p``, which grows with mu; ``mu <= |a|_q``, where 1/p + 1/q = 1."""
        p, eps = self.p, torch.finfo(a.dtype).eps

        def look(mu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = self._inverse(a, mu)
            powers = y.pow(p)
            # y^(p-1) dy/dmu = -y^(2p-2) / (1 + mu (p-1) y^(p-2)), and zero where y is.
            rate = torch.where(y > 0, y.pow(2 * p - 2) / (1 + mu * (p - 1) * y.clamp(min=1e-30).pow(p - 2)), 0)
            total = powers.sum(dim=1, keepdim=True)
            return 1 - total, p * rate.sum(dim=1, keepdim=True), NOISE * eps * (1 + total)

        high = lp_norm(a, p / (p - 1))
        low = torch.full_like(high, -1.0 if p < 2 else 0.0)
        mu, num_steps, converged = find_root(look, low, high, low + (high - low) / 2)
        return self._inverse(a, mu), num_steps.squeeze(1), converged.squeeze(1)

    def _inverse(self, a: Tensor, mu: Tensor) -> Tensor:
        """``y`` of (1) for ``mu >= 0``, or for ``mu >= -1`` and p < 2.

        In ``u = y``, or ``u = y^(p-1)`` if p < 2, (1) is convex, so that Newton from a point above the root descends
        to it monotonically.
        """
        p = self.p
        positive = mu > 0
        ratio = a / torch.where(positive, mu, 1)
        if p > 2:
            u, e, linear, power = torch.minimum(a, torch.where(positive, ratio.pow(1 / (p - 1)), a)), p - 1, 1.0, mu
        else:
            above = torch.where(mu < 0, 1, a.pow(p - 1))
            u, e, linear, power = torch.minimum(above, torch.where(positive, ratio, above)), 1 / (p - 1), mu, 1.0
        for _ in range(_NUM_INVERSE_STEPS):
            slope = linear + power * e * u.pow(e - 1)
            u = torch.where(slope > 0, (a + power * (e - 1) * u.pow(e)) / torch.where(slope > 0, slope, 1), u)
        return u if p > 2 else u.pow(e)

    def _along_largest(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For p > 2 inside: by a scan of ``t = y_j``, then Newton where the norm crosses one nearest to a."""
        rows = block_size(_NUM_SCANNED * a.shape[1], a.device)
        blocks = [self._along_largest_of_block(a) for a in a.split(rows)]
        y, num_steps, converged = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return y, num_steps, converged

    def _along_largest_of_block(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p, eps = self.p, torch.finfo(a.dtype).eps
        largest, j = a.max(dim=1, keepdim=True)
        shares = torch.linspace(0, 1, _NUM_SCANNED + 1, dtype=a.dtype, device=a.device)
        t = largest + shares * (1 - largest)
        y = self._others(a, j, t)[0]
        excess, objective = y.pow(p).sum(dim=2) - 1, (y - a.unsqueeze(1)).square().sum(dim=2)
        excess[:, 0], excess[:, -1] = -1, 1  # true up to rounding: the ends are inside and outside
        crossing = (excess[:, :-1] <= 0) & (excess[:, 1:] > 0)
        share = excess[:, :-1] / (excess[:, :-1] - excess[:, 1:])
        at_crossing = objective[:, :-1] + share * objective.diff(dim=1)
        k = torch.where(crossing, at_crossing, torch.inf).argmin(dim=1, keepdim=True)
        low, high = t.gather(1, k), t.gather(1, k + 1)

        def look(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y, rate = self._others(a, j, t)
            total = y.pow(p).sum(dim=2)
            return total - 1, p * (y.pow(p - 1) * rate).sum(dim=2), NOISE * eps * (1 + total)

        t, num_steps, converged = find_root(look, low, high, low + (high - low) / 2)
        return self._others(a, j, t)[0].squeeze(1), num_steps.squeeze(1), converged.squeeze(1)

    def _others(self, a: Tensor, j: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``y``, ``(R, k, m)``, with ``t``, ``(R, k)``, as coordinate j and the smaller roots of (1) elsewhere.

        Newton ascends to these from ``x``. Beside them their derivatives in ``t``.
        """
        p = self.p
        a, j, t = a.unsqueeze(1), j.unsqueeze(1).expand(-1, t.shape[1], 1), t.unsqueeze(2)
        largest = a.amax(dim=2, keepdim=True)
        power = t.clamp(min=torch.finfo(a.dtype).tiny).pow(p - 1)
        mu = (largest - t) / power
        y = a.expand(-1, t.shape[1], -1)
        for _ in range(_NUM_BRANCH_STEPS):
            slope = 1 + mu * (p - 1) * y.pow(p - 2)
            y_next = torch.minimum(y + (a - y - mu * y.pow(p - 1)) / slope, t)
            y_next = torch.where((slope > 0) & (y_next > y), y_next, y)
            if torch.equal(y_next, y):
                break
            y = y_next
        mu_t = ((p - 1) * (t - largest) / t.clamp(min=torch.finfo(a.dtype).tiny) - 1) / power
        slope = 1 + mu * (p - 1) * y.pow(p - 2)
        rate = torch.where(slope > 0, -mu_t * y.pow(p - 1) / slope, 0)
        return y.scatter(2, j, t), rate.scatter(2, j, 1.0)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        x = inputs[0]
        numbers, counts = x.new_empty(x.shape[:1]), x.new_empty(x.shape[:1], dtype=torch.int64)
        return torch.empty_like(x), counts, torch.empty_like(counts), numbers

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        return (self._tangent(y, v, *inputs),)

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        (dx,) = tangents
        return torch.zeros_like(y) if dx is None else self._tangent(y, dx, *inputs)

    def _tangent(self, y: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """``dy`` for ``dx = v``; the matrix is symmetric."""
        psi, mu = multiplier(y, x, self.p)
        zero = y == 0
        magnitude = torch.where(zero, 1, y.abs())
        if self.p < 2:
            magnitude = magnitude.pow(2 - self.p)
            E = torch.where(zero, 0, magnitude / (magnitude + mu * (self.p - 1)))
        else:
            E = torch.where(zero, 1, 1 / (1 + mu * (self.p - 1) * magnitude.pow(self.p - 2)))
        E_psi = E * psi
        share = (E_psi * v).sum(dim=1, keepdim=True) / (E_psi * psi).sum(dim=1, keepdim=True)
        return E * v - E_psi * share


def multiplier(y: Tensor, x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """``psi``, ``(R, m)``, and ``mu``, ``(R, 1)``, such that ``y + mu psi = x``; differentiable."""
    zero = y == 0
    psi = torch.where(zero, 0, torch.where(zero, 1, y.abs()).pow(p - 1) * y.sign())
    return psi, (psi * (x - y)).sum(dim=1, keepdim=True) / psi.square().sum(dim=1, keepdim=True)


def lp_norm(x: Tensor, p: float) -> Tensor:
    """``|x|_p`` of each row, ``(R, 1)``, without overflow."""
    size = x.abs().amax(dim=1, keepdim=True)
    size = torch.where(size > 0, size, 1)
    return size * torch.linalg.vector_norm(x / size, p, dim=1, keepdim=True)
