r"""Banded matrices, and cyclic reduction: all even unknowns are eliminated at once, then half of the rest, and so on.

A matrix of bandwidth w is block tridiagonal with blocks of w rows,

    a_i x_{i-1} + b_i x_i + c_i x_{i+1} = r_i

Every even row gives ``x_e = b_e^-1 (r_e - a_e x_{e-1} - c_e x_{e+1})``; put into the odd rows, these are again block
tridiagonal and half as many. So a solve is O(log s) batched operations, O(s w^2) numbers of work, and no loop over s.

Nothing is pivoted across blocks. That is stable for matrices that are positive definite or diagonally dominant; where
it is not, a pivot is tiny and the item not ``sound``.
"""

import dataclasses
import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchddn.errors import InvalidInputError
from torchddn.linear.operators import (
    Operator,
    check_count,
    check_flag,
    check_operator,
    check_order,
    check_tensor,
    check_vectors,
)
from torchddn.linear.scaling import DOUBTFUL, power_of_two, rounding_unit
from torchddn.linear.solver import Solver, as_columns

__all__ = ["BandedMatrix", "CyclicReduction"]


class BandedMatrix(Operator):
    """Matrices with few diagonals beside the main one, perhaps after reordering the variables.

    Args:
        band: Diagonals as rows, ``(B, 2 w + 1, s)``: ``band[:, w + k, i] = K[:, i, i + k]``. Entries outside of the
            matrix must be zero.
        symmetric: Promise that each matrix equals its transpose. Trusted.
        order: The variable at each place of the band, a permutation ``(s,)``, the same for all items; the natural
            one unless given.
        primal_size: Length of the block of decisions, ``s`` unless given.

    Raises:
        InvalidInputError: ``band`` is not a float32 or float64 tensor ``(B, 2 w + 1, s)`` with ``w, s >= 1``, or
            another argument is wrong.

    Example:
        >>> K = BandedMatrix(torch.tensor([[[0.0, -1.0], [2.0, 2.0], [-1.0, 0.0]]]), symmetric=True)
        >>> K.dense()
        tensor([[[ 2., -1.],
                 [-1.,  2.]]])
    """

    def __init__(
        self, band: Tensor, symmetric: bool = False, order: Tensor | None = None, primal_size: int | None = None
    ) -> None:
        check_tensor("BandedMatrix(band=...)", band, "(B, 2 w + 1, s)", 3)
        if band.shape[1] % 2 == 0 or band.shape[1] < 3 or band.shape[2] == 0:
            raise InvalidInputError(
                f"`BandedMatrix(band=...)` must be shaped (B, 2 w + 1, s) with w, s >= 1, got {tuple(band.shape)}."
            )
        check_flag("BandedMatrix(symmetric=...)", symmetric)
        self.batch, _, self.size = band.shape
        check_order("BandedMatrix(order=...)", order, self.size)
        if primal_size is not None:
            check_count("BandedMatrix(primal_size=...)", primal_size, most=self.size)
        self.band, self.symmetric, self.order, self._primal_size = band, symmetric, order, primal_size
        self.dtype, self.device = band.dtype, band.device

    @property
    def bandwidth(self) -> int:
        """``w``, diagonals on either side of the main one."""
        return self.band.shape[1] // 2

    @property
    def primal_size(self) -> int:
        return self.size if self._primal_size is None else self._primal_size

    def matvec(self, u: Tensor) -> Tensor:
        return self._multiply(self.band, check_vectors("BandedMatrix.matvec(u=...)", self, u))

    def rmatvec(self, u: Tensor) -> Tensor:
        band = self.band if self.symmetric else _transposed(self.band)
        return self._multiply(band, check_vectors("BandedMatrix.rmatvec(u=...)", self, u))

    def dense(self) -> Tensor:
        matrix = self.band.new_zeros(self.batch, self.size, self.size)
        for k in range(-self.bandwidth, self.bandwidth + 1):
            if abs(k) < self.size:
                first, last = max(0, -k), min(self.size, self.size - k)
                matrix.diagonal(k, 1, 2).copy_(self.band[:, self.bandwidth + k, first:last])
        if self.order is None:
            return matrix
        place = self.order.argsort()
        return matrix[:, place[:, None], place]

    def diagonal(self) -> Tensor:
        diagonal = self.band[:, self.bandwidth]
        return diagonal if self.order is None else diagonal[:, self.order.argsort()]

    def transpose(self) -> "BandedMatrix":
        return self if self.symmetric else self._like(_transposed(self.band))

    def select(self, items: Tensor) -> "BandedMatrix":
        return self._like(self.band[items])

    def _like(self, band: Tensor) -> "BandedMatrix":
        return BandedMatrix(band, self.symmetric, self.order, self._primal_size)

    def _multiply(self, band: Tensor, u: Tensor) -> Tensor:
        if self.order is not None:
            u = u[:, self.order]
        w = self.bandwidth
        columns = u.unsqueeze(-1) if u.ndim == 2 else u
        padded = pad(columns, (0, 0, w, w))
        product = torch.zeros_like(columns)
        for k in range(2 * w + 1):
            product.addcmul_(band[:, k].unsqueeze(-1), padded[:, k : k + self.size])
        product = product.view_as(u)
        return product if self.order is None else product[:, self.order.argsort()]


# Rows that are added to the first level make at most one part in so many of its rows.
_MOST_ADDED = 16


class Level(NamedTuple):
    """The block rows that are left at one level, and the inverses of the even ones among them, which leave here.

    Blocks of one number are ``(B, n, 1)``, larger ones ``(B, n, w, w)``.
    """

    lower: Tensor
    upper: Tensor
    inverse: Tensor


class CyclicReductionState(NamedTuple):
    """The levels from the whole matrix down to one block row, and in which order the variables lie.

    ``scale`` is the diagonal ``C`` of the equilibrated matrix ``C K C``, None where it is not.
    """

    levels: tuple[Level, ...]
    size: int
    order: Tensor | None
    scale: Tensor | None
    ok: Tensor
    rcond: Tensor


@dataclasses.dataclass(frozen=True)
class CyclicReduction(Solver):
    r"""Elimination of a :class:`BandedMatrix` in O(log s) batched steps, O(s w^2) numbers of work per item.

    A matrix with multipliers among its variables is symmetric and indefinite, and some order of elimination meets a
    zero. It is equilibrated and made quasi-definite, ``K + diag(delta I, -delta I)`` with ``delta = eps^(1/2)``, which
    can be eliminated in every order; a step or two of refinement take the difference out again.

    Example:
        >>> K = BandedMatrix(torch.tensor([[[0.0, -1.0], [2.0, 2.0], [-1.0, 0.0]]]), symmetric=True)
        >>> solver = CyclicReduction()
        >>> solver.solve(solver.init(K), torch.tensor([[1.0, 1.0]]))
        tensor([[1., 1.]])

    References:
        Buzbee, Golub, Nielson, On direct methods for solving Poisson's equations, 1970.
        Vanderbei, Symmetric quasidefinite matrices, 1995.
    """

    def init(self, operator: Operator) -> CyclicReductionState:
        check_operator("CyclicReduction.init(operator=...)", operator)
        if not isinstance(operator, BandedMatrix):
            raise InvalidInputError(
                f"`CyclicReduction.init(operator=...)` must be BandedMatrix, got {type(operator).__name__}; use `LU`."
            )
        band, scale = operator.band, None
        if operator.primal_size < operator.size:
            band, scale = _equilibrated(band)
            band = _quasi_definite(band, operator.order, operator.primal_size)
        lower, middle, upper = _blocks(band)
        # A pivot counts in the units of its own rows.
        unit = band.abs().amax(1)
        levels, sizes = [], []
        unit = pad(unit, (0, middle.shape[1] * operator.bandwidth - operator.size), value=1.0)
        unit = unit.view(operator.batch, middle.shape[1], -1)
        while True:
            # An odd number of rows, so that every odd one has two neighbors.
            num_more = _num_rows(middle.shape[1]) - middle.shape[1]
            if num_more:
                lower, middle, upper, unit = _padded(lower, middle, upper, unit, num_more)
            inverse = _inverse(middle[:, 0::2])
            levels.append(Level(lower, upper, inverse))
            size = inverse.abs() if inverse.ndim == 3 else inverse.abs().amax(3)
            sizes.append((size * unit[:, 0::2]).flatten(1).amax(1))
            if middle.shape[1] == 1:
                break
            left, right = _times(lower[:, 1::2], inverse[:, :-1]), _times(upper[:, 1::2], inverse[:, 1:])
            middle = _less(_less(middle[:, 1::2], left, upper[:, 0:-1:2]), right, lower[:, 2::2])
            lower, upper = -_times(left, lower[:, 0:-1:2]), -_times(right, upper[:, 2::2])
            unit = unit[:, 1::2]
        rcond = torch.stack(sizes).amax(0).reciprocal()
        return CyclicReductionState(tuple(levels), operator.size, operator.order, scale, rcond.isfinite(), rcond)

    def solve(self, state: CyclicReductionState, rhs: Tensor) -> Tensor:
        r = as_columns("CyclicReduction.solve", _like(state), rhs)
        if state.order is not None:
            r = r[:, state.order]
        if state.scale is not None:
            r = state.scale.unsqueeze(-1) * r
        first = state.levels[0].lower
        w = first.shape[2]
        if w > 1:
            r = pad(r, (0, 0, 0, -state.size % w)).unflatten(1, (-1, w))
        eliminated = []
        for lower, upper, inverse in state.levels:
            if r.shape[1] < lower.shape[1]:
                r = torch.cat([r, r.new_zeros(r.shape[0], lower.shape[1] - r.shape[1], *r.shape[2:])], 1)
            even = _times(inverse, r[:, 0::2])
            eliminated.append(even)
            r = _less(_less(r[:, 1::2], lower[:, 1::2], even[:, :-1]), upper[:, 1::2], even[:, 1:])
        u = r  # no row is left
        for (lower, upper, inverse), even in zip(reversed(state.levels), reversed(eliminated), strict=True):
            n = lower.shape[1]
            odd = u[:, : n // 2]
            if n == 1:
                u = even
                continue
            behind, ahead = _times(lower[:, 2::2], odd), _times(upper[:, 0:-1:2], odd)
            inner = (0, 0) * (behind.ndim - 2)
            even = _less(even, inverse, pad(behind, (*inner, 1, 0)) + pad(ahead, (*inner, 0, 1)))
            # In turn: there is one even row more.
            odd = torch.cat([odd, torch.zeros_like(even[:, :1])], 1)
            u = torch.stack([even, odd], 2).flatten(1, 2)[:, :n]
        u = u.flatten(1, 2) if w > 1 else u
        u = u[:, : state.size]
        if state.scale is not None:
            u = state.scale.unsqueeze(-1) * u
        if state.order is not None:
            u = u[:, state.order.argsort()]
        return u.reshape(rhs.shape)

    def transpose(self, state: CyclicReductionState) -> CyclicReductionState:
        # What is left of the transposed matrix at each level is the transpose of what is left of the matrix.
        return state._replace(levels=tuple(_transposed_level(level) for level in state.levels))

    def sound(self, state: CyclicReductionState) -> Tensor:
        return state.ok & (state.rcond > rounding_unit(_like(state), DOUBTFUL))


def _like(state: CyclicReductionState) -> Tensor:
    """A vector of the operator's shape, ``(B, s)``, that takes no memory."""
    return state.rcond.unsqueeze(1).expand(-1, state.size)


def _times(left: Tensor, right: Tensor) -> Tensor:
    """Products of blocks, or of blocks with block vectors; blocks of one number have no matrix axes."""
    return left * right if left.ndim == 3 else left @ right


def _less(r: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``r - left right``."""
    return torch.addcmul(r, left, right, value=-1) if left.ndim == 3 else r - left @ right


def _inverse(block: Tensor) -> Tensor:
    # Where a block is singular its inverse is infinite, or not finite anywhere it matters, and the item not sound.
    if block.ndim == 3:
        return block.reciprocal()
    inverse, info = torch.linalg.inv_ex(block)
    return torch.where((info == 0)[..., None, None], inverse, torch.inf)


def _num_rows(n: int) -> int:
    """How many block rows there are with those that are added: odd at this level, and at further ones where few do it.

    Adding rows takes several calls at each level, so enough for all levels but the last few are added at the first.
    """
    step = 2 ** max(1, (n // _MOST_ADDED).bit_length() - 1)
    return -(-(n + 1) // step) * step - 1


def _padded(
    lower: Tensor, middle: Tensor, upper: Tensor, unit: Tensor, num_rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Block rows more: identities that nothing is coupled with."""
    zero = torch.zeros_like(lower[:, :1]).expand(-1, num_rows, *lower.shape[2:])
    w = lower.shape[2]
    one = torch.eye(w, dtype=lower.dtype, device=lower.device) if middle.ndim == 4 else torch.ones_like(lower[:, :1])
    one = one.expand(len(middle), num_rows, *middle.shape[2:])
    none = torch.ones_like(unit[:, :1]).expand(-1, num_rows, -1)
    parts = ((lower, zero), (middle, one), (upper, zero), (unit, none))
    lower, middle, upper, unit = (torch.cat(pair, 1) for pair in parts)
    return lower, middle, upper, unit


def _blocks(band: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks left of, on and right of the diagonal."""
    if band.shape[1] == 3:
        lower, middle, upper = band.unsqueeze(-1).unbind(1)
        return lower, middle, upper
    B, width, s = band.shape
    extended = torch.cat([band.flatten(1), band.new_zeros(B, 1), band.new_ones(B, 1)], 1)
    blocks = extended[:, _block_table(s, width // 2, band.device)]
    lower, middle, upper = blocks.unbind(1)
    return lower, middle, upper


@functools.lru_cache(maxsize=64)
def _block_table(s: int, w: int, device: torch.device) -> Tensor:
    """Where each entry of the blocks, ``(3, n, w, w)``, lies in the band and the zero and one that follow it."""
    n = -(-s // w)
    rows = torch.arange(n * w, device=device).view(1, n, w, 1)
    offset = torch.arange(-1, 2, device=device).view(3, 1, 1, 1) * w
    columns = rows.view(1, n, 1, w) + offset
    k = columns - rows
    inside = (k.abs() <= w) & (columns >= 0) & (columns < s) & (rows < s)
    identity = (k == 0) & (rows >= s)
    zero = (2 * w + 1) * s
    return torch.where(inside, (k + w) * s + rows, torch.where(identity, zero + 1, zero))


def _transposed(band: Tensor) -> Tensor:
    w, s = band.shape[1] // 2, band.shape[2]
    padded = pad(band, (w, w))
    return torch.stack([padded[:, 2 * w - k, k : k + s] for k in range(2 * w + 1)], 1)


def _transposed_level(level: Level) -> Level:
    lower, upper, inverse = level
    zero = torch.zeros_like(lower[:, :1])
    parts = torch.cat([zero, upper[:, :-1]], 1), torch.cat([lower[:, 1:], zero], 1), inverse
    return Level(*(part if part.ndim == 3 else part.mT for part in parts))


def _equilibrated(band: Tensor) -> tuple[Tensor, Tensor]:
    """``C K C`` with rows of about one, and the powers of two ``C``, ``(B, s)``."""
    w, s = band.shape[1] // 2, band.shape[2]
    total = torch.ones_like(band[:, 0])
    for _ in range(2):  # two steps of Ruiz's iteration
        scale = power_of_two(band.abs().amax(1).rsqrt())
        neighbors = pad(scale, (w, w), value=1.0).unfold(1, s, 1)  # (B, 2 w + 1, s)
        band, total = band * neighbors * scale.unsqueeze(1), total * scale
    return band, total


def _quasi_definite(band: Tensor, order: Tensor | None, primal_size: int) -> Tensor:
    place = torch.arange(band.shape[2], device=band.device) if order is None else order
    sign = torch.where(place < primal_size, 1.0, -1.0).to(band.dtype)
    band = band.clone()
    band[:, band.shape[1] // 2] += torch.finfo(band.dtype).eps ** 0.5 * sign
    return band
