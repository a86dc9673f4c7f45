r"""Symmetric matrices with a diagonal block and a border: what a Schur complement of sparse rows looks like.

::

    S = [ diag(e)  C^T ]      in some order of the unknowns
        [ C        F   ]

Rows that share no variable make a diagonal block of ``A D A^T`` (for transport: all row sums), which is eliminated by a
division; what is left, ``F - C diag(e)^-1 C^T``, has the size of the border.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.linear.direct import Cholesky, CholeskyState
from torchddn.linear.operators import (
    DenseMatrix,
    Operator,
    check_operator,
    check_order,
    check_tensor,
    check_vectors,
    multiply,
)
from torchddn.linear.scaling import DOUBTFUL, rounding_unit
from torchddn.linear.solver import Solver, as_columns

__all__ = ["Bordered", "BorderedMatrix"]


class BorderedMatrix(Operator):
    """Symmetric matrices with a diagonal block, bordered by rows.

    Args:
        e: The diagonal block, ``(B, a)``.
        C: The border, ``(B, b, a)`` with ``b >= 1``.
        F: The corner, symmetric, ``(B, b, b)``.
        order: The unknown at each place, a permutation ``(a + b,)``, the same for all items; the natural one unless
            given.

    Raises:
        InvalidInputError: The shapes do not match, or a dtype is not float32 or float64.

    Example:
        >>> BorderedMatrix(torch.tensor([[2.0, 3.0]]), torch.ones(1, 1, 2), torch.ones(1, 1, 1)).dense()
        tensor([[[2., 0., 1.],
                 [0., 3., 1.],
                 [1., 1., 1.]]])
    """

    symmetric = True

    def __init__(self, e: Tensor, C: Tensor, F: Tensor, order: Tensor | None = None) -> None:
        check_tensor("BorderedMatrix(e=...)", e, "(B, a)", 2)
        check_tensor("BorderedMatrix(C=...)", C, "(B, b, a)", 3)
        check_tensor("BorderedMatrix(F=...)", F, "(B, b, b)", 3)
        B, b, a = C.shape
        if e.shape != (B, a) or F.shape != (B, b, b) or b == 0:
            raise InvalidInputError(
                f"`BorderedMatrix(C=...)` must be shaped (B, b, a), b >= 1, to match e, {tuple(e.shape)}, and F, "
                f"{tuple(F.shape)}, got {tuple(C.shape)}."
            )
        check_order("BorderedMatrix(order=...)", order, a + b)
        self.e, self.C, self.F, self.order = e, C, F, order
        self.batch, self.size, self.dtype, self.device = B, a + b, e.dtype, e.device

    def matvec(self, u: Tensor) -> Tensor:
        check_vectors("BorderedMatrix.matvec(u=...)", self, u)
        first, last = self._split(u)
        e = self.e if u.ndim == 2 else self.e.unsqueeze(-1)
        upper = e * first + multiply(self.C.mT, last)
        return self._join(upper, multiply(self.C, first) + multiply(self.F, last))

    def rmatvec(self, u: Tensor) -> Tensor:
        check_vectors("BorderedMatrix.rmatvec(u=...)", self, u)
        return self.matvec(u)

    def dense(self) -> Tensor:
        top = torch.cat([torch.diag_embed(self.e), self.C.mT], dim=2)
        matrix = torch.cat([top, torch.cat([self.C, self.F], dim=2)], dim=1)
        if self.order is None:
            return matrix
        place = self.order.argsort()
        return matrix[:, place[:, None], place]

    def diagonal(self) -> Tensor:
        return self._join(self.e, self.F.diagonal(dim1=1, dim2=2))

    def transpose(self) -> "BorderedMatrix":
        return self

    def select(self, items: Tensor) -> "BorderedMatrix":
        return BorderedMatrix(self.e[items], self.C[items], self.F[items], self.order)

    def plus_diagonal(self, d: Tensor) -> "BorderedMatrix":
        """The matrices with ``diag(d)`` added, ``(B, a + b)``."""
        first, last = self._split(d)
        return BorderedMatrix(self.e + first, self.C, self.F + torch.diag_embed(last), self.order)

    def _split(self, u: Tensor) -> tuple[Tensor, Tensor]:
        ordered = u if self.order is None else u[:, self.order]
        return ordered[:, : self.e.shape[1]], ordered[:, self.e.shape[1] :]

    def _join(self, first: Tensor, last: Tensor) -> Tensor:
        u = torch.cat([first, last], dim=1)
        return u if self.order is None else u[:, self.order.argsort()]


class BorderedState(NamedTuple):
    """``inverse`` of the diagonal block, the border, and what is left, factored."""

    inverse: Tensor
    C: Tensor
    rest: CholeskyState
    order: Tensor | None
    place: Tensor | None
    ok: Tensor
    rcond: Tensor


@dataclasses.dataclass(frozen=True)
class Bordered(Solver):
    """Block elimination of a positive definite :class:`BorderedMatrix`. Cost O(a b^2 + b^3 / 3) per item.

    Example:
        >>> K = BorderedMatrix(torch.tensor([[2.0, 2.0]]), torch.ones(1, 1, 2), torch.full((1, 1, 1), 2.0))
        >>> solver = Bordered()
        >>> solver.solve(solver.init(K), torch.tensor([[3.0, 3.0, 4.0]]))
        tensor([[1., 1., 1.]])
    """

    def init(self, operator: Operator) -> BorderedState:
        check_operator("Bordered.init(operator=...)", operator)
        if not isinstance(operator, BorderedMatrix):
            raise InvalidInputError(
                f"`Bordered.init(operator=...)` must be BorderedMatrix, got {type(operator).__name__}; use `Cholesky`."
            )
        e, C, order = operator.e, operator.C, operator.order
        inverse = e.reciprocal()
        rest = Cholesky().init(DenseMatrix(operator.F - (C * inverse.unsqueeze(1)) @ C.mT, symmetric=True))
        # What is left may be the rounding of what was there: a pivot counts in the units of its own row.
        left = (rest.factor.diagonal(dim1=1, dim2=2) / rest.scale).square() / operator.F.diagonal(dim1=1, dim2=2)
        rcond = torch.minimum(rest.rcond, left.amin(1))
        ok = rest.ok & (e > 0).all(1) & e.isfinite().all(1)
        return BorderedState(inverse, C, rest, order, None if order is None else order.argsort(), ok, rcond)

    def solve(self, state: BorderedState, rhs: Tensor) -> Tensor:
        r = as_columns("Bordered.solve", _like(state), rhs)
        r = r if state.order is None else r[:, state.order]
        a, inverse = state.inverse.shape[1], state.inverse.unsqueeze(-1)
        first = inverse * r[:, :a]
        last = Cholesky().solve(state.rest, r[:, a:] - state.C @ first)
        u = torch.cat([first - inverse * (state.C.mT @ last), last], dim=1)
        return (u if state.place is None else u[:, state.place]).view_as(rhs)

    def transpose(self, state: BorderedState) -> BorderedState:
        return state

    def sound(self, state: Any) -> Tensor:
        return state.ok & (state.rcond > rounding_unit(_like(state), DOUBTFUL))


def _like(state: BorderedState) -> Tensor:
    """A vector of the operator's shape, ``(B, s)``, that takes no memory."""
    return state.rcond.unsqueeze(1).expand(-1, state.inverse.shape[1] + state.rest.scale.shape[1])
