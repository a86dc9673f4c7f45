"""Structured matrices of which some variables are pinned: known without another product."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchddn.linear.banded import BandedMatrix
from torchddn.linear.blocks import BlockDiagonalMatrix
from torchddn.linear.low_rank import LowRankMatrix
from torchddn.linear.operators import DiagonalMatrix, Operator

__all__ = ["pin"]


def pin(H: Operator, free: Tensor, unit: Tensor) -> Operator:
    """``H`` with ``unit``, ``(B, 1)`` or ``()``, times rows and columns of the identity where not ``free``, ``(B, m)``.

    Example:
        >>> H, free = DiagonalMatrix(torch.tensor([[4.0, 5.0]])), torch.tensor([[True, False]])
        >>> pin(H, free, torch.ones(())).dense()
        tensor([[[4., 0.],
                 [0., 1.]]])
    """
    if isinstance(H, DiagonalMatrix):
        return DiagonalMatrix(torch.where(free, H.d, unit))
    if isinstance(H, LowRankMatrix):
        return LowRankMatrix(torch.where(free, H.d, unit), torch.where(free.unsqueeze(2), H.U, 0.0), H.C)
    order = getattr(H, "order", None)
    free = free if order is None else free[:, order]
    weight = free.to(H.dtype)  # compiled, numbers are faster than flags
    if isinstance(H, BlockDiagonalMatrix):
        weight = weight.unflatten(1, H.blocks.shape[1:3])
        both = weight.unsqueeze(3) * weight.unsqueeze(2)
        rest = torch.diag_embed(1 - weight) * unit[..., None, None]
        return BlockDiagonalMatrix(torch.where(both > 0, H.blocks, rest), H.symmetric, order)
    assert isinstance(H, BandedMatrix), f"nothing is known of the rows of {type(H).__name__}"
    w = H.bandwidth
    both = weight.unsqueeze(1) * pad(weight, (w, w)).unfold(1, H.size, 1)
    middle = (torch.arange(2 * w + 1, dtype=H.dtype, device=H.device) == w).to(H.dtype).unsqueeze(1)
    identity = middle * unit.unsqueeze(-1)
    return BandedMatrix(torch.where(both > 0, H.band, identity), H.symmetric, order)
