r"""Euclidean projection onto the simplex and its relatives: sparse probabilities.

Solve, for each vector of x::

    simplex         argmin_y  1/2 |y - x|^2   subject to   sum_i y_i = radius,  y >= 0
    capped simplex  the same with  y <= upper
    sparsemax       the simplex of radius 1, whose points are probabilities
    entmax, 1.5     argmin_y  -x.y + 4/3 sum_i (y_i^1.5 - y_i)   subject to   sum_i y_i = 1,  y >= 0

With the multiplier tau of the sum, ``y_i = max(x_i - tau, 0)``, or ``min(max(x_i - tau, 0), upper_i)``, or
``max(x_i / 2 - tau, 0)^2``; the sum, which falls with tau, determines it.
"""

from collections.abc import Mapping
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import solve
from torchddn.functional.projection.support import CappedSimplex, Entmax15, Simplex
from torchddn.functional.projection.vectors import Vectors
from torchddn.status import Solution

__all__ = ["entmax15", "project_capped_simplex", "project_simplex", "sparsemax"]


@overload
def project_simplex(
    x: Tensor,
    radius: float | Tensor = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def project_simplex(
    x: Tensor, radius: float | Tensor = ..., dim: int = ..., *, on_failure: str = ..., solution: Literal[True]
) -> Solution: ...
def project_simplex(
    x: Tensor, radius: float | Tensor = 1.0, dim: int = -1, *, on_failure: str = "warn", solution: bool = False
) -> Tensor | Solution:
    r"""Returns the point of the simplex ``sum(y) = radius, y >= 0`` nearest to each vector of ``x``.

    tau is found by Newton's method, which ends after finitely many steps with the exact answer. A step costs a few
    passes over the data; up to 32 coordinates one sort takes less time and is used instead.

    Args:
        x: Vectors along ``dim``, ``(*B, m)`` for the last axis.
        radius: Positive sum of each answer, broadcastable to ``(*B,)``.
        dim: Axis of the vectors.
        on_failure: What to do about vectors with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; the multiplier tau of the sum has
            shape ``(*B, 1)``, those of ``y >= 0`` have ``(*B, m)``, other fields ``(*B,)``.

    Returns:
        ``y``, shaped as ``x`` and of its dtype (half precision computes in float32), non-negative, with sums
        ``radius``. Coordinates below tau are exactly zero.

    Raises:
        InvalidInputError: If an argument is wrong, or the vectors have no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the vector contains NaN or infinity.

    Gradients:
        Exact in ``x`` and ``radius``, of every order and in every mode. Where a coordinate enters or leaves the
        support the map has a kink; a coordinate that is exactly tau counts as outside, and the record of
        :func:`torchddn.diagnostics` tells. A vector that is not finite has gradient zero.

    Example:
        >>> project_simplex(torch.tensor([0.5, -2.0, 1.0, 0.1]))
        tensor([0.2500, 0.0000, 0.7500, 0.0000])

    References:
        Held, Wolfe, Crowder, Validation of Subgradient Optimization, 1974. Michelot, A Finite Algorithm for Finding the
        Projection of a Point onto the Canonical Simplex of R^n, 1986.
    """
    return _onto_simplex("project_simplex", x, radius, dim, on_failure, solution)


@overload
def sparsemax(x: Tensor, dim: int = ..., *, on_failure: str = ..., solution: Literal[False] = ...) -> Tensor: ...
@overload
def sparsemax(x: Tensor, dim: int = ..., *, on_failure: str = ..., solution: Literal[True]) -> Solution: ...
def sparsemax(x: Tensor, dim: int = -1, *, on_failure: str = "warn", solution: bool = False) -> Tensor | Solution:
    r"""Returns the probabilities nearest to each vector of ``x``: a softmax that gives exact zeros.

    :func:`project_simplex` with radius 1, by its other name.

    Args:
        x: Scores along ``dim``, ``(*B, m)`` for the last axis.
        dim: Axis of the scores.
        on_failure: As of :func:`project_simplex`.
        solution: As of :func:`project_simplex`.

    Returns:
        ``y``, shaped as ``x`` and of its dtype, non-negative, with sums 1.

    Raises:
        InvalidInputError: If an argument is wrong, or the vectors have no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the vector contains NaN or infinity.

    Gradients:
        As of :func:`project_simplex`.

    Example:
        >>> sparsemax(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])

    References:
        Martins, Astudillo, From Softmax to Sparsemax, 2016.
    """
    return _onto_simplex("sparsemax", x, 1.0, dim, on_failure, solution)


def _onto_simplex(
    call: str, x: Tensor, radius: float | Tensor, dim: int, on_failure: str, solution: bool
) -> Tensor | Solution:
    vectors = Vectors.enter(call, x, dim, on_failure, solution)
    r, rows = vectors.positive("radius", radius), vectors.rows

    def tau(y: Tensor) -> Tensor:
        support = y.detach() > 0
        over = torch.where(support, rows, 0).sum(dim=1, keepdim=True) - r
        return torch.where(y.detach()[:, :1].isnan(), torch.nan, over / support.sum(dim=1, keepdim=True).clamp(min=1))

    def details(y: Tensor) -> Mapping[str, Tensor]:
        nu = tau(y)
        return {
            "feasibility": (y.detach().sum(dim=1) - r.detach().squeeze(1)).abs(),
            "equality_multipliers": nu,
            "inequality_multipliers": (nu - rows).clamp(min=0),
        }

    def compute() -> tuple[Tensor, ...]:
        return solve(Simplex(), rows, r)

    def notes() -> Mapping[str, Tensor]:
        plain = rows.detach()
        y = Simplex().solve((plain, r.detach()))[0]
        return {"with a coordinate at the threshold, which counts as outside": (plain == tau(y).detach()).any(dim=1)}

    return vectors.leave(compute, "Michelot", details, notes)


@overload
def entmax15(x: Tensor, dim: int = ..., *, on_failure: str = ..., solution: Literal[False] = ...) -> Tensor: ...
@overload
def entmax15(x: Tensor, dim: int = ..., *, on_failure: str = ..., solution: Literal[True]) -> Solution: ...
def entmax15(x: Tensor, dim: int = -1, *, on_failure: str = "warn", solution: bool = False) -> Tensor | Solution:
    r"""Returns probabilities between softmax and sparsemax: smooth at its kinks, with exact zeros.

    y = max(x / 2 - tau, 0)^2, the maximizer of ``x.y`` plus the Tsallis entropy of order 1.5. tau by Newton's method
    from below, which is monotone, and a last step that is exact on the support.

    Args:
        x: Scores along ``dim``, ``(*B, m)`` for the last axis.
        dim: Axis of the scores.
        on_failure: As of :func:`project_simplex`.
        solution: As of :func:`project_simplex`; tau is not among its fields.

    Returns:
        ``y``, shaped as ``x`` and of its dtype, non-negative, with sums 1.

    Raises:
        InvalidInputError: If an argument is wrong, or the vectors have no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the vector contains NaN or infinity.

    Gradients:
        Exact in ``x``, of every order and in every mode. Continuous; the second derivative has kinks where a
        coordinate enters the support, and is there that of the support without it.

    Example:
        >>> entmax15(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.6740, 0.3260, 0.0000])

    References:
        Peters, Niculae, Martins, Sparse Sequence-to-Sequence Models, 2019, where tau is found by a sort.
    """
    vectors = Vectors.enter("entmax15", x, dim, on_failure, solution)

    def details(y: Tensor) -> Mapping[str, Tensor]:
        plain = y.detach()
        entropy = 4 / 3 * (plain - plain.clamp(min=0).pow(1.5)).sum(dim=1)
        return {
            "objective": -(plain * vectors.rows.detach()).sum(dim=1) - entropy,
            "feasibility": (plain.sum(dim=1) - 1).abs(),
        }

    return vectors.leave(lambda: solve(Entmax15(), vectors.rows), "Newton", details)


@overload
def project_capped_simplex(
    x: Tensor,
    radius: float | Tensor = ...,
    upper: float | Tensor = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def project_capped_simplex(
    x: Tensor,
    radius: float | Tensor = ...,
    upper: float | Tensor = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def project_capped_simplex(
    x: Tensor,
    radius: float | Tensor = 1.0,
    upper: float | Tensor = 1.0,
    dim: int = -1,
    *,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the point with ``sum(y) = radius, 0 <= y <= upper`` nearest to each vector of ``x``.

    With ``upper=1`` and an integer radius k these are soft choices of k out of m. tau by Newton's method within a
    bracket, and a last step that is exact on the coordinates between their bounds.

    Args:
        x: Vectors along ``dim``, ``(*B, m)`` for the last axis.
        radius: Positive sum of each answer, broadcastable to ``(*B,)``.
        upper: Positive bound of the coordinates, possibly infinite: a number, or a tensor that broadcasts to ``x``.
        dim: Axis of the vectors.
        on_failure: What to do about vectors that fail: ``"warn"``, ``"raise"``, ``"nan"`` or ``"ignore"``. Those with
            a number that is not finite are NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; its fields are ``(*B,)``.

    Returns:
        ``y``, shaped as ``x`` and of its dtype, within the bounds, with sums ``radius``.

    Raises:
        InvalidInputError: If an argument is wrong, or the vectors have no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the vector contains NaN or infinity.
        INFEASIBLE: the bounds add up to less than the radius. The answer is ``upper``, which comes nearest.

    Gradients:
        Exact in ``x``, ``radius`` and ``upper``, of every order and in every mode; where a coordinate reaches a bound
        there is a kink, and it counts as bound.

    Example:
        >>> project_capped_simplex(torch.tensor([3.0, 0.9, 0.5, -1.0]), radius=2)
        tensor([1.0000, 0.7000, 0.3000, 0.0000])
    """
    vectors = Vectors.enter("project_capped_simplex", x, dim, on_failure, solution)
    r, cap = vectors.positive("radius", radius), vectors.beside("upper", upper, "positive")

    def details(y: Tensor) -> Mapping[str, Tensor]:
        return {"feasibility": (y.detach().sum(dim=1) - r.detach().squeeze(1)).abs()}

    return vectors.leave(lambda: solve(CappedSimplex(), vectors.rows, r, cap), "Newton", details)
