r"""Euclidean projection onto the second-order cone.

Solves, for each vector ``x = (t, u)``::

    y(x) = argmin_y  1/2 |y - x|^2   subject to   |y_u|_2 <= y_t

with the three cases::

    y = x                                    if  |u| <=  t:   inside
    y = 0                                    if  |u| <= -t:   in the polar cone
    y = (t + |u|) / 2  (1, u / |u|)          else

all of them ordinary differentiable operations, and so is every derivative.
"""

from collections.abc import Mapping
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.functional.projection.vectors import Vectors, safely
from torchddn.status import Solution

__all__ = ["project_second_order_cone"]


@overload
def project_second_order_cone(
    x: Tensor, dim: int = ..., *, on_failure: str = ..., solution: Literal[False] = ...
) -> Tensor: ...
@overload
def project_second_order_cone(
    x: Tensor, dim: int = ..., *, on_failure: str = ..., solution: Literal[True]
) -> Solution: ...
def project_second_order_cone(
    x: Tensor, dim: int = -1, *, on_failure: str = "warn", solution: bool = False
) -> Tensor | Solution:
    r"""Returns the point of the second-order cone nearest to each vector of ``x``.

    y(x) = argmin_y 1/2 |y - x|^2 subject to ``|(y_2, ..., y_m)|_2 <= y_1``: the bound comes first, as in the conic
    solvers. Closed form.

    Args:
        x: Vectors ``(t, u)`` along ``dim``, ``(*B, m)`` for the last axis; a single number is the bound t alone.
        dim: Axis of the vectors.
        on_failure: What to do about vectors with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; the multiplier of ``|u| <= t`` has
            shape ``(*B, 1)``, other fields ``(*B,)``.

    Returns:
        ``y``, shaped as ``x`` and of its dtype (half precision computes in float32); ``x`` itself inside, and zero for
        points of the polar cone, ``|u| <= -t``.

    Raises:
        InvalidInputError: If an argument is wrong, or the vectors have no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the vector contains NaN or infinity.

    Gradients:
        Exact in ``x``, of every order and in every mode. The identity inside and on the boundary itself, the apex
        included; zero in the polar cone and on its boundary.

    Example:
        >>> project_second_order_cone(torch.tensor([1.0, 3.0, 4.0]))
        tensor([3.0000, 1.8000, 2.4000])

    References:
        Bauschke, Projection Algorithms and Monotone Operators, 1996, theorem 3.3.6.
    """
    vectors = Vectors.enter("project_second_order_cone", x, dim, on_failure, solution)

    def details(y: Tensor) -> Mapping[str, Tensor]:
        plain = y.detach()
        excess = torch.linalg.vector_norm(plain[:, 1:], dim=1) - plain[:, 0]
        return {"inequality_multipliers": y[:, :1] - vectors.rows[:, :1], "feasibility": excess.clamp(min=0)}

    return vectors.leave(lambda: safely(vectors.rows, _nearest), "closed form", details)


def _nearest(rows: Tensor) -> Tensor:
    # The map is homogeneous: with the largest number as unit, squares neither overflow nor vanish.
    unit = rows.detach().abs().amax(dim=1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1)
    t, u = (rows / unit).split((1, rows.shape[1] - 1), dim=1)
    length = torch.linalg.vector_norm(u.detach(), dim=1, keepdim=True)
    inside, polar = length <= t, length <= -t
    # Where the third case does not count, it must not divide by zero, nor must its derivatives.
    counts = ~(inside | polar)
    safe = torch.where(counts, u.square().sum(dim=1, keepdim=True), 1).sqrt()
    bound = (t + safe) / 2
    edge = torch.cat([bound, bound * (u / safe)], dim=1) * unit
    return torch.where(inside, rows, torch.where(polar, 0, edge))
