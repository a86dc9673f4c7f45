"""The equations of a Newton step where the curvature has a structure: no matrix of it is formed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchddn.linear import (
    Banded,
    BandedMatrix,
    BlockDiagonal,
    BlockDiagonalMatrix,
    CyclicReduction,
    Diagonal,
    DiagonalMatrix,
    LowRank,
    LowRankMatrix,
    Operator,
)
from torchddn.linear.pinning import pin
from torchddn.optimality import Held
from torchddn.solvers.kkt_factors import factor, unit_rows
from torchddn.solvers.vectors import back_substitute, times

__all__ = ["FACTORED", "StructuredFactors", "factorize_structured", "row_sum_bound"]

# The structures with which it can be done.
FACTORED = (Banded, BlockDiagonal, Diagonal, LowRank)

# Rows ``(B, k, m)`` to ``H^-1`` times each of them.
Divide = Callable[[Tensor], Tensor]


class StructuredFactors(NamedTuple):
    """What solves ``H d + A' n = rhs``, ``A d = -c``, as :class:`~torchddn.solvers.kkt_factors.KKTFactors`.

    Attributes:
        margin: As there.
        free: As there.
        divide: What solves with ``H``.
        A: The rows that hold, of length one, ``(B, r, m)``.
        units: One over the length that they had, zero for the others, ``(B, r)``.
        solved: ``H^-1`` times each of them, ``(B, r, m)``.
        L_S: Cholesky factor of the Schur complement, ``A H^-1 A'``, ``(B, r, r)``.
    """

    margin: Tensor
    free: Tensor | None
    divide: Divide
    A: Tensor
    units: Tensor
    solved: Tensor
    L_S: Tensor

    def solve(self, rhs: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """``d``, ``(B, m)``, zero where variables are held, and ``n``, ``(B, r)``; of no use if it is no minimum."""
        rhs = rhs if self.free is None else torch.where(self.free, rhs, 0.0)
        d = self.divide(rhs[:, None])[:, 0]
        if not c.shape[1]:
            return d, c
        n = back_substitute(self.L_S, times(self.A, d) + c * self.units)
        return d - times(self.solved.mT, n), n * self.units


def factorize_structured(H: Operator, A: Tensor, stiffness: Tensor, held: Held, has_bounds: bool) -> StructuredFactors:
    """The factors of positive definite ``H``; nothing is read. Other items have margin zero.

    Args:
        H: Curvature, of a structure among ``FACTORED``.
        A: Rows, ``(B, r, m)``.
        stiffness: Size of ``H``, positive, ``(B, 1)``.
        held: The rows that hold, and the variables that are at a bound.
        has_bounds: Whether there are bounds.
    """
    free = None
    if has_bounds:
        free = ~held.variables
        H = pin(H, free, stiffness)
        A = torch.where(free[:, None], A, 0.0)
    divide, margin = _FACTORIZE[type(H)](H, stiffness)
    if not A.shape[1]:
        return StructuredFactors(margin, free, divide, A, A[..., 0], A, A[..., :0])
    A, units, kept = unit_rows(A, held)
    solved = divide(A)
    S = A @ solved.mT
    S = S + torch.diag_embed((1 - kept) / stiffness)  # a row that does not hold is an equation of its own
    L_S, independent = factor(S, S.diagonal(dim1=-2, dim2=-1))
    return StructuredFactors(torch.minimum(margin, independent), free, divide, A, units, solved, L_S)


def row_sum_bound(H: Operator) -> Tensor:
    """A bound of the row sums of magnitudes, and so of every eigenvalue, ``(B,)``."""
    if isinstance(H, DiagonalMatrix):
        return H.d.abs().amax(1)
    if isinstance(H, LowRankMatrix):
        U = H.U.abs()
        total = H.C.abs() @ U.sum(1, keepdim=True).mT  # (B, r, 1)
        return (H.d.abs() + (U @ total)[..., 0]).amax(1)
    if isinstance(H, BlockDiagonalMatrix):
        return H.blocks.abs().sum(3).flatten(1).amax(1)
    assert isinstance(H, BandedMatrix), f"{type(H).__name__} is not factored"
    return H.band.abs().sum(1).amax(1)


def _diagonal(H: DiagonalMatrix, unit: Tensor) -> tuple[Divide, Tensor]:
    inverse = H.d.reciprocal()
    margin = (H.d / unit).amin(1)
    return lambda rows: rows * inverse[:, None], torch.where(margin > 0, margin, 0.0)


def _low_rank(H: LowRankMatrix, unit: Tensor) -> tuple[Divide, Tensor]:
    r"""With ``D`` positive, ``G = U' D^-1 U = L L'`` and ``N = L' C L`` the matrix is that of ``I + N``, of r rows.

    ``D^-1/2 H D^-1/2 = I + Q N Q'`` with orthonormal columns ``Q = D^-1/2 U L^-T``.
    """
    _, margin_D = _diagonal(DiagonalMatrix(H.d), unit)
    inverse = H.d.reciprocal()
    U_D = (H.U * inverse[..., None]).mT.contiguous()  # D^-1 U in rows, (B, r, m)
    G = U_D @ H.U
    # A column may be zero: at that point, or because all of its variables are at bounds.
    present = G.diagonal(dim1=-2, dim2=-1) > 0
    G = G + torch.diag_embed((~present).to(G.dtype))
    C = torch.where(present[:, None] & present[..., None], H.C, 0.0)
    L, is_full = factor(G, G.diagonal(dim1=-2, dim2=-1))
    N = L.mT @ C @ L
    one = torch.ones_like(N[..., 0])
    L_core, core = factor(N + torch.diag_embed(one), one + N.diagonal(dim1=-2, dim2=-1).abs())
    # C L (I + N)^-1 L^-1, symmetric
    half = torch.linalg.solve_triangular(L_core, L.mT @ C, upper=False)
    inner = C - half.mT @ half

    def divide(rows: Tensor) -> Tensor:
        return rows * inverse[:, None] - ((rows @ U_D.mT) @ inner) @ U_D

    return divide, torch.where(is_full > 0, margin_D * core.clamp(max=1), 0.0)


def _blocks(H: BlockDiagonalMatrix, unit: Tensor) -> tuple[Divide, Tensor]:
    B, n, w, _ = H.blocks.shape
    L, margin = factor(H.blocks.flatten(0, 1), unit.expand(-1, n).reshape(-1, 1))
    order, back = H.order, None if H.order is None else H.order.argsort()

    def divide(rows: Tensor) -> Tensor:
        ordered = rows if order is None else rows[..., order]
        columns = ordered.unflatten(2, (n, w)).permute(0, 2, 3, 1).flatten(0, 1)
        half = torch.linalg.solve_triangular(L, columns, upper=False)
        solved = torch.linalg.solve_triangular(L.mT, half, upper=True)
        solved = solved.unflatten(0, (B, n)).permute(0, 3, 1, 2).flatten(2)
        return solved if back is None else solved[..., back]

    return divide, margin.view(B, n).amin(1)


def _band(H: BandedMatrix, unit: Tensor) -> tuple[Divide, Tensor]:
    """A matrix is positive definite where all blocks that are eliminated are."""
    solver = CyclicReduction()
    state = solver.init(H)
    inverses = torch.cat([level.inverse for level in state.levels], dim=1)
    if inverses.ndim == 3:
        pivots, definite = inverses[..., 0], (inverses > 0).all(2).all(1)
    else:
        pivots, definite = inverses.diagonal(dim1=2, dim2=3), (torch.linalg.cholesky_ex(inverses)[1] == 0).all(1)
    definite = definite & solver.sound(state)
    margin = pivots.flatten(1).amax(1).reciprocal() / unit[:, 0]

    def divide(rows: Tensor) -> Tensor:
        return solver.solve(state, rows.mT.contiguous()).mT

    return divide, torch.where(definite, margin, 0.0)


_FACTORIZE: dict[type[Operator], Callable[[Any, Tensor], tuple[Divide, Tensor]]] = {
    BandedMatrix: _band,
    BlockDiagonalMatrix: _blocks,
    DiagonalMatrix: _diagonal,
    LowRankMatrix: _low_rank,
}
