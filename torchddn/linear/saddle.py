"""Saddle matrices: a square block of decisions, bordered by the rows of constraints."""

from collections.abc import Callable

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.linear.operators import DenseMatrix, Operator, check_operator, check_tensor, check_vectors, describe
from torchddn.linear.rows import SparseRows, multiply_rows, multiply_rows_transposed

__all__ = ["Saddle"]


class Saddle(Operator):
    r"""The matrices of equality-constrained quadratic problems.

    ::

        K = [ H  A^T ]      with rows of A that do not count (``active`` false) replaced by  -mu_i = v_i
        [ A   0  ]

    so that batch mates with different active sets share one shape, and no dropped row makes K singular.

    Args:
        H: An :class:`Operator` or symmetric matrices, ``(B, m, m)``.
        A: Constraint rows, ``(B, p, m)``, in full or as :class:`SparseRows`; ``p = 0`` is allowed.
        active: Which rows count, boolean ``(B, p)``; all unless given. The product keeps no other row of ``A``.

    Raises:
        InvalidInputError: Shapes, dtypes or devices do not match.

    Example:
        >>> K = Saddle(torch.eye(2)[None], torch.tensor([[[1.0, 1.0]]]))
        >>> K.dense()
        tensor([[[1., 0., 1.],
                 [0., 1., 1.],
                 [1., 1., 0.]]])
        >>> K.primal_size
        2
    """

    def __init__(self, H: Operator | Tensor, A: Tensor | SparseRows, active: Tensor | None = None) -> None:
        if isinstance(H, Tensor):
            check_tensor("Saddle(H=...)", H, "(B, m, m)", 3)
            H = DenseMatrix(H, symmetric=True)
        check_operator("Saddle(H=...)", H)
        if not isinstance(A, SparseRows):
            check_tensor("Saddle(A=...)", A, "(B, p, m)", 3)
        if A.shape[0] != H.batch or A.shape[2] != H.size:
            raise InvalidInputError(
                f"`Saddle(A=...)` must be shaped (B, p, m) = ({H.batch}, p, {H.size}) to match H, got {tuple(A.shape)}."
            )
        if A.dtype != H.dtype or A.device != H.device:
            raise InvalidInputError(
                f"`Saddle(A=...)` must have the dtype and device of H, {H.dtype} on {H.device}, "
                f"got {A.dtype} on {A.device}."
            )
        if active is not None:
            if not isinstance(active, Tensor) or active.dtype != torch.bool or active.shape != A.shape[:2]:
                raise InvalidInputError(
                    f"`Saddle(active=...)` must be a boolean tensor (B, p) = {tuple(A.shape[:2])}, "
                    f"got {describe(active)}."
                )
            A = A.masked(active, None) if isinstance(A, SparseRows) else A.masked_fill(~active.unsqueeze(-1), 0)
        self.H, self.A, self.active = H, A, active
        self.batch, self.size = H.batch, H.size + A.shape[1]
        self.dtype, self.device, self.symmetric = H.dtype, H.device, H.symmetric

    @property
    def primal_size(self) -> int:
        return self.H.size

    def matvec(self, u: Tensor) -> Tensor:
        check_vectors("Saddle.matvec(u=...)", self, u)
        return self._product(self.H.matvec, u)

    def rmatvec(self, u: Tensor) -> Tensor:
        check_vectors("Saddle.rmatvec(u=...)", self, u)
        return self._product(self.H.rmatvec, u)

    def dense(self) -> Tensor:
        m = self.primal_size
        matrix = torch.zeros(self.batch, self.size, self.size, dtype=self.dtype, device=self.device)
        matrix[:, :m, :m] = self.H.dense()
        rows = self.A.dense() if isinstance(self.A, SparseRows) else self.A
        matrix[:, m:, :m] = rows
        matrix[:, :m, m:] = rows.mT
        if self.active is not None:
            matrix.diagonal(dim1=1, dim2=2)[:, m:] = -(~self.active).to(self.dtype)
        return matrix

    def transpose(self) -> "Saddle":
        return self if self.symmetric else Saddle(self.H.transpose(), self.A, self.active)

    def select(self, items: Tensor) -> "Saddle":
        active = None if self.active is None else self.active[items]
        A = self.A.select(items) if isinstance(self.A, SparseRows) else self.A[items]
        return Saddle(self.H.select(items), A, active)

    def size_A(self) -> Tensor:
        """The largest modulus of an entry of ``A``, ``(B,)``; zero without rows."""
        if isinstance(self.A, SparseRows):
            return self.A.size()
        return self.A.abs().amax((1, 2)) if self.A.shape[1] else self.A.new_zeros(self.batch)

    def _product(self, multiply_H: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
        m = self.primal_size
        y, mu = u[:, :m], u[:, m:]
        upper, lower = multiply_H(y) + multiply_rows_transposed(self.A, mu), multiply_rows(self.A, y)
        if self.active is not None:
            dropped = ~self.active if u.ndim == 2 else ~self.active.unsqueeze(-1)
            lower = lower - mu * dropped
        return torch.cat([upper, lower], dim=1)
