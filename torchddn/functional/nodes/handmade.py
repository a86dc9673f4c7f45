r"""A node whose forward pass and derivatives are made by hand.

The answer comes from any algorithm at all, with branches on values and without a graph. Its derivatives are formulas
of the answer ``y`` itself, made of ordinary differentiable operations. Since the saved ``y`` is the differentiable
output, they can be differentiated again: derivatives of every order and in every mode follow, with the memory of the
inputs and the answer only.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from torchddn.compiler import break_graph, uncompiled, under_transform
from torchddn.functional.nodes import operations as _operations

__all__ = ["Answer", "Formula", "solve"]

Answer = tuple[Tensor, ...]


class Formula(Protocol):
    """What a hand-made node knows. Every tensor has the flat batch ``R`` as its first axis.

    A frozen dataclass with plain fields, so that ``torch.compile`` can name it.
    """

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``, ``(R, ...)``, and tensors that are not differentiable; plain tensors, without a graph."""
        ...

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        """Empty tensors of the shapes and dtypes that ``solve`` returns."""
        ...

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        """The gradients ``v . dy/dx`` of those inputs ``x`` that need one."""
        ...

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        """The tangent ``dy/dx . dx``, summed over the inputs; None stands for a tangent of zeros."""
        ...


def solve(formula: Formula, *inputs: Tensor) -> Answer:
    """What ``formula.solve`` returns, its first tensor differentiable in the inputs."""
    if not torch.compiler.is_compiling():
        return _HandMade.apply(formula, *inputs)
    if under_transform():
        # In a graph the forward pass alone would go through the transform, without the rules of the node, in silence.
        break_graph(
            "torch.compile cannot take up a transform of torch.func (grad, vmap, ...) of a node whose derivative is "
            "made by hand. Leave out fullgraph=True, or differentiate what is compiled by backward()."
        )
        return _uncompiled(formula, inputs)
    name = _operations.name(formula)
    # Without anything to differentiate, the compiler would hand a function of *inputs one argument too many.
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return _Compiled.apply(name, *inputs)
    return tuple(_operations.solve(name, inputs))


@uncompiled
def _uncompiled(formula: Formula, inputs: Sequence[Tensor]) -> Answer:
    return _HandMade.apply(formula, *inputs)


class _HandMade(torch.autograd.Function):
    """Hands every call on to the formula."""

    @staticmethod
    @uncompiled
    def forward(formula: Formula, *inputs: Tensor) -> Answer:
        return formula.solve(inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: Answer) -> None:
        ctx.formula, *x = inputs
        y, *others = outputs
        ctx.mark_non_differentiable(*others)
        ctx.num_outputs = len(outputs)
        ctx.save_for_backward(y, *x)
        ctx.save_for_forward(y, *x)

    @staticmethod
    @uncompiled
    def backward(ctx: Any, v: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        y, *x = ctx.saved_tensors
        return None, *ctx.formula.pull(y, v, x, ctx.needs_input_grad[1:])

    @staticmethod
    @uncompiled
    def jvp(ctx: Any, _: None, *dx: Tensor | None) -> tuple[Tensor | None, ...]:
        # `jvp` runs with forward mode switched off, which would make an outer level see zeros:
        # https://github.com/pytorch/pytorch/issues/197867
        with fwAD._set_fwd_grad_enabled(True):
            y, *x = (fwAD.unpack_dual(tensor).primal for tensor in ctx.saved_tensors)
            return ctx.formula.push(y, x, dx), *[None] * (ctx.num_outputs - 1)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], formula: Formula, *x: Tensor) -> Any:
        size = info.batch_size
        mapped = [_operations.fronted(tensor, dim, size) for tensor, dim in zip(x, in_dims[1:], strict=True)]
        outputs = _HandMade.apply(formula, *(tensor.flatten(0, 1) for tensor in mapped))
        rows = mapped[0].shape[1]
        return tuple(out.reshape(size, rows, *out.shape[1:]) for out in outputs), (0,) * len(outputs)


# `apply` asks for it on every call, and finding it out takes a tenth of the time of a small node.
_HandMade.forward.__signature__ = inspect.signature(_HandMade.forward)  # pyright: ignore[reportFunctionMemberAccess]


class _Compiled(torch.autograd.Function):
    """The same in a graph of ``torch.compile``, which has reverse mode of first order and refuses a ``jvp``."""

    @staticmethod
    def forward(formula: str, *inputs: Tensor) -> Answer:
        return tuple(_operations.solve(formula, inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: Answer) -> None:
        ctx.formula, *x = inputs
        y, *others = outputs
        ctx.mark_non_differentiable(*others)
        ctx.save_for_backward(y, *x)

    @staticmethod
    def backward(ctx: Any, v: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        y, *x = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        gradients = iter(_operations.pull(ctx.formula, y, v, x, needed))
        return None, *(next(gradients) if need else None for need in needed)
