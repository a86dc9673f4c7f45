r"""A diagonal plus a matrix of low rank, and Woodbury's formula."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.linear.direct import LU, Elementwise, ElementwiseState, LUState
from torchddn.linear.operators import DenseMatrix, DiagonalMatrix, Operator, check_operator, check_tensor, check_vectors
from torchddn.linear.solver import Solver, as_columns

__all__ = ["LowRankMatrix", "Woodbury"]


class LowRankMatrix(Operator):
    """Symmetric matrices ``diag(d) + U C U^T``.

    Args:
        d: Diagonals, ``(B, s)``.
        U: ``(B, s, r)``.
        C: Symmetric, ``(B, r, r)``.

    Raises:
        InvalidInputError: The shapes do not match, or a dtype is not float32 or float64.

    Example:
        >>> LowRankMatrix(torch.ones(1, 2), torch.ones(1, 2, 1), torch.full((1, 1, 1), 3.0)).dense()
        tensor([[[4., 3.],
                 [3., 4.]]])
    """

    symmetric = True

    def __init__(self, d: Tensor, U: Tensor, C: Tensor) -> None:
        check_tensor("LowRankMatrix(d=...)", d, "(B, s)", 2)
        check_tensor("LowRankMatrix(U=...)", U, "(B, s, r)", 3)
        check_tensor("LowRankMatrix(C=...)", C, "(B, r, r)", 3)
        B, s, r = U.shape
        if d.shape != (B, s) or C.shape != (B, r, r) or s == 0:
            raise InvalidInputError(
                f"`LowRankMatrix(U=...)` must be shaped (B, s, r) to match d, {tuple(d.shape)}, and C, "
                f"{tuple(C.shape)}, got {tuple(U.shape)}."
            )
        self.d, self.U, self.C = d, U, C
        self.batch, self.size, self.dtype, self.device = B, s, d.dtype, d.device

    def matvec(self, u: Tensor) -> Tensor:
        return self._multiply(check_vectors("LowRankMatrix.matvec(u=...)", self, u))

    def rmatvec(self, u: Tensor) -> Tensor:
        return self._multiply(check_vectors("LowRankMatrix.rmatvec(u=...)", self, u))

    def dense(self) -> Tensor:
        return torch.diag_embed(self.d) + self.U @ self.C @ self.U.mT

    def diagonal(self) -> Tensor:
        return self.d + (self.U @ self.C * self.U).sum(2)

    def transpose(self) -> "LowRankMatrix":
        return self

    def select(self, items: Tensor) -> "LowRankMatrix":
        return LowRankMatrix(self.d[items], self.U[items], self.C[items])

    def _multiply(self, u: Tensor) -> Tensor:
        columns = u.unsqueeze(-1) if u.ndim == 2 else u
        product = self.d.unsqueeze(-1) * columns + self.U @ (self.C @ (self.U.mT @ columns))
        return product.view_as(u)


class WoodburyState(NamedTuple):
    """Parts of the formula; ``core`` is ``I + C U^T D^-1 U``, factored."""

    D: ElementwiseState
    U: Tensor
    C: Tensor
    core: LUState
    ok: Tensor
    rcond: Tensor


@dataclasses.dataclass(frozen=True)
class Woodbury(Solver):
    r"""The inverse of a :class:`LowRankMatrix`; its diagonal must have an inverse, ``C`` need not.

    ::

        (D + U C U^T)^-1 = D^-1 - D^-1 U (I + C U^T D^-1 U)^-1 C U^T D^-1

    Cost O(s r^2) per item. An item with a zero in ``D`` is not sound.

    Example:
        >>> K = LowRankMatrix(torch.ones(1, 2), torch.ones(1, 2, 1), torch.ones(1, 1, 1))
        >>> solver = Woodbury()
        >>> solver.solve(solver.init(K), torch.tensor([[3.0, 3.0]]))
        tensor([[1., 1.]])

    References:
        Woodbury, Inverting modified matrices, 1950.
    """

    def init(self, operator: Operator) -> WoodburyState:
        check_operator("Woodbury.init(operator=...)", operator)
        if not isinstance(operator, LowRankMatrix):
            raise InvalidInputError(
                f"`Woodbury.init(operator=...)` must be LowRankMatrix, got {type(operator).__name__}; use `LU`."
            )
        D, U, C = Elementwise().init(DiagonalMatrix(operator.d)), operator.U, operator.C
        core = C @ (U.mT @ (D.inverse.unsqueeze(-1) * U))
        core.diagonal(dim1=1, dim2=2).add_(1)
        factored = LU().init(DenseMatrix(core))
        ok = Elementwise().sound(D) & LU().sound(factored)
        return WoodburyState(D, U, C, factored, ok, factored.rcond)

    def solve(self, state: WoodburyState, rhs: Tensor) -> Tensor:
        u = Elementwise().solve(state.D, as_columns("Woodbury.solve", state.D.inverse, rhs))
        inner = LU().solve(state.core, state.C @ (state.U.mT @ u))
        return (u - state.D.inverse.unsqueeze(-1) * (state.U @ inner)).view_as(rhs)

    def transpose(self, state: WoodburyState) -> WoodburyState:
        return state

    def sound(self, state: WoodburyState) -> Tensor:
        return state.ok
