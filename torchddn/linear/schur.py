"""Block elimination of saddle matrices, with whatever solver suits the block that is eliminated."""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.linear.banded import BandedMatrix, CyclicReduction
from torchddn.linear.blocks import BlockDiagonalMatrix, Blockwise
from torchddn.linear.bordered import Bordered, BorderedMatrix
from torchddn.linear.direct import Cholesky, Elementwise, ElementwiseState
from torchddn.linear.low_rank import LowRankMatrix, Woodbury
from torchddn.linear.operators import DenseMatrix, DiagonalMatrix, Operator, check_flag, check_operator
from torchddn.linear.rows import SparseRows, multiply_rows, multiply_rows_transposed
from torchddn.linear.saddle import Saddle
from torchddn.linear.scaling import DOUBTFUL, exceeds_rounding, rounding_unit
from torchddn.linear.solver import Solver, as_columns

__all__ = ["SchurComplement", "specialist"]

# Steps of refinement of a complement that was shifted: each gains the digits between the shift and its least
# eigenvalue, and the certificate's own refinement does what is left.
_INNER_STEPS = 1


class SchurState(NamedTuple):
    """Parts of ``S = A H^-1 A^T``; ``inverse_H_A`` is ``H^-1 A^T``, ``(B, m, p)``, where it was formed.

    ``S`` is the state of ``solver_S`` for ``complement``, perhaps shifted; both are None without rows.
    """

    solver: Solver
    H: Any
    solver_S: Solver
    S: Any
    complement: Operator | None
    A: Tensor | SparseRows
    inverse_H_A: Tensor | None
    num_steps: int
    ok: Tensor
    rcond: Tensor


@dataclasses.dataclass(frozen=True)
class SchurComplement(Solver):
    r"""Block elimination of a :class:`Saddle` whose ``H`` is positive definite, or structured and regular.

    ::

        S = A H^-1 A^T,   mu = S^-1 (A H^-1 a - b),   y = H^-1 (a - A^T mu)      for  K (y, mu) = (a, b)

    Cheaper than LU by far where ``H`` is diagonal, banded, block-diagonal or diagonal plus low rank. An item is not
    ``ok`` where ``H`` cannot be factored or ``S`` has no Cholesky factor. Not for a singular or indefinite ``H``,
    although ``K`` may be regular: use :class:`LU`.

    Args:
        redundant: Whether rows of ``A`` may be linearly dependent. ``S`` is then singular and is solved as
            ``S + eps^(1/2) |S| I``, refined: the multipliers are those of least norm.

    Example:
        >>> K = Saddle(DiagonalMatrix(torch.tensor([[1.0, 1.0]])), torch.tensor([[[1.0, 1.0]]]))
        >>> solver = SchurComplement()
        >>> solver.solve(solver.init(K), torch.tensor([[1.0, 0.0, 0.0]]))
        tensor([[ 0.5000, -0.5000,  0.5000]])

    References:
        Gould, Hartley, Campbell, Deep Declarative Networks: A New Hope, proposition 4.5, is this formula.
    """

    redundant: bool = False

    def __post_init__(self) -> None:
        check_flag("SchurComplement(redundant=...)", self.redundant)

    def init(self, operator: Operator) -> SchurState:
        check_operator("SchurComplement.init(operator=...)", operator)
        if not isinstance(operator, Saddle) or not operator.symmetric:
            raise InvalidInputError(
                "`SchurComplement.init(operator=...)` must be Saddle with a symmetric H, "
                f"got {type(operator).__name__}; use `LU` or `Cholesky`."
            )
        solver = _solver_of(operator.H)
        H = solver.init(operator.H)
        sound = solver.sound(H)
        size_H = operator.H.diagonal().abs().amax(1)
        sound = sound & exceeds_rounding(size_H, operator.size_A(), operator.size)
        rcond = torch.ones_like(size_H) if isinstance(H, ElementwiseState) else H.rcond
        A, inverse_H_A = operator.A, None
        if not A.shape[1]:
            return SchurState(solver, H, Cholesky(), None, None, A, None, 0, sound, rcond)
        if isinstance(A, SparseRows) and isinstance(H, ElementwiseState):
            complement = A.gram(H.inverse)
        else:
            rows = A.dense() if isinstance(A, SparseRows) else A
            inverse_H_A = solver.solve(H, rows.mT.contiguous())
            complement = DenseMatrix(multiply_rows(A, inverse_H_A), symmetric=True)
        if operator.active is not None:
            complement = _plus_diagonal(complement, (~operator.active).to(operator.dtype))
        shifted = _shifted(complement) if self.redundant else complement
        solver_S = _solver_of(complement)
        S = solver_S.init(shifted)
        if not isinstance(S, ElementwiseState):
            rcond = torch.minimum(rcond, S.rcond)
        num_steps = _INNER_STEPS if self.redundant else 0
        ok = sound & S.ok & (shifted.diagonal() > 0).all(1)
        return SchurState(solver, H, solver_S, S, complement, A, inverse_H_A, num_steps, ok, rcond)

    def solve(self, state: SchurState, rhs: Tensor) -> Tensor:
        B, p, m = state.A.shape
        columns = as_columns("SchurComplement.solve", state.rcond.unsqueeze(1).expand(B, m + p), rhs)
        y = state.solver.solve(state.H, columns[:, :m])
        if state.complement is None:
            return y.view_as(rhs)
        r = multiply_rows(state.A, y) - columns[:, m:]
        mu = state.solver_S.solve(state.S, r)
        for _ in range(state.num_steps):
            mu = mu + state.solver_S.solve(state.S, r - state.complement.matvec(mu))
        if state.inverse_H_A is not None:
            y = y - state.inverse_H_A @ mu
        else:
            y = y - state.solver.solve(state.H, multiply_rows_transposed(state.A, mu))
        return torch.cat([y, mu], dim=1).view_as(rhs)

    def transpose(self, state: SchurState) -> SchurState:
        return state

    def sound(self, state: SchurState) -> Tensor:
        like = state.rcond.unsqueeze(1).expand(-1, sum(state.A.shape[1:]))
        return state.ok & (state.rcond > rounding_unit(like, DOUBTFUL))


def specialist(operator: Operator) -> Solver | None:
    """The direct solver that is made for the structure of ``operator``; None for a matrix without any.

    Example:
        >>> specialist(DiagonalMatrix(torch.ones(1, 3)))
        Elementwise(primal_size=None)
    """
    for kind, solver in _SPECIALISTS.items():
        if isinstance(operator, kind):
            return solver
    return None


def _solver_of(operator: Operator) -> Solver:
    return specialist(operator) or Cholesky()


_SPECIALISTS = {
    DiagonalMatrix: Elementwise(),
    BandedMatrix: CyclicReduction(),
    BlockDiagonalMatrix: Blockwise(),
    LowRankMatrix: Woodbury(),
    BorderedMatrix: Bordered(),
}


def _shifted(complement: Operator) -> Operator:
    diagonal = complement.diagonal()
    shift = torch.finfo(diagonal.dtype).eps ** 0.5 * diagonal.mean(1, keepdim=True)
    return _plus_diagonal(complement, shift.expand_as(diagonal))


def _plus_diagonal(matrix: Operator, d: Tensor) -> Operator:
    if isinstance(matrix, BorderedMatrix):
        return matrix.plus_diagonal(d)
    if isinstance(matrix, DiagonalMatrix):
        return DiagonalMatrix(matrix.d + d)
    return DenseMatrix(matrix.dense() + torch.diag_embed(d), symmetric=True)
