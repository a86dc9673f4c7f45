"""Handwritten digits, as images and as sets of points with intensities.

The images are the 1797 of the UCI collection "Optical Recognition of Handwritten Digits" that ship with scikit-learn,
8 x 8 pixels each, so nothing is downloaded.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.datasets.labeled import Labeled
from torchddn.errors import InvalidInputError

try:
    import sklearn.datasets
    import sklearn.model_selection
except ImportError as error:
    raise ImportError(
        f"`torchddn.datasets` needs {error.name}. Install it with `pip install 'torchddn[data]'`."
    ) from error

__all__ = ["DigitImages", "Digits", "PointSets", "load_digit_images", "load_digits"]

# The split is part of the data set: numbers of two runs can be compared only if it never changes.
_SPLIT_SEED = 0


class PointSets(NamedTuple):
    """Point sets ``(B, n, 3)`` (x, y, intensity) and their labels ``(B,)``."""

    points: Tensor
    labels: Tensor


class Digits(NamedTuple):
    """The three parts of the data set; what is chosen is chosen on ``validation``, ``test`` is for reporting."""

    train: PointSets
    validation: PointSets
    test: PointSets


class DigitImages(NamedTuple):
    """The same three parts as images."""

    train: Labeled
    validation: Labeled
    test: Labeled


def load_digits(num_points: int = 64, seed: int = 0) -> Digits:
    """Returns the handwritten digits as point sets, split 60 : 20 : 20 with equal shares of every digit.

    A pixel with nonzero intensity is a point: its center (x to the right, y up) and its intensity in (0, 1]. The
    positions of a digit are centered at their mean and divided by the largest distance from it, so they lie in the
    unit disc. A digit has about 33 such pixels; their list in random order, repeated, gives ``num_points`` points, so
    that from 64 points on no pixel is left out.

    Args:
        num_points: Points per digit, positive.
        seed: Of the order of the points. The split is always the same.

    Raises:
        InvalidInputError: If ``num_points`` is not a positive integer, or ``seed`` no integer.

    Example:
        >>> digits = load_digits()
        >>> digits.train.points.shape, len(digits.validation.labels), len(digits.test.labels)
        (torch.Size([1078, 64, 3]), 359, 360)
    """
    if not isinstance(num_points, int) or isinstance(num_points, bool) or num_points < 1:
        raise InvalidInputError(f"`load_digits(num_points=...)` must be a positive integer, got {num_points!r}.")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InvalidInputError(f"`load_digits(seed=...)` must be an integer, got {seed!r}.")
    images, labels = _read()
    points = _point_sets(images.flatten(1), num_points, seed)
    return Digits(*(PointSets(points[items], labels[items]) for items in _split(labels)))


def load_digit_images() -> DigitImages:
    """Returns the handwritten digits as images ``(1, 8, 8)`` with intensities in [0, 1], in the same three parts.

    Example:
        >>> digits = load_digit_images()
        >>> digits.train.inputs.shape, len(digits.validation), len(digits.test)
        (torch.Size([1078, 1, 8, 8]), 359, 360)
    """
    images, labels = _read()
    return DigitImages(*(Labeled(images[items].unsqueeze(1), labels[items]) for items in _split(labels)))


def _read() -> tuple[Tensor, Tensor]:
    """Images ``(N, 8, 8)`` in [0, 1] and labels ``(N,)``."""
    images, targets = sklearn.datasets.load_digits(return_X_y=True)
    return torch.as_tensor(images, dtype=torch.float32).div(16).view(-1, 8, 8), torch.as_tensor(targets)


def _split(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of the items of each part."""

    def split(items: Tensor, share: float) -> tuple[Tensor, Tensor]:
        kept, rest = sklearn.model_selection.train_test_split(
            items.numpy(), train_size=share, stratify=labels[items].numpy(), random_state=_SPLIT_SEED
        )
        return torch.as_tensor(kept), torch.as_tensor(rest)

    train, rest = split(torch.arange(len(labels)), 0.6)
    return train, *split(rest, 0.5)


def _point_sets(intensities: Tensor, num_points: int, seed: int) -> Tensor:
    """Point sets ``(B, num_points, 3)`` of images ``(B, 64)`` with intensities in [0, 1]."""
    inked = intensities > 0
    num_inked = inked.sum(dim=1, keepdim=True)
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    pixels = torch.stack([column.flatten(), -row.flatten()], dim=1)  # (64, 2)

    # Random keys below 1, and 2 for pixels without ink: sorting brings the inked ones first, in random order.
    keys = torch.rand(intensities.shape, generator=torch.Generator().manual_seed(seed))
    order = keys.masked_fill(~inked, 2.0).argsort(dim=1)
    chosen = order.gather(1, torch.arange(num_points) % num_inked)  # (B, num_points)

    center = (inked.unsqueeze(2) * pixels).sum(dim=1) / num_inked  # (B, 2)
    offsets = pixels - center.unsqueeze(1)  # (B, 64, 2)
    distance = offsets.norm(dim=2).masked_fill(~inked, 0.0)
    offsets = offsets / distance.amax(dim=1)[:, None, None]
    positions = offsets.gather(1, chosen.unsqueeze(2).expand(-1, -1, 2))
    return torch.cat([positions, intensities.gather(1, chosen).unsqueeze(2)], dim=2)
