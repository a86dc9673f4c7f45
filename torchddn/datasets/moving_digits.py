"""Videos of moving digits, in which the order of the frames is half of the class."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from torchddn.datasets.arguments import SPLITS, check_count, check_integer
from torchddn.datasets.digits import load_digit_images
from torchddn.datasets.labeled import InMemory
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_choice

__all__ = ["MovingDigits"]

_PER_CLASS = {"train": 80, "validation": 20, "test": 40}
_NOISE = 0.05


class MovingDigits(InMemory):
    """Videos ``(num_frames, 1, size, size)`` of a handwritten digit in motion, and which motion it is.

    There are ten classes: a digit sinks or rises, slides left or right, turns clockwise or counterclockwise, shrinks or
    grows, fades or brightens. Digit, path, speed from frame to frame and noise are random. Each video is there twice,
    the second time backwards, with the class of the opposite motion: without the order of the frames no more than half
    of the answers can be right.

    The digits are those of :func:`torchddn.datasets.load_digit_images`, and each of its splits shows in the same split
    here only.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        num_frames: Per video, at least 2.
        size: Side of a frame in pixels, at least 12.
        per_class: Videos per class; 80, 20 and 40 unless given.
        seed: Decides everything.

    Raises:
        InvalidInputError: If ``split`` is unknown or a number is out of range.

    Example:
        >>> videos = MovingDigits("test", per_class=2)
        >>> videos.inputs.shape, videos.classes[videos.labels[0]], videos.classes[videos.labels[1]]
        (torch.Size([20, 12, 1, 24, 24]), 'sinks', 'rises')
        >>> torch.equal(videos.inputs[0], videos.inputs[1].flip(0))
        True
    """

    classes = (
        *("sinks", "rises"),
        *("slides left", "slides right"),
        *("turns clockwise", "turns counterclockwise"),
        *("shrinks", "grows"),
        *("fades", "brightens"),
    )

    def __init__(
        self,
        split: str = "train",
        *,
        num_frames: int = 12,
        size: int = 24,
        per_class: int | None = None,
        seed: int = 0,
    ) -> None:
        check_choice("MovingDigits", "split", split, SPLITS)
        check_integer("MovingDigits", "seed", seed)
        if per_class is None:
            per_class = _PER_CLASS[split]
        for name, value, least in (("num_frames", num_frames, 2), ("size", size, 12), ("per_class", per_class, 1)):
            check_count("MovingDigits", name, value)
            if value < least:
                raise InvalidInputError(f"`MovingDigits({name}=...)` must be at least {least}, got {value}.")
        generator = np.random.default_rng((seed, SPLITS.index(split)))
        images = getattr(load_digit_images(), split).inputs
        num_motions = len(self.classes) // 2
        # Of each motion in turn, so that the labels come as 0, 1, 2, ..., with the backward twin after each.
        motion = np.tile(np.arange(num_motions), per_class)
        chosen = torch.from_numpy(generator.integers(len(images), size=len(motion)))
        frames, brightness = _paths(motion, num_frames, generator)
        videos = _render(images[chosen], frames, size) * brightness[..., None, None, None]
        videos += _NOISE * torch.from_numpy(generator.standard_normal(videos.shape)).float()
        self.inputs = torch.stack([videos, videos.flip(1)], dim=1).flatten(0, 1)
        self.labels = torch.from_numpy(np.stack([2 * motion, 2 * motion + 1], axis=1)).flatten()


def _paths(motion: np.ndarray, num_frames: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Maps from frame to digit ``(N, T, 2, 3)``, as ``torch.nn.functional.affine_grid`` wants them, and brightness."""

    def uniform(low: float, high: float) -> np.ndarray:
        return generator.uniform(low, high, (len(motion), 1))

    # How far along its path, -1 to 1: steps of independent random lengths, so that a path backwards is as likely.
    steps = np.cumsum(generator.uniform(0.3, 1.7, (len(motion), num_frames - 1)), axis=1)
    along = np.concatenate([np.zeros((len(motion), 1)), 2 * steps / steps[:, -1:]], axis=1) - 1

    def if_moving(number: int, low: float, high: float) -> np.ndarray:
        return np.where(motion[:, None] == number, along * uniform(low, high), 0.0)

    y = uniform(-0.15, 0.15) + if_moving(0, 0.25, 0.4)
    x = uniform(-0.15, 0.15) - if_moving(1, 0.25, 0.4)
    turning = motion[:, None] == 2
    angle = np.where(turning, uniform(-math.pi, math.pi), uniform(-0.3, 0.3)) + if_moving(2, 0.6, 1.0)
    scale = uniform(0.5, 0.6) * np.exp(-if_moving(3, 0.25, 0.4))
    brightness = np.clip(uniform(0.7, 0.9) * np.exp(-if_moving(4, 0.4, 0.7)), 0, 1.5)

    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    rows = [cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y]
    maps = np.stack(rows, axis=-1).reshape(*along.shape, 2, 3)
    return torch.from_numpy(maps).float(), torch.from_numpy(brightness).float()


def _render(images: Tensor, maps: Tensor, size: int) -> Tensor:
    """Images ``(N, 1, 8, 8)`` where the maps ``(N, T, 2, 3)`` put them, ``(N, T, 1, size, size)``."""
    num_videos, num_frames = maps.shape[:2]
    grid = F.affine_grid(maps.flatten(0, 1), [num_videos * num_frames, 1, size, size], align_corners=False)
    return F.grid_sample(
        images.repeat_interleave(num_frames, dim=0), grid, mode="bilinear", align_corners=False
    ).unflatten(0, (num_videos, num_frames))
