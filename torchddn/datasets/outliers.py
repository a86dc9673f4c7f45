"""Outliers in point sets: some points replaced by uniform ones."""

import math

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_choice

__all__ = ["replace_with_outliers"]


_REGIONS = ("disc", "ball")


def replace_with_outliers(
    points: Tensor, fraction: float, generator: torch.Generator, *, within: str = "disc"
) -> Tensor:
    """Returns a copy of the point sets in which some points, drawn at random, are uniform ones.

    In each set ``round(fraction * n)`` of the ``n`` points are replaced, by points that are uniform in the unit ball;
    or, within the disc, the position by one that is uniform in the unit disc and the intensity by one that is uniform
    in [0, 1].

    Args:
        points: Point sets, ``(B, n, 3)``: x, y, z in the unit ball, or position in the unit disc and intensity. Trusted
            to be so normalized.
        fraction: Share of the points to replace, in [0, 1].
        generator: Source of randomness, on the CPU, so that every device sees the same outliers.
        within: ``"disc"`` or ``"ball"``: what the three numbers of a point are.

    Returns:
        Point sets of the same shape, dtype and device.

    Raises:
        InvalidInputError: If ``points`` is not ``(B, n, 3)``, ``fraction`` is not in [0, 1], ``generator`` is none, or
            ``within`` is another word.

    Example:
        >>> points = torch.zeros(2, 10, 3)
        >>> changed = replace_with_outliers(points, 0.3, torch.Generator().manual_seed(0))
        >>> (changed != points).any(dim=2).sum(dim=1)
        tensor([3, 3])

    References:
        Gould, Hartley, Campbell, Deep Declarative Networks, table 4 (the unit ball).
    """
    if not isinstance(points, Tensor) or points.ndim != 3 or points.shape[-1] != 3:
        found = tuple(points.shape) if isinstance(points, Tensor) else repr(points)
        raise InvalidInputError(
            f"`replace_with_outliers(points=...)` must have shape (B, n, 3), got {found}. "
            "Each point is three numbers; unsqueeze a single set."
        )
    if not isinstance(fraction, int | float) or not 0.0 <= fraction <= 1.0:
        raise InvalidInputError(
            f"`replace_with_outliers(fraction=...)` must be in [0, 1], got {fraction!r}. Divide percentages by 100."
        )
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise InvalidInputError(
            f"`replace_with_outliers(generator=...)` must be a `torch.Generator` on the CPU, got {generator!r}."
        )
    check_choice("replace_with_outliers", "within", within, _REGIONS)
    size = points.shape[:2]
    order = torch.rand(size, generator=generator).argsort(dim=1)
    replaced = order < round(fraction * size[1])
    outliers = _in_ball(size, generator) if within == "ball" else _in_disc(size, generator)
    return torch.where(replaced.to(points.device).unsqueeze(2), outliers.to(points), points)


def _in_disc(size: torch.Size, generator: torch.Generator) -> Tensor:
    # The area within radius r grows as r^2, so its square root makes a uniform number a uniform radius.
    radius = torch.rand(size, generator=generator).sqrt()
    angle = 2 * math.pi * torch.rand(size, generator=generator)
    intensity = torch.rand(size, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin(), intensity], dim=2)


def _in_ball(size: torch.Size, generator: torch.Generator) -> Tensor:
    # A normal vector has a uniform direction; the volume within radius r grows as r^3.
    direction = torch.nn.functional.normalize(torch.randn((*size, 3), generator=generator), dim=2)
    return direction * torch.rand(size, generator=generator).pow(1 / 3).unsqueeze(2)
