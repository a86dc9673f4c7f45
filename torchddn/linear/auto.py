"""Which linear solver, by word or by looking at the operator."""

from torchddn.errors import InvalidInputError
from torchddn.linear.banded import CyclicReduction
from torchddn.linear.blocks import Blockwise
from torchddn.linear.bordered import Bordered
from torchddn.linear.direct import LU, Cholesky, Elementwise, LeastSquares
from torchddn.linear.krylov import CG, GMRES, MINRES
from torchddn.linear.low_rank import Woodbury
from torchddn.linear.operators import MatrixFree, Operator, check_operator
from torchddn.linear.saddle import Saddle
from torchddn.linear.schur import SchurComplement, specialist
from torchddn.linear.solver import Solver

__all__ = ["SOLVERS", "choose", "get", "name_of"]

SOLVERS = {
    "cholesky": Cholesky,
    "lu": LU,
    "schur": SchurComplement,
    "diagonal": Elementwise,
    "banded": CyclicReduction,
    "blocks": Blockwise,
    "low_rank": Woodbury,
    "bordered": Bordered,
    "least_squares": LeastSquares,
    "cg": CG,
    "minres": MINRES,
    "gmres": GMRES,
}

# A dense matrix costs one product per column, a Krylov method a number of products that depends on the spectrum:
# matrix-free is the faster from about 64 on (torch-notes.md, "What batched Hessians cost").
_MATERIALIZED_SIZE = 64

# Elimination of H costs a third of LU of the whole, where H is positive definite, and little before it fails, where H
# is not. Below this size both cost the calls they make, and LU makes fewer.
_ELIMINATED_SIZE = 32


def get(solver: str | Solver) -> Solver | None:
    """The solver that a word names; None for ``"auto"``, and a solver itself as it is.

    Raises:
        InvalidInputError: Another word, or something else than a word or a solver.

    Example:
        >>> get("lu")
        LU()
    """
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, str):
        if solver == "auto":
            return None
        if solver in SOLVERS:
            return SOLVERS[solver]()
    words = ", ".join(map(repr, ["auto", *SOLVERS]))
    raise InvalidInputError(f"`linear=...` must be one of {words}, or a linear solver object, got {solver!r}.")


def choose(operator: Operator, *, positive_definite: bool | None = None) -> Solver:
    """The solver to try first for ``operator``. Nothing is computed: the certificate corrects a bad choice.

    ======================================  ======================================================
    operator                                solver
    ======================================  ======================================================
    diagonal                                elementwise
    banded                                  cyclic reduction
    block-diagonal                          LU of each block
    diagonal plus low rank                  Woodbury's formula
    bordered                                block elimination and Cholesky
    saddle, H one of these                  Schur complement
    saddle, otherwise                       LU; Schur complement above 32 rows
    dense, symmetric                        Cholesky
    dense, not symmetric                    LU
    matrix-free, up to 64 rows              materialized: as dense
    matrix-free, more rows                  CG, MINRES (symmetric) or GMRES
    ======================================  ======================================================

    Args:
        operator: What is to be solved with.
        positive_definite: What is known of a symmetric matrix; None for not known: Cholesky is tried all the
            same (it fails early and cheaply), CG is not.

    Example:
        >>> import torch
        >>> from torchddn.linear import DiagonalMatrix
        >>> name_of(choose(DiagonalMatrix(torch.ones(1, 3))))
        'diagonal'
    """
    check_operator("choose(operator=...)", operator)
    if positive_definite not in (None, True, False):
        raise InvalidInputError(
            f"`choose(positive_definite=...)` must be True, False or None, got {positive_definite!r}."
        )
    if (special := specialist(operator)) is not None:
        return special
    if isinstance(operator, Saddle) and operator.symmetric and operator.A.shape[1]:
        eliminates = specialist(operator.H) is not None or operator.size > _ELIMINATED_SIZE
        return SchurComplement() if eliminates else LU()
    if isinstance(operator, MatrixFree) and operator.size > _MATERIALIZED_SIZE:
        if not operator.symmetric:
            return GMRES()
        return CG() if positive_definite else MINRES()
    # A symmetric matrix that has multipliers among its variables is indefinite.
    definite = operator.symmetric and positive_definite is not False and operator.primal_size == operator.size
    return Cholesky() if definite else LU()


def name_of(solver: Solver) -> str:
    """The word that :func:`get` knows ``solver`` by, or the name of its class."""
    for word, kind in SOLVERS.items():
        if type(solver) is kind:
            return word
    return type(solver).__name__
