r"""Least squares: weighted, regularized, of minimum norm, and with errors in the matrix as well.

Solves, for each item::

    weighted    y = argmin_y  sum_i w_i (a_i . y - b_i)^2 + sum_j ridge_j y_j^2
    total       minimize over E, e, y   |E|_F^2 + |e|^2   subject to   (A + E) y = b + e

by orthogonal factorizations of A and never of ``A^T A``, in the answer as in its derivatives: errors grow with the
condition number and not with its square. ``weighted.py`` and
``total.py`` have the formulas.
"""

import math
import numbers
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.diagnostics import File, timed
from torchddn.errors import InvalidInputError
from torchddn.functional.linear_algebra.right_sides import Sides, broadcast
from torchddn.functional.linear_algebra.total import total_fit
from torchddn.functional.linear_algebra.weighted import fit
from torchddn.functional.nodes.arguments import check_flag, check_floating
from torchddn.functional.nodes.finite import are_finite
from torchddn.functional.nodes.outcome import conclude, solution_of
from torchddn.functional.nodes.reading import read
from torchddn.status import Solution, Status, check_failure_policy

__all__ = ["total_least_squares", "weighted_least_squares"]


@overload
def weighted_least_squares(
    A: Tensor,
    b: Tensor,
    w: Tensor | None = ...,
    *,
    ridge: float | Tensor = ...,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def weighted_least_squares(
    A: Tensor,
    b: Tensor,
    w: Tensor | None = ...,
    *,
    ridge: float | Tensor = ...,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def weighted_least_squares(
    A: Tensor,
    b: Tensor,
    w: Tensor | None = None,
    *,
    ridge: float | Tensor = 0.0,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the weighted, regularized least-squares solution; of several solutions the shortest.

    y = argmin_y sum_i w_i (a_i . y - b_i)^2 + sum_j ridge_j y_j^2, by a QR factorization of ``W^(1/2) A``, and by its
    singular values where that has dependent columns, as it always has for ``n < m`` without ridge. Cost O(n m^2) per
    item, once; the derivatives cost two products with A each.

    Args:
        A: Rows ``a_i``, ``(*B, n, m)``.
        b: Targets, ``(*B, n)``, or several as columns, ``(*B, n, k)``. Batch axes broadcast.
        w: Weights, not negative, broadcastable to ``(*B, n)``; ones unless given. A row of weight zero is left out,
            and may hold NaN.
        ridge: Not negative, a number or broadcastable to ``(*B, m)``: a strength per item has shape ``(*B, 1)``.
        on_failure: What to do about items with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; its fields are ``(*B,)``, and
            ``stationarity`` is the largest entry of ``A^T W (A y - b) + ridge y``.

    Returns:
        ``y``, ``(*B, m)`` or ``(*B, m, k)``, of the dtype of ``b`` (half precision computes in float32).

    Raises:
        InvalidInputError: If an argument is wrong, or there are no rows or no variables.
        SolveError: If an item fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the item contains NaN or infinity, or its answer overflows.

    Gradients:
        Exact in ``A``, ``b``, ``w`` and ``ridge``, of every order and in every mode, to a relative error of about
        the condition number times the rounding unit. Where the rank is less than ``min(n, m)``, the gradient is that
        of the matrices of the same rank, and comes with a DegenerateGradientWarning. Singular values up to
        ``10 max(m, 10)`` roundings of the largest count as zero. An item that is not finite has gradient zero.

    Example:
        >>> A = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
        >>> b = torch.tensor([1.0, 2.0, 3.0, 10.0])
        >>> weighted_least_squares(A, b, torch.tensor([1.0, 1.0, 1.0, 0.0]))
        tensor([1.0000, 1.0000])

    References:
        Golub and Pereyra, The differentiation of pseudo-inverses and nonlinear least squares problems whose variables
        separate, 1973. Bjorck, Numerical Methods for Least Squares Problems, 1996, section 2.
    """
    call = "weighted_least_squares"
    sides = _door(call, A, b, on_failure, solution)
    A, b, (n, m) = sides.matrix, sides.b, sides.matrix.shape[1:]
    weights = A.new_ones(()).expand(len(A), n) if w is None else _non_negative(call, "w", w, sides, n)
    strength = _non_negative(call, "ridge", ridge, sides, m)
    kind = "some" if isinstance(ridge, Tensor) else "positive" if ridge > 0 else "none"
    with timed() as file:
        usable = are_finite(A, (2,)) & are_finite(b, (2,))
        finite = (usable if w is None else usable | (weights == 0)).all(dim=1)
        A, b = _kept(A, b, usable, finite)
        y = fit(call, A, b, weights, strength, finite, kind)
        objective, slope = _optimality(*(x.detach() for x in (A, b, weights, strength, y)))
        result, status = _judged(call, "QR", y, finite, slope, on_failure, file)
    if not solution:
        return sides.restore(result)
    zeros = torch.zeros_like(status)
    fields = (t.reshape(sides.batch) for t in (objective, status, zeros, slope))
    return solution_of(sides.restore(result), *fields, solver="QR")


@overload
def total_least_squares(A: Tensor, b: Tensor, *, on_failure: str = ..., solution: Literal[False] = ...) -> Tensor: ...
@overload
def total_least_squares(A: Tensor, b: Tensor, *, on_failure: str = ..., solution: Literal[True]) -> Solution: ...
def total_least_squares(A: Tensor, b: Tensor, *, on_failure: str = "warn", solution: bool = False) -> Tensor | Solution:
    r"""Returns the total least-squares solution: the smallest change of A *and* b that makes ``A y = b`` solvable.

    ``y`` from the right singular vectors of ``[A, b]`` for its smallest singular value (of the k smallest, for k
    columns of b), by a QR factorization and the singular values of its small factor. Cost O(n (m + k)^2) per item.

    Args:
        A: ``(*B, n, m)`` with n >= m.
        b: ``(*B, n)``, or several right-hand sides as columns, ``(*B, n, k)``, solved together: they share the change
            of A. Batch axes broadcast.
        on_failure: What to do about items that fail: ``"warn"``, ``"raise"``, ``"nan"`` or ``"ignore"``. Their answer
            is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; its fields are ``(*B,)``, and
            ``objective`` is the squared size of the change.

    Returns:
        ``y``, ``(*B, m)`` or ``(*B, m, k)``, of the dtype of ``b`` (half precision computes in float32).

    Raises:
        InvalidInputError: If an argument is wrong, or there are fewer rows than variables.
        SolveError: If an item fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the item contains NaN or infinity.
        UNBOUNDED: no smallest change exists: ever smaller ones have ever larger solutions, since a vector for the
            smallest singular value has no part in b. Drop dependent columns of A, or use weighted least squares.

    Gradients:
        Exact in ``A`` and ``b``, of every order and in every mode. Where the smallest singular value of ``[A, b]`` is
        also one of the others, y is one of many (the shortest, for one right-hand side), and so is its gradient; the
        part that the equal ones would contribute is left out, with a DegenerateGradientWarning. An item that fails
        has gradient zero.

    Example:
        >>> A = torch.tensor([[1.0], [2.0], [3.0]])
        >>> total_least_squares(A, torch.tensor([2.0, 4.0, 6.0]))
        tensor([2.0000])

    References:
        Golub and Van Loan, An analysis of the total least squares problem, 1980. Van Huffel and Vandewalle, The Total
        Least Squares Problem, 1991.
    """
    call = "total_least_squares"
    sides = _door(call, A, b, on_failure, solution)
    A, b, (n, m) = sides.matrix, sides.b, sides.matrix.shape[1:]
    if n < m:
        raise InvalidInputError(
            f"`{call}(A=...)` must have at least as many rows as columns, got {n} x {m}. Use "
            f"`weighted_least_squares`, whose shortest solution changes nothing."
        )
    with timed() as file:
        finite = are_finite(A, (1, 2)) & are_finite(b, (1, 2))
        A, b = _kept(A, b, finite.unsqueeze(1), finite)
        y, objective, exists = total_fit(call, A, b, finite)
        slope = _total_slope(A.detach(), b.detach(), y.detach())
        result, status = _judged(call, "SVD", y, finite, slope, on_failure, file, exists)
    if not solution:
        return sides.restore(result)
    zeros = torch.zeros_like(status)
    fields = (t.reshape(sides.batch) for t in (objective, status, zeros, slope))
    return solution_of(sides.restore(result), *fields, solver="SVD")


def _door(call: str, A: Tensor, b: Tensor, on_failure: str, solution: bool) -> Sides:
    check_floating(call, "A", A, "(*B, n, m)", 2)
    n, m = A.shape[-2:]
    if n == 0 or m == 0:
        raise InvalidInputError(f"`{call}(A=...)` must have rows and columns, got shape {tuple(A.shape)}.")
    check_failure_policy(call, on_failure)
    check_flag(call, "solution", solution)
    return broadcast(call, "A", A, b, "(*B, n, m)", n)


def _non_negative(call: str, name: str, value: float | Tensor, sides: Sides, size: int) -> Tensor:
    """``value``, checked, as a tensor ``(R, size)``."""
    like, shape = sides.matrix, (*sides.batch, size)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if not (float(value) >= 0 and math.isfinite(value)):
            raise InvalidInputError(f"`{call}({name}=...)` must be finite and not negative, got {value}.")
        return like.new_full((), float(value)).expand(like.shape[0], size)
    check_floating(call, name, value, f"broadcastable to {shape}", 0)
    assert isinstance(value, Tensor)
    if value.device != like.device:
        raise InvalidInputError(
            f"`{call}({name}=...)` must be on the device of the data, {like.device}, got {value.device}. Use `.to`."
        )

    def look(value: Tensor) -> None:
        wrong = ~((value >= 0) & value.isfinite())
        if bool(wrong.any()):
            raise InvalidInputError(
                f"`{call}({name}=...)` must be finite and not negative, got {value[wrong][0].item()} among its entries."
            )

    read(look, value)
    try:
        return value.to(like.dtype).broadcast_to(shape).reshape(like.shape[0], size)
    except RuntimeError:
        raise InvalidInputError(
            f"`{call}({name}=...)` must have a shape that broadcasts to {shape}, got {tuple(value.shape)}."
        ) from None


def _kept(A: Tensor, b: Tensor, usable: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros in place of the rows that are not ``usable``, and of the items that are not ``finite``."""
    rows = (usable & finite.unsqueeze(1)).unsqueeze(2)
    return torch.where(rows, A, 0), torch.where(rows, b, 0)


def _optimality(A: Tensor, b: Tensor, w: Tensor, ridge: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The objective and the largest entry of half its gradient, ``(R,)``."""
    r, w, ridge = A @ y - b, w.unsqueeze(2), ridge.unsqueeze(2)
    objective = (w * r.square()).sum(dim=(1, 2)) + (ridge * y.square()).sum(dim=(1, 2))
    return objective, (A.mT @ (w * r) + ridge * y).abs().flatten(1).amax(dim=1)


def _total_slope(A: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """The largest entry of ``A^T r + y b^T r``, ``r = A y - b``, which is zero where ``[y; -I]`` is invariant."""
    r = A @ y - b
    return (A.mT @ r + y @ (b.mT @ r)).abs().flatten(1).amax(dim=1)


def _judged(
    call: str,
    solver: str,
    y: Tensor,
    finite: Tensor,
    slope: Tensor,
    on_failure: str,
    file: File,
    exists: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``y``, NaN for items that fail, which are reported; and the status, ``(R,)``."""
    finite = finite & y.detach().isfinite().flatten(1).all(dim=1)
    status = torch.where(finite, int(Status.CONVERGED), int(Status.NON_FINITE))
    answered = finite
    if exists is not None:
        status, answered = torch.where(finite & ~exists, int(Status.UNBOUNDED), status), finite & exists
    y = torch.where(answered.reshape(-1, 1, 1), y, torch.nan)
    slope = torch.where(answered, slope, torch.nan)
    zeros = torch.zeros_like(status)
    return conclude(call, y, status, slope, on_failure, num_steps=zeros, solver=solver, file=file), status
