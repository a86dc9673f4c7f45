r"""Euclidean projection onto the positive semidefinite matrices.

Solves, for each matrix X, with the symmetric part of X in its place, and for a floor c::

    Y(X, c) = argmin_Y  1/2 |Y - X|_F^2   subject to   Y = Y^T,   every eigenvalue of Y >= c

The answer has the eigenvectors of X, and its eigenvalues raised to c: ``c I + f(X - c I)``, where f is the positive
part of ``spectral_part.py``.
"""

from collections.abc import Mapping
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_flag, check_floating, wide
from torchddn.functional.nodes.finite import are_finite
from torchddn.functional.projection.spectral_part import positive_part
from torchddn.functional.projection.vectors import Vectors, answer_of
from torchddn.status import Solution, check_failure_policy

__all__ = ["project_psd"]


@overload
def project_psd(
    X: Tensor, minimum: float | Tensor = ..., *, on_failure: str = ..., solution: Literal[False] = ...
) -> Tensor: ...
@overload
def project_psd(
    X: Tensor, minimum: float | Tensor = ..., *, on_failure: str = ..., solution: Literal[True]
) -> Solution: ...
def project_psd(
    X: Tensor, minimum: float | Tensor = 0.0, *, on_failure: str = "warn", solution: bool = False
) -> Tensor | Solution:
    r"""Returns the positive semidefinite matrix nearest to the symmetric part of each matrix of ``X``.

    Y(X) = argmin_Y 1/2 |Y - X|^2 (Frobenius) subject to ``Y = Y^T`` and no eigenvalue below ``minimum``: the negative
    eigenvalues become zero. By an eigendecomposition, O(m^3) per item.

    Args:
        X: ``(*B, m, m)``; of each matrix the symmetric part is used.
        minimum: The least eigenvalue that Y may have, broadcastable to ``(*B,)``; above zero, Y is positive definite.
        on_failure: What to do about matrices with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``Y``. Its ``inequality_multipliers``,
            ``(*B, m, m)``, are the semidefinite multiplier of ``Y >= minimum I``, differentiable; other fields are
            ``(*B,)``.

    Returns:
        ``Y``, shaped as ``X`` and of its dtype (half precision computes in float32), symmetric.

    Raises:
        InvalidInputError: If an argument is wrong, or the matrices are not square, or empty.
        SolveError: If a matrix fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the matrix contains NaN or infinity.

    Gradients:
        Exact in ``X`` and ``minimum``, of every order and in every mode, also where eigenvalues repeat. Where an
        eigenvalue is ``minimum`` up to rounding there is a kink, and it counts as above.

    Example:
        >>> project_psd(torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
        tensor([[1.0000, 1.0000],
                [1.0000, 1.0000]])

    References:
        Higham, Computing a Nearest Symmetric Positive Semidefinite Matrix, 1988.
    """
    call = "project_psd"
    check_floating(call, "X", X, "(*B, m, m)", 2)
    check_failure_policy(call, on_failure)
    check_flag(call, "solution", solution)
    m = X.shape[-1]
    if X.shape[-2] != m or m == 0:
        raise InvalidInputError(f"`{call}(X=...)` must be square matrices, (*B, m, m), got shape {tuple(X.shape)}.")
    matrices = wide(X).reshape(X.shape[:-2].numel(), m, m)
    vectors = Vectors(call, matrices, X.shape[:-2], X.dim() - 1, X.dtype, on_failure, solution)
    floor = vectors.numbers("minimum", minimum).unsqueeze(2)
    finite = are_finite(matrices, (1, 2)).reshape(-1, 1, 1)
    raised = floor * torch.eye(m, dtype=matrices.dtype, device=matrices.device)
    # A matrix that is not finite stands aside, and nothing of it returns.
    symmetric = torch.where(finite, (matrices + matrices.mT) / 2, raised)

    def compute() -> tuple[Tensor, ...]:
        Y = raised + positive_part(symmetric - raised)
        return answer_of(torch.where(finite, Y, torch.nan), finite.reshape(-1, 1))

    def details(Y: Tensor) -> Mapping[str, Tensor]:
        plain = torch.where(finite, Y, raised).detach()
        least = torch.linalg.eigvalsh(plain)[:, 0]
        return {
            "inequality_multipliers": Y - symmetric,
            "objective": (plain - symmetric.detach()).square().sum(dim=(1, 2)) / 2,
            "feasibility": (floor.detach().flatten() - least).clamp(min=0),
        }

    return vectors.leave(compute, "eigendecomposition", details)
