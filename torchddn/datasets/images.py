"""Folders of images as a data set: ImageNet 2012, Mini-ImageNet, or one's own."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchddn.datasets.arguments import check_count, check_integer, folder
from torchddn.datasets.crops import central_crop, decode, random_crop, to_tensor
from torchddn.datasets.image_files import LAYOUTS, find_layout, list_images
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_choice, check_flag

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["ImageFolder"]


class ImageFolder(Dataset[tuple[Tensor, Tensor]]):
    """Images ``(3, crop, crop)``, normalized, and their classes; files are read when an item is asked for.

    With ``augment``, the protocol of training on ImageNet: a random part of the image, scaled, and flipped or not,
    drawn anew each epoch as a function of seed, epoch and item. Without, the protocol of its tests: the shorter side
    scaled to ``resize``, the single central crop.

    Args:
        root: Folder with the images.
        split: ``"train"`` or ``"validation"``.
        layout: ``"imagenet"``, ``"mini-imagenet"`` or ``"folder"`` (``{train,val}/<class>/*``); found unless given.
        crop: Side of the result in pixels.
        resize: Shorter side before the central crop; 8/7 of ``crop`` (256 for 224) unless given.
        augment: Random crops; in training unless said otherwise.
        transform: Your own way from a picture (``PIL.Image``, RGB) to a tensor, such as one of torchvision; it takes
            the place of crop and normalization, and its random draws are its own affair.
        seed: Of the random crops.

    Raises:
        InvalidInputError: If the folder has no such layout or lacks files, and, when an item is asked for, if its file
            is empty, cut short or no picture; the message names it. ``torchddn data check`` lists everything wrong.

    References:
        Russakovsky and others, ImageNet Large Scale Visual Recognition Challenge, 2015. Vinyals and others, Matching
        Networks, 2016 (Mini-ImageNet).
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        layout: str | None = None,
        crop: int = 224,
        resize: int | None = None,
        augment: bool | None = None,
        transform: "Callable[[PIL.Image.Image], Tensor] | None" = None,
        seed: int = 0,
    ) -> None:
        check_choice("ImageFolder", "split", split, ("train", "validation"))
        check_count("ImageFolder", "crop", crop)
        check_integer("ImageFolder", "seed", seed)
        if resize is not None:
            check_count("ImageFolder", "resize", resize)
            if resize < crop:
                raise InvalidInputError(f"`ImageFolder(resize=...)` must be at least crop = {crop}, got {resize}.")
        if augment is not None:
            check_flag("ImageFolder", "augment", augment)
        if transform is not None and not callable(transform):
            raise InvalidInputError(f"`ImageFolder(transform=...)` must be a function, got {transform!r}.")
        if layout is not None:
            check_choice("ImageFolder", "layout", layout, LAYOUTS)
        base = folder("ImageFolder", "root", root)
        if layout is None:
            layout = find_layout(base)
            if layout is None:
                raise InvalidInputError(
                    f"{base} has no layout of images that is known. Arrange it as train/<class>/* and val/<class>/*."
                )
        self._files = list_images(base, split, layout)
        self.labels, self.classes = torch.from_numpy(self._files.labels), self._files.classes
        self._crop, self._resize = crop, resize if resize is not None else round(crop * 8 / 7)
        self._augment = augment if augment is not None else split == "train"
        self._transform, self._seed, self._epoch = transform, seed, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._input(decode(self._files.base / self._files.names[index].decode()), index), self.labels[index]

    def set_epoch(self, epoch: int) -> None:
        """The random crops from now on are those of this epoch."""
        self._epoch = epoch

    def _input(self, image: "PIL.Image.Image", index: int) -> Tensor:
        if self._transform is not None:
            return self._transform(image)
        if self._augment:
            generator = np.random.default_rng((self._seed, self._epoch, index))
            return to_tensor(random_crop(image, self._crop, generator))
        return to_tensor(central_crop(image, self._crop, self._resize))
