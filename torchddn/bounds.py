r"""Bounds: however a user states them, two flat tensors ``lower <= y <= upper``.

Bounds are no functions of ``y``, so they need not be evaluated again: they are made once, at the door, by ordinary
differentiable operations, and travel with the inputs from then on. A gradient with respect to them reaches whatever
they were made of.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchddn.derivatives import private_graph
from torchddn.errors import InvalidInputError
from torchddn.problem import BatchedProblem

__all__ = ["evaluate_bounds", "read_by_functions"]


def evaluate_bounds(problem: BatchedProblem, x: Sequence[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``lower`` and ``upper``, each ``(B, m)``, infinite where there is no limit.

    Args:
        problem: With its layout; ``bounds`` may be a function of one item's inputs or a pair of limits. A tensor
            among limits that are given as a pair has one item's shape, broadcasts to it, or has the batch axis.
        x: The inputs, then the captured tensors.
        like: The start, ``(B, m)``, for dtype and device.

    Raises:
        InvalidInputError: If the bounds are not a pair, or do not fit ``y``.
    """
    declared = problem.template.function("bounds")
    reader = _Reader(problem, like)
    if callable(declared) and not problem.template.batched and not any(problem.batched):
        return reader.read(problem.instance(x).function("bounds")(), (problem.size,))  # there are no inputs
    if not callable(declared):
        return reader.read(problem.instance(x).function("bounds"), (problem.size,))
    lead = (problem.size,) if problem.template.batched else ()
    return problem.call_with_inputs("bounds", x, lambda pair: reader.read(pair, lead))


def read_by_functions(problem: BatchedProblem, x: Sequence[Tensor]) -> list[bool]:
    """For each input whether objective or constraints use it; one that only the bounds read may be infinite."""
    with torch.enable_grad(), private_graph():
        given = [tensor.detach().requires_grad_() for tensor in x[:-1]]
        values = [function(x[-1], (*given, x[-1])) for function in (problem.objective, problem.constraints)]
        total = torch.stack([value.sum() for value in values]).sum()
        found = torch.autograd.grad(total, given, allow_unused=True) if total.requires_grad else [None] * len(given)
    return [gradient is not None for gradient in found]


class _Reader:
    """Knows the shapes of ``y`` and says what is wrong."""

    def __init__(self, problem: BatchedProblem, like: Tensor) -> None:
        self.problem, self.like = problem, like

    def read(self, pair: Any, lead: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Both limits, flat, ``(*lead, m)``, where ``lead`` is the batch axis or nothing."""
        lower, upper = self._split(pair)
        return self._flatten("lower", lower, -torch.inf, lead), self._flatten("upper", upper, torch.inf, lead)

    def _flatten(self, side: str, limit: Any, default: float, lead: tuple[int, ...]) -> Tensor:
        rows = [
            self._fit(side, leaf, shape, lead).expand(*lead, *shape).reshape(*lead, -1)
            for leaf, shape in self._leaves(side, limit, default)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=-1)

    def _split(self, pair: Any) -> tuple[Any, Any]:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidInputError(
                f"`{self.problem.call}(bounds=...)` must be a pair (lower, upper), got {type(pair).__name__}. Use None "
                f"for a side without a limit."
            )
        return pair[0], pair[1]

    def _leaves(self, side: str, limit: Any, default: float) -> list[tuple[Any, torch.Size]]:
        """One limit for each tensor of ``y``."""
        shapes = self.problem.layout.shapes
        if limit is None:
            return [(default, shape) for shape in shapes]
        leaves, spec = pytree.tree_flatten(limit)
        if not isinstance(limit, (int, float, Tensor)) and spec != self.problem.layout.spec:
            raise InvalidInputError(
                f"`{self.problem.call}(bounds=...)`: the {side} limits must be structured as `y`, or one number or "
                f"tensor for all of it, got {type(limit).__name__} of {len(leaves)} for {len(shapes)} tensors."
            )
        if len(leaves) == 1:
            leaves = leaves * len(shapes)
        return [(default if leaf is None else leaf, shape) for leaf, shape in zip(leaves, shapes, strict=True)]

    def _fit(self, side: str, limit: Any, shape: torch.Size, lead: tuple[int, ...]) -> Tensor:
        """One limit as a tensor that broadcasts to ``(*lead, *shape)``."""
        if isinstance(limit, (int, float)) and not isinstance(limit, bool):
            return self.like.new_full(shape, float(limit))
        if not isinstance(limit, Tensor) or limit.dtype == torch.bool or limit.is_complex():
            raise InvalidInputError(
                f"`{self.problem.call}(bounds=...)`: the {side} limit must be a real tensor, a number or None, got "
                f"{limit.dtype if isinstance(limit, Tensor) else repr(limit)}."
            )
        limit = limit.to(self.like)
        if _broadcasts(limit.shape, shape):
            return limit
        if lead and limit.dim() and limit.shape[0] == lead[0] and _broadcasts(limit.shape[1:], shape):
            missing = 1 + len(shape) - limit.dim()
            return limit.reshape(limit.shape[0], *[1] * missing, *limit.shape[1:])
        raise InvalidInputError(
            f"`{self.problem.call}(bounds=...)`: the {side} limit of shape {tuple(limit.shape)} does not broadcast to "
            f"`y`, which is {tuple(shape)} for each item."
        )


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    if len(shape) > len(target):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False))
