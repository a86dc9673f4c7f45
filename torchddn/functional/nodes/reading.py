"""Reading the numbers in a tensor, also inside ``torch.func`` transforms, where tensors have none to read.

A check at the door and a report of failures look at values; ``vmap`` refuses that. An ``autograd.Function`` sees the
plain tensors, with the mapped axes in front. Nor can a graph of ``torch.compile`` look: there an operation does, at
every run of the graph.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchddn.compiler import under_transform
from torchddn.functional.nodes import operations as _operations

__all__ = ["read"]


def read(look: Callable[..., None], *tensors: Tensor) -> None:
    """Calls ``look`` with plain tensors, any mapped axes in front. What it raises and warns goes to the caller.

    Tensors of one call that are mapped differently arrive with as many items, in the same order. For the sake of
    ``torch.compile``, ``look`` may be a function of a module, or capture plain values: texts, numbers, flags.
    """
    plain = [tensor.detach() for tensor in tensors]
    if torch.compiler.is_compiling():
        _operations.look(_operations.name(look), plain)
    elif not under_transform():
        look(*plain)
    else:
        _Read.apply(look, *plain)


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
        pairs = zip(tensors, in_dims[1:], strict=True)
        fronted = [_operations.fronted(tensor, dim, info.batch_size) for tensor, dim in pairs]
        return _Read.apply(look, *fronted), None
