r"""Where the entries of constraint rows are, found with few products.

Of ``A``, ``(r, m)``, only the products ``A' w`` are known. Each variable is in few of the rows, and it is not known in
which. So the rows are dealt into a few buckets, and each bucket is summed up in three ways::

    s_1 = sum_i A_ij,    s_x = sum_i A_ij x_i,    s_z = sum_i A_ij z_i

Where the variable j meets one row i of the bucket alone, ``s_x / s_1 = x_i`` says which one (the x are equally spaced),
and ``s_z = s_1 z_i`` confirms it (the z are random: rows that balance at the place of another one do not do so twice).
What is known is subtracted, and the rows are dealt again: at random, and then by color, rows of one color being those
that no known variable shares. Once every variable is alone in the bucket of every color, all entries are known.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from torchddn.linear import RowDeclaration, SparseRows

__all__ = ["Placed", "place"]

# Up to so many rows each is looked at for itself: dealing takes about as many products.
_FEW_ROWS = 48

# Buckets of a deal at random. Of two rows in one variable all but one in so many are told apart.
_NUM_BUCKETS = 8
_MOST_DEALS = 8

# Rows that are found alone in less than this part of what there is are not sparse: dealing again would not help.
_LEAST_ALONE = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Placed(RowDeclaration):
    """Rows with entries in known places: as many products as colors.

    Args:
        index: The row of each color that a variable is in, ``(c, m)``; r for none.
        color: The color of each row, ``(r,)``.
    """

    index: Tensor
    color: Tensor

    @property
    def num_colors(self) -> int:
        return len(self.index)

    @property
    def name(self) -> str:
        return f"sparse, {self.num_colors} color{'s' * (self.num_colors > 1)}"

    def row_probes(self, num_rows: int, like: Tensor) -> Tensor:
        return _members(self.color, self.num_colors).to(dtype=like.dtype, device=like.device)

    def rows(self, products: Tensor, num_rows: int) -> SparseRows:
        return SparseRows(products.movedim(0, 1), self.index, num_rows)

    def pattern(self) -> Tensor:
        """Which entries may be other than zero, boolean ``(r, m)``."""
        r, m = len(self.color), self.index.shape[1]
        return torch.zeros(r + 1, m, dtype=torch.bool).scatter_(0, self.index.cpu(), True)[:r]

    def to(self, device: torch.device) -> "Placed":
        """The same for products on a device."""
        return Placed(self.index.to(device), self.color)


def place(multiply: Callable[[Tensor], Tensor], num_rows: int, most_colors: int) -> Placed | None:
    """The places of the entries of one matrix ``A``, ``(r, m)``; None if it needs more colors, or is not sparse.

    Args:
        multiply: ``A' w`` for each row ``w`` of ``(k, r)``, float64: ``(k, m)``, of any precision, on the CPU.
        num_rows: ``r``.
        most_colors: Colors at most.

    Example:
        >>> A = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [4.0, 0.0, 0.0]])
        >>> place(lambda w: w.float() @ A, 3, most_colors=2)
        Placed(index=tensor([[0, 1, 0],
                [2, 3, 3]]), color=tensor([0, 0, 1]))
    """
    if num_rows <= _FEW_ROWS:
        A = multiply(torch.eye(num_rows, dtype=torch.float64))
        present = A.abs() > torch.finfo(A.dtype).eps * A.abs().amax(1, keepdim=True)
        row, column = present.nonzero(as_tuple=True)
        return _placed(row, column, num_rows, A.shape[1], most_colors)
    generator, search = torch.Generator().manual_seed(0), _Search(multiply, num_rows)
    for i in range(_MOST_DEALS):
        bucket = torch.randint(_NUM_BUCKETS, (num_rows,), generator=generator)
        num_present, num_alone = search.deal(bucket, _NUM_BUCKETS)
        if i == 0 and num_alone < _LEAST_ALONE * num_present:
            return None
        placed = search.placed(most_colors)
        if placed is not None:
            num_present, num_alone = search.deal(placed.color, max(placed.num_colors, 1))
            if num_alone == num_present:
                return search.placed(most_colors)
    return None


class _Search:
    """The entries that are known so far: ``value`` in ``row`` and ``column``."""

    def __init__(self, multiply: Callable[[Tensor], Tensor], num_rows: int) -> None:
        self._multiply, self._num_rows = multiply, num_rows
        x = torch.arange(1, num_rows + 1, dtype=torch.float64) / num_rows
        z = 0.5 + torch.rand(num_rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self._weights = torch.stack([torch.ones_like(x), x, z])
        self._row = self._column = torch.zeros(0, dtype=torch.int64)
        self._value = torch.zeros(0, dtype=torch.float64)
        self._noise, self._num_columns = 0.0, 0

    def deal(self, bucket: Tensor, num_buckets: int) -> tuple[int, int]:
        """Sums up buckets of rows; how many sums of a bucket at a variable are new, and how many of them one row's."""
        probes = self._weights.unsqueeze(1) * _members(bucket, num_buckets)
        products = self._multiply(probes.flatten(0, 1))
        eps, sums = torch.finfo(products.dtype).eps, products.double().unflatten(0, (3, -1))
        noise = 64 * eps * sums.abs().amax((0, 2))
        known = self._weights[:, self._row] * self._value
        met = (bucket[self._row], self._column)
        for each, values in zip(sums, known, strict=True):
            each.index_put_(met, -values, accumulate=True)
        where, column = (sums.abs().amax(0) > noise.unsqueeze(1)).nonzero(as_tuple=True)
        s_1, s_x, s_z = sums[:, where, column]
        row = (s_x / s_1 * self._num_rows - 1).nan_to_num(-1, -1, -1).round().clamp(-1, self._num_rows).long()
        inside = row.clamp(0, self._num_rows - 1)
        _, x, z = self._weights[:, inside]
        error = torch.maximum((s_x - x * s_1).abs(), (s_z - z * s_1).abs())
        alone = (row == inside) & (bucket[inside] == where) & (error <= eps**0.75 * s_1.abs() + noise[where])
        self._row = torch.cat([self._row, row[alone]])
        self._column = torch.cat([self._column, column[alone]])
        self._value = torch.cat([self._value, s_1[alone]])
        self._noise, self._num_columns = max(self._noise, float(noise.max())), sums.shape[2]
        return len(where), int(alone.sum())

    def placed(self, most_colors: int) -> Placed | None:
        """What is known, colored; None if it needs more colors."""
        entry, same = torch.unique(self._row * self._num_columns + self._column, return_inverse=True)
        # What was wrongly taken for alone has been taken back since.
        value = self._value.new_zeros(len(entry)).index_add_(0, same, self._value)
        entry = entry[value.abs() > self._noise]
        m = self._num_columns
        return _placed(entry // m, entry % m, self._num_rows, m, most_colors)


def _placed(row: Tensor, column: Tensor, num_rows: int, num_columns: int, most_colors: int) -> Placed | None:
    """Gives each row the first color without a variable of it; ``row`` is sorted."""
    color, taken = torch.zeros(num_rows, dtype=torch.int64), torch.zeros(0, num_columns, dtype=torch.bool)
    counts = torch.bincount(row, minlength=num_rows).tolist()
    for i, columns in enumerate(column.split(counts)):
        if not len(columns):
            continue
        free = (~taken[:, columns].any(1)).nonzero().flatten()
        if not len(free):
            if len(taken) == most_colors:
                return None
            free = torch.tensor([len(taken)])
            taken = torch.cat([taken, taken.new_zeros(1, num_columns)])
        color[i] = free[0]
        taken[color[i], columns] = True
    index = torch.full((len(taken), num_columns), num_rows, dtype=torch.int64)
    index[color[row], column] = row
    return Placed(index, color)


def _members(color: Tensor, num_colors: int) -> Tensor:
    """For each color which rows have it, boolean ``(c, r)``."""
    return color == torch.arange(num_colors).unsqueeze(1)
