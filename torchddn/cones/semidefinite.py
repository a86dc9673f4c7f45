r"""The cone of positive semidefinite matrices, held as vectors: its projection and the derivative of that.

A symmetric matrix is the vector of the columns of its upper triangle with what is off the diagonal times the root of
two, so that the scalar product of vectors is that of matrices.

The projection is ``(W + |W|) / 2`` with ``|W|^2 = W^2``. Hence its derivative in a direction H is ``(H + E) / 2`` with

::

    |W| E + E |W| = W H + H W

This Lyapunov equation asks for no eigenvectors, and is smooth wherever the projection is.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["Lyapunov", "lyapunov", "order_of", "project", "slope", "to_matrix", "to_vector"]

# Of matrices a, (R, k, k), semidefinite, and h, (R, N, k, k): e with a e + e a = h.
Lyapunov = Callable[[Tensor, Tensor], Tensor]

# Pairs of eigenvalues that are zero up to so many roundings of the largest are zero.
_CUTOFF = 10.0


def order_of(length: int) -> int:
    """The order ``k`` of matrices whose vectors have ``length = k (k + 1) / 2`` entries."""
    return round((np.sqrt(8 * length + 1) - 1) / 2)


def to_matrix(w: Tensor) -> Tensor:
    """The symmetric matrices, ``(*B, k, k)``, of vectors ``(*B, k (k + 1) / 2)``."""
    places, _, factors = _layout(order_of(w.shape[-1]))
    return w[..., torch.as_tensor(places, device=w.device)] * torch.as_tensor(factors).to(w)


def to_vector(W: Tensor) -> Tensor:
    """The vectors of symmetric matrices."""
    k = W.shape[-1]
    _, entries, factors = _layout(k)
    scale = torch.as_tensor(1 / factors.reshape(-1)[entries]).to(W)
    return W.flatten(-2)[..., torch.as_tensor(entries, device=W.device)] * scale


@functools.lru_cache(maxsize=64)
def _layout(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each entry of the matrix is in the vector, where each of the vector is in the matrix, and factors."""
    i, j = np.indices((k, k))
    low, high = np.minimum(i, j), np.maximum(i, j)
    columns, rows = np.tril_indices(k)
    return high * (high + 1) // 2 + low, rows * k + columns, np.where(i == j, 1.0, 0.5**0.5)


def project(w: Tensor) -> Tensor:
    """The nearest semidefinite matrices to ``w``, both as vectors."""
    values, vectors = torch.linalg.eigh(to_matrix(w))
    return to_vector((vectors * values.clamp(min=0).unsqueeze(-2)) @ vectors.mT)


def slope(w: Tensor, s: Tensor, solve: Lyapunov) -> Tensor:
    """The derivative of the projection ``s`` of ``w``, ``(R, N, d)``, as a symmetric matrix ``(R, N, d, d)``.

    Differentiable in both if ``solve`` is. Where two eigenvalues are zero it is one half in that direction.
    """
    R, N, d = w.shape
    W, size = to_matrix(w), to_matrix(2 * s - w)
    eye = torch.eye(d, dtype=w.dtype, device=w.device)
    H = to_matrix(eye)
    W = W.unsqueeze(2)
    k = W.shape[-1]
    E = solve(size.reshape(R * N, k, k), (W @ H + H @ W).reshape(R * N, d, k, k))
    return 0.5 * (eye + to_vector(E).reshape(R, N, d, d))


def lyapunov(a: Tensor, h: Tensor) -> Tensor:
    """``e`` with ``a e + e a = h``, zero between eigenvalues of ``a`` which are zero up to rounding."""
    values, vectors = torch.linalg.eigh(a)
    sums = values.unsqueeze(2) + values.unsqueeze(1)
    rounding = _CUTOFF * torch.finfo(a.dtype).eps * max(a.shape[1], 10) * values.abs().amax(1)
    inverse = torch.where(sums <= rounding.reshape(-1, 1, 1), 0, sums.reciprocal())
    vectors = vectors.unsqueeze(1)
    return vectors @ (inverse.unsqueeze(1) * (vectors.mT @ h @ vectors)) @ vectors.mT
