r"""The parts of a plan that no mass links, and what is free in each of them.

Rows and columns of a plan are the nodes of a graph, its entries the links. In a part without a penalty the potentials
``(x + s, y - s)`` fit as well for every s, and a right-hand side (g, h) can be met only if ``sum g = sum h`` there:
the null space of the system of ``balance.py`` has one dimension for each such part.

A link below ``tau`` of what its row and its column have is below the rounding of the right-hand side, and none.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.transport.gibbs import column_sums, row_sums

__all__ = ["Parts", "center", "linked", "negligible", "parts", "whole"]


def negligible(dtype: torch.dtype) -> float:
    """``tau``, the part of its row and its column under which a link says nothing in this dtype."""
    return 64 * torch.finfo(dtype).eps


class Parts(NamedTuple):
    """Which part each node is in, and which parts are free.

    Attributes:
        rows: Number of the part, from 0 to m - 1, ``(R, m)``.
        columns: Likewise, ``(R, n)``.
        free: Whether that part has nodes and no penalty, ``(R, m)``.
        live_r: 1 for nodes with mass and 0 for others, ``(R, m)``, float64.
        live_c: ``(R, n)``.
        count: Nodes with mass of the part, ``(R, m)``, at least 1.
    """

    rows: Tensor
    columns: Tensor
    free: Tensor
    live_r: Tensor
    live_c: Tensor
    count: Tensor

    def project(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest (a, b) with ``sum a = sum b`` in each free part, zero at nodes without mass.

        It makes a right-hand side solvable, and a solution the one of least norm.
        """
        a, b = a * self.live_r, b * self.live_c
        total = torch.zeros_like(self.count).scatter_add_(1, self.rows, a).scatter_add_(1, self.columns, -b)
        excess = self.free * total / self.count
        return a - excess.gather(1, self.rows) * self.live_r, b + excess.gather(1, self.columns) * self.live_c


def center(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """:meth:`Parts.project` for one free part with mass everywhere."""
    excess = (a.sum(dim=1, keepdim=True) - b.sum(dim=1, keepdim=True)) / (a.shape[1] + b.shape[1])
    return a - excess, b + excess


def whole(p: Tensor, q: Tensor, e: Tensor, f: Tensor) -> Parts:
    """One part for each item."""
    return _parts(torch.zeros_like(p, dtype=torch.int64), torch.zeros_like(q, dtype=torch.int64), p, q, e, f)


def parts(P: Tensor, p: Tensor, q: Tensor, e: Tensor, f: Tensor) -> Parts:
    """The parts of plans ``(R, m, n)`` with the sums p and q, and the penalties e and f."""
    m = P.shape[1]
    least_r, least_c = ((negligible(P.dtype) * z).to(P.dtype) for z in (p, q))
    apart = (torch.minimum(least_r.unsqueeze(2), least_c.unsqueeze(1)) >= P).logical_or_(P == 0)
    # float32 counts rows exactly, as far as a factorization reaches.
    labels = torch.arange(m, dtype=torch.float32, device=P.device).expand(len(P), m)
    while True:
        columns = torch.where(apart, float(m), labels.unsqueeze(2)).amin(dim=1)
        least_seen = torch.where(apart, float(m), columns.unsqueeze(1)).amin(dim=2)
        following = torch.minimum(labels, least_seen)
        following = torch.minimum(following, following.gather(1, following.long()))  # the label of one's label
        if torch.equal(following, labels):
            break
        labels = following
    return _parts(labels.long(), columns.clamp(max=m - 1).long(), p, q, e, f)


def _parts(rows: Tensor, columns: Tensor, p: Tensor, q: Tensor, e: Tensor, f: Tensor) -> Parts:
    live_r, live_c = (p > 0).double(), (q > 0).double()
    none = torch.zeros_like(live_r)
    count = none.scatter_add(1, rows, live_r).scatter_add_(1, columns, live_c)
    held = none.scatter_add(1, rows, live_r * (e > 0)).scatter_add_(1, columns, live_c * (f > 0))
    return Parts(rows, columns, (count > 0) & (held == 0), live_r, live_c, count.clamp(min=1))


def linked(P: Tensor, p: Tensor, q: Tensor, max_levels: int) -> Tensor:
    """Which plans are one part without doubt, ``(R,)``: all is reached from the heaviest row within these levels."""
    tau = negligible(P.dtype)
    found = P.amin(dim=2).amax(dim=1) > tau * q.amax(dim=1)
    if bool(found.all()):
        return found
    p, q = p.to(P.dtype), q.to(P.dtype)
    reached_r = torch.zeros_like(p).scatter_(1, p.argmax(dim=1, keepdim=True), 1)
    num_reached = 1.0
    for _ in range(max_levels):
        reached_c = (column_sums(P, reached_r) > tau * q).to(P.dtype)
        reached_r = torch.maximum(reached_r, (row_sums(P, reached_c) > tau * p).to(P.dtype))
        found = found | ((reached_r + (p <= 0) > 0).all(dim=1) & (reached_c + (q <= 0) > 0).all(dim=1))
        now = float(reached_r.sum())
        if now == num_reached or bool(found.all()):
            break
        num_reached = now
    return found
