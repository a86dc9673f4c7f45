r"""A proof that infinite costs leave no plan with these marginals, where an iteration has found none.

By the theorem of the maximal flow, a plan that moves the mass s from rows, of which each has r_i, to columns, of which
each takes c_j, exists if and only if every set A of rows has ``r(not A) + c(N(A)) >= s``, where N(A) are the columns
that A may use. One set that violates this is a proof. Sets are tried that a failed iteration points at, the rows whose
potentials have grown most, and simple ones: single rows, all that a single column cannot take from, and the parts that
no allowed move links.

References:
    Ford, Fulkerson, Maximal Flow through a Network, 1956. Gale, A Theorem on Flows in Networks, 1957.
"""

import torch
from torch import Tensor

from torchddn.functional.transport.parts import parts

__all__ = ["blocked"]


def blocked(cost: Tensor, r: Tensor, c: Tensor, mass: Tensor, u: Tensor) -> Tensor:
    """Which items have certainly no plan, ``(R,)``.

    Args:
        cost: ``(R, m, n)``.
        r: ``(R, m)``, float64, and so is the rest.
        c: ``(R, n)``.
        mass: ``(R,)``.
        u: Potentials of the rows when the iteration ended, ``(R, m)``.
    """
    # Rows without mass come last; they need nothing.
    order = torch.where(r > 0, torch.nan_to_num(u), -torch.inf).argsort(dim=1, descending=True, stable=True)
    allowed = cost.isfinite().gather(1, order.unsqueeze(2).expand(cost.shape))
    reached = torch.bmm(allowed.to(torch.uint8).cummax(dim=1).values.double(), c.unsqueeze(2)).squeeze(2)
    total = r.sum(dim=1, keepdim=True)
    by_potential = (total - r.gather(1, order).cumsum(dim=1) + reached).amin(dim=1)
    links = (cost.isfinite() & (r > 0).unsqueeze(2) & (c > 0).unsqueeze(1)).double()
    split = parts(links, r, c, torch.zeros_like(r), torch.zeros_like(c))
    excess = torch.zeros_like(r).scatter_add(1, split.rows, r).scatter_add_(1, split.columns, -c * split.live_c)
    by_row = total - r + torch.bmm(links, c.unsqueeze(2)).squeeze(2)
    by_column = torch.bmm(r.unsqueeze(1), links).squeeze(1) + c.sum(dim=1, keepdim=True) - c
    cut = torch.cat([by_potential.unsqueeze(1), total - excess, by_row, by_column], dim=1).amin(dim=1)
    # What marginals in the dtype of the cost are off by is no proof.
    return cut < mass * (1 - 64 * torch.finfo(cost.dtype).eps)
