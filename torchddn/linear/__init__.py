"""Batched linear algebra for adjoints and solvers: operators, direct and Krylov solvers, certified solves.

Tensors here are plain, without gradients. Vectors are ``(B, s)`` or, as columns, ``(B, s, k)``; matrices are
:class:`Operator` objects. Peak memory of everything in this package is a few ``(B, s, s)`` for the direct solvers
and a few vectors (GMRES: ``restart + 1``) for the Krylov methods.
"""

from torchddn.linear.auto import choose, get, name_of
from torchddn.linear.certificate import Certified, default_rtol, solve_certified
from torchddn.linear.direct import LU, Cholesky, Elementwise, LeastSquares, SchurComplement, equilibrate
from torchddn.linear.krylov import CG, GMRES, MINRES, Krylov, KrylovSolution, jacobi
from torchddn.linear.operators import Dense, Diagonal, MatrixFree, Operator, Saddle
from torchddn.linear.solver import Solver

__all__ = [
    "CG",
    "GMRES",
    "LU",
    "MINRES",
    "Certified",
    "Cholesky",
    "Dense",
    "Diagonal",
    "Elementwise",
    "Krylov",
    "KrylovSolution",
    "LeastSquares",
    "MatrixFree",
    "Operator",
    "Saddle",
    "SchurComplement",
    "Solver",
    "choose",
    "default_rtol",
    "equilibrate",
    "get",
    "jacobi",
    "name_of",
    "solve_certified",
]
