r"""Euclidean projection onto boxes and halfspaces.

Solve, for each vector of x::

    box        argmin_y  1/2 |y - x|^2   subject to   lower <= y <= upper
    halfspace  argmin_y  1/2 |y - x|^2   subject to   normal.y <= offset

The answers are ``min(max(x, lower), upper)`` and ``x - normal max(normal.x - offset, 0) / |normal|^2``. Both are
ordinary differentiable operations, and so is every derivative of theirs.
"""

from collections.abc import Mapping
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.reading import read
from torchddn.functional.projection.vectors import Vectors, safely
from torchddn.status import Solution

__all__ = ["project_box", "project_halfspace"]


@overload
def project_box(
    x: Tensor,
    lower: float | Tensor | None = ...,
    upper: float | Tensor | None = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def project_box(
    x: Tensor,
    lower: float | Tensor | None = ...,
    upper: float | Tensor | None = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def project_box(
    x: Tensor,
    lower: float | Tensor | None = None,
    upper: float | Tensor | None = None,
    dim: int = -1,
    *,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the point with ``lower <= y <= upper`` nearest to each vector of ``x``.

    Args:
        x: Vectors along ``dim``, ``(*B, m)`` for the last axis. The axis only says what counts as one item.
        lower: Lower bounds, possibly infinite: a number, a tensor that broadcasts to ``x``, or None for no bound.
        upper: Upper bounds, likewise, nowhere below the lower ones.
        dim: Axis of the vectors.
        on_failure: What to do about vectors with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; its fields are ``(*B,)``.

    Returns:
        ``y``, shaped as ``x`` and of its dtype (half precision computes in float32).

    Raises:
        InvalidInputError: If an argument is wrong, a lower bound is above the upper one, or there are no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the vector contains NaN or infinity.

    Gradients:
        Exact in ``x``, ``lower`` and ``upper``, of every order and in every mode. On a bound itself the gradient is
        that of the inside.

    Example:
        >>> project_box(torch.tensor([-1.0, 0.5, 3.0]), lower=0.0, upper=torch.tensor([1.0, 1.0, 2.0]))
        tensor([0.0000, 0.5000, 2.0000])
    """
    call = "project_box"
    vectors = Vectors.enter(call, x, dim, on_failure, solution)
    low = vectors.beside("lower", -torch.inf if lower is None else lower, "not NaN")
    high = vectors.beside("upper", torch.inf if upper is None else upper, "not NaN")

    def look(crossed: Tensor) -> None:
        if bool(crossed.any()):
            raise InvalidInputError(
                f"`{call}(lower=...)` must not be above `upper`, but is for {int(crossed.sum())} coordinates. Swap "
                f"the bounds there."
            )

    read(look, low > high)
    return vectors.leave(lambda: safely(vectors.rows, lambda rows: rows.clamp(low, high)), "clamp", lambda y: {})


@overload
def project_halfspace(
    x: Tensor,
    normal: Tensor,
    offset: float | Tensor = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def project_halfspace(
    x: Tensor,
    normal: Tensor,
    offset: float | Tensor = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def project_halfspace(
    x: Tensor,
    normal: Tensor,
    offset: float | Tensor = 0.0,
    dim: int = -1,
    *,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the point with ``normal.y <= offset`` nearest to each vector of ``x``.

    Args:
        x: Vectors along ``dim``, ``(*B, m)`` for the last axis.
        normal: Outward normal, not zero, a tensor that broadcasts to ``x``.
        offset: A number, or a tensor that broadcasts to ``(*B,)``.
        dim: Axis of the vectors.
        on_failure: As of :func:`project_box`.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; the multiplier has shape
            ``(*B, 1)``, other fields ``(*B,)``.

    Returns:
        ``y``, shaped as ``x`` and of its dtype (half precision computes in float32); ``x`` itself inside.

    Raises:
        InvalidInputError: If an argument is wrong, a normal is zero, or there are no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the vector contains NaN or infinity.

    Gradients:
        Exact in ``x``, ``normal`` and ``offset``, of every order and in every mode. The identity inside and on the
        boundary itself.

    Example:
        >>> project_halfspace(torch.tensor([3.0, 1.0]), normal=torch.tensor([1.0, 1.0]), offset=2.0)
        tensor([2., 0.])
    """
    call = "project_halfspace"
    vectors = Vectors.enter(call, x, dim, on_failure, solution)
    a, b = vectors.beside("normal", normal), vectors.numbers("offset", offset)
    size = a.detach().abs().amax(dim=1, keepdim=True)

    def look(size: Tensor) -> None:
        if bool((size == 0).any()):
            raise InvalidInputError(f"`{call}(normal=...)` must not be zero. Leave out vectors without a constraint.")

    read(look, size)

    # Divided by the largest entry of the normal, squares neither overflow nor vanish.
    u = a / size
    square = u.square().sum(dim=1, keepdim=True)

    def excess(rows: Tensor) -> Tensor:
        return (u * rows).sum(dim=1, keepdim=True) - b / size

    def project(rows: Tensor) -> Tensor:
        return rows - u * (excess(rows).relu() / square)

    def details(y: Tensor) -> Mapping[str, Tensor]:
        return {
            "inequality_multipliers": excess(vectors.rows).relu() / square / size,
            "feasibility": (excess(y) * size).detach().clamp(min=0).squeeze(1),
        }

    return vectors.leave(lambda: safely(vectors.rows, project), "closed form", details)
