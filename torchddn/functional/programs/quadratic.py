r"""Quadratic and linear programs as a node.

Solves, for each item::

    y = argmin_y  1/2 y'Q y + q'y   subject to   A y = b,   G y <= h,   lower <= y <= upper

The forward pass ends with the solution of one linear system, that of the rows which hold with equality, and so the
answer is exact. The backward pass is one more system with the same matrix, certified, and stores no Jacobian.

References:
    Gould, Hartley, Campbell, Deep Declarative Networks, section 4. Amos, Kolter, OptNet, 2017, is this node for a
    positive definite Q and independent rows.
"""

from typing import Literal, overload

from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_choice, check_flag
from torchddn.functional.programs.node import INFEASIBLE_POLICIES, SIDES, ProgramOptions, run, run_sparse
from torchddn.functional.programs.sparse_program import is_sparse
from torchddn.quadratic.backends import OWN, check_backend
from torchddn.status import Solution, check_failure_policy

__all__ = ["quadratic_program"]


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

    First Mehrotra's primal-dual method to a few digits, from 32 variables on in single precision, and from there
    Newton's method on the rows that are active, which ends exactly. An item for which that fails gets the homogeneous
    embedding in float64, which ends with a solution or with a proof that there is none. Cost: a Cholesky factor of an m
    x m matrix for each of six to twenty steps.

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
        >>> import torch
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
    options = ProgramOptions(
        float(smoothing), weakly_active == "active", backend, infeasible, check, max_steps, on_failure, solution
    )
    return (run_sparse if is_sparse(Q, A, G) else run)(call, given, options)
