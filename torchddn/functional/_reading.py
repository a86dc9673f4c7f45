"""Reading the numbers in a tensor, also inside ``torch.func`` transforms, where tensors have none to read.

A check at the door and a report of failures look at values; ``vmap`` refuses that. An ``autograd.Function`` sees the
plain tensors, with the mapped axes in front.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["read"]


def read(look: Callable[..., None], *tensors: Tensor) -> None:
    """Calls ``look`` with plain tensors, any mapped axes in front. What it raises and warns goes to the caller.

    Tensors of one call that are mapped differently arrive with as many items, in the same order.
    """
    _Read.apply(look, *(tensor.detach() for tensor in tensors))


class _Read(torch.autograd.Function):
    """A function without result, for what it does."""

    @staticmethod
    def forward(look: Callable[..., None], *tensors: Tensor) -> Tensor:
        look(*tensors)
        return tensors[0].new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], look: Callable[..., None], *tensors: Tensor) -> Any:
        fronted = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, in_dims[1:], strict=True)
        ]
        return _Read.apply(look, *fronted), None
