r"""Units in which the numbers of a quadratic program are of order one.

With ``y = length D y'`` for the variables, ``E`` for the rows and ``force`` for the objective, the program has the
matrices ``D Q D`` and ``E R D``, whose rows and columns have entries of at most about one; the limits of a variable
stay limits. The solution does not change, only its units do.

References:
    Ruiz, A scaling algorithm to equilibrate both rows and columns norms in matrices, 2001.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.quadratic.program import Data, Program
from torchddn.solvers.vectors import is_settled, largest

__all__ = ["Units", "equilibrate"]

_MAX_PASSES = 10
# Rows and columns whose largest entries are within this factor of one are left alone.
_NEAR = 4.0


class Units(NamedTuple):
    """What one is, in the user's units."""

    y: Tensor  # (B, m)
    z: Tensor  # (B, N): of multipliers
    s: Tensor  # (B, N): of slacks
    f: Tensor  # (B, 1): of the objective


def equilibrate(program: Program, data: Data) -> tuple[Data, Units]:
    """The same programs in units of their own."""
    Q, c, R, b, present = data
    # No entry of a semidefinite matrix exceeds the largest of its diagonal, scaled or not.
    diagonal, size_R = Q.diagonal(dim1=1, dim2=2).abs(), R.abs()
    D, E = torch.ones_like(c), torch.ones_like(R[:, :, 0])
    for _ in range(_MAX_PASSES):
        scaled_R = size_R * E.unsqueeze(2) * D.unsqueeze(1)
        column = diagonal * D.square()
        if R.shape[1]:
            column = torch.maximum(column, scaled_R.amax(1))
        row = scaled_R.amax(2)
        column, row = (torch.where(size > 0, size, 1.0) for size in (column, row))
        near = ((column <= _NEAR) & (column >= 1 / _NEAR)).all(1) & ((row <= _NEAR) & (row >= 1 / _NEAR)).all(1)
        if is_settled(near):
            break
        by_column, by_row = (torch.where(near[:, None], 1.0, size.rsqrt()) for size in (column, row))
        D, E = D * by_column, E * by_row
    R = R * E.unsqueeze(2) * D.unsqueeze(1)
    rows = torch.cat([E, 1 / D, 1 / D], dim=1) if program.bounded else E
    b = b * rows
    length = _typical(b, present)[:, None]
    c = c * D
    force = torch.maximum(largest(c), largest(diagonal * D.square()) * length.squeeze(1))
    force = torch.where(force > 0, force, 1.0)[:, None]
    Q = Q * (D * length / force).unsqueeze(2) * D.unsqueeze(1)
    scaled = Data(Q, c / force, R, b / length, present)
    return scaled, Units(length * D, force * rows, length / rows, length * force)


def _typical(b: Tensor, present: Tensor) -> Tensor:
    """One, or the nearest to it of the magnitudes that ``b`` has."""
    if not b.shape[1]:
        return b.new_ones(b.shape[0])
    size = b.abs()
    counts = present & (size > 0)
    least = torch.where(counts, size, torch.inf).amin(1)
    most = torch.where(counts, size, 0.0).amax(1)
    typical = torch.minimum(torch.maximum(least, torch.ones_like(least)), most)
    return torch.where(typical > 0, typical, 1.0)
