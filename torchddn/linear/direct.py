r"""Direct solvers: factor a batch of matrices once, then solve for many right-hand sides.

Solves, for each item::

    K u = v

Every factorization is one of the *equilibrated* matrix ``R K C``: the diagonal scalings ``R`` and ``C`` make the
largest entry of each row and column about one, and are powers of two, so that scaling adds no rounding. Hence
pivots, condition and rank do not depend on the units of variables and constraints, and a badly scaled regular
matrix is not taken for a singular one.

Singular or not is read from an estimate of ``1 / |(R K C)^-1|``: two steps of inverse iteration, ``z -> K^-1 z ->
K^-T``, from a fixed vector. The first step of a matrix that is singular to working precision returns its null
vector, the second its full amplification, so the estimate misses only what the fixed vector is orthogonal to.

Memory: each state holds one or two tensors ``(B, s, s)``; making it needs two or three more for a moment.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.linear.operators import (
    DiagonalMatrix,
    Operator,
    check_count,
    check_number,
    check_operator,
)
from torchddn.linear.scaling import CUTOFF, DOUBTFUL, equilibrate, power_of_two, rounding_unit, scaled_matrix
from torchddn.linear.solver import Solver, as_columns

__all__ = ["LU", "Cholesky", "Elementwise", "LeastSquares"]

# Batched LU on CPU hangs for s > 150 and B >= 4 in a process that called torch.set_num_threads(k), k >= 2 (torch
# 2.13, oneMKL DLASWP; torch-notes.md, trap 4). Item by item costs nothing at this size, so larger ones never go
# batched.
_BATCHED_LU_SIZE = 128


class CholeskyState(NamedTuple):
    """``C K C = factor factor^T``, ``C`` the diagonal ``scale``."""

    factor: Tensor
    scale: Tensor
    ok: Tensor
    rcond: Tensor


class LUState(NamedTuple):
    """``R K C = P L U``, packed; ``row`` and ``col`` are the diagonals of ``R`` and ``C``."""

    factor: Tensor
    pivots: Tensor
    row: Tensor
    col: Tensor
    ok: Tensor
    rcond: Tensor
    transposed: bool = False


class ElementwiseState(NamedTuple):
    """Reciprocals of the diagonal, zero where it is zero."""

    inverse: Tensor
    ok: Tensor
    rank: Tensor
    degenerate: Tensor


class LeastSquaresState(NamedTuple):
    """``R K C = left diag(1 / inverse) right^T`` on the range; four bases for the projections off the null spaces.

    ``null dual^T`` is the projector on a null space that :func:`_split` describes.
    """

    left: Tensor
    inverse: Tensor
    right: Tensor
    row: Tensor
    col: Tensor
    null: Tensor
    dual: Tensor
    left_null: Tensor
    left_dual: Tensor
    ok: Tensor
    rank: Tensor
    degenerate: Tensor


@dataclasses.dataclass(frozen=True)
class Cholesky(Solver):
    """``K = L L^T`` for symmetric positive definite matrices; only their lower triangles are read.

    An item that is not positive definite is not ``ok``. Cost O(s^3 / 3) per item.

    Example:
        >>> from torchddn.linear import DenseMatrix
        >>> solver = Cholesky()
        >>> state = solver.init(DenseMatrix(torch.tensor([[[4.0, 2.0], [2.0, 2.0]]]), symmetric=True))
        >>> solver.solve(state, torch.tensor([[2.0, 2.0]]))
        tensor([[0., 1.]])
    """

    def init(self, operator: Operator) -> CholeskyState:
        check_operator("Cholesky.init(operator=...)", operator)
        matrix = operator.dense()
        scale = power_of_two(matrix.diagonal(dim1=1, dim2=2).rsqrt())
        scaled = scaled_matrix(matrix, scale, scale)
        factor, info = torch.linalg.cholesky_ex(scaled)

        def solve(z: Tensor) -> Tensor:
            return torch.cholesky_solve(z, factor)

        return CholeskyState(factor, scale, (info == 0) & _finite(scaled), _estimate_rcond(solve, solve, scale))

    def solve(self, state: CholeskyState, rhs: Tensor) -> Tensor:
        columns, scale = as_columns("Cholesky.solve", state.scale, rhs), state.scale.unsqueeze(-1)
        u = scale * torch.cholesky_solve(scale * columns, state.factor)
        return u.view_as(rhs)

    def transpose(self, state: CholeskyState) -> CholeskyState:
        return state

    def sound(self, state: CholeskyState) -> Tensor:
        return state.ok & (state.rcond > rounding_unit(state.scale, DOUBTFUL))

    def error(self, state: CholeskyState, u: Tensor, r: Tensor) -> Tensor:
        return _error(state.scale, state.scale, state.rcond, u, r)


@dataclasses.dataclass(frozen=True)
class LU(Solver):
    """``K = P L U`` with partial pivoting, for any regular matrices. Cost O(2 s^3 / 3) per item.

    Example:
        >>> from torchddn.linear import DenseMatrix
        >>> solver = LU()
        >>> state = solver.init(DenseMatrix(torch.tensor([[[0.0, 2.0], [1.0, 1.0]]])))
        >>> solver.solve(state, torch.tensor([[2.0, 3.0]]))
        tensor([[2., 1.]])
        >>> solver.solve(solver.transpose(state), torch.tensor([[2.0, 3.0]]))
        tensor([[0.5000, 2.0000]])
    """

    def init(self, operator: Operator) -> LUState:
        check_operator("LU.init(operator=...)", operator)
        matrix = operator.dense()
        row, col = equilibrate(matrix, operator.symmetric, operator.primal_size)
        scaled = scaled_matrix(matrix, row, col)
        factor, pivots, info = _lu_factor(scaled)
        rcond = _estimate_rcond(
            lambda z: _lu_solve(factor, pivots, z), lambda z: _lu_solve(factor, pivots, z, transposed=True), row
        )
        return LUState(factor, pivots, row, col, (info == 0) & _finite(scaled), rcond)

    def solve(self, state: LUState, rhs: Tensor) -> Tensor:
        row, col = (state.col, state.row) if state.transposed else (state.row, state.col)
        scaled = row.unsqueeze(-1) * as_columns("LU.solve", row, rhs)
        u = col.unsqueeze(-1) * _lu_solve(state.factor, state.pivots, scaled, state.transposed)
        return u.view_as(rhs)

    def transpose(self, state: LUState) -> LUState:
        return state._replace(transposed=not state.transposed)

    def sound(self, state: LUState) -> Tensor:
        return state.ok & (state.rcond > rounding_unit(state.row, DOUBTFUL))

    def error(self, state: LUState, u: Tensor, r: Tensor) -> Tensor:
        row, col = (state.col, state.row) if state.transposed else (state.row, state.col)
        return _error(row, col, state.rcond, u, r)


@dataclasses.dataclass(frozen=True)
class Elementwise(Solver):
    """Division by the diagonal, and zero where the diagonal is zero: the pseudo-inverse.

    A diagonal matrix, equilibrated, has entries of modulus one or exactly zero, so only an exact zero is
    singular. Cost O(s) per item.

    Args:
        primal_size: Length of the block ``y``; the operator's unless given.

    Example:
        >>> solver = Elementwise()
        >>> solver.solve(solver.init(DiagonalMatrix(torch.tensor([[4.0, 0.0]]))), torch.ones(1, 2))
        tensor([[0.2500, 0.0000]])
    """

    primal_size: int | None = None

    def __post_init__(self) -> None:
        if self.primal_size is not None:
            check_count("Elementwise(primal_size=...)", self.primal_size)

    def init(self, operator: Operator) -> ElementwiseState:
        check_operator("Elementwise.init(operator=...)", operator)
        if not isinstance(operator, DiagonalMatrix):
            raise InvalidInputError(
                f"`Elementwise.init(operator=...)` must be DiagonalMatrix, got {type(operator).__name__}; use `LU`."
            )
        zero = operator.d == 0
        inverse = torch.where(zero, 0, operator.d.reciprocal())
        rank, degenerate = (~zero).sum(1), zero[:, : self.primal_size].any(1)
        return ElementwiseState(inverse, operator.d.isfinite().all(1), rank, degenerate)

    def solve(self, state: ElementwiseState, rhs: Tensor) -> Tensor:
        return (state.inverse.unsqueeze(-1) * as_columns("Elementwise.solve", state.inverse, rhs)).view_as(rhs)

    def transpose(self, state: ElementwiseState) -> ElementwiseState:
        return state

    def sound(self, state: ElementwiseState) -> Tensor:
        return state.ok & (state.rank == state.inverse.shape[1])

    def project(self, state: ElementwiseState, rhs: Tensor) -> Tensor:
        """``rhs`` without the part that no ``u`` reaches."""
        return torch.where(_matching(state.inverse, rhs) == 0, 0, rhs)


@dataclasses.dataclass(frozen=True)
class LeastSquares(Solver):
    r"""Minimum-norm least squares, ``u = K^+ v``, for matrices of any rank.

    By an eigendecomposition of the equilibrated matrix where it is symmetric, by its singular values otherwise.
    The equilibrated matrix decides the rank; the norms are those of the original variables. With projectors ``P``
    on the null space and ``Q`` on that of the transpose, and any solution ``K^-`` on the range,

    ::

        K^+ v = (I - P) K^- (I - Q^T) v

    Without multipliers both projectors are orthogonal and this is the pseudo-inverse of Moore and Penrose. In a
    saddle, ``y`` has units and multipliers have others, so a common norm would make ``y`` depend on the scale of
    the constraints. There the norm of ``y`` counts first and that of the multipliers second, in ``u`` and, dually,
    in the residual: a solvable constraint holds exactly. With ``Z`` a basis of ``A y = 0`` the decision is
    ``y = Z (Z^T H Z)^+ Z^T v``.

    ``rank`` is reported per item, and ``degenerate``: whether a null vector has a part in ``y``. Cost O(10 s^3)
    (symmetric) or O(20 s^3) per item.

    Args:
        rcond: Eigenvalues (singular values) of the equilibrated matrix up to this fraction of the largest count
            as zero; ``10 max(s, 10) eps`` unless given.
        primal_size: Length of the block ``y``; the operator's unless given.

    Raises:
        InvalidInputError: ``rcond`` is not a number in [0, 1), or ``primal_size`` not in the range.

    Example:
        >>> from torchddn.linear import DenseMatrix
        >>> solver = LeastSquares()
        >>> state = solver.init(DenseMatrix(torch.ones(1, 2, 2), symmetric=True))
        >>> solver.solve(state, torch.tensor([[2.0, 2.0]])).round(decimals=4)
        tensor([[1., 1.]])
        >>> state.rank
        tensor([1])
    """

    rcond: float | None = None
    primal_size: int | None = None

    def __post_init__(self) -> None:
        if self.rcond is not None:
            check_number("LeastSquares(rcond=...)", self.rcond, below=1.0)
        if self.primal_size is not None:
            check_count("LeastSquares(primal_size=...)", self.primal_size)

    def init(self, operator: Operator) -> LeastSquaresState:
        check_operator("LeastSquares.init(operator=...)", operator)
        m = operator.primal_size if self.primal_size is None else self.primal_size
        check_count("LeastSquares(primal_size=...)", m, most=operator.size)
        matrix = operator.dense()
        # eigh and svd raise for NaN on CPU: give those items zeros, and back the NaN in `inverse`.
        row, col = equilibrate(matrix, operator.symmetric, m)
        scaled = scaled_matrix(matrix, row, col)
        finite = _finite(scaled)
        scaled = torch.where(finite[:, None, None], scaled, 0)
        if operator.symmetric:
            values, left = torch.linalg.eigh(scaled)
            order = values.abs().argsort(dim=1, descending=True)
            values = values.gather(1, order)
            left = right = left.gather(2, order.unsqueeze(1).expand_as(left))
        else:
            left, values, right_transposed = torch.linalg.svd(scaled)
            right = right_transposed.mT
        cutoff = rounding_unit(row, CUTOFF) if self.rcond is None else self.rcond
        size = values.abs()
        null = size <= cutoff * size[:, :1]
        inverse = torch.where(null, 0, values.reciprocal())
        inverse = torch.where(finite.unsqueeze(1), inverse, torch.nan)
        # The one read of values: how many columns of the vectors are null in any item.
        most = int(null.sum(1).max()) if null.shape[0] else 0
        first = operator.size - most
        null = null[:, first:]
        null_basis, dual, degenerate = _split(right[:, :, first:], null, col, m)
        left_null, left_dual = null_basis, dual
        if not operator.symmetric:
            left_null, left_dual, _ = _split(left[:, :, first:], null, row, m)
        rank = operator.size - null.sum(1)
        return LeastSquaresState(
            left, inverse, right, row, col, null_basis, dual, left_null, left_dual, finite, rank, degenerate
        )

    def solve(self, state: LeastSquaresState, rhs: Tensor) -> Tensor:
        columns = self.project(state, as_columns("LeastSquares.solve", state.row, rhs))
        coefficients = state.inverse.unsqueeze(-1) * (state.left.mT @ (state.row.unsqueeze(-1) * columns))
        u = state.col.unsqueeze(-1) * (state.right @ coefficients)
        u = u - state.null @ (state.dual.mT @ u)
        return u.view_as(rhs)

    def transpose(self, state: LeastSquaresState) -> LeastSquaresState:
        return state._replace(
            left=state.right,
            right=state.left,
            row=state.col,
            col=state.row,
            null=state.left_null,
            dual=state.left_dual,
            left_null=state.null,
            left_dual=state.dual,
        )

    def sound(self, state: LeastSquaresState) -> Tensor:
        return state.ok

    def error(self, state: LeastSquaresState, u: Tensor, r: Tensor) -> Tensor:
        return _error(state.row, state.col, state.inverse.abs().amax(1).reciprocal(), u, r)

    def project(self, state: LeastSquaresState, rhs: Tensor) -> Tensor:
        """``rhs`` without the part that no ``u`` reaches: ``(I - Q^T) rhs``."""
        columns = as_columns("LeastSquares.project", state.row, rhs)
        return (columns - state.left_dual @ (state.left_null.mT @ columns)).view_as(rhs)


def _split(vectors: Tensor, null: Tensor, scale: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""The projector ``P = N D^T`` on a null space that minimizes the norm of ``y`` first, then of the multipliers.

    P is the limit of the projectors orthogonal in diag(I_y, delta I_mu) as delta falls to zero. Let the columns of
    N be split into those with a part in y, normalized so that their y-parts are orthonormal, N_1 = (Y, V), and
    those without, N_2 = (0, W), orthonormal, with V made orthogonal to W. Then

        N^T diag(I, delta I) N -> blockdiag(Y^T Y, delta W^T W),   so   P = N_1 (Y, 0)^T + N_2 (0, W)^T.

    ``vectors`` are null vectors of the equilibrated matrix, ``(B, s, k)``, of which the last count where the mask
    ``null`` ``(B, k)`` says so; ``scale`` turns them into those of the original. Returns N, D and whether N_1 has a
    column at all.
    """
    k = vectors.shape[2]
    nothing = null.new_zeros(null.shape[0])
    if k == 0:
        empty = vectors.new_zeros(*vectors.shape[:2], 0)
        return empty, empty, nothing
    basis = vectors * null.unsqueeze(1)
    if m == vectors.shape[1]:
        basis, _ = _orthonormal(scale.unsqueeze(-1) * basis, null)
        return basis, basis, null.any(1)
    # Singular vectors of the y-part sort the null space. The appended rows hold a large number for every column
    # that does not count, so that those come first and are not mixed with the others.
    padding = torch.diag_embed(torch.where(null, 0.0, 2.0).to(basis.dtype))
    _, lengths, mix = torch.linalg.svd(torch.cat([basis[:, :m], padding], dim=1), full_matrices=False)
    basis = basis @ mix.mT
    # Entries of the equilibrated matrix are about one, so a true null vector has a y-part of about the size of the
    # rest over |A^+|; rounding leaves about eps over the spectral gap. The geometric middle tells them apart.
    in_y = (lengths < 1.5) & (lengths > torch.finfo(basis.dtype).eps ** 0.5)
    in_mu = (lengths < 1.5) & ~in_y
    basis = scale.unsqueeze(-1) * basis
    W, _ = _orthonormal(basis[:, m:] * in_mu.unsqueeze(1), in_mu)
    Y, V = _orthonormal(basis[:, :m] * in_y.unsqueeze(1), in_y, basis[:, m:])
    V = V - W @ (W.mT @ V)
    zeros_y, zeros_mu = torch.zeros_like(Y), torch.zeros_like(V)
    N = torch.cat([torch.cat([Y, zeros_y], dim=2), torch.cat([V, W], dim=2)], dim=1)
    D = torch.cat([torch.cat([Y, zeros_y], dim=2), torch.cat([zeros_mu, W], dim=2)], dim=1)
    return N, D, in_y.any(1)


def _orthonormal(columns: Tensor, valid: Tensor, companion: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of the ``valid`` columns, zeros elsewhere, and ``companion`` under the same combination."""
    order = valid.to(torch.int8).argsort(dim=1, descending=True, stable=True)  # QR is right up to its first bad column
    valid = valid.gather(1, order).unsqueeze(1)
    columns = columns.gather(2, order.unsqueeze(1).expand_as(columns))
    lengths = torch.where(valid, torch.linalg.vector_norm(columns, dim=1, keepdim=True), 1)
    basis, R = torch.linalg.qr(columns / lengths)
    if basis.shape[2] < columns.shape[2]:  # more columns than rows: at most as many as rows are valid
        missing = columns.shape[2] - basis.shape[2]
        basis = torch.nn.functional.pad(basis, (0, missing))
        R = torch.nn.functional.pad(R, (0, 0, 0, missing))
    basis = basis * valid
    if companion is None:
        return basis, basis
    companion = companion.gather(2, order.unsqueeze(1).expand_as(companion)) / lengths * valid
    R = torch.where(valid & valid.mT, R, torch.eye(R.shape[-1], dtype=R.dtype, device=R.device))
    return basis, torch.linalg.solve_triangular(R, companion, upper=True, left=False)


def _lu_factor(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not _loops(matrix):
        return torch.linalg.lu_factor_ex(matrix)
    parts = [torch.linalg.lu_factor_ex(item) for item in matrix]
    factors, pivots, infos = zip(*parts, strict=True)
    return torch.stack(factors), torch.stack(pivots), torch.stack(infos)


def _lu_solve(factor: Tensor, pivots: Tensor, rhs: Tensor, transposed: bool = False) -> Tensor:
    if not _loops(factor):
        return torch.linalg.lu_solve(factor, pivots, rhs, adjoint=transposed)
    parts = zip(factor, pivots, rhs, strict=True)
    return torch.stack([torch.linalg.lu_solve(*part, adjoint=transposed) for part in parts])


def _loops(matrix: Tensor) -> bool:
    return matrix.device.type == "cpu" and matrix.shape[1] > _BATCHED_LU_SIZE and matrix.shape[0] > 1


def _estimate_rcond(
    solve: Callable[[Tensor], Tensor], solve_transposed: Callable[[Tensor], Tensor], like: Tensor
) -> Tensor:
    """``1 / |K^-1|`` by two steps of inverse iteration, ``(B,)``; zero or NaN where the factorization is broken."""
    # sin(j^2) is as good as random: no structured null vector is orthogonal to it.
    z = torch.arange(1, like.shape[1] + 1, dtype=like.dtype, device=like.device).square().sin()
    w = solve((z / torch.linalg.vector_norm(z)).expand_as(like).unsqueeze(-1).contiguous())
    w = w / torch.linalg.vector_norm(w, dim=1, keepdim=True)
    return torch.linalg.vector_norm(solve_transposed(w), dim=(1, 2)).reciprocal()


def _error(row: Tensor, col: Tensor, rcond: Tensor, u: Tensor, r: Tensor) -> Tensor:
    size_r = torch.linalg.vector_norm(row.unsqueeze(-1) * r, dim=1)
    size_u = torch.linalg.vector_norm(u / col.unsqueeze(-1), dim=1)
    return torch.where(size_r == 0, 0, size_r / (rcond.unsqueeze(-1) * size_u)).amax(1)


def _finite(matrix: Tensor) -> Tensor:
    # LAPACK promises nothing about such items, not even an info. One pass, where isfinite().all() takes three; the
    # entries are too near one to overflow in a sum.
    return matrix.sum((1, 2)).isfinite()


def _matching(vector: Tensor, rhs: Tensor) -> Tensor:
    return vector if rhs.ndim == 2 else vector.unsqueeze(-1)
