"""Values for the parameters of a convex program: what fits, what is refused, and the vector that they make."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchddn.cones import Canonical
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_floating
from torchddn.functional.nodes.reading import read

__all__ = ["CALL", "Declared", "declare", "prepare"]

CALL = "ConvexProgram"

# What a parameter may be declared as, and what is said of one that is not.
_WORDS = {
    "nonneg": "must not be negative",
    "nonpos": "must not be positive",
    "neg": "must not be positive",
    "pos": "must be positive",
    "symmetric": "must be symmetric",
    "PSD": "must be symmetric positive semidefinite",
    "NSD": "must be symmetric negative semidefinite",
}
_SYMMETRIC = ("symmetric", "PSD", "NSD")

# Of the largest entry: what data in float32 may have lost.
_TOLERANCE = 1e-5


class Declared(NamedTuple):
    """What cvxpy knows of a parameter."""

    name: str
    shape: tuple[int, ...]
    words: tuple[str, ...]
    outside: Tensor | None  # (*shape), where entries must be zero


def declare(parameter: Any, gp: bool) -> Declared:
    words = [word for word in _WORDS if parameter.attributes.get(word)]
    outside = None
    if parameter.attributes.get("diag"):
        outside = ~torch.eye(parameter.shape[0], dtype=torch.bool)
    elif parameter.sparse_idx is not None:
        outside = torch.ones(parameter.shape, dtype=torch.bool)
        outside[tuple(torch.as_tensor(part) for part in parameter.sparse_idx)] = False
    return Declared(parameter.name(), tuple(parameter.shape), (*words, *(["pos"] if gp else [])), outside)


def prepare(
    declared: tuple[Declared, ...], values: tuple[Tensor, ...], canonical: Canonical, check: bool
) -> tuple[Tensor, torch.Size, torch.dtype]:
    """The parameter vectors, ``(R, p)`` in float64, the batch shape, and the dtype of answers."""
    if len(values) != len(declared):
        raise InvalidInputError(
            f"`{CALL}.forward` takes {len(declared)} values, one for each parameter of the problem, got {len(values)}."
        )
    for parameter, value in zip(declared, values, strict=True):
        _check_shape(parameter, value, values[0])
    if not values:
        return torch.zeros(1, 0, dtype=torch.float64), torch.Size(), torch.get_default_dtype()
    shapes = [value.shape[: value.dim() - len(p.shape)] for p, value in zip(declared, values, strict=True)]
    try:
        batch = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        listed = ", ".join(f"{p.name} {tuple(value.shape)}" for p, value in zip(declared, values, strict=True))
        raise InvalidInputError(
            f"`{CALL}.forward`: the batch axes of the values must broadcast to one shape, got {listed}."
        ) from None
    flat: list[Tensor] = []
    for parameter, value in zip(declared, values, strict=True):
        value = value.double()
        if check:
            _check_value(parameter, value)
        if any(word in _SYMMETRIC for word in parameter.words):
            value = 0.5 * (value + value.mT)
        size = math.prod(parameter.shape)
        flat.append(value.expand((*batch, *parameter.shape)).reshape(batch.numel(), size))
    parts = [flat[index][:, leaf.places.to(flat[index].device)] for index, leaf in canonical.parameters]
    parts = [part.log() if leaf.is_log else part for part, (_, leaf) in zip(parts, canonical.parameters, strict=True)]
    theta = torch.cat(parts, dim=1) if parts else flat[0][:, :0]
    # Infinity, too, is no number to compute with; NaN says so to every solver.
    theta = torch.where(theta.isfinite().all(dim=1, keepdim=True), theta, torch.nan)
    return theta, batch, values[0].dtype


def _check_shape(parameter: Declared, value: object, first: Tensor) -> None:
    name, shape = parameter.name, parameter.shape
    check_floating(CALL, name, value, f"(*B, *{shape})", len(shape))
    assert isinstance(value, Tensor)
    if tuple(value.shape[value.dim() - len(shape) :]) != shape:
        raise InvalidInputError(
            f"`{CALL}({name}=...)` must have shape (*B, *{shape}), as in cvxpy, got {tuple(value.shape)}."
        )
    if value.dtype != first.dtype or value.device != first.device:
        raise InvalidInputError(
            f"`{CALL}({name}=...)` must have the dtype and device of the first value, {first.dtype} on "
            f"{first.device}, got {value.dtype} on {value.device}. Convert it with `.to`."
        )


def _check_value(parameter: Declared, value: Tensor) -> None:
    """Raises for an item that is not as its parameter is declared."""
    axes = len(parameter.shape)
    value = value.detach()
    if parameter.outside is not None:
        _refuse(parameter.name, "must be zero where its sparsity says so", axes, value * parameter.outside.to(value))
    for word in parameter.words:
        size = value.abs().amax(dim=(-2, -1), keepdim=True) if axes == 2 else value
        match word:
            case "nonneg":
                excess = -value
            case "pos":
                excess = torch.where(value <= 0, 1.0, 0.0)
            case "nonpos" | "neg":
                excess = value
            case "symmetric":
                excess = (value - value.mT).abs() - _TOLERANCE * size
            case _:
                skew = (value - value.mT).abs() - _TOLERANCE * size
                signed = value if word == "PSD" else -value
                finite = torch.where(signed.isfinite().all(-1).all(-1)[..., None, None], signed, 0)
                least = torch.linalg.eigvalsh(finite)[..., :1].unsqueeze(-1)
                excess = torch.maximum(skew, -least - _TOLERANCE * size)
        _refuse(parameter.name, _WORDS[word], axes, excess)


def _refuse(name: str, what: str, axes: int, excess: Tensor) -> None:
    """Raises where ``excess`` is positive."""

    def look(excess: Tensor) -> None:
        wrong = (excess > 0).flatten(excess.dim() - axes) if axes else (excess > 0).unsqueeze(-1)
        items = wrong.any(-1).flatten().nonzero().flatten().tolist()
        if items:
            raise InvalidInputError(
                f"`{CALL}({name}=...)` {what}, as it is declared in cvxpy, but is not in item {items[0]}."
            )

    read(look, excess)
