r"""What a matrix is said to look like, and how few products it takes to read it then.

A declaration holds no numbers. It names the vectors to multiply with (``probes``) and turns the products into an
operator: one product for a diagonal, ``2 w + 1`` for a band, since variables that are ``2 w + 1`` apart never meet in
one row, and so on. A declaration that is wrong gives an operator that is wrong, which the certificate of the solve
notices.
"""

import abc
import dataclasses
import functools

import numpy as np
import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.linear.banded import BandedMatrix
from torchddn.linear.blocks import BlockDiagonalMatrix
from torchddn.linear.low_rank import LowRankMatrix
from torchddn.linear.operators import DenseMatrix, DiagonalMatrix, Operator, check_count
from torchddn.linear.rows import SparseRows

__all__ = [
    "Banded",
    "BlockDiagonal",
    "Declaration",
    "Dense",
    "Diagonal",
    "LowRank",
    "RowDeclaration",
    "Sparse",
    "Zero",
    "color_rows",
]


class Declaration(abc.ABC):
    """The interface: a structure of square matrices ``H``, ``(B, m, m)``."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The structure in words."""

    @abc.abstractmethod
    def probes(self, size: int, like: Tensor) -> Tensor:
        """The vectors ``z`` to multiply with, ``(k, m)``, of the dtype and device of ``like``."""

    @abc.abstractmethod
    def operator(self, products: Tensor, symmetric: bool) -> Operator:
        """``H``, if it is as declared, from the products ``H z``, ``(k, B, m)``."""

    def check(self, size: int) -> None:
        """Raises :class:`~torchddn.errors.InvalidInputError` where no matrix of this size can be so."""
        return

    def occupied(self, size: int) -> Tensor | None:
        """Which entries may be other than zero, boolean ``(m, m)``; None for all."""
        return None


class RowDeclaration(abc.ABC):
    """The interface: a structure of constraint rows ``A``, ``(B, p, m)``."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The structure in words."""

    @abc.abstractmethod
    def row_probes(self, num_rows: int, like: Tensor) -> Tensor:
        """The vectors ``w`` to multiply with, ``(k, p)``."""

    @abc.abstractmethod
    def rows(self, products: Tensor, num_rows: int) -> Tensor | SparseRows:
        """``A``, if it is as declared, from the products ``A^T w``, ``(k, B, m)``."""

    def check_rows(self, num_rows: int, size: int) -> None:
        """Raises :class:`~torchddn.errors.InvalidInputError` where no rows of these numbers can be so."""
        return


@dataclasses.dataclass(frozen=True)
class Diagonal(Declaration):
    """Every variable for itself: one product.

    Example:
        >>> Diagonal().operator(torch.tensor([[[2.0, 3.0]]]), symmetric=True).dense()
        tensor([[[2., 0.],
                 [0., 3.]]])
    """

    @property
    def name(self) -> str:
        return "diagonal"

    def probes(self, size: int, like: Tensor) -> Tensor:
        return like.new_ones(1, size)

    def operator(self, products: Tensor, symmetric: bool) -> DiagonalMatrix:
        return DiagonalMatrix(products[0])

    def occupied(self, size: int) -> Tensor:
        return torch.eye(size, dtype=torch.bool)


@dataclasses.dataclass(frozen=True)
class Zero(Declaration, RowDeclaration):
    """Nothing: a linear objective with linear constraints, or rows that no variable is in."""

    @property
    def name(self) -> str:
        return "zero"

    def probes(self, size: int, like: Tensor) -> Tensor:
        return like.new_ones(1, size)  # rows of variables at a bound are those of the identity

    def operator(self, products: Tensor, symmetric: bool) -> DiagonalMatrix:
        return DiagonalMatrix(products[0])

    def row_probes(self, num_rows: int, like: Tensor) -> Tensor:
        return like.new_zeros(1, num_rows)  # tells the shape of the products

    def rows(self, products: Tensor, num_rows: int) -> SparseRows:
        _, B, m = products.shape
        index = torch.zeros(0, m, dtype=torch.int64, device=products.device)
        return SparseRows(products.new_zeros(B, 0, m), index, num_rows)

    def occupied(self, size: int) -> Tensor:
        return torch.zeros(size, size, dtype=torch.bool)


@dataclasses.dataclass(frozen=True)
class Banded(Declaration):
    """Each variable with its next few neighbors in some order: ``2 bandwidth + 1`` products.

    Args:
        bandwidth: Diagonals on either side of the main one, at least 1.
        order: The variable at each place, a permutation of ``range(m)``; the natural one unless given.

    Raises:
        InvalidInputError: ``bandwidth`` is not a positive integer, or ``order`` not a permutation.
    """

    bandwidth: int = 1
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_count("Banded(bandwidth=...)", self.bandwidth)
        _check_permutation("Banded(order=...)", self.order)

    @property
    def name(self) -> str:
        kind = "tridiagonal" if self.bandwidth == 1 else f"bandwidth {self.bandwidth}"
        return kind if self.order is None else f"{kind}, reordered"

    def check(self, size: int) -> None:
        _check_order_fits("Banded(order=...)", self.order, size)

    def probes(self, size: int, like: Tensor) -> Tensor:
        color = torch.empty(size, dtype=torch.int64)
        color[self._places(size)] = torch.arange(size) % (2 * self.bandwidth + 1)
        return _indicators(color, 2 * self.bandwidth + 1, like)

    def operator(self, products: Tensor, symmetric: bool) -> BandedMatrix:
        if self.bandwidth == 1 and self.order is None:
            return BandedMatrix(_tridiagonal(products), symmetric, None)
        entries, place = _band_entries(self, products.shape[2], products.device)
        numbers = products.movedim(1, 0).flatten(1)
        zero = numbers.new_zeros(numbers.shape[0], 1)
        return BandedMatrix(torch.cat([numbers, zero], 1)[:, entries], symmetric, place)

    def occupied(self, size: int) -> Tensor:
        place = torch.empty(size, dtype=torch.int64)
        place[self._places(size)] = torch.arange(size)
        return (place[:, None] - place).abs() <= self.bandwidth

    def _places(self, size: int) -> Tensor:
        return torch.arange(size) if self.order is None else torch.tensor(self.order)


@dataclasses.dataclass(frozen=True)
class BlockDiagonal(Declaration):
    """Groups of ``block_size`` variables that do not meet: ``block_size`` products.

    Args:
        block_size: At least 1; divides m.
        order: The variable at each place, a permutation of ``range(m)``; the natural one unless given.

    Raises:
        InvalidInputError: ``block_size`` is not a positive integer, or ``order`` not a permutation.
    """

    block_size: int
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_count("BlockDiagonal(block_size=...)", self.block_size)
        _check_permutation("BlockDiagonal(order=...)", self.order)

    @property
    def name(self) -> str:
        return f"blocks of {self.block_size}" + ("" if self.order is None else ", reordered")

    def check(self, size: int) -> None:
        _check_order_fits("BlockDiagonal(order=...)", self.order, size)
        if size % self.block_size:
            raise InvalidInputError(
                f"`BlockDiagonal(block_size=...)` must divide the number of variables, {size}, got {self.block_size}."
            )

    def probes(self, size: int, like: Tensor) -> Tensor:
        color = torch.empty(size, dtype=torch.int64)
        color[self._places(size)] = torch.arange(size) % self.block_size
        return _indicators(color, self.block_size, like)

    def operator(self, products: Tensor, symmetric: bool) -> BlockDiagonalMatrix:
        w = self.block_size
        order = None if self.order is None else _as_index(self.order, products.device)
        ordered = products if order is None else products[:, :, order]
        return BlockDiagonalMatrix(ordered.unflatten(2, (-1, w)).movedim(0, -1), symmetric, order)

    def occupied(self, size: int) -> Tensor:
        block = torch.empty(size, dtype=torch.int64)
        block[self._places(size)] = torch.arange(size) // self.block_size
        return block[:, None] == block

    def _places(self, size: int) -> Tensor:
        return torch.arange(size) if self.order is None else torch.tensor(self.order)


@dataclasses.dataclass(frozen=True)
class LowRank(Declaration):
    r"""A diagonal plus a symmetric matrix ``L`` of low rank: ``3 rank`` products.

    The diagonal hides a part of L, so L is read from where the diagonal is not. The variables are dealt into three
    groups I, J, K, and for random ``Z_J`` that is zero outside of J the rows of ``H Z_J`` in I and K are those of L.
    These are a basis ``W = L Z`` of its range, first in I and K; then in J too, from ``H Z_K``, since on I both span
    the same. ``L = W M W'`` with ``M = (W_J' Z_J)^-1``, so that ``L Z_J = W``, and the diagonal is what remains.

    Args:
        rank: Rank of L, at least 1.

    Raises:
        InvalidInputError: ``rank`` is not a positive integer, or three times it exceeds the number of variables.
    """

    rank: int = 1

    def __post_init__(self) -> None:
        check_count("LowRank(rank=...)", self.rank)

    @property
    def name(self) -> str:
        return f"diagonal + rank {self.rank}"

    def check(self, size: int) -> None:
        if 3 * self.rank > size:
            raise InvalidInputError(
                f"`LowRank(rank=...)` must be at most a third of the number of variables, {size}, got {self.rank}."
            )

    def probes(self, size: int, like: Tensor) -> Tensor:
        return _group_probes(size, self.rank, like.dtype, like.device)

    def operator(self, products: Tensor, symmetric: bool) -> LowRankMatrix:
        k, m = self.rank, products.shape[2]
        Y = products.movedim(0, -1)  # (B, m, 3 k)
        Z = self.probes(m, products).mT  # (m, 3 k)
        first, second = (torch.arange(start, m, 3, device=products.device) for start in range(2))
        Y_J, Y_K = Y[:, :, k : 2 * k], Y[:, :, 2 * k :]
        W = Y_J.clone()
        W[:, second] = Y_K[:, second] @ _least_squares(Y_K[:, first], Y_J[:, first])
        # On I and K, W is L Z_J itself: M is the inverse of W_J' Z_J.
        M = _inverse(W[:, second].mT @ Z[second, k : 2 * k])
        M = 0.5 * (M + M.mT)
        L_Z = W @ (M @ (W.mT @ Z))
        # Z has k entries for each variable, none of them zero: as many equations for its diagonal.
        d = ((Y - L_Z) * Z).sum(2) / Z.square().sum(1)
        return LowRankMatrix(d, W, M)


@dataclasses.dataclass(frozen=True, eq=False)
class Sparse(Declaration, RowDeclaration):
    """Few entries, always in the same places: as many products as colors, rows that share a variable being unlike.

    Args:
        pattern: Which entries may be other than zero, boolean, ``(m, m)`` for ``H`` or ``(p, m)`` for ``A``; found
            by looking unless given.

    Raises:
        InvalidInputError: The pattern is not a boolean matrix.
    """

    pattern: Tensor | None = None

    def __post_init__(self) -> None:
        pattern = self.pattern
        if pattern is not None and not (
            isinstance(pattern, Tensor) and pattern.dtype == torch.bool and pattern.ndim == 2
        ):
            raise InvalidInputError(f"`Sparse(pattern=...)` must be a boolean matrix or None, got {pattern!r}.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sparse) or (self.pattern is None) != (other.pattern is None):
            return NotImplemented if not isinstance(other, Sparse) else False
        if self.pattern is None or other.pattern is None or self.pattern is other.pattern:
            return True
        return self.pattern.shape == other.pattern.shape and torch.equal(self.pattern.cpu(), other.pattern.cpu())

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(None if self.pattern is None else self.pattern.cpu().numpy().tobytes())

    @functools.cached_property
    def color(self) -> Tensor:
        """The color of each row, ``(p,)``."""
        return color_rows(self._known())

    @functools.cached_property
    def num_colors(self) -> int:
        return int(self.color.max()) + 1 if len(self.color) else 0

    @property
    def name(self) -> str:
        number = self.num_colors if self.pattern is not None else 0
        return f"sparse, {number} color{'s' * (number > 1)}" if number else "sparse"

    def check(self, size: int) -> None:
        if self.pattern is not None and tuple(self.pattern.shape) != (size, size):
            raise InvalidInputError(
                f"`Sparse(pattern=...)` must be shaped ({size}, {size}), got {tuple(self.pattern.shape)}."
            )

    def probes(self, size: int, like: Tensor) -> Tensor:
        return self.row_probes(size, like)

    def operator(self, products: Tensor, symmetric: bool) -> DenseMatrix:
        rows, columns = (part.to(products.device) for part in self._entries)
        matrix = products.new_zeros(products.shape[1], products.shape[2], products.shape[2])
        # Columns of a symmetric matrix are rows; of another, its pattern is symmetric at least.
        matrix[:, rows, columns] = products[self.color.to(products.device)[columns], :, rows].mT
        return DenseMatrix(matrix, symmetric)

    def occupied(self, size: int) -> Tensor | None:
        return self.pattern

    def check_rows(self, num_rows: int, size: int) -> None:
        if self.pattern is not None and tuple(self.pattern.shape) != (num_rows, size):
            raise InvalidInputError(
                f"`Sparse(pattern=...)` must be shaped ({num_rows}, {size}) for the constraint rows, got "
                f"{tuple(self.pattern.shape)}."
            )

    def row_probes(self, num_rows: int, like: Tensor) -> Tensor:
        return _indicators(self.color, self.num_colors, like)

    def rows(self, products: Tensor, num_rows: int) -> SparseRows:
        return SparseRows(products.movedim(0, 1), self._row_index.to(products.device), num_rows)

    @functools.cached_property
    def _entries(self) -> tuple[Tensor, ...]:
        """Rows and columns of the entries; kept, because a kernel that reads the numbers cannot count them."""
        return self._known().nonzero(as_tuple=True)

    @functools.cached_property
    def _row_index(self) -> Tensor:
        known = self._known()
        index = torch.full((self.num_colors, known.shape[1]), known.shape[0], dtype=torch.int64)
        rows, columns = self._entries
        index[self.color[rows], columns] = rows
        return index

    def _known(self) -> Tensor:
        assert self.pattern is not None, "a pattern is looked for before it is read"
        return self.pattern


@dataclasses.dataclass(frozen=True)
class Dense(Declaration, RowDeclaration):
    """No structure: a product for each variable, or for each row."""

    @property
    def name(self) -> str:
        return "dense"

    def probes(self, size: int, like: Tensor) -> Tensor:
        return torch.eye(size, dtype=like.dtype, device=like.device)

    def operator(self, products: Tensor, symmetric: bool) -> DenseMatrix:
        return DenseMatrix(products.movedim(0, -1), symmetric)

    def row_probes(self, num_rows: int, like: Tensor) -> Tensor:
        return torch.eye(num_rows, dtype=like.dtype, device=like.device)

    def rows(self, products: Tensor, num_rows: int) -> Tensor:
        return products.movedim(0, 1)


def color_rows(pattern: Tensor) -> Tensor:
    """A color for each row, from 0 on, so that no two rows of one color share a column; greedy, in order.

    Example:
        >>> color_rows(torch.tensor([[True, False], [False, True], [True, True]])).tolist()
        [0, 0, 1]
    """
    rows = pattern.cpu().numpy()
    taken: list[np.ndarray] = []
    colors = np.zeros(len(rows), dtype=np.int64)
    for i, row in enumerate(rows):
        for color, columns in enumerate(taken):
            if not (columns & row).any():
                columns |= row
                colors[i] = color
                break
        else:
            colors[i] = len(taken)
            taken.append(row.copy())
    return torch.from_numpy(colors)


def _indicators(color: Tensor, num_colors: int, like: Tensor) -> Tensor:
    """For each color the vector with ones at its members, ``(c, m)``."""
    chosen = color == torch.arange(num_colors).unsqueeze(1)
    return chosen.to(dtype=like.dtype, device=like.device)


def _inverse(matrix: Tensor) -> Tensor:
    """The inverse; of a number the pseudo-inverse, because the part of low rank may be zero at a point."""
    if matrix.shape[-1] == 1:
        return torch.where(matrix == 0, 0.0, matrix.reciprocal())
    return torch.linalg.inv_ex(matrix)[0]


def _least_squares(matrix: Tensor, rhs: Tensor) -> Tensor:
    """``X`` with the least ``|matrix X - rhs|``, ``(B, n, k)`` both; zero where a single column is zero."""
    if matrix.shape[-1] == 1:
        square = matrix.square().sum(1, keepdim=True)
        return (matrix * rhs).sum(1, keepdim=True) / torch.where(square > 0, square, 1.0)
    Q, R = torch.linalg.qr(matrix)
    return torch.linalg.solve_triangular(R, Q.mT @ rhs, upper=True)


@functools.lru_cache(maxsize=64)
def _group_probes(size: int, rank: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random numbers, ``(3 rank, size)``: ``rank`` vectors for each third of the variables, zero in the others."""
    generator = torch.Generator().manual_seed(0)
    numbers = 0.5 + torch.rand(3, rank, size, generator=generator, dtype=torch.float64)
    # The first of each is positive: what is most often of low rank is a sum, which random signs may cancel.
    numbers[:, 1:] *= torch.randint(0, 2, (3, rank - 1, size), generator=generator) * 2 - 1
    members = torch.arange(size) % 3 == torch.arange(3)[:, None, None]
    return (numbers * members).flatten(0, 1).to(dtype=dtype, device=device)


@functools.lru_cache(maxsize=64)
def _band_entries(banded: Banded, size: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Where the entries of the band, ``(2 w + 1, m)``, lie in the products of all colors and the zero after them."""
    w = banded.bandwidth
    order = None if banded.order is None else _as_index(banded.order, device)
    variable = torch.arange(size, device=device) if order is None else order
    column = torch.arange(size, device=device) + torch.arange(-w, w + 1, device=device).unsqueeze(1)
    inside = (column >= 0) & (column < size)
    return torch.where(inside, column % (2 * w + 1) * size + variable, (2 * w + 1) * size), order


def _tridiagonal(products: Tensor) -> Tensor:
    """The band of three diagonals, ``(B, 3, m)``, of products ``(3, B, m)``: chosen, which is faster than looked up."""
    color = _band_colors(products.shape[2], products.dtype, products.device)
    first, second, third = products.unsqueeze(2)
    return torch.where(color == 0, first, torch.where(color == 1, second, torch.where(color == 2, third, 0.0)))


@functools.lru_cache(maxsize=64)
def _band_colors(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The color of the variable at each place of a band of three diagonals, ``(3, m)``; -1 for none."""
    column = torch.arange(size, device=device) + torch.arange(-1, 2, device=device).unsqueeze(1)
    return torch.where((column >= 0) & (column < size), column % 3, -1).to(dtype)


def _as_index(order: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(order, dtype=torch.int64, device=device)


def _check_permutation(where: str, order: object) -> None:
    if order is not None and not (isinstance(order, tuple) and sorted(order) == list(range(len(order)))):
        raise InvalidInputError(f"`{where}` must be a tuple that permutes range(m), or None, got {order!r}.")


def _check_order_fits(where: str, order: tuple[int, ...] | None, size: int) -> None:
    if order is not None and len(order) != size:
        raise InvalidInputError(f"`{where}` must permute the {size} variables, got {len(order)} places.")
