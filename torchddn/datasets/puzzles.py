"""Puzzles: the patches of an image in random order, and where each belongs."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchddn.datasets.arguments import check_count, check_data, check_integer
from torchddn.datasets.labeled import Data, InMemory
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_flag

__all__ = ["Puzzles"]


class Puzzles(Dataset[tuple[Tensor, Tensor]]):
    """The patches ``(n, C, h, w)`` of images ``(C, H, W)`` in random order, and the place ``(n,)`` of each.

    Places are counted row by row. With ``fresh``, for training, the orders of each epoch are new.

    Args:
        images: A data set of images, all of one shape; their labels are not used.
        grid: Rows and columns; must divide height and width.
        seed: Of the orders.
        fresh: Whether ``set_epoch`` changes the orders.

    Raises:
        InvalidInputError: If an image does not divide into the grid, or an argument is no positive integer.

    Example:
        >>> from torchddn.datasets import Labeled
        >>> images = Labeled(torch.arange(16.0).view(1, 1, 4, 4), torch.zeros(1, dtype=torch.long))
        >>> patches, places = Puzzles(images, grid=(2, 2))[0]
        >>> patches[:, 0, 0, 0], places
        (tensor([ 8.,  0.,  2., 10.]), tensor([2, 0, 1, 3]))

    References:
        Noroozi, Favaro, Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles, 2016. Santa Cruz,
        Fernando, Cherian, Gould, DeepPermNet, 2017.
    """

    def __init__(self, images: Data, grid: tuple[int, int] = (3, 3), *, seed: int = 0, fresh: bool = False) -> None:
        check_data("Puzzles", "images", images)
        if not isinstance(grid, Sequence) or len(grid) != 2:
            raise InvalidInputError(f"`Puzzles(grid=...)` must be two integers, rows and columns, got {grid!r}.")
        for size in grid:
            check_count("Puzzles", "grid", size)
        check_integer("Puzzles", "seed", seed)
        check_flag("Puzzles", "fresh", fresh)
        self._images, self._grid, self._seed, self._fresh = images, tuple(grid), seed, fresh
        rows, columns = grid
        self.classes = tuple(f"row {i}, column {j}" for i in range(rows) for j in range(columns))
        self.labels = self._orders(0)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._cut(self._images[index][0][None])[0, self.labels[index]], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor] | list[tuple[Tensor, Tensor]]:
        if not isinstance(self._images, InMemory):
            return [self[index] for index in indices]
        places = self.labels[torch.as_tensor(indices)]
        patches = self._cut(self._images.__getitems__(indices)[0])
        return patches[torch.arange(len(patches))[:, None], places], places

    def set_epoch(self, epoch: int) -> None:
        """The orders from now on are those of this epoch, if they are to be fresh, and so are random crops."""
        if self._fresh:
            self.labels = self._orders(epoch)
        if hasattr(self._images, "set_epoch"):
            self._images.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]

    def _orders(self, epoch: int) -> Tensor:
        places = np.tile(np.arange(len(self.classes)), (len(self._images), 1))
        return torch.from_numpy(np.random.default_rng((self._seed, epoch)).permuted(places, axis=1))

    def _cut(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` as patches ``(B, n, C, h, w)`` in the order of the places."""
        rows, columns = self._grid
        height, width = images.shape[-2:]
        if images.ndim != 4 or height % rows or width % columns:
            raise InvalidInputError(
                f"`Puzzles(images=...)` must be of shape (C, H, W), H a multiple of {rows} and W of {columns}, "
                f"got {tuple(images.shape[1:])}."
            )
        patches = images.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # (B, C, rows, h, columns, w)
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
