r"""Constraint rows ``A``, ``(B, p, m)``, of which few meet in one variable.

Rows that share no variable have one *color*; with c colors every column of ``A`` has at most c entries, and these are
all that is kept: ``A[index[k, j], j] = values[k, j]`` for each color k and variable j.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.linear.bordered import BorderedMatrix
from torchddn.linear.operators import DenseMatrix, DiagonalMatrix, check_count, check_tensor, multiply

__all__ = ["SparseRows", "multiply_rows", "multiply_rows_transposed"]

# Rows of a color that are filled up to equal length take at most so many times the numbers that there are.
_MOST_FILLED = 2


class SparseRows:
    """Rows with few entries in each column; the same pattern for all items.

    Args:
        values: ``(B, c, m)``.
        index: Row of each value, ``(c, m)``, from 0 to p; p for none, where the value must be zero.
        num_rows: ``p``.

    Raises:
        InvalidInputError: A shape or dtype is wrong, or ``num_rows`` not a non-negative integer.

    Example:
        >>> A = SparseRows(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[0, 1, 0]]), num_rows=2)
        >>> A.dense()
        tensor([[[1., 0., 3.],
                 [0., 2., 0.]]])
    """

    def __init__(self, values: Tensor, index: Tensor, num_rows: int) -> None:
        check_tensor("SparseRows(values=...)", values, "(B, c, m)", 3)
        check_count("SparseRows(num_rows=...)", num_rows, least=0)
        if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.shape != values.shape[1:]:
            raise InvalidInputError(
                f"`SparseRows(index=...)` must be an int64 tensor (c, m) = {tuple(values.shape[1:])}, got "
                f"{tuple(index.shape) if isinstance(index, Tensor) else index!r}."
            )
        self.values, self.index = values, index
        self.shape = torch.Size((values.shape[0], num_rows, values.shape[2]))
        self.dtype, self.device = values.dtype, values.device

    def matvec(self, y: Tensor) -> Tensor:
        """``A y``, ``(B, p)`` or ``(B, p, k)``."""
        B, p, _ = self.shape
        layout = _layout(self.index, p)
        sums = [
            rows.sum((values if y.ndim == 2 else values.unsqueeze(-1)) * y)
            for values, rows in zip(self.values.unbind(1), layout.colors, strict=True)
        ]
        if not layout.is_proper:
            product = y.new_zeros(B, p, *y.shape[2:])
            for rows, each in zip(layout.colors, sums, strict=True):
                product.index_add_(1, rows.rows, each)
            return product
        if layout.origin is None:
            return torch.cat(sums, 1)
        return _take(torch.cat([*sums, y.new_zeros(B, 1, *y.shape[2:])], 1), layout.origin)

    def rmatvec(self, mu: Tensor) -> Tensor:
        """``A^T mu``, ``(B, m)`` or ``(B, m, k)``."""
        B, p, m = self.shape
        product = None
        for values, rows in zip(self.values.unbind(1), _layout(self.index, p).colors, strict=True):
            values, spread = values if mu.ndim == 2 else values.unsqueeze(-1), rows.spread(mu)
            product = values * spread if product is None else product.addcmul_(values, spread)
        return mu.new_zeros(B, m, *mu.shape[2:]) if product is None else product

    def gram(self, weights: Tensor) -> DenseMatrix | DiagonalMatrix | BorderedMatrix:
        """``A diag(weights) A^T``, ``(B, p, p)``, for ``weights`` ``(B, m)``; ``p >= 1``.

        Rows of one color do not meet: those of the most frequent color make a diagonal block.
        """
        p = self.shape[1]
        layout = _layout(self.index, p)
        color, (a, b) = layout.color, layout.sizes
        if color < 0:
            return DenseMatrix(self._gram_of(range(len(layout.colors)), weights), symmetric=True)
        weighted = self.values[:, color] * weights
        e = layout.colors[color].sum(weighted * self.values[:, color])
        if not b:
            return DiagonalMatrix(e)
        others = [k for k in range(len(layout.colors)) if k != color]
        F = self._gram_of(others, weights)
        met = [self.values[:, k] * weighted for k in others]
        C = layout.border(met) if met else weights.new_zeros(len(e), b, a)
        return BorderedMatrix(e, C, F, layout.order)

    def _gram_of(self, colors: Sequence[int], weights: Tensor) -> Tensor:
        """``A diag(weights) A^T`` of the rows of some colors, in the order of the last rows, ``(B, b, b)``."""
        layout = _layout(self.index, self.shape[1])
        a, b = layout.sizes
        place = layout.place - a
        diagonal = weights.new_zeros(len(weights), b)
        for k in colors:
            rows = layout.colors[k]
            diagonal.index_add_(1, place[rows.rows], rows.sum(self.values[:, k].square() * weights))
        matrix = torch.diag_embed(diagonal)
        pairs = [(i, j) for n, i in enumerate(colors) for j in colors[:n]]
        if not pairs:
            return matrix
        # Behind the rows there is one in which nothing is.
        mixed = weights.new_zeros(len(weights), (b + 1) ** 2)
        for i, j in pairs:
            entry = place[self.index[i]] * (b + 1) + place[self.index[j]]
            mixed.index_add_(1, entry, self.values[:, i] * weights * self.values[:, j])
        mixed = mixed.view(-1, b + 1, b + 1)[:, :b, :b]
        return matrix + mixed + mixed.mT

    def dense(self) -> Tensor:
        """``A`` in full, ``(B, p, m)``."""
        B, p, m = self.shape
        matrix = self.values.new_zeros(B, p + 1, m)
        matrix.scatter_add_(1, self.index.expand(B, -1, -1), self.values)
        return matrix[:, :p]

    def size(self) -> Tensor:
        """The largest modulus of an entry, ``(B,)``."""
        if not self.values.shape[1]:
            return self.values.new_zeros(self.shape[0])
        # What is the same for all items lies in memory once.
        own = self.values if self.values.stride(0) else self.values[:1]
        return own.abs().amax((1, 2)).expand(self.shape[0])

    def masked(self, rows: Tensor | None, columns: Tensor | None) -> "SparseRows":
        """Zeros in rows and columns of each item whose mask, ``(B, p)`` and ``(B, m)``, is false."""
        values = self.values
        if rows is not None:
            kept = torch.cat([rows, rows.new_zeros(rows.shape[0], 1)], 1)
            values = torch.where(kept[:, self.index], values, 0)
        if columns is not None:
            values = torch.where(columns.unsqueeze(1), values, 0)
        return SparseRows(values, self.index, self.shape[1])

    def select(self, items: Tensor) -> "SparseRows":
        """The rows of some items only; ``items`` holds their indices."""
        return SparseRows(self.values[items], self.index, self.shape[1])


class _Color(NamedTuple):
    """The rows of one color, and the variables in each.

    A sum over the variables of each row is a sum over an axis where the rows are of like length, after a permutation
    unless the variables come row by row or in turn; it is many times faster than adding number by number.
    """

    rows: Tensor  # (a,)
    first: int  # the first of them, if the others are the next ones; else -1
    own: Tensor  # place of each variable's row in `rows`, a for none, (m,)
    members: Tensor | None  # variables of each row, one row after the other, filled up with m, (a length,)
    length: int
    is_even: bool  # all rows have `length` variables
    axis: int  # that of a row's variables, if they come row by row: (a, length), 2, or in turn: (length, a), 1; else 0

    def sum(self, y: Tensor) -> Tensor:
        """Sums ``y``, ``(B, m)`` or ``(B, m, k)``, over each row: ``(B, a)`` or ``(B, a, k)``."""
        a = len(self.rows)
        if self.members is None:
            return y.new_zeros(len(y), a + 1, *y.shape[2:]).index_add_(1, self.own, y)[:, :a]
        if self.axis == 1:
            # As a product: compiled, a sum over an axis that is not the last may be done number by number. Of two rows
            # that are the same, since a product with one is compiled to that sum.
            in_turn = y.reshape(len(y), self.length, -1)
            return (in_turn.new_ones(len(y), 2, self.length) @ in_turn)[:, 0].view(len(y), a, *y.shape[2:])
        if self.axis == 0:
            y = _take(y if self.is_even else _with_zero(y), self.members)
        return y.unflatten(1, (a, self.length)).sum(2)

    def spread(self, mu: Tensor) -> Tensor:
        """To each variable what ``mu``, ``(B, p)`` or ``(B, p, k)``, has for its row; zero for none."""
        mu = mu[:, self.rows] if self.first < 0 else mu[:, self.first : self.first + len(self.rows)]
        if self.axis:
            shape = [-1] * (mu.ndim + 1)
            shape[self.axis] = self.length
            return mu.unsqueeze(self.axis).expand(shape).flatten(1, 2)
        return _take(_with_zero(mu), self.own)


class _Layout(NamedTuple):
    """How rows of several colors lie.

    The rows of the most frequent color (-1: none, or a row has several) come first, the ``last`` ones after them.
    """

    colors: tuple[_Color, ...]
    is_proper: bool  # no row has two colors
    color: int
    sizes: tuple[int, int]
    place: Tensor  # of each row among the first and the last ones; behind these for none, (p + 1,)
    order: Tensor | None  # the row at each place, None for the natural one
    origin: Tensor | None  # of each row in the rows of all colors together, behind these for none, (p,); None: its own
    cells: Tensor | None  # of the border: which number of each color in turn it holds, behind these for none
    targets: Tensor  # the other way round: where each number goes

    def border(self, met: Sequence[Tensor]) -> Tensor:
        """What the last rows share with the first, ``(B, b, a)``, from the numbers of each color, ``(B, m)``."""
        a, b = self.sizes
        numbers = torch.cat([*met], 1) if len(met) > 1 else met[0]
        if self.cells is None:
            cells = numbers.new_zeros(len(numbers), (a + 1) * (b + 1)).index_add_(1, self.targets, numbers)
            return cells.view(-1, a + 1, b + 1)[:, :a, :b].mT
        if len(self.cells):
            numbers = _take(_with_zero(numbers), self.cells)
        return numbers.view(-1, a, b).mT


def _take(y: Tensor, index: Tensor) -> Tensor:
    """``y[:, index]``, several times faster."""
    return y.gather(1, index.view(1, -1, *[1] * (y.ndim - 2)).expand(len(y), -1, *y.shape[2:]))


def _with_zero(y: Tensor) -> Tensor:
    return torch.cat([y, y.new_zeros(len(y), 1, *y.shape[2:])], 1)


@functools.lru_cache(maxsize=64)
def _layout(index: Tensor, num_rows: int) -> _Layout:
    colors = tuple(_color(own, num_rows) for own in index)
    rows = torch.cat([index.new_zeros(0), *(color.rows for color in colors)])
    is_proper = len(rows.unique()) == len(rows)
    color = max(range(len(colors)), key=lambda k: len(colors[k].rows), default=-1)
    color = color if is_proper and len(rows) else -1
    first = colors[color].rows if color >= 0 else index.new_zeros(0)
    others = torch.ones(num_rows, dtype=torch.bool, device=index.device).index_fill(0, first, False)
    order = torch.cat([first, others.nonzero().flatten()])
    place = torch.cat([order, order.new_tensor([num_rows])]).argsort()
    origin = torch.full_like(order, len(rows)).index_copy_(0, rows, _range(len(rows), index)) if is_proper else order
    natural = torch.equal(order, _range(num_rows, index))
    same = is_proper and len(rows) == num_rows and torch.equal(origin, _range(num_rows, index))
    a, b = len(first), num_rows - len(first)
    cells, targets = _cells(index, colors[color].own, place - a, color, (a, b)) if color >= 0 and b else (None, order)
    return _Layout(
        colors, is_proper, color, (a, b), place, None if natural else order, None if same else origin, cells, targets
    )


def _color(index: Tensor, num_rows: int) -> _Color:
    m, present = len(index), index < num_rows
    rows, counts = index[present].unique(return_counts=True)
    a, length = len(rows), int(counts.max()) if len(counts) else 0
    place = torch.full((num_rows + 1,), a, device=index.device).index_copy_(0, rows, _range(a, index))
    own = place[index]
    first = int(rows[0]) if a and torch.equal(rows, int(rows[0]) + _range(a, index)) else -1
    if not 0 < a * length <= _MOST_FILLED * m:
        return _Color(rows, first, own, None, length, False, 0)
    variable = own.argsort(stable=True)[: int(present.sum())]
    row = own[variable]
    start = counts.cumsum(0) - counts
    members = torch.full((a * length,), m, device=index.device)
    members[row * length + _range(len(row), index) - start[row]] = variable
    is_even = a * length == len(variable)
    natural, axis = _range(m, index), 0
    if is_even and a * length == m:
        in_turn = natural.view(length, a).mT.flatten()
        axis = 2 if torch.equal(members, natural) else 1 if torch.equal(members, in_turn) else 0
    return _Color(rows, first, own, members, length, is_even, axis)


def _cells(
    index: Tensor, own: Tensor, place: Tensor, color: int, sizes: tuple[int, int]
) -> tuple[Tensor | None, Tensor]:
    """Cells and targets of a :class:`_Layout`; no cells where two numbers meet in one, empty ones for the identity."""
    a, b = sizes
    others = [k for k in range(len(index)) if k != color]
    row = torch.cat([index.new_zeros(0), *(place[index[k]] for k in others)])
    own = own.repeat(len(others))
    targets = own * (b + 1) + row
    numbers = ((own < a) & (row < b)).nonzero().flatten()
    cell = (own * b + row)[numbers]
    if len(cell.unique()) < len(cell):
        return None, targets
    cells = torch.full((a * b,), len(targets), device=index.device).index_copy_(0, cell, numbers)
    return cells[:0] if torch.equal(cells, _range(len(targets), index)) else cells, targets


def _range(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, device=like.device)


def multiply_rows(A: Tensor | SparseRows, y: Tensor) -> Tensor:
    """``A y`` however ``A`` is kept."""
    return A.matvec(y) if isinstance(A, SparseRows) else multiply(A, y)


def multiply_rows_transposed(A: Tensor | SparseRows, mu: Tensor) -> Tensor:
    """``A^T mu`` however ``A`` is kept."""
    return A.rmatvec(mu) if isinstance(A, SparseRows) else multiply(A.mT, mu)
