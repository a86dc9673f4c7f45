r"""Convex quadratic programs in one form: all rows together, bounds as rows that are never formed.

::

    min_y  1/2 y'Q y + c'y   subject to   E y + s = b,   s_i = 0 for the first p rows,   s_i >= 0 for the others

with ``E = [R; -I; I]``, where ``R`` stacks the rows of equalities and inequalities and the identities are the lower and
upper limits of the variables. A row whose ``b`` is infinite does not exist: its multiplier is zero and it has no slack.

With the multipliers ``z``, which are not negative behind the first p rows, a solution is a point where ::

    Q y + c + E'z = 0,   E y + s = b,   s_i z_i = 0
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.solvers.vectors import times

__all__ = ["Data", "Program"]


class Data(NamedTuple):
    """The numbers of a batch of programs."""

    Q: Tensor  # (B, m, m), positive semidefinite
    c: Tensor  # (B, m)
    R: Tensor  # (B, p + q, m)
    b: Tensor  # (B, N): of all rows; zero where there is none
    present: Tensor  # (B, N), boolean

    def to(self, dtype: torch.dtype) -> "Data":
        """The same in another precision."""
        Q, c, R, b, present = self
        return Data(Q.to(dtype), c.to(dtype), R.to(dtype), b.to(dtype), present)


@dataclasses.dataclass(frozen=True)
class Program:
    """The sizes of a batch of programs, and products with ``E``.

    Attributes:
        m: Number of variables.
        p: Number of equalities.
        q: Number of inequalities.
        bounded: Whether variables have limits: 2 m more rows.
    """

    m: int
    p: int
    q: int
    bounded: bool

    @property
    def num_rows(self) -> int:
        """``N``."""
        return self.p + self.q + 2 * self.m * self.bounded

    def select(self, x: Sequence[Tensor], items: Tensor) -> tuple["Program", tuple[Tensor, ...]]:
        """The same for some items only; ``items`` holds their indices."""
        return self, tuple(tensor[items] for tensor in x)

    def times(self, R: Tensor, y: Tensor) -> Tensor:
        """``E y``, ``(B, N)``, for ``y`` as ``(B, m)``."""
        rows = times(R, y)
        return torch.cat([rows, -y, y], dim=1) if self.bounded else rows

    def times_transposed(self, R: Tensor, z: Tensor) -> Tensor:
        """``E'z``, ``(B, m)``, for ``z`` as ``(B, N)``."""
        if not self.bounded:
            return times(R.mT, z)
        r, m = self.p + self.q, self.m
        return times(R.mT, z[:, :r]) + z[:, r + m :] - z[:, r : r + m]

    def gram(self, Q: Tensor, R: Tensor, w: Tensor) -> Tensor:
        """``Q + E' diag(w) E``, ``(B, m, m)``, for weights ``(B, N)``."""
        r, m = self.p + self.q, self.m
        H = torch.baddbmm(Q, (R * w[:, :r, None]).mT, R)
        if self.bounded:
            H.diagonal(dim1=1, dim2=2).add_(w[:, r : r + m] + w[:, r + m :])
        return H
