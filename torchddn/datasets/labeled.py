"""What every data set here is: inputs that can be asked for by number, and labels that are known beforehand."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchddn.datasets.arguments import check_data, check_integer, check_share
from torchddn.errors import InvalidInputError

__all__ = ["Data", "InMemory", "Labeled", "Part", "hold_out"]


class Data(Protocol):
    """What loaders and experiments need of a data set.

    One that draws at random (crops, orders) has ``set_epoch(epoch)`` too, and item i is a function of seed, epoch
    and i, whichever process asks for it.
    """

    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


class InMemory(Dataset[tuple[Tensor, Tensor]]):
    """The interface of data sets that are tensors: ``inputs`` ``(N, ...)`` and ``labels`` ``(N,)``."""

    inputs: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once: one copy, where item by item the overhead of Python would exceed a small network."""
        items = torch.as_tensor(indices)
        return self.inputs[items], self.labels[items]


class Labeled(InMemory):
    """Any tensors as a data set.

    Args:
        inputs: ``(N, ...)``.
        labels: ``(N,)``, integers from 0 on.
        classes: A name per label; the numbers themselves unless given.

    Raises:
        InvalidInputError: If the lengths differ, the labels are no such integers, or ``classes`` are too few.

    Example:
        >>> data = Labeled(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]), ("no", "yes"))
        >>> len(data), data.classes[data[1][1]]
        (4, 'yes')
    """

    def __init__(self, inputs: Tensor, labels: Tensor, classes: Sequence[str] | None = None) -> None:
        if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor) or inputs.ndim < 1 or labels.ndim != 1:
            raise InvalidInputError("`Labeled(inputs, labels)` must be tensors of shape (N, ...) and (N,).")
        if len(inputs) != len(labels):
            raise InvalidInputError(
                f"`Labeled(labels=...)` must have one entry per input, got {len(labels)} for {len(inputs)} inputs."
            )
        if labels.dtype.is_floating_point or labels.dtype == torch.bool or (len(labels) and labels.min() < 0):
            raise InvalidInputError(
                f"`Labeled(labels=...)` must be integers from 0 on, got {labels.dtype}. Convert them with `.long()`."
            )
        num_classes = int(labels.max()) + 1 if len(labels) else 0
        if classes is not None and len(classes) < num_classes:
            raise InvalidInputError(
                f"`Labeled(classes=...)` must name every label, got {len(classes)} names for {num_classes} labels."
            )
        self.inputs, self.labels = inputs, labels.long()
        self.classes = tuple(classes) if classes is not None else tuple(map(str, range(num_classes)))


class Part(Dataset[tuple[Tensor, Tensor]]):
    """The items ``indices`` of another data set."""

    def __init__(self, whole: Data, indices: Tensor) -> None:
        self.whole, self.indices = whole, indices
        self.labels, self.classes = whole.labels[indices], whole.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.whole[int(self.indices[index])]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        chosen = self.indices[torch.as_tensor(indices)].tolist()
        if isinstance(self.whole, InMemory | Part):
            return self.whole.__getitems__(chosen)
        return [self.whole[index] for index in chosen]

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.whole, "set_epoch"):
            self.whole.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]


def hold_out(data: Data, share: float = 0.2, seed: int = 0) -> tuple[Part, Part]:
    """Returns two parts of a data set, the second with ``share`` of the items of every class.

    For data that comes without a validation part: what is chosen is chosen on the second part, never on test data.

    Args:
        data: A data set with ``labels`` and ``classes``.
        share: Of each class, rounded to the nearest item, in (0, 1).
        seed: Decides which items.

    Raises:
        InvalidInputError: If ``share`` is not in (0, 1), ``seed`` no non-negative integer, or the items have no class.

    Example:
        >>> rest, held = hold_out(Labeled(torch.zeros(20, 3), torch.arange(20) % 2), 0.3)
        >>> len(rest), held.labels.bincount()
        (14, tensor([3, 3]))
    """
    check_data("hold_out", "data", data, "labels", "classes")
    check_share("hold_out", "share", share)
    check_integer("hold_out", "seed", seed)
    if data.labels.ndim != 1:
        raise InvalidInputError(
            f"`hold_out(data=...)` must have one class per item, got labels of shape {tuple(data.labels.shape)}. "
            "Hold out images before you make puzzles of them."
        )
    generator = np.random.default_rng(seed)
    held = torch.zeros(len(data), dtype=torch.bool)
    for label in data.labels.unique():
        items = (data.labels == label).nonzero().flatten()
        order = torch.from_numpy(generator.permutation(len(items)))
        held[items[order[: round(share * len(items))]]] = True
    return Part(data, (~held).nonzero().flatten()), Part(data, held.nonzero().flatten())
