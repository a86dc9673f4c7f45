"""Batched linear algebra for adjoints and solvers: operators, direct and Krylov solvers, certified solves.

Tensors here are plain, without gradients. Vectors are ``(B, s)`` or, as columns, ``(B, s, k)``; matrices are
:class:`Operator` objects, such as :class:`DiagonalMatrix`. What a matrix is *said* to look like is a
:class:`Declaration`, such as :class:`Diagonal`, which holds no numbers. Peak memory of everything in this package is a
few ``(B, s, s)`` for the direct solvers and a few vectors (GMRES: ``restart + 1``) for the Krylov methods.
"""

from torchddn.linear.auto import choose, get, name_of
from torchddn.linear.banded import BandedMatrix, CyclicReduction
from torchddn.linear.blocks import BlockDiagonalMatrix, Blockwise
from torchddn.linear.bordered import Bordered, BorderedMatrix
from torchddn.linear.certificate import Certified, default_rtol, solve_certified, solve_once
from torchddn.linear.declarations import (
    Banded,
    BlockDiagonal,
    Declaration,
    Dense,
    Diagonal,
    LowRank,
    RowDeclaration,
    Sparse,
    Zero,
)
from torchddn.linear.direct import LU, Cholesky, Elementwise, LeastSquares
from torchddn.linear.krylov import CG, GMRES, MINRES, Krylov, KrylovSolution, jacobi
from torchddn.linear.low_rank import LowRankMatrix, Woodbury
from torchddn.linear.operators import DenseMatrix, DiagonalMatrix, MatrixFree, Operator
from torchddn.linear.rows import SparseRows
from torchddn.linear.saddle import Saddle
from torchddn.linear.scaling import equilibrate
from torchddn.linear.schur import SchurComplement, specialist
from torchddn.linear.solver import Solver

__all__ = [
    "CG",
    "GMRES",
    "LU",
    "MINRES",
    "Banded",
    "BandedMatrix",
    "BlockDiagonal",
    "BlockDiagonalMatrix",
    "Blockwise",
    "Bordered",
    "BorderedMatrix",
    "Certified",
    "Cholesky",
    "CyclicReduction",
    "Declaration",
    "Dense",
    "DenseMatrix",
    "Diagonal",
    "DiagonalMatrix",
    "Elementwise",
    "Krylov",
    "KrylovSolution",
    "LeastSquares",
    "LowRank",
    "LowRankMatrix",
    "MatrixFree",
    "Operator",
    "RowDeclaration",
    "Saddle",
    "SchurComplement",
    "Solver",
    "Sparse",
    "SparseRows",
    "Woodbury",
    "Zero",
    "choose",
    "default_rtol",
    "equilibrate",
    "get",
    "jacobi",
    "name_of",
    "solve_certified",
    "solve_once",
    "specialist",
]
