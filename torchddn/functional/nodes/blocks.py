"""Rows in blocks that fit the cache.

A pass over data in the cache costs a tenth of one over memory, so a method that makes many passes takes a block of
rows through all of them before the next one. Within a block, buffers that nobody else sees are overwritten.
"""

from collections.abc import Iterator

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

__all__ = ["block_size", "blocks", "is_plain", "part", "sorted_rows", "uniform"]


def block_size(numbers_per_row: int, device: torch.device, numbers: int = 2**17) -> int:
    """How many rows to take at once: ``numbers``, which fit the cache on CPU; 2^26 on an accelerator."""
    return max(1, (numbers if device.type == "cpu" else 2**26) // max(1, numbers_per_row))


def blocks(num_rows: int, x: Tensor, rows: Tensor | None = None) -> Iterator[tuple[slice, slice | Tensor]]:
    """Places among ``num_rows`` results, and which rows of ``x`` they belong to: the rows named, or all in order."""
    size = block_size(x[0].numel() if len(x) else 1, x.device)
    for start in range(0, num_rows, size):
        at = slice(start, start + size)
        yield at, at if rows is None else rows[at]


def part(alpha: float | Tensor, rows: slice | Tensor) -> float | Tensor:
    """``alpha`` for some rows."""
    return alpha[rows] if isinstance(alpha, Tensor) else alpha


def is_plain(*tensors: Tensor) -> bool:
    """Whether nothing follows what is done with these tensors, so that buffers may be overwritten."""
    return not torch.is_grad_enabled() and not any(
        _functorch.is_functorch_wrapped_tensor(tensor)
        or _functorch.is_legacy_batchedtensor(tensor)
        or fwAD.unpack_dual(tensor).tangent is not None
        for tensor in tensors
    )


def uniform(alpha: Tensor) -> float | Tensor:
    """The one number that all of ``alpha`` is, which kernels take faster than a tensor; else ``alpha``, ``(R, 1)``."""
    if alpha.numel():
        low, high = alpha.aminmax()
        if bool(low == high):
            return low.item()
    return alpha.unsqueeze(1)


def sorted_rows(x: Tensor) -> Tensor:
    """``x`` with each row ascending. On CPU by numpy, whose vectorized sort is many times as fast as that of torch."""
    if x.device.type != "cpu":
        return x.sort(dim=1).values
    rows = x.numpy().copy()
    rows.sort(axis=1)
    return torch.from_numpy(rows)
