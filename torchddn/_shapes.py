"""Flat and nested: trees of tensors, batch axes, and the check at the door that reads them.

A *tree* is a tensor, or a tuple, list or dict of trees. Sizes: ``B`` items in a batch, ``n`` numbers in an
item's inputs, ``m`` in its decision, ``p`` equality rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchddn.errors import InvalidInputError

__all__ = ["Layout", "check_floating", "flatten_tree", "layout_of", "tree_names"]


class Layout(NamedTuple):
    """How one item's tree of tensors lies in a flat vector of ``size`` numbers."""

    spec: pytree.TreeSpec
    shapes: tuple[torch.Size, ...]
    size: int

    def flatten(self, tree: Any) -> Tensor:
        """``tree`` with leaves ``(B, *shape)`` as one tensor ``(B, size)``."""
        leaves = pytree.tree_leaves(tree)
        rows = [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def unflatten(self, flat: Tensor) -> Any:
        """The inverse, for a flat tensor with any leading axes ``(*B, size)``."""
        lead = flat.shape[:-1]
        if len(self.shapes) == 1:
            return pytree.tree_unflatten([flat.reshape((*lead, *self.shapes[0]))], self.spec)
        parts = flat.split([shape.numel() for shape in self.shapes], dim=-1)
        leaves = [part.reshape((*lead, *shape)) for part, shape in zip(parts, self.shapes, strict=True)]
        return pytree.tree_unflatten(leaves, self.spec)


def layout_of(item: Any) -> Layout:
    """The layout of one item's tree (no batch axis)."""
    leaves, spec = pytree.tree_flatten(item)
    shapes = tuple(leaf.shape for leaf in leaves)
    return Layout(spec, shapes, sum(shape.numel() for shape in shapes))


def flatten_tree(call: str, name: str, tree: Any) -> tuple[list[Tensor], pytree.TreeSpec]:
    """The leaves of ``tree``, each of which must be a tensor."""
    leaves, spec = pytree.tree_flatten(tree)
    if all(isinstance(leaf, Tensor) for leaf in leaves):
        return leaves, spec
    for leaf, where in zip(leaves, tree_names(name, tree), strict=True):
        if not isinstance(leaf, Tensor):
            raise InvalidInputError(
                f"`{call}`: `{where}` must be a tensor (or a nested tuple, list or dict of tensors), "
                f"got {type(leaf).__name__}. Wrap numbers in `torch.as_tensor`."
            )
    return leaves, spec


def tree_names(name: str, tree: Any) -> list[str]:
    """What to call each leaf of ``tree`` in a message: ``x[0]['depth']``."""
    paths, _ = pytree.tree_flatten_with_path(tree)
    return [name + pytree.keystr(path) for path, _ in paths]


def check_floating(call: str, tensors: Sequence[Tensor], name_all: Callable[[], Sequence[str]]) -> None:
    """Raises unless all tensors are dense real floating point of one dtype on one device; ``name_all`` names them."""
    if not tensors:
        return
    dtype, device = tensors[0].dtype, tensors[0].device
    alike = all(t.dtype == dtype and t.device == device and t.layout == torch.strided for t in tensors)
    if alike and dtype.is_floating_point:
        return
    names = name_all()
    for tensor, name in zip(tensors, names, strict=True):
        if tensor.layout != torch.strided:
            raise InvalidInputError(f"`{call}`: `{name}` must be dense, got {tensor.layout}. Use `.to_dense()`.")
        if not tensor.dtype.is_floating_point:
            raise InvalidInputError(
                f"`{call}`: `{name}` must be a real floating-point tensor, got {tensor.dtype}. Convert it with "
                f"`.to(torch.get_default_dtype())`, or keep it in the problem as a buffer."
            )
    for attribute, remedy in (("dtype", "`.to(dtype)`"), ("device", "`.to(device)`")):
        _check_same(call, tensors, names, lambda t, a=attribute: getattr(t, a), attribute, remedy)


def _check_same(
    call: str,
    tensors: Sequence[Tensor],
    names: Sequence[str],
    read: Callable[[Tensor], Any],
    attribute: str,
    remedy: str,
) -> None:
    for tensor, name in zip(tensors[1:], names[1:], strict=True):
        if read(tensor) != read(tensors[0]):
            raise InvalidInputError(
                f"`{call}`: all inputs must share one {attribute}, got `{names[0]}` with {read(tensors[0])} and "
                f"`{name}` with {read(tensor)}. Bring them together with {remedy}."
            )
