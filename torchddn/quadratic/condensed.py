r"""The linear systems of a quadratic program, condensed to its variables.

::

    [ Q   E' ] [ dy ]   [ a ]
    [ E  -W  ] [ dz ] = [ d ]          W >= 0 diagonal, 0 where a row must hold, infinite where there is none

Solved with ``W + delta`` in place of ``W`` and ``Q + rho I`` in place of Q, which needs one Cholesky factor, of
``Q + rho I + E' w E`` with ``w = 1 / (W + delta)``, whether or not rows depend on each other and whether or not Q is
singular. The error of ``delta`` is then removed by refinement; each step is one of the proximal method of multipliers,
and converges for dependent rows as well, to the multipliers nearest to those it starts from. That of ``rho`` stays:
there may be directions with neither curvature nor rows, in which a Newton step would be infinitely long, and it
vanishes as ``dy`` does.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.quadratic.program import Data, Program
from torchddn.solvers.vectors import back_substitute, is_settled, times

__all__ = ["Factor", "Move", "factor", "weakest"]


class Move(NamedTuple):
    """The solution of a system, and the rows along it."""

    dy: Tensor  # (B, m)
    dz: Tensor  # (B, N)
    E_dy: Tensor  # (B, N)


class Factor(NamedTuple):
    """A factored system; ``ok``, ``(B,)``, says whether there is a Cholesky factor."""

    program: Program
    R: Tensor
    w: Tensor  # (B, N)
    rho: Tensor  # (B, 1), or one for all
    L: Tensor  # (B, m, m)
    ok: Tensor

    def approximate(self, a: Tensor, w_d: Tensor) -> Move:
        """The solution of the regularized system, from ``a`` and ``w d``."""
        dy = back_substitute(self.L, a + self.program.times_transposed(self.R, w_d))
        E_dy = self.program.times(self.R, dy)
        return Move(dy, self.w * E_dy - w_d, E_dy)

    def solve(self, Q: Tensor, a: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """``dy`` and ``dz`` of the system without ``delta``, by one refinement; d counts only where there is a row."""
        dy, dz, E_dy = self.approximate(a, self.w * d)
        rest_a = a - times(Q, dy) - self.rho * dy - self.program.times_transposed(self.R, dz)
        # w d - w E dy + w W dz, with w W = 1 - delta w.
        rest_d = self.w * (d - E_dy) + (1 - weakest(dy.dtype) * self.w) * dz
        more = self.approximate(rest_a, rest_d)
        return dy + more.dy, dz + more.dz


def weakest(dtype: torch.dtype) -> float:
    """``delta``."""
    return torch.finfo(dtype).eps ** 0.5


def factor(program: Program, data: Data, w: Tensor, rho: Tensor) -> Factor:
    """Factors the system for the weights ``w``, ``(B, N)``; ``rho`` is ``(B,)`` or one for all."""
    rho = rho.reshape(-1, 1)
    H = program.gram(data.Q, data.R, w)
    H.diagonal(dim1=1, dim2=2).add_(rho)
    # The upper factor of a matrix that is stored in rows is the one that LAPACK makes without a detour.
    U, info = torch.linalg.cholesky_ex(H, upper=True)
    ok = info == 0
    if not is_settled(ok):
        # Directions without curvature or rows: a shift that rounding cannot exceed.
        more = torch.where(ok, 0.0, weakest(w.dtype)).unsqueeze(1)
        rho = rho + more
        H.diagonal(dim1=1, dim2=2).add_(more)
        U, info = torch.linalg.cholesky_ex(H, upper=True)
        ok = info == 0
    return Factor(program, data.R, w, rho, U.mT, ok)
