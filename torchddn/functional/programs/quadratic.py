r"""Quadratic and linear programs as a node.

Solves, for each item::

    y = argmin_y  1/2 y'Q y + q'y   subject to   A y = b,   G y <= h,   lower <= y <= upper

The forward pass ends with the solution of one linear system, that of the rows which hold with equality, and so the
answer is exact. The backward pass is one more system with the same matrix, certified, and stores no Jacobian.

References:
    Gould, Hartley, Campbell, Deep Declarative Networks, section 4. Amos, Kolter, OptNet, 2017, is this node for a
    positive definite Q and independent rows.
"""

import warnings
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from torchddn.compiler import uncompiled
from torchddn.derivatives import inside_transform
from torchddn.diagnostics import timed
from torchddn.errors import ConvergenceWarning, InfeasibleError, InvalidInputError
from torchddn.functional.nodes.arguments import check_choice, check_flag
from torchddn.functional.nodes.handmade import solve
from torchddn.functional.nodes.outcome import conclude
from torchddn.functional.programs.data import ProgramData, check_values, prepare
from torchddn.functional.programs.point import QuadraticPoint
from torchddn.functional.programs.solver import QuadraticSolver
from torchddn.functional.programs.sparse_data import SparseData
from torchddn.functional.programs.sparse_point import SparsePoint
from torchddn.functional.programs.sparse_program import is_sparse, prepare_sparse
from torchddn.functional.programs.sparse_solver import SparseSolver
from torchddn.quadratic.backends import OWN, check_backend, sparse_backend
from torchddn.status import Solution, Status, check_failure_policy

__all__ = ["quadratic_program"]

INFEASIBLE_POLICIES = ("warn", "closest", "nan", "raise")
SIDES = ("active", "inactive")


@overload
def quadratic_program(
    Q: Tensor | None,
    q: Tensor,
    A: Tensor | None = ...,
    b: Tensor | None = ...,
    G: Tensor | None = ...,
    h: Tensor | None = ...,
    lower: Tensor | float | None = ...,
    upper: Tensor | float | None = ...,
    *,
    smoothing: float = ...,
    weakly_active: str = ...,
    backend: str = ...,
    infeasible: str = ...,
    check: bool = ...,
    max_steps: int = ...,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def quadratic_program(
    Q: Tensor | None,
    q: Tensor,
    A: Tensor | None = ...,
    b: Tensor | None = ...,
    G: Tensor | None = ...,
    h: Tensor | None = ...,
    lower: Tensor | float | None = ...,
    upper: Tensor | float | None = ...,
    *,
    smoothing: float = ...,
    weakly_active: str = ...,
    backend: str = ...,
    infeasible: str = ...,
    check: bool = ...,
    max_steps: int = ...,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def quadratic_program(
    Q: Tensor | None,
    q: Tensor,
    A: Tensor | None = None,
    b: Tensor | None = None,
    G: Tensor | None = None,
    h: Tensor | None = None,
    lower: Tensor | float | None = None,
    upper: Tensor | float | None = None,
    *,
    smoothing: float = 0.0,
    weakly_active: str = "active",
    backend: str = OWN,
    infeasible: str = "warn",
    check: bool = True,
    max_steps: int = 60,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns ``y``, the solution of a convex quadratic program, or of a linear one, for each item.

    ::

        y = argmin_y  1/2 y'Q y + q'y   subject to   A y = b,   G y <= h,   lower <= y <= upper

    First Mehrotra's primal-dual method to a few digits, and from there Newton's method on the rows that are active,
    which ends exactly. An item for which that fails gets the homogeneous embedding in float64, which ends with a
    solution or with a proof that there is none. Cost: a Cholesky factor of an m x m matrix for each of six to twenty
    steps.

    Every argument may have the batch axes or not; one that has not belongs to all items, and its gradient is the sum
    over them. Rows may depend on each other, Q may be singular, or None for a linear program. Q, A and G may be sparse
    (``torch.sparse_coo``, ``sparse_csr``, ``sparse_csc``), without batch axes: then a sparse solver of another package
    comes first, and sparse LU factors do the rest.

    Args:
        Q: ``(*B, m, m)``, symmetric positive semidefinite; None for zero. Only its symmetric part counts.
        q: ``(*B, m)``.
        A: ``(*B, p, m)``; with ``b``.
        b: ``(*B, p)``.
        G: ``(*B, q, m)``; with ``h``.
        h: ``(*B, q)``; infinite where a row does not count.
        lower: ``(*B, m)`` or a number; minus infinity where there is none.
        upper: ``(*B, m)`` or a number; infinity where there is none.
        smoothing: Not negative; added to the diagonal of Q. At a vertex the solution of a linear program does not
            change with ``q``, and so has gradient zero; with curvature it does.
        weakly_active: Whether a row that holds with equality and has multiplier zero counts as ``"active"`` or
            ``"inactive"`` in the derivative, which is one-sided there.
        backend: ``"torchddn"``, or ``"qpsolvers:<name>"`` for an installed solver of the package ``qpsolvers``, which
            solves one item after the other, in as many threads as torch has, in place of Mehrotra's method: a means of
            comparison, and the way to solve sparse programs. What follows it is the same, and so is the answer.
        infeasible: What an item whose rows contradict each other gets: the point that is ``"closest"`` to satisfying
            them in the sense of least squares (of all these the one with the least objective), with its gradient; the
            same with a warning (``"warn"``), ``"nan"``, or an error (``"raise"``). In a compiled graph and under
            ``torch.func`` transforms such an item is NaN, and a failure as any other.
        check: Whether to look for a Q that is not symmetric positive semidefinite and for limits that cross.
        max_steps: Most steps for an item; other solvers have limits of their own.
        on_failure: What to do about other items that fail: ``"warn"``, ``"raise"``, ``"nan"`` or ``"ignore"``.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``, with differentiable multipliers.

    Returns:
        ``y``, ``(*B, m)``, of the dtype of ``q`` (half precision computes in float32).

    Raises:
        InvalidInputError: If an argument is wrong; if one fails a check, naming the item; if a gradient of a sparse
            matrix is to be differentiated again.
        ImportError: If ``backend``, or a sparse matrix, needs a package that is not installed: ``torchddn[qp]``.
        InfeasibleError: If an item is infeasible and ``infeasible="raise"``.
        SolveError: If an item fails otherwise and ``on_failure="raise"``.

    Status:
        INFEASIBLE: There is a proof that no y satisfies the rows. See ``infeasible``.
        UNBOUNDED: There is a direction in which the objective falls for ever. Add curvature or limits.
        MAX_STEPS, STALLED: Neither a solution nor a proof; check the scales of the data, or use float64.
        NON_FINITE: The item contains NaN, or infinity where it means nothing. The answer is NaN, its gradient zero.

    Gradients:
        Exact in every argument, of every order and in every mode; in ``Q`` symmetric. That of a sparse matrix has
        entries where the matrix has, and is of first order in reverse mode only. Where the solution is not unique the
        one of minimum norm, with a DegenerateGradientWarning. Where a row is active with multiplier zero one-sided, see
        ``weakly_active``.

    Example:
        >>> q = torch.tensor([-1.0, -2.0, 0.5])
        >>> ones = torch.ones(1, 3)
        >>> quadratic_program(torch.eye(3), q, ones, torch.ones(1), lower=0.0)  # onto the simplex
        tensor([0., 1., 0.])

    References:
        Mehrotra, On the implementation of a primal-dual interior point method, 1992. Goulart, Chen, Clarabel, 2024, for
        the embedding. The derivative is the rule of Deep Declarative Networks, proposition 4.6, for active rows.
    """
    call = "quadratic_program"
    check_choice(call, "weakly_active", weakly_active, SIDES)
    check_choice(call, "infeasible", infeasible, INFEASIBLE_POLICIES)
    check_backend(call, backend)
    check_flag(call, "check", check)
    check_flag(call, "solution", solution)
    check_failure_policy(call, on_failure)
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise InvalidInputError(f"`{call}(max_steps=...)` must be a positive integer, got {max_steps!r}.")
    if isinstance(smoothing, bool) or not isinstance(smoothing, (int, float)) or not 0 <= smoothing < float("inf"):
        raise InvalidInputError(f"`{call}(smoothing=...)` must be a number that is not negative, got {smoothing!r}.")
    given = {"Q": Q, "q": q, "A": A, "b": b, "G": G, "h": h, "lower": lower, "upper": upper}
    options = _Options(
        float(smoothing), weakly_active == "active", backend, infeasible, check, max_steps, on_failure, solution
    )
    return (_run_sparse if is_sparse(Q, A, G) else _run)(call, given, options)


class _Options(NamedTuple):
    smoothing: float
    holds_weak: bool
    backend: str
    infeasible: str
    check: bool
    max_steps: int
    on_failure: str
    solution: bool


def _run(call: str, given: dict[str, Any], options: _Options) -> Tensor | Solution:
    backend, on_failure = options.backend, options.on_failure
    if is_sparse(given["Q"], given["A"], given["G"]):
        data, batch, p, bounded = prepare_sparse(call, given, options.smoothing, options.check)
        backend = sparse_backend(call, backend)
        solver, point = SparseSolver(p, backend), SparsePoint(call)
    else:
        data, batch, p, bounded = prepare(call, given, options.smoothing)
        if options.check:
            check_values(call, data)
        solver, point = QuadraticSolver(p, bounded, options.max_steps, backend), QuadraticPoint(call)
    node = _Node(call, solver, point, options.holds_weak)
    m, dtype, name = data.q.shape[1], given["q"].dtype, "PrimalDual" if backend == OWN else backend
    with timed() as file:
        found = node.solve(data)
        z = found.z
        failed, lost = found.status, found.status == int(Status.INFEASIBLE)
        if _cannot_read():  # nor choose items: a failure as any other
            z = torch.where(lost.unsqueeze(1), torch.nan, z)
        elif bool(lost.any()):
            z = node.settle(data, z, lost, options.infeasible)
            failed = torch.where(lost, int(Status.CONVERGED), failed)
        z = conclude(call, z, failed, found.error, on_failure, num_steps=found.num_steps, solver=name, file=file)
    if not options.solution:
        return z[:, :m].reshape(*batch, m).to(dtype)
    return _solution(data, found._replace(z=z), batch, p, bounded, dtype, name)


# The compiler knows no sparse tensors.
_run_sparse = uncompiled(_run)


def _cannot_read() -> bool:
    """Whether tensors have no values: while a graph is made, and inside transforms."""
    return torch.compiler.is_compiling() or inside_transform()


class _Found(NamedTuple):
    """``z = (y, nu, lam)``, ``(R, m + p + q)``, differentiable; what holds there; and how each item ended."""

    z: Tensor
    at_lower: Tensor
    at_upper: Tensor
    status: Tensor
    num_steps: Tensor
    error: Tensor


class _Node(NamedTuple):
    """What programs of one kind have in common."""

    call: str
    solver: QuadraticSolver | SparseSolver
    point: QuadraticPoint | SparsePoint
    holds_weak: bool

    def solve(self, data: ProgramData | SparseData) -> _Found:
        """The solutions, differentiable in the data."""
        z, *masks, status, num_steps, error = (found := solve(self.solver, *(part.detach() for part in data)))[:10]
        holds = [
            strong | weak if self.holds_weak else strong & ~weak
            for strong, weak in zip(masks[:3], masks[3:], strict=True)
        ]
        sound = status != int(Status.NON_FINITE)
        numbers = data.numbers
        if _cannot_read() or not bool(sound.all()):
            numbers = [torch.where(sound.reshape(-1, *[1] * (part.dim() - 1)), part, 0) for part in numbers]
        z = solve(self.point, *numbers, z, *holds, *data.places, *found[10:])[0]
        return _Found(z, holds[0], holds[1], status, num_steps, error)

    def settle(self, data: ProgramData | SparseData, z: Tensor, lost: Tensor, policy: str) -> Tensor:
        """``z`` with what the policy says in place of the items that are infeasible."""
        items = torch.nonzero(lost).flatten()
        shown = ", ".join(map(str, items[:8].tolist())) + (", ..." if len(items) > 8 else "")
        said = f"`{self.call}`: the constraints of {len(items)} of {len(lost)} items contradict each other ({shown})."
        if policy == "raise":
            raise InfeasibleError(f"{said} Relax them, or pass `infeasible='closest'`.")
        if policy == "nan":
            return torch.where(lost.unsqueeze(1), torch.nan, z)
        if policy == "warn":
            warnings.warn(
                f"{said} They get the point that is closest to satisfying them, in the sense of least squares; "
                f"`infeasible='closest'` says that this is what you want.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return z.index_copy(0, items, self._closest(data.selected(items)))

    def _closest(self, data: ProgramData | SparseData) -> Tensor:
        """The solutions with the least-squares violations added to the right-hand sides, which makes them feasible."""
        m, r = data.q.shape[1], data.right.shape[1]
        # The violations t are unique, y need not be.
        t = self.solve(data.softened()).z[:, m : m + r]
        return self.solve(data._replace(right=data.right + t)).z


def _solution(
    data: ProgramData | SparseData,
    found: _Found,
    batch: torch.Size,
    p: int,
    bounded: bool,
    dtype: torch.dtype,
    solver: str,
) -> Solution:
    q, right, lower, upper = data.q, data.right, data.lower, data.upper
    m = q.shape[1]
    y, dual = found.z[:, :m], found.z[:, m:]
    Q_y = data.curve(y)
    L_y = Q_y + q + data.pull(dual)
    at_lower, at_upper = found.at_lower, found.at_upper & ~found.at_lower
    pushes = torch.where(at_lower, L_y, 0), torch.where(at_upper, -L_y, 0)
    with torch.no_grad():
        slack = data.apply(y) - right
        slack = torch.where(right == torch.inf, -torch.inf, slack)
        violation = torch.cat([slack[:, :p].abs(), slack[:, p:], lower - y, y - upper], dim=1).clamp(min=0)
        products = torch.where(dual[:, p:] == 0, 0, dual[:, p:] * slack[:, p:])
        free = torch.where(at_lower | at_upper, 0, L_y)
        numbers = {
            "objective": ((0.5 * Q_y + q) * y).sum(1),
            "status": found.status,
            "num_steps": found.num_steps,
            "stationarity": free.abs().amax(1),
            "feasibility": violation.amax(1),
            "complementarity": products.abs().amax(1) if products.shape[1] else torch.zeros_like(y[:, 0]),
        }
    fields = {name: tensor.reshape(batch) for name, tensor in numbers.items()}
    parts = {"equality_multipliers": dual[:, :p], "inequality_multipliers": dual[:, p:]}
    parts = {
        name: part.reshape(*batch, part.shape[1]).to(dtype) if part.shape[1] else None for name, part in parts.items()
    }
    limits = [part.reshape(*batch, m).to(dtype) if bounded else None for part in pushes]
    return Solution(
        y=y.reshape(*batch, m).to(dtype),
        **parts,
        lower_multipliers=limits[0],
        upper_multipliers=limits[1],
        **fields,
        solver=solver,
    )
