r"""Euclidean projection onto the monotone cone, and isotonic regression, by the method of ``segments.py``."""

from collections.abc import Mapping
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.functional.nodes.arguments import check_flag, check_positive
from torchddn.functional.nodes.handmade import solve
from torchddn.functional.projection.segments import MonotoneCone
from torchddn.functional.projection.vectors import Vectors
from torchddn.status import Solution

__all__ = ["isotonic_regression", "project_monotone"]


@overload
def project_monotone(
    x: Tensor, dim: int = ..., increasing: bool = ..., *, on_failure: str = ..., solution: Literal[False] = ...
) -> Tensor: ...
@overload
def project_monotone(
    x: Tensor, dim: int = ..., increasing: bool = ..., *, on_failure: str = ..., solution: Literal[True]
) -> Solution: ...
def project_monotone(
    x: Tensor, dim: int = -1, increasing: bool = True, *, on_failure: str = "warn", solution: bool = False
) -> Tensor | Solution:
    r"""Returns the nondecreasing vector nearest to each vector of ``x``.

    y(x) = argmin_y 1/2 |y - x|^2 subject to ``y_1 <= y_2 <= ... <= y_m``: isotonic regression. Exact, in O(m log m)
    at most, for all vectors at once.

    Args:
        x: Vectors along ``dim``, ``(*B, m)`` for the last axis.
        dim: Axis of the vectors.
        increasing: Whether y is to be nondecreasing; False stands for nonincreasing.
        on_failure: What to do about vectors with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; the multipliers of the ``m - 1``
            inequalities have shape ``(*B, m - 1)``, other fields ``(*B,)``.

    Returns:
        ``y``, shaped as ``x`` and of its dtype (half precision computes in float32), the mean of x over each of its
        constant segments.

    Raises:
        InvalidInputError: If an argument is wrong, or the vectors have no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the vector contains NaN or infinity.

    Gradients:
        Exact in ``x``, in every mode: the mean of the incoming gradient over each segment. Higher derivatives are
        zero. Where neighboring segments have the same mean there is a kink, and they count as one.

    Example:
        >>> project_monotone(torch.tensor([1.0, 3.0, 2.0, 4.0, 0.0]))
        tensor([1.0000, 2.2500, 2.2500, 2.2500, 2.2500])

    References:
        Barlow, Bartholomew, Bremner, Brunk, Statistical Inference under Order Restrictions, 1972.
    """
    return _regress("project_monotone", x, None, increasing, dim, on_failure, solution)


@overload
def isotonic_regression(
    x: Tensor,
    weights: float | Tensor | None = ...,
    increasing: bool = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def isotonic_regression(
    x: Tensor,
    weights: float | Tensor | None = ...,
    increasing: bool = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def isotonic_regression(
    x: Tensor,
    weights: float | Tensor | None = None,
    increasing: bool = True,
    dim: int = -1,
    *,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the nondecreasing vector that fits each vector of ``x`` best in the sense of weighted least squares.

    y(x, w) = argmin_y 1/2 sum_i w_i (y_i - x_i)^2 subject to ``y_1 <= y_2 <= ... <= y_m``. Exact, in O(m log m) at
    most, for all vectors at once. With equal weights it is :func:`project_monotone`.

    Args:
        x: Vectors along ``dim``, ``(*B, m)`` for the last axis.
        weights: Positive: a number, a tensor that broadcasts to ``x``, or None for ones.
        increasing: Whether y is to be nondecreasing; False stands for nonincreasing.
        dim: Axis of the vectors.
        on_failure: As of :func:`project_monotone`.
        solution: As of :func:`project_monotone`.

    Returns:
        ``y``, shaped as ``x`` and of its dtype (half precision computes in float32), the weighted mean of x over each
        of its constant segments.

    Raises:
        InvalidInputError: If an argument is wrong, or the vectors have no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the vector contains NaN or infinity.

    Gradients:
        Exact in ``x`` and ``weights``, of every order and in every mode. Where neighboring segments have the same mean
        there is a kink, and they count as one.

    Example:
        >>> isotonic_regression(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([1.0, 1.0, 3.0]))
        tensor([1.0000, 2.2500, 2.2500])

    References:
        Barlow, Bartholomew, Bremner, Brunk, Statistical Inference under Order Restrictions, 1972.
    """
    return _regress("isotonic_regression", x, weights, increasing, dim, on_failure, solution)


def _regress(
    call: str,
    x: Tensor,
    weights: float | Tensor | None,
    increasing: bool,
    dim: int,
    on_failure: str,
    solution: bool,
) -> Tensor | Solution:
    vectors = Vectors.enter(call, x, dim, on_failure, solution)
    check_flag(call, "increasing", increasing)
    sign = 1.0 if increasing else -1.0
    given: tuple[Tensor, ...] = ()
    if weights is not None:
        check_positive(call, "weights", weights, x.device)
        given = (vectors.beside("weights", weights),)

    def compute() -> tuple[Tensor, ...]:
        if increasing:
            return solve(MonotoneCone(), vectors.rows, *given)
        y, *others = solve(MonotoneCone(), -vectors.rows, *given)
        return -y, *others

    def details(y: Tensor) -> Mapping[str, Tensor]:
        # w (y - x) + lam_i - lam_(i-1) = 0 for the constraints y_i - y_(i+1) <= 0.
        pull = vectors.rows - y
        lam = sign * (given[0] * pull if given else pull).cumsum(dim=1)[:, :-1]
        violation = (-sign * y.detach().diff(dim=1)).clamp(min=0)
        fields = {
            "inequality_multipliers": lam.clamp(min=0),
            "feasibility": torch.cat([violation, violation.new_zeros(len(y), 1)], dim=1).amax(dim=1),
        }
        if given:
            fields["objective"] = (given[0] * pull.square()).detach().sum(dim=1) / 2
        return fields

    return vectors.leave(compute, "pooling", details)
