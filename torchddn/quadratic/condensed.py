r"""The linear systems of a quadratic program, condensed to its variables.

::

    [ Q   E' ] [ dy ]   [ a ]
    [ E  -W  ] [ dz ] = [ d ]          W >= 0 diagonal, 0 where a row must hold, infinite where there is none

Solved with ``W + delta`` in place of ``W`` and ``Q + rho I`` in place of Q, which needs one Cholesky factor, of
``Q + rho I + E' (W + delta)^-1 E``, whether or not rows depend on each other and whether or not Q is singular. The
error of ``delta`` is then removed by refinement; each step is one of the proximal method of multipliers, and converges
for dependent rows as well, to the multipliers nearest to those it starts from. That of ``rho`` stays: there may be
directions with neither curvature nor rows, in which a Newton step would be infinitely long, and it vanishes as ``dy``
does.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.quadratic.program import Data, Program
from torchddn.solvers.vectors import is_settled

__all__ = ["Factor", "factor"]


class Factor(NamedTuple):
    """A factored system; ``ok``, ``(B,)``, says whether there is a Cholesky factor."""

    program: Program
    data: Data
    W: Tensor  # (B, N, 1)
    w: Tensor  # (B, N, 1): 1 / (W + delta)
    rho: Tensor  # (B, 1, 1), or one for all
    L: Tensor  # (B, m, m)
    ok: Tensor

    def approximate(self, a: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """``dy``, ``(B, m, k)``, and ``dz``, ``(B, N, k)``, of the regularized system."""
        program, R = self.program, self.data.R
        dy = torch.cholesky_solve(a + program.times_transposed(R, self.w * d), self.L)
        return dy, self.w * (program.times(R, dy) - d)

    def solve(self, a: Tensor, d: Tensor, num_refinements: int = 1) -> tuple[Tensor, Tensor]:
        """The same, of the system with W itself; ``d`` counts only where there is a row."""
        program, (Q, _, R, _, _) = self.program, self.data
        dy, dz = self.approximate(a, d)
        for _ in range(num_refinements):
            rest_a = a - torch.bmm(Q, dy) - self.rho * dy - program.times_transposed(R, dz)
            # Where W is infinite dz is zero: there is no row, and no residual.
            rest_d = torch.where(self.w > 0, d - program.times(R, dy) + self.W * dz, 0.0)
            more_y, more_z = self.approximate(rest_a, rest_d)
            dy, dz = dy + more_y, dz + more_z
        return dy, dz


def factor(program: Program, data: Data, W: Tensor, delta: float, rho: Tensor) -> Factor:
    """Factors the system for ``W``, ``(B, N)``; ``rho`` is ``(B,)`` or one for all."""
    rho = rho.reshape(-1, 1, 1)
    w = 1 / (W + delta)
    H = program.gram(data.Q, data.R, w)
    H.diagonal(dim1=1, dim2=2).add_(rho.squeeze(2))
    L, info = torch.linalg.cholesky_ex(H)
    if not is_settled(info == 0):
        # Directions without curvature or rows: a shift that rounding cannot exceed.
        more = torch.where(info == 0, 0.0, delta).reshape(-1, 1, 1)
        rho = rho + more
        H.diagonal(dim1=1, dim2=2).add_(more.squeeze(2))
        L, info = torch.linalg.cholesky_ex(H)
    return Factor(program, data, W.unsqueeze(-1), w.unsqueeze(-1), rho, L, info == 0)
