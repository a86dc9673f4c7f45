"""The door of the ready nodes: what a user passes, checked and in the dtype to compute in."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchddn.compiler import constant
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.reading import read

__all__ = [
    "broadcast",
    "check_choice",
    "check_dims",
    "check_flag",
    "check_floating",
    "check_positive",
    "positive",
    "wide",
]


def check_floating(call: str, name: str, x: object, shape: str, num_dims: int) -> None:
    """Raises unless ``x`` is a real floating-point tensor of at least ``num_dims`` axes."""
    if not isinstance(x, Tensor):
        raise InvalidInputError(
            f"`{call}({name}=...)` must be a tensor, got {type(x).__name__}. Wrap it in `torch.as_tensor`."
        )
    if not x.dtype.is_floating_point:
        raise InvalidInputError(
            f"`{call}({name}=...)` must be a real floating-point tensor, got {x.dtype}. Convert it with "
            f"`.to(torch.get_default_dtype())`."
        )
    if x.dim() < num_dims:
        raise InvalidInputError(f"`{call}({name}=...)` must have shape {shape}, got {tuple(x.shape)}.")


def wide(x: Tensor) -> Tensor:
    """``x`` in the dtype to compute in: float32 for half precision, else its own."""
    return x.float() if x.dtype.itemsize < 4 else x


def check_dims(call: str, dim: Any, num_dims: int) -> tuple[int, ...]:
    """The axes that ``dim`` names, non-negative and ascending."""
    dims: tuple[Any, ...] = tuple(dim) if isinstance(dim, Sequence) and not isinstance(dim, str) else (dim,)
    remedy = f"Use integers from {-num_dims} to {num_dims - 1}, each axis once."
    if not dims or not all(isinstance(d, int) and not isinstance(d, bool) for d in dims):
        raise InvalidInputError(f"`{call}(dim=...)` must be an integer or a tuple of integers, got {dim!r}. {remedy}")
    if not all(-num_dims <= d < num_dims for d in dims):
        raise InvalidInputError(
            f"`{call}(dim=...)` must name axes of a tensor with {num_dims} of them, got {dim!r}. {remedy}"
        )
    axes = sorted(d % num_dims for d in dims)
    if len(set(axes)) < len(axes):
        raise InvalidInputError(f"`{call}(dim=...)` must name each axis once, got {dim!r}. {remedy}")
    return tuple(axes)


def check_positive(call: str, name: str, value: object, device: torch.device | None = None) -> None:
    """Raises unless ``value`` is a positive finite number, or a real floating-point tensor of such, on ``device``."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if not 0 < float(value) < math.inf:
            raise InvalidInputError(f"`{call}({name}=...)` must be positive and finite, got {constant(value)}.")
        return
    if not isinstance(value, Tensor):
        raise InvalidInputError(f"`{call}({name}=...)` must be a number or a tensor, got {type(value).__name__}.")
    if not value.dtype.is_floating_point:
        raise InvalidInputError(
            f"`{call}({name}=...)` must be a real floating-point tensor, got {value.dtype}. Convert it with `.float()`."
        )

    if device is not None and value.device != device:
        raise InvalidInputError(
            f"`{call}({name}=...)` must be on the device of the data, {device}, got {value.device}. Move it with "
            f"`.to({str(device)!r})`."
        )

    def look(value: Tensor) -> None:
        wrong = ~((value > 0) & value.isfinite())
        if bool(wrong.any()):
            raise InvalidInputError(
                f"`{call}({name}=...)` must be positive and finite, got {value[wrong][0].item()} among its entries."
            )

    read(look, value)


def positive(call: str, name: str, value: float | Tensor, shape: torch.Size, like: Tensor) -> Tensor:
    """``value``, checked to be positive, as a tensor of ``shape`` with the dtype and on the device of ``like``."""
    check_positive(call, name, value, like.device)
    return broadcast(call, name, value, shape, like)


def broadcast(call: str, name: str, value: float | Tensor, shape: torch.Size, like: Tensor) -> Tensor:
    """``value`` as a tensor of ``shape`` with the dtype of ``like``."""
    if not isinstance(value, Tensor):
        # A product, unlike `new_full`, lets `torch.compile` keep its graph when the number changes.
        return (like.new_ones(()) * float(value)).expand(shape)
    # Asked, not tried: `torch.compile` hands over no error of an operation.
    sizes = zip(reversed(value.shape), reversed(shape), strict=False)
    if value.dim() > len(shape) or any(size != 1 and size != wanted for size, wanted in sizes):
        raise InvalidInputError(
            f"`{call}({name}=...)` must have a shape that broadcasts to {tuple(shape)}, got {tuple(value.shape)}. "
            f"Reshape it, or pass one number for all."
        )
    return value.to(like.dtype).broadcast_to(shape)


def check_choice(call: str, name: str, value: object, choices: Sequence[str]) -> None:
    """Raises unless ``value`` is one of the words."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidInputError(f"`{call}({name}=...)` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_flag(call: str, name: str, value: object) -> None:
    """Raises unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise InvalidInputError(f"`{call}({name}=...)` must be True or False, got {value!r}.")
