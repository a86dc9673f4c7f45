r"""A linear solve that proves itself, and the ladder it falls back on when it cannot.

Solves, for each item, ``K u = v`` and measures afterwards, with one product of the true ``K``::

    residual = |K u - v| / |v|        (2-norms; 0 where v = 0)

The ladder, each rung only for the items that need it:

1. the chosen solver;
2. iterative refinement with the same factorization;
3. LU of the dense true matrix;
4. minimum-norm least squares, which also decides whether the item is singular, and the policy for singular items.

An item leaves the ladder when its factorization is sound (it succeeded and the matrix is not singular to working
precision) and its residual is small. Both are needed: a nearly singular LU returns a huge solution with a small
residual. The converse holds too: where the condition or the units are bad, rounding alone leaves a residual that no
method makes small, and the solution is good all the same. So off the happy path an item is also certified by the
bound ``|K^-1| |K u - v| / |u|`` of its error, in equilibrated units and with the factorization's ``|K^-1|``.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError, SingularError
from torchddn.linear.auto import choose, get, name_of
from torchddn.linear.direct import LU, Elementwise, LeastSquares
from torchddn.linear.krylov import GMRES, MINRES, UNASKED_STEPS, Krylov
from torchddn.linear.operators import (
    DenseMatrix,
    DiagonalMatrix,
    MatrixFree,
    Operator,
    check_choice,
    check_count,
    check_number,
    check_operator,
    check_vectors,
)
from torchddn.linear.schur import SchurComplement
from torchddn.linear.solver import Solver

__all__ = ["Certified", "default_rtol", "solve_certified", "solve_once"]

# Numbers in the dense matrices of the items that fall back, at most: 2 GiB in float64. Above, they stay matrix-free.
_DENSE_NUMBERS = 2**28


class Certified(NamedTuple):
    """The answer of :func:`solve_certified`, per item.

    Attributes:
        solution: ``u``, shaped as the right-hand side; NaN for an item whose matrix or right-hand side is not finite.
        residual: ``|K u - v| / |v|``, ``(B,)``, the largest over the right-hand sides.
        certified: Whether ``u`` solves the system to tolerance, by its residual (at most ``rtol``) or by the bound of
            its error (at most 2e-5 in float64, 8e-3 in float32, for the default ``rtol``); of a singular system, its
            least-squares problem, ``(B,)``.
        degenerate: Whether ``K`` has a null vector with a part in ``y``: the answer is one of many, ``(B,)``.
        singular: Whether ``K`` has a null vector at all; where not degenerate, only multipliers are not unique.
        method: Word of the solver that gave each item its answer, B of them.
        num_refinements: Steps of iterative refinement, ``(B,)``.
    """

    solution: Tensor
    residual: Tensor
    certified: Tensor
    degenerate: Tensor
    singular: Tensor
    method: tuple[str, ...]
    num_refinements: Tensor


class _System(NamedTuple):
    """What the items of a rung have to solve: the matrix to factor, the one to satisfy, and the right-hand side."""

    operator: Operator
    truth: Operator
    rhs: Tensor  # (B, s, k), of size about one
    rtol: float
    rcond: float | None
    max_refinements: int


class _Answer(NamedTuple):
    """What a rung found for its items."""

    u: Tensor
    r: Tensor  # rhs - K u, with the true K
    sound: Tensor
    num_refinements: Tensor


def default_rtol(dtype: torch.dtype) -> float:
    """``eps ** 0.6``: 4e-10 in float64, 7e-5 in float32.

    A regular system of condition c leaves about ``c eps``, so this passes conditions up to 1e6 (float64) without
    refinement, and asks more than the half of the digits that gradients are compared to.

    Example:
        >>> f"{default_rtol(torch.float64):.1e}"
        '4.1e-10'
    """
    if dtype not in (torch.float32, torch.float64):
        raise InvalidInputError(f"`default_rtol(dtype=...)` must be torch.float32 or torch.float64, got {dtype}.")
    return torch.finfo(dtype).eps ** 0.6


def solve_certified(
    operator: Operator,
    rhs: Tensor,
    *,
    apply: Operator | Callable[[Tensor], Tensor] | None = None,
    again: Callable[[], Operator | None] | None = None,
    linear: str | Solver = "auto",
    rtol: float | None = None,
    rcond: float | None = None,
    on_singular: str = "least_squares",
    damping: float = 1e-4,
    primal_size: int | None = None,
    max_refinements: int = 3,
) -> Certified:
    r"""Solves ``K u = v`` per item, measures the residual, and falls back to safer methods until it is small.

    The device is waited for once where all is well: to read whether every item is certified.

    Args:
        operator: ``K`` as it is believed to be, for the factorization.
        rhs: ``v``, ``(B, s)`` or ``(B, s, k)``.
        apply: The true product ``K u`` if it may differ from the operator's: a function of ``(B, s)``, or an
            :class:`Operator`. Where both disagree, the dense matrix is made of this one.
        again: Makes ``K`` anew if the first attempt is not certified, for another one; None for nothing better.
        linear: A word that :func:`torchddn.linear.get` knows, or a linear solver.
        rtol: Largest residual of a certified item; :func:`default_rtol` unless given.
        rcond: Rank cutoff of the least-squares rung, see :class:`LeastSquares`.
        on_singular: For degenerate items: ``"least_squares"``, the minimum-norm solution; ``"damp"``, the solution
            with ``damping * scale`` added to the diagonal of the block of ``y`` (a proximal term; ``scale`` is
            the largest entry of the block, one if that is zero); ``"raise"``.
        damping: Non-negative; used by ``"damp"``.
        primal_size: Length of the block of ``y``; the operator's unless given.
        max_refinements: At most so many steps of refinement on each rung.

    Returns:
        A :class:`Certified`. An item that no rung certifies has its best answer and ``certified`` false.

    Raises:
        InvalidInputError: An argument is wrong.
        SingularError: ``on_singular="raise"`` and an item is degenerate. Multipliers that are not unique are no
            reason to raise.

    Note:
        Matrix-free Krylov methods cannot see that a system with a solution is singular: ``singular`` and
        ``degenerate`` are reported of items that a direct method has factored. MINRES returns the minimum-norm
        solution in that case.

    Example:
        >>> K = DenseMatrix(torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), symmetric=True)
        >>> answer = solve_certified(K, torch.tensor([[2.0, 0.0]]))
        >>> answer.solution, answer.degenerate, answer.method
        (tensor([[1., 0.]]), tensor([True]), ('least_squares',))
    """
    check_operator("solve_certified(operator=...)", operator)
    columns = check_vectors("solve_certified(rhs=...)", operator, rhs)
    columns = columns.unsqueeze(-1) if columns.ndim == 2 else columns
    if columns.shape[2] == 0:
        raise InvalidInputError("`solve_certified(rhs=...)` must have at least one column, got shape (B, s, 0).")
    check_choice("solve_certified(on_singular=...)", on_singular, ("least_squares", "damp", "raise"))
    check_number("solve_certified(damping=...)", damping)
    check_count("solve_certified(max_refinements=...)", max_refinements, least=0)
    if rtol is None:
        rtol = default_rtol(operator.dtype)
    check_number("solve_certified(rtol=...)", rtol)
    m = operator.primal_size if primal_size is None else primal_size
    check_count("solve_certified(primal_size=...)", m, most=operator.size)
    if rcond is not None:
        check_number("solve_certified(rcond=...)", rcond, below=1.0)
    truth = operator if apply is None else _truth(operator, apply)
    solver = get(linear) or choose(operator)
    if isinstance(operator, MatrixFree) and not isinstance(solver, Krylov):
        operator = DenseMatrix(operator.dense(), operator.symmetric, m)  # once, and not again on each rung
        truth = operator if apply is None else truth
    # All that follows is linear in v: a size of about one keeps tiny gradients from underflowing in the norms.
    scale = _size(columns)
    system = _System(operator, truth, columns * scale.reciprocal(), rtol, rcond, max_refinements)
    last = LeastSquares(rcond, m)
    if isinstance(solver, LeastSquares):
        last = LeastSquares(solver.rcond if rcond is None else rcond, solver.primal_size or m)
        ladder = _Ladder(system, m)
    else:
        for makes in (again, None):
            state, answer, solution = _first_attempt(system, solver, scale, rhs)
            residual, certified = _judge(system, answer)
            if bool(certified.all()):  # the one wait for the device
                no = ~certified
                method = (name_of(solver),) * operator.batch
                return Certified(solution, residual, certified, no, no, method, answer.num_refinements)
            better = makes() if makes is not None else None
            if better is None:
                break
            system = system._replace(operator=better)
        ladder = _Ladder(system, m)
        ladder.keep(solver, state, answer)
    ladder.descend(solver, last, on_singular, damping)
    return ladder.report(scale, rhs)


def solve_once(
    operator: Operator, rhs: Tensor, *, apply: Operator, linear: Solver, rtol: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The first rung of :func:`solve_certified`, with nothing read: solution, residual, and which items are certified.

    Arguments as there. If an item is not certified, what is wrong is for :func:`solve_certified` to find out.
    """
    columns = rhs.unsqueeze(-1) if rhs.ndim == 2 else rhs
    scale = _size(columns)
    rtol = default_rtol(operator.dtype) if rtol is None else rtol
    system = _System(operator, apply, columns * scale.reciprocal(), rtol, None, 0)
    _, answer, solution = _first_attempt(system, linear, scale, rhs)
    return solution, *_judge(system, answer)


class _Ladder:
    """The best answers so far, and the way down for the items whose answer is not certified."""

    def __init__(self, system: _System, m: int) -> None:
        B, s, _ = system.rhs.shape
        device = system.rhs.device
        self._system, self._m = system, m
        self._z = _probe(s, system.rhs).expand(B, s).contiguous()
        self._K_z = system.truth.matvec(self._z)
        self._finite = system.rhs.isfinite().all(2).all(1) & self._K_z.isfinite().all(1)
        self._u = torch.full_like(system.rhs, torch.nan)
        self._residual = torch.full((B,), torch.nan, dtype=system.rhs.dtype, device=device)
        flags = torch.zeros(4, B, dtype=torch.bool, device=device)
        self._certified, self._sound, self._degenerate, self._singular = flags
        self._bounded = torch.zeros_like(self._finite)
        self._num_refinements = torch.zeros(B, dtype=torch.int64, device=device)
        self._method = ["none"] * B

    def keep(self, solver: Solver, state: Any, answer: _Answer) -> None:
        """Refines the first answer, which is one for the whole batch, and takes it for all finite items."""
        answer = _refine(self._system, solver, state, answer, self._finite & answer.sound)
        items = self._finite.nonzero().flatten()
        self._take(items, _pick(answer, items), _certifies(self._system, answer)[items], name_of(solver))
        self._bounded = _bounds(self._system, solver, state, answer)

    def descend(self, first: Solver, last: LeastSquares, on_singular: str, damping: float) -> None:
        """Goes down rung by rung with the items that are not certified."""
        items = (self._finite & ~self._certified).nonzero().flatten()
        if not items.numel():
            return
        matrix, agrees = self._materialize(items)
        if matrix is None:
            operator, truth = self._system.operator, self._system.truth
            if isinstance(first, SchurComplement) and not first.redundant:
                self._rung(SchurComplement(redundant=True), operator.select(items), items)
            symmetric = (MINRES(max_steps=UNASKED_STEPS),) if operator.symmetric else ()
            for solver in (*symmetric, GMRES(max_steps=UNASKED_STEPS)):
                if type(solver) is not type(first):
                    self._rung(solver, truth.select(items), items)
            return
        if agrees:  # or else the bound of the first answer is one for another matrix
            self._certified[items] = self._bounded[items]
        factored = isinstance(first, LeastSquares) or (agrees and isinstance(first, LU))
        if isinstance(matrix, DenseMatrix) and not factored:
            self._rung(LU(), matrix, items)
        self._decide(last, matrix, items, on_singular, damping)

    def report(self, scale: Tensor, rhs: Tensor) -> Certified:
        return Certified(
            (self._u * scale).view_as(rhs),
            self._residual,
            self._certified,
            self._degenerate,
            self._singular,
            tuple(self._method),
            self._num_refinements,
        )

    def _rung(self, solver: Solver, matrix: Operator, items: Tensor) -> None:
        """Tries ``solver`` on those ``items``, of which ``matrix`` is, that are not certified."""
        rest = (~self._certified[items]).nonzero().flatten()
        if not rest.numel():
            return
        items, matrix = items[rest], matrix.select(rest)
        system = self._restrict(matrix, items)
        state, answer = _attempt(system, solver)
        answer = _refine(system, solver, state, answer, answer.sound)
        certified = _certifies(system, answer) | _bounds(system, solver, state, answer)
        self._take(items, answer, certified, name_of(solver))

    def _decide(self, last: LeastSquares, matrix: Operator, items: Tensor, on_singular: str, damping: float) -> None:
        """The last rung: which items are singular, and what they get."""
        rest = (~self._certified[items]).nonzero().flatten()
        if not rest.numel():
            return
        items, matrix = items[rest], matrix.select(rest)
        solver = Elementwise(self._m) if isinstance(matrix, DiagonalMatrix) else last
        system = self._restrict(matrix, items)
        state, answer = _attempt(system, solver)
        # A remainder that no u removes is not an error of the solve.
        reachable = functools.partial(solver.project, state)
        answer = answer._replace(sound=state.ok)  # singular is no objection here
        answer = _refine(system, solver, state, answer, answer.sound, reachable)
        singular = state.rank < matrix.size
        degenerate = singular & state.degenerate
        found = degenerate.nonzero().flatten() if on_singular != "least_squares" else items[:0]
        if found.numel() and on_singular == "raise":
            raise SingularError(_complain(items[found], state.rank[found], matrix.size))
        certified = _certifies(system, answer, reachable) | _bounds(system, solver, state, answer, reachable)
        self._take(items, answer, certified, name_of(solver), always=singular)
        self._singular[items], self._degenerate[items] = singular, degenerate
        if found.numel():
            items = items[found]
            system = self._restrict(_damped(matrix.select(found), damping, self._m), items)
            _, answer = _attempt(system, solver)
            self._take(items, answer, _certifies(system, answer), "damp", always=degenerate[found])

    def _restrict(self, matrix: Operator, items: Tensor) -> _System:
        truth = self._system.truth.select(items)
        return self._system._replace(operator=matrix, truth=truth, rhs=self._system.rhs[items])

    def _take(self, items: Tensor, answer: _Answer, certified: Tensor, name: str, always: Tensor | None = None) -> None:
        """Keeps ``answer`` for those ``items`` for which it is better than what there is."""
        residual = _relative(answer.r, self._system.rhs[items])
        smaller = ~(residual >= self._residual[items])  # no answer yet is NaN
        better = certified | torch.where(answer.sound == self._sound[items], smaller, answer.sound)
        if always is not None:
            better = better | always
        self._num_refinements[items] += answer.num_refinements
        chosen = items[better]
        self._u[chosen], self._residual[chosen] = answer.u[better], residual[better]
        self._certified[chosen], self._sound[chosen] = certified[better], answer.sound[better]
        for item in chosen.tolist():
            self._method[item] = name

    def _materialize(self, items: Tensor) -> tuple[Operator | None, bool]:
        """The true matrices of ``items``, in full or diagonal, None if too large; and whether they are the believed."""
        operator, truth = self._system.operator, self._system.truth
        affordable = items.numel() * operator.size**2 <= _DENSE_NUMBERS
        believed = operator.select(items) if affordable or isinstance(operator, DiagonalMatrix) else None
        if believed is not None and not isinstance(believed, DiagonalMatrix):
            believed = _dense(believed.dense(), operator.symmetric, self._m)
        if truth is operator or believed is None:
            return believed, True
        # One product with a generic vector tells the believed matrix from another one, entry by entry up to the
        # rounding of sums.
        z = self._z[items]
        diagonal = isinstance(believed, DiagonalMatrix)
        entries = DiagonalMatrix(believed.d.abs()) if diagonal else DenseMatrix(believed.matrix.abs())
        rounding = torch.finfo(z.dtype).eps ** 0.5 * entries.matvec(z.abs())
        if bool(((believed.matvec(z) - self._K_z[items]).abs() <= rounding).all()):
            return believed, True
        return (_dense(truth.dense()[items], operator.symmetric, self._m) if affordable else None), False


def _first_attempt(system: _System, solver: Solver, scale: Tensor, rhs: Tensor) -> tuple[Any, _Answer, Tensor]:
    """:func:`_attempt`, and its answer in the units and shape of ``rhs``.

    The true product is that of the very tensor which is returned: whoever made the product may have found what it needs
    that tensor for.
    """
    state, u, sound = _solve(system, solver)
    solution = (u * scale).view_as(rhs)
    K_u = system.truth.matvec(solution).view_as(u) * scale.reciprocal()
    return state, _Answer(u, system.rhs - K_u, sound, torch.zeros_like(sound, dtype=torch.int64)), solution


def _attempt(system: _System, solver: Solver) -> tuple[Any, _Answer]:
    state, u, sound = _solve(system, solver)
    return state, _Answer(u, system.rhs - system.truth.matvec(u), sound, torch.zeros_like(sound, dtype=torch.int64))


def _solve(system: _System, solver: Solver) -> tuple[Any, Tensor, Tensor]:
    state = solver.init(system.operator)
    u = solver.solve(state, system.rhs)
    sound = solver.sound(state)
    if system.rcond is not None and hasattr(state, "rcond"):
        # The estimate is right to a small factor: what may lie below the cutoff is for LeastSquares to decide.
        sound = sound & (state.rcond > 3 * system.rcond)
    return state, u, sound


def _refine(
    system: _System,
    solver: Solver,
    state: Any,
    answer: _Answer,
    pending: Tensor,
    reachable: Callable[[Tensor], Tensor] = lambda r: r,
) -> _Answer:
    """Adds the solution for the remainder while that makes it smaller, for the ``pending`` items that need it."""
    u, r, sound, num_refinements = answer
    error = _relative(reachable(r), system.rhs)
    pending = pending & (error > system.rtol)
    for _ in range(system.max_refinements):
        if not bool(pending.any()):
            break
        u_next = u + solver.solve(state, r)
        r_next = system.rhs - system.truth.matvec(u_next)
        error_next = _relative(reachable(r_next), system.rhs)
        better = pending & (error_next < error)
        u = torch.where(better[:, None, None], u_next, u)
        r = torch.where(better[:, None, None], r_next, r)
        num_refinements = num_refinements + pending
        # Less than half gained is the floor of rounding, or a factorization of another matrix.
        pending = better & (error_next > system.rtol) & (2 * error_next < error)
        error = torch.where(better, error_next, error)
    return _Answer(u, r, sound, num_refinements)


def _judge(system: _System, answer: _Answer) -> tuple[Tensor, Tensor]:
    """The residual of each item, and whether it certifies the item."""
    residual = _relative(answer.r, system.rhs)
    return residual, answer.sound & (residual <= system.rtol)


def _certifies(system: _System, answer: _Answer, reachable: Callable[[Tensor], Tensor] = lambda r: r) -> Tensor:
    """Which items are solved to tolerance by their residual."""
    return answer.sound & (_relative(reachable(answer.r), system.rhs) <= system.rtol)


def _bounds(
    system: _System,
    solver: Solver,
    state: Any,
    answer: _Answer,
    reachable: Callable[[Tensor], Tensor] = lambda r: r,
) -> Tensor:
    """Which items are solved to tolerance by the bound of their error, if ``state`` is of the true matrix."""
    # Of the default rtol the root: five digits of the answer in float64. A smaller rtol asks for more in proportion.
    tolerance = min(system.rtol**0.5, system.rtol / default_rtol(answer.u.dtype) ** 0.5)
    return answer.sound & (solver.error(state, answer.u, reachable(answer.r)) <= tolerance)


def _relative(r: Tensor, rhs: Tensor) -> Tensor:
    """``|r| / |rhs|`` of each item, the largest over its columns, ``(B,)``; a column ``rhs = 0`` counts ``|r|``."""
    size = torch.linalg.vector_norm(rhs, dim=1)
    return (torch.linalg.vector_norm(r, dim=1) / torch.where(size == 0, 1, size)).amax(1)


def _size(columns: Tensor) -> Tensor:
    """The power of two below the largest entry of each column, ``(B, 1, k)``; one for a column of zeros.

    It has a reciprocal, and products with either are exact.
    """
    largest = columns.abs().amax(1, keepdim=True)  # ten times faster than the same norm
    scale = largest.clamp(min=torch.finfo(columns.dtype).tiny).log2().floor().exp2()
    return torch.where(largest > 0, scale, 1)


def _pick(answer: _Answer, items: Tensor) -> _Answer:
    return _Answer(*(field[items] for field in answer))


def _probe(s: int, like: Tensor) -> Tensor:
    # sin(j^2) is as good as random, and the same on every call.
    return torch.arange(1, s + 1, dtype=like.dtype, device=like.device).square().sin()


def _truth(operator: Operator, apply: Operator | Callable[[Tensor], Tensor]) -> Operator:
    if isinstance(apply, Operator):
        alike = all(getattr(apply, a) == getattr(operator, a) for a in ("batch", "size", "dtype", "device"))
        if not alike:
            raise InvalidInputError(
                f"`solve_certified(apply=...)` must match the operator: batch {operator.batch}, size {operator.size}, "
                f"{operator.dtype} on {operator.device}, got batch {apply.batch}, size {apply.size}, "
                f"{apply.dtype} on {apply.device}."
            )
        return apply
    if not callable(apply):
        raise InvalidInputError(
            f"`solve_certified(apply=...)` must be a function of (B, s), an Operator or None, "
            f"got {type(apply).__name__}."
        )
    return MatrixFree(
        apply,
        batch=operator.batch,
        size=operator.size,
        dtype=operator.dtype,
        device=operator.device,
        symmetric=operator.symmetric,
    )


def _dense(matrix: Tensor, symmetric: bool, m: int) -> DenseMatrix:
    """The matrices, and whether they are as symmetric as they were believed to be, up to rounding."""
    if symmetric:
        difference = (matrix - matrix.mT).abs().amax((1, 2))
        symmetric = not bool((difference > torch.finfo(matrix.dtype).eps ** 0.5 * matrix.abs().amax((1, 2))).any())
    return DenseMatrix(matrix, symmetric, m)


def _damped(matrix: Operator, damping: float, m: int) -> Operator:
    """``matrix`` with ``damping * scale`` added to the first ``m`` entries of its diagonal."""
    if isinstance(matrix, DiagonalMatrix):
        d = matrix.d.clone()
        scale = d[:, :m].abs().amax(1, keepdim=True)
        d[:, :m] += damping * torch.where(scale == 0, 1, scale)
        return DiagonalMatrix(d)
    damped = matrix.dense().clone()
    scale = damped[:, :m, :m].abs().amax((1, 2)).unsqueeze(1)
    damped.diagonal(dim1=1, dim2=2)[:, :m] += damping * torch.where(scale == 0, 1, scale)
    return DenseMatrix(damped, matrix.symmetric, m)


def _complain(items: Tensor, rank: Tensor, size: int) -> str:
    names = items.tolist()
    listed = ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
    return (
        f"`solve_certified`: {len(names)} items have a singular system with more than one answer for y "
        f"(items {listed}; item {names[0]} has rank {int(rank[0])} of {size}), so the gradient is not determined. Use "
        f'`on_singular="least_squares"` for the one of minimum norm or "damp" for a proximal term, or make the '
        f"solution of the problem unique."
    )
