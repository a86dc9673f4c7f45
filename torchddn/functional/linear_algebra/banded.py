r"""Banded linear systems, at a cost linear in their size.

Solves, for each item, with ``K[i, j] = 0`` for ``|i - j| > w``::

    K y = b

For the incoming gradient ``v`` let ``u = K^-T v``, a solve of the same kind. Then ``db = u`` and ``dK = -u y^T`` on the
band: nothing of the size n x n is ever made, in any derivative.
"""

from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchddn.diagnostics import timed
from torchddn.errors import InvalidInputError
from torchddn.functional.linear_algebra.elimination import BandedSystem
from torchddn.functional.linear_algebra.right_sides import broadcast
from torchddn.functional.nodes.arguments import check_flag, check_floating
from torchddn.functional.nodes.handmade import solve
from torchddn.functional.nodes.outcome import conclude, solution_of
from torchddn.status import Solution, check_failure_policy

__all__ = ["banded_solve", "tridiagonal_solve"]


@overload
def banded_solve(band: Tensor, b: Tensor, *, on_failure: str = ..., solution: Literal[False] = ...) -> Tensor: ...
@overload
def banded_solve(band: Tensor, b: Tensor, *, on_failure: str = ..., solution: Literal[True]) -> Solution: ...
def banded_solve(band: Tensor, b: Tensor, *, on_failure: str = "warn", solution: bool = False) -> Tensor | Solution:
    r"""Returns the solution of ``K y = b`` for banded matrices K.

    By cyclic reduction, O(log n) batched steps; where a pivot vanishes or the backward error, refined once, is more
    than a rounding error, again by orthogonal reduction, which is stable for every regular matrix. Cost O(n w^2) and
    memory O(n w) per item, with about ten times the constants in the second case.

    Args:
        band: Diagonals as rows, ``(*B, 2 w + 1, n)``: ``band[..., w + k, i] = K[i, i + k]``. Entries outside of the
            matrix are not read.
        b: Right-hand side, ``(*B, n)``, or several as columns, ``(*B, n, k)``. Batch axes broadcast.
        on_failure: What to do about items that fail: ``"warn"``, ``"raise"``, ``"nan"`` or ``"ignore"``. Their answer
            is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; its fields are ``(*B,)``, and
            ``stationarity`` is the backward error, the largest ``|b - K y| / (|K| |y| + |b|)`` of all rows, or that
            of the largest entries after orthogonal reduction of the equilibrated matrix.

    Returns:
        ``y``, shaped as ``b`` and of its dtype (half precision computes in float32).

    Raises:
        InvalidInputError: If an argument is wrong, or there are no rows.
        SolveError: If an item fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the item contains NaN or infinity.
        STALLED: the matrix is singular to working precision. Try float64, or add to its diagonal.

    Gradients:
        Exact in ``band`` and ``b``, of every order and in every mode, by one more banded solve each. Entries outside
        of the matrix have gradient zero, and so has an item that fails.

    Example:
        >>> band = torch.tensor([[0.0, 1.0, 1.0], [2.0, 2.0, 2.0], [1.0, 1.0, 0.0]])
        >>> banded_solve(band, torch.tensor([3.0, 4.0, 3.0]))
        tensor([1., 1., 1.])

    References:
        Buzbee, Golub, Nielson, On direct methods for solving Poisson's equations, 1970. Wright, Stable parallel
        algorithms for two-point boundary value problems, 1992.
    """
    call = "banded_solve"
    check_floating(call, "band", band, "(*B, 2 w + 1, n)", 2)
    if band.shape[-2] % 2 == 0 or band.shape[-1] == 0:
        raise InvalidInputError(
            f"`{call}(band=...)` must have shape (*B, 2 w + 1, n) with n >= 1, got {tuple(band.shape)}. Pad the side "
            f"that has fewer diagonals with rows of zeros."
        )
    return _solve(call, "band", band, b, on_failure, solution)


@overload
def tridiagonal_solve(
    lower: Tensor,
    diagonal: Tensor,
    upper: Tensor,
    b: Tensor,
    *,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def tridiagonal_solve(
    lower: Tensor,
    diagonal: Tensor,
    upper: Tensor,
    b: Tensor,
    *,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def tridiagonal_solve(
    lower: Tensor,
    diagonal: Tensor,
    upper: Tensor,
    b: Tensor,
    *,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the solution of ``K y = b`` for tridiagonal matrices K.

    :func:`banded_solve` with the diagonals one by one. Cost O(n) per item.

    Args:
        lower: ``K[i + 1, i]``, ``(*B, n - 1)``.
        diagonal: ``K[i, i]``, ``(*B, n)``.
        upper: ``K[i, i + 1]``, ``(*B, n - 1)``.
        b: Right-hand side, ``(*B, n)``, or several as columns, ``(*B, n, k)``. Batch axes of all four broadcast.
        on_failure: As of :func:`banded_solve`.
        solution: As of :func:`banded_solve`.

    Returns:
        ``y``, shaped as ``b`` and of its dtype (half precision computes in float32).

    Raises:
        InvalidInputError: If an argument is wrong, or there are no rows.
        SolveError: If an item fails and ``on_failure="raise"``.

    Status:
        NON_FINITE, STALLED: As of :func:`banded_solve`.

    Gradients:
        As of :func:`banded_solve`, in the diagonals and ``b``.

    Example:
        >>> off, diagonal = torch.ones(2), torch.full((3,), 2.0)
        >>> tridiagonal_solve(off, diagonal, off, torch.tensor([3.0, 4.0, 3.0]))
        tensor([1., 1., 1.])
    """
    call = "tridiagonal_solve"
    check_floating(call, "diagonal", diagonal, "(*B, n)", 1)
    n = diagonal.shape[-1]
    if n == 0:
        raise InvalidInputError(f"`{call}(diagonal=...)` must have at least one row, got {tuple(diagonal.shape)}.")
    for name, side in (("lower", lower), ("upper", upper)):
        check_floating(call, name, side, "(*B, n - 1)", 1)
        if side.shape[-1] != n - 1 or side.dtype != diagonal.dtype or side.device != diagonal.device:
            raise InvalidInputError(
                f"`{call}({name}=...)` must have shape (*B, {n - 1}) beside a diagonal of {n}, and its dtype and "
                f"device, got {tuple(side.shape)}, {side.dtype}, {side.device}."
            )
    try:
        diagonals = torch.broadcast_tensors(pad(lower, (1, 0)), diagonal, pad(upper, (0, 1)))
    except RuntimeError:
        raise InvalidInputError(
            f"`{call}(diagonal=...)` must have batch axes that broadcast with those of lower and upper, got "
            f"{tuple(lower.shape)}, {tuple(diagonal.shape)}, {tuple(upper.shape)}."
        ) from None
    return _solve(call, "diagonal", torch.stack(diagonals, dim=-2), b, on_failure, solution)


def _solve(call: str, name: str, band: Tensor, b: Tensor, on_failure: str, solution: bool) -> Tensor | Solution:
    check_failure_policy(call, on_failure)
    check_flag(call, "solution", solution)
    if band.shape[-2] == 1:
        band = pad(band, (0, 0, 1, 1))  # elimination sees at least one neighbor
    width, n = band.shape[-2:]
    sides = broadcast(call, name, band, b, "(*B, 2 w + 1, n)", n)
    reach = torch.arange(width, device=band.device).unsqueeze(1) - width // 2
    column = torch.arange(n, device=band.device) + reach
    band = torch.where((column >= 0) & (column < n), sides.matrix, 0)
    with timed() as file:
        y, status, error = solve(BandedSystem(), band, sides.b)
        num_steps = torch.zeros_like(status)
        y = conclude(call, y, status, error, on_failure, num_steps=num_steps, solver="BandedElimination", file=file)
    if not solution:
        return sides.restore(y)
    objective = torch.zeros_like(error)
    fields = (t.reshape(sides.batch) for t in (objective, status, num_steps, error))
    return solution_of(sides.restore(y), *fields, solver="BandedElimination")
