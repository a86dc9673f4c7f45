"""Points at which solvers stand: tuples of tensors whose first axis is the batch, and items that choose among them."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchddn.solvers.vectors import is_settled

__all__ = ["choose", "detached", "is_finite", "where_items"]

_Point = TypeVar("_Point", bound=tuple[Any, ...])


def where_items(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` for the items for which the condition holds, ``old`` for the others."""
    return torch.where(condition.reshape(-1, *[1] * (new.dim() - 1)), new, old)


def choose(condition: Tensor, new: _Point, old: _Point) -> _Point:
    """The point ``new`` for the items for which the condition holds, ``old`` for the others."""
    if is_settled(condition):
        return new
    return type(new)(*(where_items(condition, *pair) for pair in zip(new, old, strict=True)))


def detached(point: _Point) -> _Point:
    """The point without a graph."""
    return type(point)(*(leaf.detach() for leaf in point))


def is_finite(point: Iterable[Tensor]) -> Tensor:
    """Whether everything about a point is, ``(B,)``."""
    sums = [leaf.detach().flatten(1).sum(1) if leaf.dim() > 1 else leaf.detach() for leaf in point]
    return torch.stack(sums).sum(0).isfinite()
