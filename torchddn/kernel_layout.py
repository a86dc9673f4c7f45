"""A recorded graph in the form in which the compiler of torch makes good loops of it.

The compiler merges operations into the loop over what comes last. If that is flat where the operations were not, or
longer by a margin, each number is found by divisions or behind a mask, which takes ten times as long as to read it.
So what is flattened is written down in its own shape first, and margins are written next to what they surround.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

__all__ = ["lay_out"]

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.reshape.default)

# Of fewer numbers nobody notices how they are found.
_FEW = 512


def lay_out(graph: GraphModule, tensors: Sequence[Tensor]) -> None:
    """Rewrites a graph, which stays equal, for arguments like ``tensors``."""
    seen: dict[Node, _Form] = {}
    _Watch(graph, seen).run(*tensors)
    for node in reversed(list(graph.graph.nodes)):
        if node.op != "call_function" or node not in seen or seen[node].shape.numel() < _FEW:
            continue
        better = None
        if node.target in _VIEWS:
            better = _flattened(graph.graph, node, seen)
        elif node.target is torch.ops.aten.constant_pad_nd.default:
            better = _padded(graph.graph, node, seen)
        if better is not None:
            node.replace_all_uses_with(better)
            graph.graph.erase_node(node)
    graph.recompile()


class _Form(NamedTuple):
    """A tensor but for its numbers."""

    shape: torch.Size
    stride: tuple[int, ...]
    fills_storage: bool  # contiguous, from the beginning of the storage
    dtype: torch.dtype
    device: torch.device


class _Watch(Interpreter):
    """Runs a graph and writes down the form of what it makes."""

    def __init__(self, graph: GraphModule, seen: dict[Node, _Form]) -> None:
        super().__init__(graph)
        self._seen = seen

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            fills_storage = result.is_contiguous() and not result.storage_offset()
            self._seen[n] = _Form(result.shape, result.stride(), fills_storage, result.dtype, result.device)
        return result


def _flattened(graph: Graph, node: Node, seen: dict[Node, _Form]) -> Node | None:
    """A view in which axes are merged, of numbers that are written down."""
    source, result = node.all_input_nodes[0], seen[node]
    if source.op == "placeholder" or not seen[source].fills_storage or not _merges(seen[source].shape, result.shape):
        return None
    with graph.inserting_before(node):
        return graph.call_function(torch.ops.aten.as_strided.default, (source, list(result.shape), list(result.stride)))


def _merges(before: torch.Size, after: torch.Size) -> bool:
    """Whether axes are merged and none is split."""
    if len(after) >= len(before):
        return False
    rest = list(before)
    for size in after:
        product = rest.pop(0) if rest else 1
        while product < size and rest:
            product *= rest.pop(0)
        if product != size:
            return False
    return all(size == 1 for size in rest)


def _padded(graph: Graph, node: Node, seen: dict[Node, _Form]) -> Node | None:
    """Margins by concatenation, negative ones by slices."""
    source, margins, value = node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else 0
    assert isinstance(source, Node) and isinstance(margins, list | tuple)
    like, aten = seen[source], torch.ops.aten
    shape, result = list(like.shape), source
    options = {"dtype": like.dtype, "device": like.device, "pin_memory": False}
    with graph.inserting_before(node):
        for axis, before, after in _by_axis(margins, len(shape)):
            start, stop = max(0, -before), shape[axis] - max(0, -after)
            result = graph.call_function(aten.slice.Tensor, (result, axis, start, stop))
            shape[axis] = stop - start
            parts = [result]
            for margin, place in ((before, 0), (after, 2)):
                if margin > 0:
                    size = [*shape[:axis], margin, *shape[axis + 1 :]]
                    parts.insert(place, graph.call_function(aten.full.default, (size, value), options))
            if len(parts) > 1:
                result = graph.call_function(aten.cat.default, (parts, axis))
                shape[axis] += max(0, before) + max(0, after)
        # As of what is padded, a tensor of its own.
        return graph.call_function(aten.clone.default, (result,))


def _by_axis(margins: Sequence[Any], num_axes: int) -> list[tuple[int, int, int]]:
    """``(axis, before, after)`` from the list of torch, which begins at the last axis."""
    pairs = zip(margins[::2], margins[1::2], strict=True)
    return [(num_axes - 1 - i, before, after) for i, (before, after) in enumerate(pairs)]
