r"""The matrix of an interior-point step: symmetric, indefinite, and made convex along the constraints.

Solves, for each item::

    [ H    A^T ] [ d ]   [ primal ]
    [ A    -D  ] [ n ] = [ rows   ]          D >= 0 diagonal

``D`` says how much each row yields: nothing for an equality, a little for an active inequality, any amount for an
inactive one, without a line drawn between them. The step belongs to a minimum where ``H + A^T D^-1 A`` is positive
definite, which a Cholesky factorization decides. That matrix itself would drown the digits of ``H`` in those of the
stiff rows. So ``K = H + A^T R A`` is factored, with ``R`` the stiffness ``1 / D`` up to a limit, and what is missing
enters through a Schur complement: with ``E = 1 - R D``, diagonal between 0 and 1, the equations above are ::

    K d + A^T E n = primal + A^T R rows          A d - D n = rows

and ``v = E^(1/2) n`` solves a positive definite system. Of a short list of shifts ``H + tau I`` and limits of ``R``
each item takes the first for which ``K`` is positive definite.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.solvers.base import is_differentiated
from torchddn.solvers.points import where_items
from torchddn.solvers.vectors import back_substitute, identity_like, is_settled, length, times

__all__ = ["Saddle"]


class Saddle(NamedTuple):
    """The matrix, factored. The factors are constants, derivatives come from refinement."""

    H: Tensor
    A: Tensor  # rows of length one
    D: Tensor
    L: Tensor  # K = L L^T
    S: Tensor  # Cholesky factor of the Schur complement
    R: Tensor
    root: Tensor  # E^(1/2)
    row_scale: Tensor
    delta: Tensor  # (B,): makes dependent rows harmless; refinement takes out what it does to others
    tau: Tensor  # (B,)
    level: Tensor  # (B,): which shift and limit was taken
    num_convex: int  # levels below this mean: curved up along the constraints

    @staticmethod
    def of(L_yy: Tensor, diagonal: Tensor, A: Tensor, D: Tensor, shift: Tensor, unit: Tensor) -> "Saddle":
        """The matrix with ``H = L_yy + diagonal``, both without the shift.

        Args:
            L_yy: Curvature, ``(B, m, m)``.
            diagonal: Stiffness of the bounds, ``(B, m)``.
            A: Rows, ``(B, r, m)``.
            D: Their compliance, ``(B, r)``.
            shift: What last made an indefinite matrix definite, ``(B,)``.
            unit: Curvature that is neither large nor small, ``(B,)``.
        """
        eps = torch.finfo(L_yy.dtype).eps
        row_scale = length(A)
        row_scale = torch.where(row_scale > 0, row_scale, 1.0)
        A = A / row_scale[..., None]
        D = D.detach() / row_scale.square()
        H = L_yy + torch.diag_embed(diagonal)
        size = L_yy.detach().abs().sum(-1).amax(-1)  # bounds every eigenvalue
        none, tiny, bound = torch.zeros_like(unit), eps**0.5 * unit, torch.where(size > 0, 1.01 * size, unit)
        weak, medium, strong = 2 * unit, 2 * eps ** (-1 / 6) * unit, 2 * eps ** (-1 / 3) * unit
        levels = [(none, weak), (none, medium), (none, strong), (tiny, medium), (shift, medium), (bound, medium)]
        if not A.shape[1]:
            levels = [levels[0], *levels[3:]]
        taken = [torch.zeros_like(H), torch.zeros_like(D), none]  # L, R, tau
        level = torch.full_like(unit, len(levels), dtype=torch.int64)
        for i, (tau, limit) in enumerate(levels):
            L, R, definite = _factor(H.detach(), A.detach(), D, tau, limit)
            if i == 0 and is_settled(definite):
                taken, level = [L, R, tau], torch.zeros_like(level)
                break
            first = definite & (level == len(levels))
            taken = [where_items(first, new, old) for new, old in zip((L, R, tau), taken, strict=True)]
            level = torch.where(first, i, level)
            if is_settled(level < len(levels)):
                break
        L, R, tau = taken
        if not is_settled(level == 0):
            H = H + tau[:, None, None] * identity_like(H)
        delta = eps ** (2 / 3) / unit
        root, S = _schur(A.detach(), D, L, R, delta)
        return Saddle(H, A, D, L, S, R, root, row_scale, delta, tau, level, len(levels) - 2)

    def stiffened(self, D: Tensor) -> "Saddle":
        """The same matrix with rows that yield by ``D``, ``(B, r)``, where that is less."""
        D = torch.minimum(self.D, D / self.row_scale.square())
        root, S = _schur(self.A.detach(), D, self.L, self.R, self.delta)
        return self._replace(D=D, root=root, S=S)

    @property
    def convex(self) -> Tensor:
        return self.level < self.num_convex

    @property
    def singular(self) -> Tensor:
        """Whether some direction along the constraints has no curvature but a tiny ``tau``."""
        return self.level == self.num_convex - 1

    def newton_step(self, primal: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``(d, n)``, differentiable."""
        rows = rows / self.row_scale
        d, n = self._solve(primal.detach(), rows.detach())
        # Let K = K_0 + dK with the factored constant K_0. Each refinement makes one more order in dK exact, and takes
        # out the error that delta left, if there are rows.
        for _ in range(2 if is_differentiated() else min(1, rows.shape[-1])):
            more_d, more_n = self._solve(
                primal - times(self.H, d) - times(self.A.mT, n), rows - times(self.A, d) + self.D * n
            )
            d, n = d + more_d, n + more_n
        return d, n / self.row_scale

    def solve(self, primal: Tensor, rows: Tensor) -> Tensor:
        """``d`` alone, to the accuracy of the factors."""
        return self._solve(primal, rows / self.row_scale)[0]

    def _solve(self, primal: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if not rows.shape[-1]:
            return back_substitute(self.L, primal), rows
        A = self.A.detach()
        b = primal + times(A.mT, self.R * rows)
        v = back_substitute(self.S, self.root * (times(A, back_substitute(self.L, b)) - rows))
        d = back_substitute(self.L, b - times(A.mT, self.root * v))
        soft = (times(A, d) - rows) / self.D.clamp(min=torch.finfo(rows.dtype).tiny)
        return d, torch.where(self.root > 0.7, v / self.root.clamp(min=0.7), soft)

    def curvature(self, d: Tensor) -> Tensor:
        """``d' (H + A^T D^-1 A) d`` without ``tau``, ``(B,)``."""
        along, d = times(self.A.detach(), d).square() / self.D, d.detach()
        bent = (d * times(self.H.detach(), d)).sum(-1) - self.tau * d.square().sum(-1)
        return bent + along.sum(-1)

    def least_curvature(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Two steps of inverse iteration along the constraints: unit ``w``, its curvature; where convex, none."""
        for _ in range(0 if is_settled(self.convex) else 2):
            w_next = self.solve(w, torch.zeros_like(self.D))
            w_next = w_next / length(w_next).clamp(min=torch.finfo(w.dtype).tiny)[:, None]
            w = where_items(self.convex, w, w_next)
        return w, self.curvature(w)

    def next_shift(self, shift: Tensor, curvature: Tensor, size: Tensor) -> Tensor:
        """Closer to the least that will do: smaller after success, larger after failure."""
        worked, failed = self.level == self.num_convex, self.level > self.num_convex
        # Once w has converged, -curvature is what tau must exceed.
        needed = -1.5 * curvature
        larger = torch.maximum(torch.maximum(4 * shift, size / 32), needed)
        return torch.where(
            worked, torch.maximum(shift / 4, needed), torch.where(failed, torch.minimum(larger, size), shift)
        )


def _factor(H: Tensor, A: Tensor, D: Tensor, tau: Tensor, limit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``L`` and ``R`` for one shift and one limit, and whether the matrix is positive definite."""
    K, R = H + tau[:, None, None] * identity_like(H), D
    if A.shape[1]:
        # Never a little less than all: E would be a small difference.
        R = torch.where(2 * limit[:, None] >= 1 / D, 1 / D, limit[:, None])
        K = K + A.mT @ (R[..., None] * A)
    L, info = torch.linalg.cholesky_ex(K)
    pivots, entries = L.diagonal(dim1=-2, dim2=-1).square(), K.diagonal(dim1=-2, dim2=-1)
    # Regular: no pivot is what rounding leaves of its diagonal entry, whatever the units of the variables.
    regular = (pivots > torch.finfo(K.dtype).eps ** 0.85 * entries).all(-1)
    return L, R, (info == 0) & (regular | (tau > 0))


def _schur(A: Tensor, D: Tensor, L: Tensor, R: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """``E^(1/2)`` and the Cholesky factor of ``E^(1/2) A K^-1 A^T E^(1/2) + D + delta I``."""
    if not A.shape[1]:
        return D, D[..., None]
    root = (1 - R * D).clamp(min=0).sqrt()
    scaled = root[..., None] * A
    S = scaled @ torch.cholesky_solve(scaled.mT, L) + torch.diag_embed(D + delta[:, None])
    return root, torch.linalg.cholesky_ex(S)[0]
