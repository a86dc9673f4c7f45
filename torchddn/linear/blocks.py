"""Block-diagonal matrices: many small systems in place of a large one."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.linear.direct import LU, LUState
from torchddn.linear.operators import (
    DenseMatrix,
    Operator,
    check_flag,
    check_operator,
    check_order,
    check_tensor,
    check_vectors,
)
from torchddn.linear.solver import Solver, as_columns

__all__ = ["BlockDiagonalMatrix", "Blockwise"]


class BlockDiagonalMatrix(Operator):
    """Matrices that are zero outside of equal square blocks on the diagonal, perhaps after reordering the variables.

    Args:
        blocks: ``(B, n, w, w)`` with ``n w = s``.
        symmetric: Promise that each matrix equals its transpose. Trusted.
        order: The variable at each place, a permutation ``(s,)``, the same for all items; the natural one unless given.

    Raises:
        InvalidInputError: ``blocks`` is not a float32 or float64 tensor ``(B, n, w, w)`` with ``n, w >= 1``, or another
            argument is wrong.

    Example:
        >>> import torch
        >>> BlockDiagonalMatrix(torch.tensor([[[[2.0]], [[3.0]]]])).dense()
        tensor([[[2., 0.],
                 [0., 3.]]])
    """

    def __init__(self, blocks: Tensor, symmetric: bool = False, order: Tensor | None = None) -> None:
        check_tensor("BlockDiagonalMatrix(blocks=...)", blocks, "(B, n, w, w)", 4)
        if blocks.shape[2] != blocks.shape[3] or 0 in blocks.shape[1:]:
            raise InvalidInputError(
                "`BlockDiagonalMatrix(blocks=...)` must have square items, shaped (B, n, w, w) with n, w >= 1, got "
                f"{tuple(blocks.shape)}."
            )
        check_flag("BlockDiagonalMatrix(symmetric=...)", symmetric)
        self.batch, self.size = blocks.shape[0], blocks.shape[1] * blocks.shape[2]
        check_order("BlockDiagonalMatrix(order=...)", order, self.size)
        self.blocks, self.symmetric, self.order = blocks, symmetric, order
        self.dtype, self.device = blocks.dtype, blocks.device

    def matvec(self, u: Tensor) -> Tensor:
        return self._multiply(self.blocks, check_vectors("BlockDiagonalMatrix.matvec(u=...)", self, u))

    def rmatvec(self, u: Tensor) -> Tensor:
        return self._multiply(self.blocks.mT, check_vectors("BlockDiagonalMatrix.rmatvec(u=...)", self, u))

    def dense(self) -> Tensor:
        B, n, w, _ = self.blocks.shape
        matrix = self.blocks.new_zeros(B, n, w, n, w)
        matrix.diagonal(dim1=1, dim2=3).copy_(self.blocks.movedim(1, -1))
        matrix = matrix.view(B, self.size, self.size)
        if self.order is None:
            return matrix
        place = self.order.argsort()
        return matrix[:, place[:, None], place]

    def diagonal(self) -> Tensor:
        diagonal = self.blocks.diagonal(dim1=2, dim2=3).flatten(1)
        return diagonal if self.order is None else diagonal[:, self.order.argsort()]

    def transpose(self) -> "BlockDiagonalMatrix":
        return self if self.symmetric else BlockDiagonalMatrix(self.blocks.mT, order=self.order)

    def select(self, items: Tensor) -> "BlockDiagonalMatrix":
        return BlockDiagonalMatrix(self.blocks[items], self.symmetric, self.order)

    def _multiply(self, blocks: Tensor, u: Tensor) -> Tensor:
        return by_block(lambda columns: blocks @ columns, u, blocks.shape[1], self.order)


class BlockwiseState(NamedTuple):
    """The factorization of every block, ``B n`` of them."""

    blocks: LUState
    num_blocks: int
    order: Tensor | None
    ok: Tensor
    rcond: Tensor


@dataclasses.dataclass(frozen=True)
class Blockwise(Solver):
    """LU of each block of a :class:`BlockDiagonalMatrix`. Cost O(s w^2) per item.

    Example:
        >>> import torch
        >>> solver = Blockwise()
        >>> K = BlockDiagonalMatrix(torch.tensor([[[[0.0, 2.0], [1.0, 0.0]]]]))
        >>> solver.solve(solver.init(K), torch.tensor([[2.0, 3.0]]))
        tensor([[3., 1.]])
    """

    def init(self, operator: Operator) -> BlockwiseState:
        check_operator("Blockwise.init(operator=...)", operator)
        if not isinstance(operator, BlockDiagonalMatrix):
            raise InvalidInputError(
                f"`Blockwise.init(operator=...)` must be BlockDiagonalMatrix, got {type(operator).__name__}; use `LU`."
            )
        solver, num_blocks = LU(), operator.blocks.shape[1]
        blocks = solver.init(DenseMatrix(operator.blocks.flatten(0, 1), operator.symmetric))
        ok, rcond = solver.sound(blocks).view(-1, num_blocks).all(1), blocks.rcond.view(-1, num_blocks).amin(1)
        return BlockwiseState(blocks, num_blocks, operator.order, ok, rcond)

    def solve(self, state: BlockwiseState, rhs: Tensor) -> Tensor:
        w = state.blocks.row.shape[1]
        like = state.rcond.unsqueeze(1).expand(-1, w * state.num_blocks)
        columns = as_columns("Blockwise.solve", like, rhs)

        def solve(columns: Tensor) -> Tensor:
            return LU().solve(state.blocks, columns.flatten(0, 1).contiguous()).unflatten(0, (-1, state.num_blocks))

        return by_block(solve, columns, state.num_blocks, state.order).reshape(rhs.shape)

    def transpose(self, state: BlockwiseState) -> BlockwiseState:
        return state._replace(blocks=LU().transpose(state.blocks))

    def sound(self, state: BlockwiseState) -> Tensor:
        return state.ok


def by_block(function: Callable[[Tensor], Tensor], u: Tensor, num_blocks: int, order: Tensor | None) -> Tensor:
    """``function`` of the columns ``(B, n, w, k)`` that ``u``, ``(B, s)`` or ``(B, s, k)``, is cut into."""
    ordered = u if order is None else u[:, order]
    columns = ordered.unsqueeze(-1) if u.ndim == 2 else ordered
    result = function(columns.unflatten(1, (num_blocks, -1))).flatten(1, 2).view_as(u)
    return result if order is None else result[:, order.argsort()]
