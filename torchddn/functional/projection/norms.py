r"""Euclidean projection onto balls of weighted and grouped norms.

Solve, for each vector of x::

    weighted L1   argmin_y  1/2 |y - x|^2   subject to   sum_i w_i |y_i| <= radius
    L_{2,1}       argmin_y  1/2 |y - x|^2   subject to   sum_g |y_g|_2 <= radius,   y_g the groups of y

Weighted: with the multiplier tau, ``|y_i| = max(|x_i| - tau w_i, 0)``. With a mask ``s`` of the support, signed,
``q = s w`` and any direction v, from differentiating this and the constraint::

    Dy v = |s| v - q (q.v) / (q.q),     y_radius = q / (q.q),     Dy_w dw = -tau s dw - q ((|y| - tau w).dw) / (q.q)

Grouped: a group keeps its direction, and its length goes where the L1 ball sends the vector of all lengths.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_dims, check_floating
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.functional.projection.balls import L1
from torchddn.functional.projection.threshold import find_level
from torchddn.functional.projection.vectors import (
    Vectors,
    along,
    answer_of,
    clean,
    finite_rows,
    nan_unless,
    outline_of,
    safely,
)
from torchddn.status import Solution

__all__ = ["project_l21_ball", "project_weighted_l1_ball"]


@overload
def project_weighted_l1_ball(
    x: Tensor,
    weights: float | Tensor,
    radius: float | Tensor = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def project_weighted_l1_ball(
    x: Tensor,
    weights: float | Tensor,
    radius: float | Tensor = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def project_weighted_l1_ball(
    x: Tensor,
    weights: float | Tensor,
    radius: float | Tensor = 1.0,
    dim: int = -1,
    *,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the point with ``sum(weights * |y|) <= radius`` nearest to each vector of ``x``.

    tau by Newton's method, which ends after finitely many steps with the exact answer. A weight of zero leaves its
    coordinate alone.

    Args:
        x: Vectors along ``dim``, ``(*B, m)`` for the last axis.
        weights: Non-negative: a number, or a tensor that broadcasts to ``x``.
        radius: Positive, broadcastable to ``(*B,)``.
        dim: Axis of the vectors.
        on_failure: What to do about vectors with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; its fields are ``(*B,)``.

    Returns:
        ``y``, shaped as ``x`` and of its dtype (half precision computes in float32); ``x`` itself inside.

    Raises:
        InvalidInputError: If an argument is wrong, or the vectors have no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the vector contains NaN or infinity.

    Gradients:
        Exact in ``x``, ``weights`` and ``radius``, of every order and in every mode. The identity inside and on the
        boundary itself; where a coordinate enters the support there is a kink, and it counts as outside.

    Example:
        >>> project_weighted_l1_ball(torch.tensor([3.0, -1.0, 0.2]), torch.tensor([1.0, 2.0, 0.0]), radius=2.0)
        tensor([2.0000, 0.0000, 0.2000])
    """
    vectors = Vectors.enter("project_weighted_l1_ball", x, dim, on_failure, solution)
    w, r = vectors.beside("weights", weights, "non-negative and finite"), vectors.positive("radius", radius)

    def details(y: Tensor) -> Mapping[str, Tensor]:
        excess = (w.detach() * y.detach().abs()).sum(dim=1) - r.detach().squeeze(1)
        return {"feasibility": excess.clamp(min=0)}

    return vectors.leave(lambda: solve(WeightedL1Ball(), vectors.rows, w, r), "Newton", details)


@dataclasses.dataclass(frozen=True)
class WeightedL1Ball:
    """The formula of ``y`` from ``x`` and ``w``, ``(R, m)``, and ``radius``, ``(R, 1)``."""

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``, status, steps, violation."""
        x, w, radius = inputs
        a = x.abs()
        finite = finite_rows(a)
        excess = (a * w).sum(dim=1, keepdim=True) - radius
        # The level of a / w with weights w^2. Taken from the largest, the numbers of the support are small.
        bears = w > 0
        ratio = torch.where(bears, a / torch.where(bears, w, 1), -torch.inf)
        largest, j = ratio.max(dim=1, keepdim=True)
        below = ratio - torch.where(largest.isfinite(), largest, 0)
        level, num_steps = find_level(below, radius, -radius / w.gather(1, j).square(), w.square())
        num_steps = torch.where((excess > 0).squeeze(1), num_steps, 0)
        cut = torch.where(bears, w * (below - nan_unless(finite, level)).clamp_(min=0), a)
        inside = nan_unless(finite, x)
        return answer_of(torch.where(excess > 0, cut * x.sign() + 0.0, inside), finite, num_steps)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return outline_of(inputs[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        y, kept, failed = clean(y, v)
        s, q, square, tau, stays = self._parts(y, inputs)
        dradius = along(q, v, failed) / square
        dx = kept * stays - q * dradius if needed[0] else None
        dw = -tau * s * kept - (y.abs() - tau * q.abs()) * dradius * s.abs() if needed[1] else None
        return dx, dw, dradius

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        dx, dw, dradius = tangents
        dx = torch.zeros_like(y) if dx is None else dx
        y, kept, failed = clean(y, dx)
        s, q, square, tau, stays = self._parts(y, inputs)
        share = along(q, dx, failed)
        pushed = kept * stays
        if dw is not None:
            dw = torch.where(failed, 0, dw)
            share = share + ((y.abs() - tau * q.abs()) * s.abs() * dw).sum(dim=1, keepdim=True)
            pushed = pushed - tau * s * dw
        if dradius is not None:
            share = share - torch.where(failed, 0, dradius)
        return pushed - q * (share / square)

    def _parts(self, y: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """``s``, ``q``, ``q.q``, ``tau``, and the mask of the coordinates that follow x."""
        x, w, radius = inputs
        x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
        outside = ((x.detach().abs() * w.detach()).sum(dim=1, keepdim=True) > radius.detach()).to(y.dtype)
        sign = y.detach().sign()
        s = sign * outside
        q = s * w
        square = q.square().sum(dim=1, keepdim=True)
        square = torch.where(square > 0, square, 1)
        # tau times q.q is q.(x - y).
        tau = (q * (x - y)).sum(dim=1, keepdim=True) / square
        free = 1 - w.detach().sign()
        return s, q, square, tau, 1 - outside * (1 - torch.maximum(sign.abs(), free))


@overload
def project_l21_ball(
    x: Tensor,
    radius: float | Tensor = ...,
    dim: int = ...,
    group_dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def project_l21_ball(
    x: Tensor,
    radius: float | Tensor = ...,
    dim: int = ...,
    group_dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def project_l21_ball(
    x: Tensor,
    radius: float | Tensor = 1.0,
    dim: int = -1,
    group_dim: int = -2,
    *,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the point with ``sum_g |y_g|_2 <= radius`` nearest to each set of groups: whole groups become zero.

    Args:
        x: Groups, ``(*B, g, m)`` for the last axes.
        radius: Positive, broadcastable to ``(*B,)``.
        dim: Axis along which the coordinates of a group lie.
        group_dim: Axis along which the groups lie.
        on_failure: As of :func:`project_weighted_l1_ball`; an item is the set of all groups.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; its fields are ``(*B,)``.

    Returns:
        ``y``, shaped as ``x`` and of its dtype (half precision computes in float32); ``x`` itself inside.

    Raises:
        InvalidInputError: If an argument is wrong, or there are no groups or no coordinates.
        SolveError: If an item fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the item contains NaN or infinity.

    Gradients:
        Exact in ``x`` and ``radius``, of every order and in every mode. The identity inside and on the boundary
        itself; zero for a group that is zero in y, or outside for one that is zero in x.

    Example:
        >>> project_l21_ball(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), radius=2.0)
        tensor([[1.2000, 1.6000],
                [0.0000, 0.0000]])
    """
    call = "project_l21_ball"
    check_floating(call, "x", x, "(*B, g, m)", 2)
    check_dims(call, (group_dim, dim), x.dim())
    moved = x.movedim((group_dim, dim), (-2, -1))
    num_groups, m = moved.shape[-2:]
    if not (num_groups and m):
        raise InvalidInputError(f"`{call}(x=...)` must have groups with coordinates, got shape {tuple(x.shape)}.")
    vectors = Vectors.enter(call, moved.flatten(-2), -1, on_failure, solution)
    r = vectors.positive("radius", radius)

    def project(rows: Tensor) -> Tensor:
        groups = rows.unflatten(1, (num_groups, m))
        length = _length(groups)
        zero = length.detach() == 0
        shorter = solve(L1(ball=True, plateau="zero"), length, r)[0]
        return (groups * (shorter / torch.where(zero, 1, length)).masked_fill(zero, 1).unsqueeze(2)).flatten(1)

    def details(y: Tensor) -> Mapping[str, Tensor]:
        lengths = _length(y.detach().unflatten(1, (num_groups, m)))
        return {"feasibility": (lengths.sum(dim=1) - r.detach().squeeze(1)).clamp(min=0)}

    found = vectors.leave(lambda: safely(vectors.rows, project), "L21", details)
    restore = lambda y: y.unflatten(-1, (num_groups, m)).movedim((-2, -1), (group_dim, dim))  # noqa: E731
    return dataclasses.replace(found, y=restore(found.y)) if isinstance(found, Solution) else restore(found)


def _length(groups: Tensor) -> Tensor:
    """``|x_g|``, ``(R, g)``, without overflow; zero groups have derivatives of zero."""
    size = groups.detach().abs().amax(dim=2, keepdim=True)
    zero = size == 0
    length = torch.linalg.vector_norm(torch.where(zero, 1, groups) / torch.where(zero, 1, size), dim=2, keepdim=True)
    return torch.where(zero, 0, size * length).squeeze(2)
