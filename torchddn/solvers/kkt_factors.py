"""The equations of a Newton step under the constraints that hold, factored once and solved for several steps."""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.optimality import Held
from torchddn.solvers.vectors import back_substitute, identity_like, is_settled, times

__all__ = ["KKTFactors", "factor", "factorize", "unit_rows"]

# In units of the curvature, what the squares of the constraints weigh where the curvature is not convex; the more, the
# fewer digits are left.
_WEIGHTS = (2.0, 1e4)


class KKTFactors(NamedTuple):
    """What solves ``H d + A' n = rhs``, ``A d = -c`` in the rows that hold, ``n = 0`` in the others.

    Attributes:
        margin: Which relative change of the derivatives leaves it a strict minimum, about, ``(B,)``: ``H`` is positive
            definite along the rows, and these are independent. Zero where it is none.
        free: Which variables are not held at a bound, ``(B, m)``; None for all.
        weight: Of the squares of the rows in what is factored, ``(B, 1)``.
        L: Cholesky factor of ``H + weight A' A``, ``(B, m, m)``.
        A: The rows that hold, of length one, ``(B, r, m)``.
        units: One over the length that they had, zero for the others, ``(B, r)``.
        half: ``L^-1 A'``, ``(B, m, r)``.
        L_S: Cholesky factor of the Schur complement, ``half' half``, ``(B, r, r)``.
    """

    margin: Tensor
    free: Tensor | None
    weight: Tensor
    L: Tensor
    A: Tensor
    units: Tensor
    half: Tensor
    L_S: Tensor

    def solve(self, rhs: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """``d``, ``(B, m)``, zero where variables are held, and ``n``, ``(B, r)``; if it is no minimum a compromise."""
        rhs = rhs if self.free is None else torch.where(self.free, rhs, 0.0)
        if not c.shape[1]:
            return back_substitute(self.L, rhs), c
        c = c * self.units
        rhs = rhs - times(self.A.mT, self.weight * c)
        half = torch.linalg.solve_triangular(self.L, rhs[..., None], upper=False)[..., 0]
        n = back_substitute(self.L_S, times(self.half.mT, half) + c)
        rest = half - times(self.half, n)
        d = torch.linalg.solve_triangular(self.L.mT, rest[..., None], upper=True)[..., 0]
        return d, n * self.units


def factorize(H: Tensor, A: Tensor, stiffness: Tensor, held: Held, has_bounds: bool, trusting: bool) -> KKTFactors:
    """The factors.

    Args:
        H: Curvature, ``(B, m, m)``, symmetric.
        A: Rows, ``(B, r, m)``.
        stiffness: Size of ``H``, positive, ``(B, 1)``.
        held: The rows that hold, and the variables that are at a bound.
        has_bounds: Whether there are bounds.
        trusting: Nothing is read. An item without the curvature or the independent rows of a minimum gets factors that
            are of no use.
    """
    free = None
    if has_bounds:
        out = held.variables
        free = ~out
        H = H.masked_fill(out[:, None] | out[..., None], 0.0)
        H.diagonal(dim1=-2, dim2=-1).add_(out * stiffness)
        A = A.masked_fill(out[:, None], 0.0)
    weight = torch.zeros_like(stiffness)
    L, curved = factor(H, stiffness)
    if not A.shape[1]:
        return KKTFactors(curved, free, weight, L, A, A[..., 0], A.mT, A[..., :0])
    A, units, kept = unit_rows(A, held)
    for times_stiffness in _WEIGHTS:
        if trusting or is_settled(curved > 0):
            break
        # Convex along the constraints is enough: their squares change neither the step nor the multipliers.
        definite = curved > 0
        weight = torch.where(definite[:, None], weight, times_stiffness * stiffness)
        L_along, along = factor(H + weight[..., None] * (A.mT @ A), stiffness)
        L = torch.where(definite[:, None, None], L, L_along)
        curved = torch.where(definite, curved, along)
    else:
        L = torch.where((curved > 0)[:, None, None], L, stiffness.sqrt()[..., None] * identity_like(H))
    half = torch.linalg.solve_triangular(L, A.mT, upper=False)
    S = half.mT @ half
    # A row that does not hold is an equation of its own.
    S.diagonal(dim1=-2, dim2=-1).add_((1 - kept) / stiffness)
    L_S, independent = factor(S, S.diagonal(dim1=-2, dim2=-1))
    if not (trusting or is_settled(independent > 0)):
        # Too many rows look active: a compromise may bring some of them off again.
        S.diagonal(dim1=-2, dim2=-1).add_(1e-2 / stiffness)
        L_S = torch.where((independent > 0)[:, None, None], L_S, torch.linalg.cholesky_ex(S)[0])
    return KKTFactors(torch.minimum(curved, independent), free, weight, L, A, units, half, L_S)


def unit_rows(A: Tensor, held: Held) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that hold, of length one, zeros for the others; one over their length or zero; and one or zero."""
    size = torch.linalg.vector_norm(A, dim=-1)
    kept = held.rows.to(A.dtype)
    units = kept / torch.where(size > 0, size, 1.0)
    return A * units[..., None], units, kept


def factor(K: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor, and its least pivot in these units, ``(B,)``, which is zero if the matrix is not definite."""
    L, info = torch.linalg.cholesky_ex(K)
    pivots, entries = L.diagonal(dim1=-2, dim2=-1).square(), K.diagonal(dim1=-2, dim2=-1)
    definite = (info == 0) & (pivots > torch.finfo(K.dtype).eps ** 0.75 * entries).all(-1)
    return L, torch.where(definite, (pivots / unit).amin(-1), 0.0)
