"""The upper variables as one flat vector, and the set that they live in."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchddn._shapes import layout_of
from torchddn.bilevel.sets import Constraint, set_of_each

__all__ = ["Region"]


class Region:
    """A tree of upper variables, flat, ``(n,)``, and where it may be.

    Attributes:
        lower, upper: Limits, ``(n,)``; infinite where there is none.
        sums: Rows ``(p, n)`` whose products are constant.
    """

    def __init__(self, call: str, constraint: Constraint | None, theta: Any) -> None:
        self._layout = layout_of(theta)
        leaves = pytree.tree_leaves(theta)
        self._sets = set_of_each(call, constraint, theta)
        pairs = list(zip(self._sets, leaves, strict=True))
        for part, leaf in pairs:
            part.project(leaf.detach())  # says so if they do not fit
        limits = [part.limits(leaf.detach()) for part, leaf in pairs]
        self.lower, self.upper = (torch.cat([pair[i].reshape(-1) for pair in limits]) for i in (0, 1))
        self.sums = torch.block_diag(*[part.sums(leaf.detach()) for part, leaf in pairs])
        self.is_free = bool((self.lower.isinf() & self.upper.isinf()).all())

    @property
    def size(self) -> int:
        """``n``."""
        return self._layout.size

    def flatten(self, theta: Any) -> Tensor:
        """``(n,)``, without a graph."""
        return self._layout.flatten(pytree.tree_map(lambda leaf: leaf.detach()[None], theta))[0]

    def unflatten(self, flat: Tensor) -> Any:
        """The inverse."""
        return self._layout.unflatten(flat)

    def project(self, flat: Tensor) -> Tensor:
        """The nearest point of the set."""
        if self.is_free:
            return flat
        leaves, spec = pytree.tree_flatten(self.unflatten(flat))
        moved = [part.project(leaf) for part, leaf in zip(self._sets, leaves, strict=True)]
        return self.flatten(pytree.tree_unflatten(moved, spec))

    def projected_gradient(self, flat: Tensor, gradient: Tensor) -> Tensor:
        """What of the gradient is left where the set lets one go: zero exactly at a stationary point.

        ``(theta - P(theta - t g)) / t`` for a step ``t g`` that is short beside ``theta``, so that its size is that of
        the gradient whatever the units of both.
        """
        if self.is_free:
            return gradient
        largest = gradient.abs().max()
        if not largest > 0:
            return gradient
        t = torch.finfo(flat.dtype).eps ** 0.5 * (1 + flat.abs().max()) / largest
        return (flat - self.project(flat - t * gradient)) / t

    def farthest(self, flat: Tensor, direction: Tensor) -> float:
        """How many times ``direction`` one may go before a limit is in the way."""
        gaps = torch.where(direction > 0, self.upper - flat, flat - self.lower)
        steps = torch.where(direction != 0, gaps / direction.abs(), torch.inf)
        return max(0.0, float(steps.min()))
