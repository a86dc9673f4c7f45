"""Hand-made nodes and looks at values as operations of torch, which ``torch.compile`` takes up without looking inside.

What a node or a look does depends on numbers, which a graph cannot. A graph therefore has one operation for each. An
operation takes tensors and plain arguments; so it finds the object that it shall call by a text that names it.
"""

import dataclasses
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

from torchddn.compiler import constant, settled_by_the_compiler

__all__ = ["fronted", "look", "name", "pull", "solve"]

_named: dict[str, Any] = {}


def name(thing: object) -> str:
    """The text by which the operations know ``thing``; to the compiler it is a constant.

    Args:
        thing: A frozen dataclass whose fields are plain, or such again; or a function that captures plain values only.
    """
    return _register(*_parts(thing))


def _parts(thing: Any) -> list[Any]:
    """A dataclass as its class and its fields, one after the other: the compiler hands over no object of its making."""
    if not dataclasses.is_dataclass(thing):
        return [constant(thing)]
    parts: list[Any] = [type(thing)]
    for field in dataclasses.fields(thing):
        parts += _parts(getattr(thing, field.name))
    return parts


@settled_by_the_compiler
def _register(*parts: Any) -> str:
    thing = _assembled(list(parts))
    text = _text(thing)
    # Objects of a user's own may look alike and be different.
    while _identity(_named.setdefault(text, thing)) != _identity(thing):
        text += "'"
    return text


def _assembled(parts: list[Any]) -> Any:
    part = parts.pop(0)
    if not (isinstance(part, type) and dataclasses.is_dataclass(part)):
        return part
    return part(*(_assembled(parts) for _ in dataclasses.fields(part)))


def _text(thing: Any) -> str:
    """The same in every process, without addresses, so that graphs which are kept on disk are found again."""
    if not isinstance(thing, types.FunctionType):
        return repr(thing)
    captured = ", ".join(_text(value) for value in _captured(thing))
    return f"{thing.__module__}.{thing.__qualname__}({captured})"


def _identity(thing: Any) -> Any:
    """What is equal for two functions that do the same; the compiler makes a new one each time."""
    if not isinstance(thing, types.FunctionType):
        return thing
    return thing.__code__, tuple(_identity(value) for value in _captured(thing))


def _captured(function: types.FunctionType) -> list[Any]:
    return [*(function.__defaults__ or ()), *(cell.cell_contents for cell in function.__closure__ or ())]


@torch.library.custom_op("torchddn::solve", mutates_args=())
def solve(formula: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What ``solve`` of the formula returns."""
    with torch.no_grad():
        return _settled(_named[formula].solve(inputs), inputs)


@solve.register_fake
def _(formula: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [output.new_empty(output.shape) for output in _named[formula].outline(inputs)]


@torch.library.custom_op("torchddn::pull", mutates_args=())
def pull(formula: str, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    """The gradients of the inputs that need one, in their order."""
    with torch.no_grad():
        gradients = _named[formula].pull(y, v, inputs, needed)
    wanted = [(gradient, x) for gradient, x, need in zip(gradients, inputs, needed, strict=True) if need]
    return _settled([torch.zeros_like(x) if g is None else g.to(x.dtype) for g, x in wanted], (y, v, *inputs))


@pull.register_fake
def _(formula: str, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    return [x.new_empty(x.shape) for x, need in zip(inputs, needed, strict=True) if need]


@torch.library.custom_op("torchddn::look", mutates_args=())
def look(at: str, tensors: Sequence[Tensor]) -> None:
    """Calls the function that ``at`` names with the tensors."""
    _named[at](*tensors)


@look.register_fake
def _(at: str, tensors: Sequence[Tensor]) -> None:
    return None


@look.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], at: str, tensors: Sequence[Tensor]) -> tuple[None, None]:
    look(at, [fronted(tensor, dim, info.batch_size) for tensor, dim in zip(tensors, in_dims[1], strict=True)])
    return None, None


# An operation without a result is dropped, unless it has an effect.
_register_effectful_op("torchddn::look", _EffectType.ORDERED)


def fronted(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """``tensor`` with the axis that ``vmap`` maps in front, or repeated along one."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _settled(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs as an operation must return them: laid out as new tensors are, each in a memory of its own."""
    taken = {x.untyped_storage()._cdata for x in inputs}
    settled: list[Tensor] = []
    for output in outputs:
        own = output.contiguous()
        own = own.clone() if own.untyped_storage()._cdata in taken else own
        taken.add(own.untyped_storage()._cdata)
        settled.append(own)
    return settled
