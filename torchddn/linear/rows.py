r"""Constraint rows ``A``, ``(B, p, m)``, of which few meet in one variable.

Rows that share no variable have one *color*; with c colors every column of ``A`` has at most c entries, and these are
all that is kept: ``A[index[k, j], j] = values[k, j]`` for each color k and variable j.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.linear.bordered import BorderedMatrix
from torchddn.linear.operators import DenseMatrix, DiagonalMatrix, check_count, check_tensor, multiply

__all__ = ["SparseRows", "multiply_rows", "multiply_rows_transposed"]


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
        product = y.new_zeros(B, p + 1, *y.shape[2:])
        for values, index in zip(self.values.unbind(1), self.index, strict=True):
            product.index_add_(1, index, (values if y.ndim == 2 else values.unsqueeze(-1)) * y)
        return product[:, :p]

    def rmatvec(self, mu: Tensor) -> Tensor:
        """``A^T mu``, ``(B, m)`` or ``(B, m, k)``."""
        B, _, m = self.shape
        extended = torch.cat([mu, mu.new_zeros(B, 1, *mu.shape[2:])], 1)
        product = mu.new_zeros(B, m, *mu.shape[2:])
        for values, index in zip(self.values.unbind(1), self.index, strict=True):
            product.addcmul_(values if mu.ndim == 2 else values.unsqueeze(-1), extended[:, index])
        return product

    def gram(self, weights: Tensor) -> DenseMatrix | DiagonalMatrix | BorderedMatrix:
        """``A diag(weights) A^T``, ``(B, p, p)``, for ``weights`` ``(B, m)``; ``p >= 1``.

        Rows of one color do not meet: those of the most frequent color make a diagonal block.
        """
        B, p, _ = self.shape
        color, first, last, place = _parts(self.index, p)
        a, b = len(first), len(last)
        rest = [(self.values[:, k], place[self.index[k]] - a) for k in range(len(self.index)) if k != color]
        # Behind the rows there is one in which nothing is.
        F = weights.new_zeros(B, (b + 1) ** 2)
        for i, (values, row) in enumerate(rest):
            for j, (others, other) in enumerate(rest[: i + 1]):
                F.index_add_(1, row * (b + 1) + other, values * weights * others * (0.5 if i == j else 1.0))
        F = F.view(B, b + 1, b + 1)[:, :b, :b]
        F = F + F.mT
        if not a:
            return DenseMatrix(F, symmetric=True)
        own, weighted = place[self.index[color]].clamp(max=a), self.values[:, color] * weights
        e = weights.new_zeros(B, a + 1).index_add_(1, own, weighted * self.values[:, color])[:, :a]
        if not b:
            return DiagonalMatrix(e)
        C = weights.new_zeros(B, (b + 1) * (a + 1))
        for values, row in rest:
            C.index_add_(1, row * (a + 1) + own, values * weighted)
        return BorderedMatrix(e, C.view(B, b + 1, a + 1)[:, :b, :a].contiguous(), F, torch.cat([first, last]))

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
        return torch.linalg.vector_norm(self.values.flatten(1), torch.inf, dim=1)

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


class _Parts(NamedTuple):
    """The most frequent color (-1 for none), its rows, the others, and where each row lies behind these (then none)."""

    color: int
    first: Tensor
    last: Tensor
    place: Tensor


@functools.lru_cache(maxsize=64)
def _parts(index: Tensor, num_rows: int) -> _Parts:
    members = [row.unique() for row in index]
    members = [rows[rows < num_rows] for rows in members]
    # A row that is in several colors meets itself: no diagonal block then.
    proper = not members or len(torch.cat(members).unique()) == sum(map(len, members))
    color = max(range(len(members)), key=lambda k: len(members[k]), default=-1) if proper else -1
    first = members[color] if color >= 0 else index.new_zeros(0)
    others = torch.ones(num_rows, dtype=torch.bool, device=index.device).index_fill(0, first, False)
    last = others.nonzero().flatten()
    place = torch.cat([first, last, first.new_tensor([num_rows])]).argsort()
    return _Parts(color, first, last, place)


def multiply_rows(A: Tensor | SparseRows, y: Tensor) -> Tensor:
    """``A y`` however ``A`` is kept."""
    return A.matvec(y) if isinstance(A, SparseRows) else multiply(A, y)


def multiply_rows_transposed(A: Tensor | SparseRows, mu: Tensor) -> Tensor:
    """``A^T mu`` however ``A`` is kept."""
    return A.rmatvec(mu) if isinstance(A, SparseRows) else multiply(A.mT, mu)
