"""The node under test as a function of tensors, and how two of its results are compared."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchddn._shapes import tree_names
from torchddn.capture import rebuild
from torchddn.node import DeclarativeNode

__all__ = ["Subject", "Tensors", "agreement", "difference", "slopes_of"]

Tensors = Sequence[Tensor]


@dataclasses.dataclass(frozen=True)
class Subject:
    """The node under test as a function of a flat list of tensors, in one dtype on one device.

    Attributes:
        original: What the user passed.
        node: A copy of it.
        name: What to call it.
        spec: Tree of the inputs.
        leaves: The tensors of the inputs.
        names: What to call each of them.
        moving: Which of them are differentiated in.
        rtol: Of the comparison with finite differences.
        atol: Of the comparison with finite differences.
        seed: Of the random directions.
    """

    original: Callable[..., Any]
    node: Callable[..., Any]
    name: str
    spec: pytree.TreeSpec
    leaves: tuple[Tensor, ...]
    names: tuple[str, ...]
    moving: tuple[int, ...]
    rtol: float
    atol: float
    seed: int

    @staticmethod
    def of(node: Callable[..., Any], x: tuple[Any, ...], rtol: float, atol: float, seed: int) -> "Subject":
        leaves, spec = pytree.tree_flatten(x)
        floating = [i for i, leaf in enumerate(leaves) if leaf.dtype.is_floating_point]
        moving = [i for i in floating if leaves[i].requires_grad] or floating
        name = type(node).__name__ if isinstance(node, nn.Module) else getattr(node, "__name__", repr(node))
        if isinstance(node, DeclarativeNode):
            name = f"DeclarativeNode({type(node.problem).__name__})"
        subject = Subject(
            node, node, name, spec, tuple(leaves), tuple(tree_names("x", x)), tuple(moving), rtol, atol, seed
        )
        return subject.to(torch.float64, leaves[0].device)

    def to(self, dtype: torch.dtype, device: torch.device) -> "Subject":
        """A copy of the node and of the inputs in another precision or place."""
        leaves = tuple(t.detach().clone().to(device, dtype if t.is_floating_point() else None) for t in self.leaves)
        node = self.original
        if isinstance(node, nn.Module):
            node = copy.deepcopy(node).to(device, dtype)
        if dtype == torch.float64:
            # A start or a constant of the dtype that the node was made for is not the node's mistake.
            node = _follow(node, self.leaves[self.moving[0]].dtype, dtype)
        return dataclasses.replace(self, node=node, leaves=leaves)

    @property
    def size(self) -> int:
        return self.leaves[0].shape[0]

    def items(self, index: slice) -> "Subject":
        """The same node on some of the items."""
        return dataclasses.replace(self, leaves=tuple(leaf[index] for leaf in self.leaves))

    @property
    def inputs(self) -> Any:
        return pytree.tree_unflatten(list(self.leaves), self.spec)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters by name."""
        if not isinstance(self.node, nn.Module):
            return {}
        return {name: p.detach().clone() for name, p in self.node.named_parameters() if p.requires_grad}

    def call(self, leaves: Tensors) -> tuple[Tensor, ...]:
        """The floating-point outputs as a function of all tensors of the inputs."""
        return _floating(self.node(*pytree.tree_unflatten(list(leaves), self.spec)))

    def function(self) -> "tuple[Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...], tuple[str, ...]]":
        """The outputs as a function of inputs and parameters that are differentiated in; these tensors; their names."""
        parameters = self.parameters

        def call(*moved: Tensor) -> tuple[Tensor, ...]:
            leaves = list(self.leaves)
            for i, tensor in zip(self.moving, moved, strict=False):
                leaves[i] = tensor
            if not parameters:
                return self.call(leaves)
            assert isinstance(self.node, nn.Module)
            given = dict(zip(parameters, moved[len(self.moving) :], strict=True))
            inputs = pytree.tree_unflatten(leaves, self.spec)
            return _floating(torch.func.functional_call(self.node, given, tuple(inputs)))

        tensors = (*(self.leaves[i] for i in self.moving), *parameters.values())
        names = (*(self.names[i] for i in self.moving), *parameters)
        return call, tuple(t.detach().clone().requires_grad_() for t in tensors), names

    def random(self, *likes: Tensor) -> tuple[Tensor, ...]:
        """Normal numbers shaped as each of ``likes``; the same ones at every call."""
        generator = np.random.default_rng(self.seed)  # of NumPy, since `torch.func.vmap` refuses torch's
        return tuple(torch.as_tensor(generator.standard_normal(t.shape)).to(t) for t in likes)


def _follow(node: Callable[..., Any], old: torch.dtype, new: torch.dtype) -> Callable[..., Any]:
    """The node in which tensors that are no parameters or buffers (constants, captured ones) have the new dtype."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, nn.Parameter) or tensor.dtype != old else tensor.to(new)

    if old == new:
        return node
    if not isinstance(node, nn.Module):
        return rebuild(node, convert)
    for module in node.modules():
        for key, value in module.__dict__.items():
            if key not in ("_parameters", "_buffers", "_modules"):
                module.__dict__[key] = rebuild(value, convert)
    return node


def _floating(tree: Any) -> tuple[Tensor, ...]:
    leaves = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    return tuple(leaf for leaf in leaves if leaf.dtype.is_floating_point)


def slopes_of(subject: Subject, outputs: Tensors, tensors: Tensors) -> tuple[Tensor, ...]:
    """Gradients of a random sum of the outputs."""
    return torch.autograd.grad(outputs, tensors, subject.random(*outputs), materialize_grads=True)


def agreement(outputs: Tensors) -> float:
    """How closely two ways to compute the same number must agree."""
    return 5 * max(torch.finfo(o.dtype).eps for o in outputs) ** 0.5


def difference(found: Tensors, expected: Tensors) -> float:
    """Largest difference relative to the largest entry (plus 1e-3: zero has no size); infinite if only one is NaN."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.numel():
            scale = 1e-3 + float(b.detach().nan_to_num(0.0, 0.0, 0.0).abs().max())
            gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs().nan_to_num(nan=torch.inf))
            worst = max(worst, float(gap.detach().max()) / scale)
    return worst
