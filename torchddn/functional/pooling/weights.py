"""How much each point counts: weights and masks of the robust poolings."""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_floating
from torchddn.functional.nodes.reading import read

__all__ = ["Weighted", "check_mask", "check_weights", "weigh"]


class Weighted(NamedTuple):
    """Points ``(R, n, ...)``; their weights ``c``, ``(R, n)``, at most one in each row, and what these stand for.

    ``c`` and ``scale``, ``(R,)``, are None where all points count alike; the weight of a point is ``c * scale``.
    """

    x: Tensor
    c: Tensor | None
    scale: Tensor | None


def check_weights(call: str, weights: object, shape: torch.Size, like: Tensor) -> Tensor | None:
    """``weights``, not negative and finite, expanded to ``shape`` with the dtype of ``like``; None for None."""
    if weights is None:
        return None
    check_floating(call, "weights", weights, "()", 0)
    assert isinstance(weights, Tensor)
    _check_place(call, "weights", weights, shape, like.device)

    def look(weights: Tensor) -> None:
        wrong = ~((weights >= 0) & weights.isfinite())
        if bool(wrong.any()):
            raise InvalidInputError(
                f"`{call}(weights=...)` must be finite and not negative, got {weights[wrong][0].item()} among its "
                f"entries."
            )

    read(look, weights)
    return weights.to(like.dtype).broadcast_to(shape)


def check_mask(call: str, mask: object, shape: torch.Size, like: Tensor) -> Tensor | None:
    """``mask``, a tensor of bool, expanded to ``shape``; None for None."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise InvalidInputError(
            f"`{call}(mask=...)` must be a tensor of bool, True for the points that count, got {got}. Compare it with "
            f"something, as in `mask > 0`."
        )
    _check_place(call, "mask", mask, shape, like.device)
    return mask.broadcast_to(shape)


def _check_place(call: str, name: str, value: Tensor, shape: torch.Size, device: torch.device) -> None:
    if value.device != device:
        raise InvalidInputError(
            f"`{call}({name}=...)` must be on the device of the data, {device}, got {value.device}. Move it with "
            f"`.to({str(device)!r})`."
        )
    # Asked, not tried: `torch.compile` hands over no error of an operation.
    sizes = zip(reversed(value.shape), reversed(shape), strict=False)
    if value.dim() > len(shape) or any(size != 1 and size != wanted for size, wanted in sizes):
        raise InvalidInputError(
            f"`{call}({name}=...)` must have a shape that broadcasts to that of the points, {tuple(shape)}, got "
            f"{tuple(value.shape)}. Reshape it."
        )


def weigh(x: Tensor, weights: Tensor | None, mask: Tensor | None) -> Weighted:
    """Points that do not count are moved onto one that does, so that whatever stood there plays no part.

    Args:
        x: ``(R, n)`` or ``(R, n, m)``.
        weights: ``(R, n)``; y does not change when all weights of a row are multiplied by a number, so that they are
            divided by their largest, as a constant, which keeps sums of them from under- and overflowing.
        mask: ``(R, n)``.
    """
    if mask is not None:
        column = mask.reshape(*mask.shape, *[1] * (x.dim() - 2))
        first = mask.to(torch.int8).argmax(dim=1).reshape(-1, *[1] * (x.dim() - 1))
        x = torch.where(column, x, torch.take_along_dim(x.detach(), first, dim=1))
    if weights is None:
        return Weighted(x, None, None) if mask is None else Weighted(x, mask.to(x.dtype), x.new_ones(len(x)))
    c = weights if mask is None else torch.where(mask, weights, 0)
    scale = c.detach().amax(dim=1)
    return Weighted(x, c / torch.where(scale > 0, scale, 1).unsqueeze(1), scale)
