"""The system of one backward pass as it is believed to be, and what the solve teaches."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.linear import (
    LU,
    Certified,
    Declaration,
    Dense,
    Krylov,
    LeastSquares,
    MatrixFree,
    Operator,
    RowDeclaration,
    Saddle,
    SchurComplement,
    Solver,
    name_of,
)
from torchddn.linear import get as get_linear
from torchddn.problem import BatchedProblem
from torchddn.structure.memory import Belief, known, recall
from torchddn.structure.reading import fits, is_learning, read, suitable
from torchddn.structure.search import is_formed, look
from torchddn.structure.system import Product, System, generic

__all__ = ["MATRIX_FREE", "Believed", "agree", "check_declared", "operator", "settled"]

# Up to so many unknowns a dense solve costs no more than the calls that a structured one makes: nothing is looked for.
SMALL = 32

# What is settled where products alone are used.
MATRIX_FREE = "matrix-free"


class Believed:
    """The system of one backward pass as it is believed to be, and the one that is true.

    Attributes:
        operator: K as believed.
        truth: K itself, products only, for the certificate.
        linear: The solver to try first.
        name: The structure in words; empty for none.
    """

    def __init__(self, system: System, operator: Operator, linear: Solver, belief: Belief) -> None:
        self.operator, self.truth, self.linear, self.name = operator, system.witness, linear, belief.name
        self._system, self._belief = system, belief

    def reread(self) -> Operator | None:
        """K again, without what is remembered of it, if that was wrong; for a solve that is not certified."""
        belief = self._belief
        if belief.H is None or not any(constant.is_known for constant in belief.constants):
            return None
        fresh = read(self._system, belief, remembers=False)
        if agree(fresh.matvec(self._z), self.operator.matvec(self._z), 0.75).all():
            return None
        for constant in belief.constants:
            constant.forget()
        self.operator = fresh
        return fresh

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the structure."""
        return self._belief.notes

    def review(self, certified: Certified) -> tuple[str, ...]:
        """Learns from the solve: what to say of it, a line each; usually nothing.

        A structure that the true product contradicts is abandoned. One that is right and could not be solved with
        (no Cholesky factor, too many steps) gives way to a safer method.
        """
        belief, expected = self._belief, name_of(self.linear)
        if belief.is_dense:
            return belief.notes
        fallen = [i for i, method in enumerate(certified.method) if method not in (expected, "none")]
        if not fallen:
            return belief.notes
        if self._is_abandoned(fallen):
            return belief.notes
        if 2 * len(fallen) > len(certified.method):
            self._give_way(bool(certified.degenerate.any()))
        return belief.notes

    def examine(self) -> bool:
        """Whether what was declared is abandoned at its first pass, because the true product contradicts it."""
        belief = self._belief
        if not belief.declared or belief.is_examined or belief.is_dense:
            return False
        belief.is_examined = True
        return self._is_abandoned(list(range(self.operator.batch)))

    def _is_abandoned(self, items: list[int]) -> bool:
        """Whether some of the items have another K than is believed, so that it is abandoned."""
        belief = self._belief
        if belief.H is None or isinstance(self.operator, MatrixFree):
            return False
        true, believed = (K.matvec(self._z) for K in (self._system.truth, self.operator))
        wrong = int((~agree(true, believed, 0.5))[items].sum())
        if wrong:
            said = f"the structure that was {'declared' if belief.declared else 'found'}, {self.name}, is wrong"
            belief.abandon(is_formed(self._system), f"{said} ({wrong} of {self.operator.batch} items): abandoned")
        return wrong > 0

    @property
    def _z(self) -> Tensor:
        return generic(self.operator.size, self._system.like).expand(self.operator.batch, -1).contiguous()

    def _give_way(self, degenerate: bool) -> None:
        """To a safer method for a structure that is right."""
        belief = self._belief
        if isinstance(self.linear, SchurComplement) and not self.linear.redundant and belief.A is not None:
            belief.redundant = True
        elif isinstance(self.linear, SchurComplement):
            belief.eliminates = False
        elif belief.H is None:
            belief.H, belief.A = Dense(), Dense()
        elif not degenerate and not isinstance(self.linear, LU):
            belief.abandon(True, f"the structure {self.name} is right, but its fast method fails: abandoned")


def agree(product: Tensor, believed: Tensor, digits: float) -> Tensor:
    """Which items have the same product with a generic vector, ``(B, m)``, to that part of the digits, ``(B,)``."""
    difference = (product - believed).abs().amax(1)
    return ~(difference > torch.finfo(product.dtype).eps ** digits * product.abs().amax(1))


def operator(
    problem: BatchedProblem,
    product: Product,
    like: Tensor,
    *,
    active: Tensor | None = None,
    free: Tensor | None = None,
    unmasked: Callable[[], Product] | None = None,
    declared: Any = "auto",
    linear: Any = "auto",
    symmetric: bool = True,
    rproduct: Product | None = None,
    witness: Product | None = None,
    work: int = 0,
) -> Believed:
    """Returns the system of a backward pass in the form in which it is cheapest to solve.

    Args:
        problem: Whose class, code and sizes a finding is kept for.
        product: ``K u``, ``(B, m + r)`` to the same; ``torch.func.vmap`` maps it.
        like: A plain tensor shaped as ``u``.
        active: Which rows count, boolean ``(B, r)``; all unless given.
        free: Which variables are at no bound, boolean ``(B, m)``; all unless given.
        unmasked: Makes the product in which no variable is at a bound and every row counts: a structure is looked for
            in this one, once, so that it does not depend on what is active. The same as ``product`` unless given.
        declared: ``"auto"``, ``"dense"``, a declaration of ``torchddn.linear`` for H, or a pair of them for H and the
            rows, None for what is to be found.
        linear: As for :class:`torchddn.Implicit`. A direct method that is named gets all of K, unless a structure is
            declared; a Krylov method gets products.
        symmetric: Whether ``K = K'``.
        rproduct: ``K' u``, if it is not.
        witness: ``K u`` for the certificate, where the caller makes more of it than of a product; the answer, if the
            first attempt is certified, is the very tensor that it was last called with.
        work: How many numbers a product touches; it bounds how many are taken at once.

    Raises:
        InvalidInputError: What is declared does not fit the sizes.
    """
    solver = get_linear(linear)
    system = System(product, rproduct, unmasked, like, problem.m, active, free, symmetric, work, witness)
    if isinstance(solver, Krylov):
        return Believed(system, system.truth, solver, Belief(None))
    belief = _belief(problem, system, declared, solver is not None)
    if not fits(system, belief):
        belief = Belief(None)
    believed = _build(system, belief, solver)
    return _build(system, belief, solver) if believed.examine() else believed


def _build(system: System, belief: Belief, solver: Solver | None) -> Believed:
    """The system read as it is believed to be, for that solver or the one that suits it."""
    matrix = read(system, belief)
    if isinstance(solver, SchurComplement) and not isinstance(matrix, Saddle):
        matrix = Saddle(matrix, system.like.new_zeros(system.batch, 0, system.m))
    return Believed(system, matrix, solver or suitable(matrix, belief), belief)


def settled(
    problem: BatchedProblem, like: Tensor, *, declared: Any, linear: Any, symmetric: bool, has_bounds: bool
) -> Hashable | None:
    """What :func:`operator` will believe, and that nothing is left to look for or to learn; None if something is.

    As long as it stays the same, a direct solve is the same operations on other numbers. ``MATRIX_FREE`` says that
    products alone will be used. Arguments as there; ``like`` is shaped as the right-hand side, ``(B, s)``.
    """
    solver = get_linear(linear)
    if isinstance(solver, Krylov):
        return MATRIX_FREE
    if isinstance(solver, LeastSquares):
        return None
    if _is_formed_at_once(declared, solver is not None, like.shape[1]):
        return "dense"
    belief = known(problem, like, symmetric, declared)
    if belief is None or is_learning(belief, has_bounds):
        return None
    return MATRIX_FREE if belief.H is None else belief.state


def _is_formed_at_once(declared: Any, direct: bool, size: int) -> bool:
    """Whether all of K is read and no structure is looked for."""
    return declared == "dense" or (declared == "auto" and (direct or size <= SMALL))


def _belief(problem: BatchedProblem, system: System, declared: Any, direct: bool) -> Belief:
    if _is_formed_at_once(declared, direct, system.size):
        return Belief(Dense(), Dense())
    H, A = declared if isinstance(declared, tuple) else (declared, None)
    if isinstance(H, Declaration):
        H.check(system.m)
    if isinstance(A, RowDeclaration):
        A.check_rows(system.num_rows, system.m)
    return recall(problem, system.like, system.symmetric, declared, lambda: look(problem, system, declared)) or Belief(
        Dense(), Dense()
    )


def check_declared(where: str, declared: Any) -> None:
    """Raises :class:`InvalidInputError` unless ``declared`` is one of the things :func:`operator` takes."""
    if isinstance(declared, str) and declared in ("auto", "dense"):
        return
    if isinstance(declared, Declaration):
        return
    if isinstance(declared, tuple) and len(declared) == 2:
        H, A = declared
        if (H is None or isinstance(H, Declaration)) and (A is None or isinstance(A, RowDeclaration)):
            return
    raise InvalidInputError(
        f"`{where}` must be 'auto', 'dense', a declaration of `torchddn.linear` (Diagonal(), Banded(bandwidth), "
        f"BlockDiagonal(block_size), LowRank(rank), Sparse(), Dense(), Zero()) for the Hessian of the Lagrangian, or a "
        f"pair of one for it and one (Sparse(), Dense(), Zero()) for the constraint rows, got {declared!r}."
    )
