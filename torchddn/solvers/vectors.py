"""Batches of vectors and matrices: the few operations that solvers share."""

import torch
from torch import Tensor

from torchddn.derivatives import inside_transform

__all__ = ["back_substitute", "divide", "identity_like", "is_settled", "largest", "length", "row_sum_norm", "times"]


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """``(B, r, m)`` times ``(B, m)``, ``(B, r)``.

    As a row times the transposed matrix, which the batched product of torch does up to twelve times faster.
    """
    return torch.bmm(vector.unsqueeze(1), matrix.mT).squeeze(1)


def back_substitute(L: Tensor, vector: Tensor) -> Tensor:
    """``u`` with ``L L^T u = vector``, ``(B, m)``."""
    half = torch.linalg.solve_triangular(L, vector.unsqueeze(-1), upper=False)
    return torch.linalg.solve_triangular(L.mT, half, upper=True).squeeze(-1)


def identity_like(matrix: Tensor) -> Tensor:
    """The identity with as many columns as ``matrix`` has."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def length(vector: Tensor) -> Tensor:
    """Euclidean norm of each row, ``(B,)``, for decisions: no derivative flows."""
    return vector.detach().square().sum(-1).sqrt()


def largest(vector: Tensor) -> Tensor:
    """Largest magnitude in each row, ``(B,)``, for decisions; zero where there are no columns."""
    vector = vector.detach()
    return vector.abs().amax(-1) if vector.shape[-1] else vector.new_zeros(vector.shape[0])


def row_sum_norm(matrix: Tensor) -> Tensor:
    """Largest row sum of magnitudes, which bounds every eigenvalue, ``(B,)``, for decisions."""
    return matrix.detach().abs().sum(-1).amax(-1)


def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, zero where the denominator is not positive."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def is_settled(mask: Tensor) -> bool:
    """Whether work that changes only items outside ``mask`` can be left out.

    True where ``mask`` holds for every item and reading it is free: on the CPU, outside transforms. Elsewhere the
    answer is False, the work is done for nobody, and the results are the same.
    """
    return mask.device.type == "cpu" and not inside_transform() and bool(mask.all())
