r"""Units: the diagonal scalings that free pivots, condition and rank from them, and what rounding may do to these."""

import torch
from torch import Tensor

from torchddn.linear.operators import check_count, check_flag, check_tensor

__all__ = ["CUTOFF", "DOUBTFUL", "equilibrate", "exceeds_rounding", "power_of_two", "rounding_unit", "scaled_matrix"]

# A singular matrix, factored in floating point, has |(R K C)^-1| of 1 / (a few eps) or, after long sums, 1 / (s eps).
# An item beyond the first factor is handed to LeastSquares, whose cutoff (the second) decides: the gap between them
# leaves a doubtful matrix to the method that can tell. Below s = 10 the count of roundings is not the size's.
DOUBTFUL = 30.0
CUTOFF = 10.0


def equilibrate(matrix: Tensor, symmetric: bool = False, primal_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Powers of two ``row`` and ``col``, ``(B, s)``, that bring the rows and columns of ``matrix`` to about one.

    The largest entry of each row and then of each column is made one; a symmetric matrix gets the geometric mean
    of both, which keeps it symmetric (as Duff and Pralet do), and one step of Ruiz's iteration after it. A row of
    zeros keeps its scale.

    Rows of one do not settle the scale of a saddle matrix: a small ``H`` may drown in a large ``A``, and with it
    what is known of ``y``. So where ``primal_size < s`` the units of ``y`` come from ``H`` and those of the
    multipliers from ``A`` in these units, unless all of ``H`` is but the rounding of numbers of the size of ``A``.

    Example:
        >>> equilibrate(torch.tensor([[[1e8, 1.0], [1.0, 0.0]]]), symmetric=True)[0]
        tensor([[1.2207e-04, 8.1920e+03]])
    """
    check_tensor("equilibrate(matrix=...)", matrix, "(B, s, s)", 3)
    check_flag("equilibrate(symmetric=...)", symmetric)
    entries = matrix.abs()
    if symmetric:
        m = matrix.shape[1] if primal_size is None else primal_size
        check_count("equilibrate(primal_size=...)", m, most=matrix.shape[1])
        saddle = m < matrix.shape[1]
        scale = _saddle_scale(entries[:, :m, :m], entries[:, m:, :m]) if saddle else _symmetric_scale(entries)
        scale = power_of_two(scale)
        return scale, scale
    row = _reciprocal(entries.amax(2))
    entries *= row.unsqueeze(2)  # in place: fresh memory of this size costs more than the product
    return power_of_two(row), power_of_two(_reciprocal(entries.amax(1)))


def _symmetric_scale(entries: Tensor) -> Tensor:
    row = _reciprocal(entries.amax(2))
    scaled = entries * row.unsqueeze(2)
    scale = (row * _reciprocal(scaled.amax(1))).sqrt()
    scaled *= scale.unsqueeze(1)
    largest = scaled.amax(2) / row * scale
    return scale * torch.where(largest > 0, largest, 1).rsqrt()


def _saddle_scale(H: Tensor, A: Tensor) -> Tensor:
    """The scale of ``[[H, A^T], [A, 0]]`` from the moduli of its blocks."""
    row_A = A.amax(2)
    size_A = row_A.amax(1, keepdim=True)
    row_H, size_H = H.amax(2), H.amax((1, 2))
    known = (row_H > 0) & exceeds_rounding(size_H, size_A.squeeze(1), sum(A.shape[1:])).unsqueeze(1)
    # A row of H that is rounding beside the others is no unit for a variable that has one from the constraints.
    alone = A.amax(1) == 0
    beside = torch.maximum(size_H, size_A.squeeze(1)).unsqueeze(1)
    known = known & (alone | exceeds_rounding(row_H, beside, sum(A.shape[1:])))
    y = torch.where(known, _symmetric_scale(H), 0)
    # A variable that H does not contain gets its unit from the constraints, and these from the other variables in
    # them; where there are none, H is rounding or zero and the same power of A on both sides keeps it so.
    mu = _reciprocal((A * y.unsqueeze(1)).amax(2), otherwise=0)
    mu = torch.where(mu > 0, mu, _reciprocal(row_A) * size_A.sqrt())
    y = torch.where(known, y, _reciprocal((A * mu.unsqueeze(2)).amax(1)))
    return torch.cat([y, _reciprocal((A * y.unsqueeze(1)).amax(2))], dim=1)


def exceeds_rounding(size_H: Tensor, size_A: Tensor, size: int) -> Tensor:
    """Whether ``H``, with entries up to ``size_H``, is more than the rounding of numbers of the size of ``A``.

    Both of one shape, or broadcast to it; ``size`` is that of the saddle.
    """
    return size_H > CUTOFF * max(size, 10) * torch.finfo(size_H.dtype).eps * size_A


def rounding_unit(like: Tensor, factor: float) -> float:
    """``factor`` times the rounding of a sum over the size, the last axis of ``like``."""
    return factor * max(like.shape[-1], 10) * torch.finfo(like.dtype).eps


def power_of_two(scale: Tensor) -> Tensor:
    """The power of two nearest to each ``scale``; one where that is zero, infinite or NaN."""
    # The product of two scales has to be finite too.
    most = 60 if scale.dtype == torch.float32 else 500
    exponent = scale.log2().round().clamp(-most, most)
    return torch.where((scale > 0) & scale.isfinite(), exponent.exp2(), 1)


def scaled_matrix(matrix: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """``R K C`` with the diagonals ``row`` and ``col``."""
    # Rows first: their product is at most about one, whatever the units.
    return (matrix * row.unsqueeze(2)).mul_(col.unsqueeze(1))


def _reciprocal(size: Tensor, otherwise: float = 1) -> Tensor:
    return torch.where((size > 0) & size.isfinite(), size.reciprocal(), otherwise)
