"""Passes over the numbers as kernels, for those who ask for it.

In blocks that fit the cache an operation costs a tenth of one over memory; a kernel makes one pass of a dozen
operations, and that is a tenth again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchddn.kernels import BoundKernels, Kernels

__all__ = ["as_tensor", "kernel", "points_kernel", "suits"]

_KERNELS = BoundKernels(Kernels("robust_pool", least=0), state=0)
_POINTS_KERNELS = BoundKernels(Kernels("robust_vector_pool", least=0), state=0)

# A kernel takes all rows; as long as one of so many is still asked about, that is the cheaper way.
_FEW = 8


def kernel(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` as one kernel, where nobody differentiates it."""
    return _KERNELS.call(function, function, args)


def points_kernel(function: Callable[..., Any], *args: Any) -> Any:
    """The same for points in place of numbers."""
    return _POINTS_KERNELS.call(function, function, args)


def suits(num_rows: int, x: Tensor) -> bool:
    """Whether to ask all rows of ``x`` where only ``num_rows`` of them matter."""
    return _FEW * num_rows >= len(x)


def as_tensor(alpha: float | Tensor, like: Tensor) -> Tensor:
    """A number as a tensor, which does not choose a kernel."""
    return alpha if isinstance(alpha, Tensor) else torch.full((), alpha, dtype=like.dtype, device=like.device)
