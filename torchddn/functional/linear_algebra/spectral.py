r"""Eigenvectors of symmetric matrices, as a declarative node.

Solves, for each item::

    Y = argmax_Y  tr(Y^T X Y)   subject to   Y^T Y = I

(the bottom ones: argmin). What this determines is the subspace, ``Y Y^T``; its derivative knows only differences
between eigenvalues inside the chosen block and outside of it, and is right also where those inside coincide.
"""

from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.diagnostics import timed
from torchddn.errors import InvalidInputError
from torchddn.functional.linear_algebra.invariant_subspace import Spectrum, Split, subspace
from torchddn.functional.nodes.arguments import check_flag, check_floating, wide
from torchddn.functional.nodes.finite import are_finite
from torchddn.functional.nodes.handmade import solve
from torchddn.functional.nodes.outcome import conclude, solution_of
from torchddn.status import Solution, Status, check_failure_policy

__all__ = ["bottom_eigenvectors", "top_eigenvectors"]


@overload
def top_eigenvectors(X: Tensor, k: int = ..., *, on_failure: str = ..., solution: Literal[False] = ...) -> Tensor: ...
@overload
def top_eigenvectors(X: Tensor, k: int = ..., *, on_failure: str = ..., solution: Literal[True]) -> Solution: ...
def top_eigenvectors(X: Tensor, k: int = 1, *, on_failure: str = "warn", solution: bool = False) -> Tensor | Solution:
    r"""Returns the eigenvectors of the k largest eigenvalues of symmetric matrices.

    Y(X) = argmax_Y tr(Y^T X Y) subject to Y^T Y = I, by a full eigendecomposition, O(m^3) per item. The column of the
    largest eigenvalue comes first. The entry of largest modulus in each column (of equals the first) is positive; which
    basis spans the eigenvectors of equal eigenvalues is as LAPACK says.

    Args:
        X: ``(*B, m, m)``; of each matrix the symmetric part is used.
        k: 1 to m.
        on_failure: What to do about matrices with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``Y``. Its ``equality_multipliers``,
            ``(*B, k)``, are the eigenvalues, differentiable, in the order of the columns; other fields are ``(*B,)``,
            and ``stationarity`` is the largest entry of ``X Y - Y L``.

    Returns:
        ``Y``, ``(*B, m, k)``, of the dtype of ``X`` (half precision computes in float32); its columns are orthonormal.

    Raises:
        InvalidInputError: If an argument is wrong.
        SolveError: If a matrix fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the matrix contains NaN or infinity.

    Gradients:
        Exact in ``X``, of every order and in every mode, for functions of ``Y Y^T``, also where eigenvalues inside
        the block coincide. A function that depends on the basis, such as one of a single column for k > 1, gets the
        part that leaves the subspace: Y turns within its span as little as it can, ``Y^T dY = 0``. Choose k = 1, or
        blocks one by one, where single vectors count. Where an eigenvalue inside equals one outside, up to rounding,
        the part between the two is left out, with a DegenerateGradientWarning. Eigenvalues: exact to first order;
        to every order where those of the block differ.

    Example:
        >>> X = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
        >>> top_eigenvectors(X).squeeze(-1)
        tensor([0.7071, 0.7071, 0.0000])

    References:
        Gould, Hartley, Campbell, Deep Declarative Networks, section 4. Edelman, Arias, Smith, The geometry of
        algorithms with orthogonality constraints, 1998.
    """
    return _eigenvectors("top_eigenvectors", X, k, True, on_failure, solution)


@overload
def bottom_eigenvectors(
    X: Tensor, k: int = ..., *, on_failure: str = ..., solution: Literal[False] = ...
) -> Tensor: ...
@overload
def bottom_eigenvectors(X: Tensor, k: int = ..., *, on_failure: str = ..., solution: Literal[True]) -> Solution: ...
def bottom_eigenvectors(
    X: Tensor, k: int = 1, *, on_failure: str = "warn", solution: bool = False
) -> Tensor | Solution:
    r"""Returns the eigenvectors of the k smallest eigenvalues of symmetric matrices, the smallest first.

    Y(X) = argmin_Y tr(Y^T X Y) subject to Y^T Y = I; otherwise as :func:`top_eigenvectors`.

    Args:
        X: ``(*B, m, m)``; of each matrix the symmetric part is used.
        k: 1 to m.
        on_failure: As of :func:`top_eigenvectors`.
        solution: As of :func:`top_eigenvectors`.

    Returns:
        ``Y``, ``(*B, m, k)``, of the dtype of ``X`` (half precision computes in float32); its columns are orthonormal.

    Raises:
        InvalidInputError: If an argument is wrong.
        SolveError: If a matrix fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the matrix contains NaN or infinity.

    Gradients:
        As of :func:`top_eigenvectors`.

    Example:
        >>> bottom_eigenvectors(torch.diag(torch.tensor([3.0, 1.0, 2.0])), 2)
        tensor([[0., 0.],
                [1., 0.],
                [0., 1.]])
    """
    return _eigenvectors("bottom_eigenvectors", X, k, False, on_failure, solution)


def _eigenvectors(call: str, X: Tensor, k: int, top: bool, on_failure: str, solution: bool) -> Tensor | Solution:
    check_floating(call, "X", X, "(*B, m, m)", 2)
    *shape, m = X.shape
    if shape[-1] != m or m == 0:
        raise InvalidInputError(f"`{call}(X=...)` must be square matrices, (*B, m, m), got shape {tuple(X.shape)}.")
    check_block(call, k)
    if k > m:
        raise InvalidInputError(f"`{call}(k=...)` must be at most the size of the matrices, {m}, got {k}.")
    check_failure_policy(call, on_failure)
    check_flag(call, "solution", solution)
    batch = torch.Size(shape[:-1])
    flat = wide(X).reshape(batch.numel(), m, m)
    solver = "Eigendecomposition"
    with timed() as file:
        finite = are_finite(flat, (1, 2))
        # An item that is not finite is given distinct eigenvalues, and nothing of it returns.
        regular = torch.diag(torch.arange(m, dtype=flat.dtype, device=flat.device))
        flat = torch.where(finite.reshape(-1, 1, 1), flat, regular)
        symmetric = (flat + flat.mT) / 2
        split = Split(*solve(Spectrum(k, top), symmetric.detach()))
        Y = subspace(call, symmetric, split)
        XY, plain = symmetric.detach() @ Y.detach(), Y.detach()
        residual = (XY - plain @ (plain.mT @ XY)).abs().flatten(1).amax(dim=1)
        residual = torch.where(finite, residual, torch.nan)
        status = torch.where(finite, int(Status.CONVERGED), int(Status.NON_FINITE))
        zeros = torch.zeros_like(status)
        result = torch.where(finite.reshape(-1, 1, 1), Y, torch.nan)
        result = conclude(call, result, status, residual, on_failure, num_steps=zeros, solver=solver, file=file)
    result = result.reshape(*batch, m, k).to(X.dtype)
    if not solution:
        return result
    values = torch.linalg.eigvalsh(Y.mT @ symmetric @ Y)
    values = torch.where(finite.unsqueeze(1), values.flip(1) if top else values, torch.nan)
    fields = (t.reshape(batch) for t in (values.sum(dim=1), status, zeros, residual))
    return solution_of(result, *fields, solver=solver, equality_multipliers=values.reshape(*batch, k))


def check_block(call: str, k: object) -> None:
    """Raises unless ``k`` is a positive integer."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InvalidInputError(f"`{call}(k=...)` must be a positive integer, got {k!r}.")
