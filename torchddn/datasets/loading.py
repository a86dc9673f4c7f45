"""Batches: in an order that seed and epoch decide, shared out to ranks, read by worker processes."""

import multiprocessing
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from torchddn.datasets.arguments import check_count, check_data, check_integer
from torchddn.datasets.labeled import Data
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_flag

__all__ = ["Shards", "loader"]


class Shards(Sampler[int]):
    """The numbers of the items of one rank: every ``num_ranks``-th of an order that is the same for all ranks.

    So the b-th batches of all ranks together are the b-th batch of a single process with ``num_ranks`` times the batch
    size. Where the order is shuffled, for training, every rank gets equally many, or those with one batch less would
    keep the others waiting for ever; what does not divide is left out of this epoch. Where it is not, nothing is left
    out and nothing comes twice, so that scores over all ranks are those of the data.
    """

    def __init__(self, data: Data, shuffle: bool, seed: int, rank: int, num_ranks: int) -> None:
        self._data, self._shuffle, self._seed, self._rank, self._num_ranks = data, shuffle, seed, rank, num_ranks
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The next pass is number ``epoch``: another order, and other draws of the data set; call before the pass."""
        self._epoch = epoch
        if hasattr(self._data, "set_epoch"):
            self._data.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]

    def __len__(self) -> int:
        size, rest = divmod(len(self._data), self._num_ranks)
        return size + (not self._shuffle and self._rank < rest)

    def __iter__(self) -> Iterator[int]:
        size = len(self._data)
        if not self._shuffle:
            return iter(range(self._rank, size, self._num_ranks))
        order = np.random.default_rng((self._seed, self._epoch)).permutation(size)
        return iter(order[self._rank :: self._num_ranks][: len(self)].tolist())


def loader(
    data: Data,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
    drop_last: bool = False,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Returns a loader of batches ``(inputs (B, ...), labels (B,))``.

    Its ``sampler`` is a :class:`Shards`: call ``loader.sampler.set_epoch(epoch)`` before each pass of a training. The
    order depends on ``seed`` and the epoch only, so that a run that is taken up again goes on as it would have, and
    the number of workers changes nothing but the speed.

    Args:
        data: Any data set of this package.
        batch_size: Of one rank, positive.
        shuffle: A new order every epoch; else that of the data.
        seed: Of the orders.
        num_workers: Processes that read ahead; 0 reads in this one. Data that lies in memory needs none.
        rank: Which share of the data this process gets, from 0 to ``num_ranks - 1``.
        num_ranks: Among how many processes the data is shared out.
        drop_last: Leave out a last batch that is smaller.

    Raises:
        InvalidInputError: If a number is out of range.

    Example:
        >>> from torchddn.datasets import Labeled
        >>> data = Labeled(torch.arange(5.0), torch.zeros(5, dtype=torch.long))
        >>> [inputs.tolist() for inputs, _ in loader(data, 2, rank=1, num_ranks=2)]
        [[1.0, 3.0]]
    """
    check_data("loader", "data", data)
    check_count("loader", "batch_size", batch_size)
    check_count("loader", "num_ranks", num_ranks)
    for name, value in (("seed", seed), ("num_workers", num_workers), ("rank", rank)):
        check_integer("loader", name, value)
    for name, value in (("shuffle", shuffle), ("drop_last", drop_last)):
        check_flag("loader", name, value)
    if rank >= num_ranks:
        raise InvalidInputError(f"`loader(rank=...)` must be below num_ranks = {num_ranks}, got {rank}.")
    return DataLoader(
        cast("Dataset[tuple[Tensor, Tensor]]", data),
        batch_size,
        sampler=Shards(data, shuffle, seed, rank, num_ranks),
        num_workers=num_workers,
        collate_fn=_collate,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        # One of its own: a pass must not advance the random numbers of the training.
        generator=torch.Generator().manual_seed(seed),
        # That of the platform, also in a process that was spawned, which would spawn in its turn: workers are made anew
        # each pass, because they copy the data set with its epoch, and to import torch anew takes seconds.
        multiprocessing_context=multiprocessing.get_all_start_methods()[0] if num_workers else None,
    )


def _collate(items: Any) -> Any:
    # Data in memory hands over a batch that is whole already.
    return items if isinstance(items, tuple) else default_collate(items)
