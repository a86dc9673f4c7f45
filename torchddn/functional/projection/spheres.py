r"""Euclidean projection onto spheres and balls of the Lp norms.

Solves, for each vector of x::

    y(x) = argmin_y  1/2 |y - x|^2   subject to   |y|_p = radius   (sphere)   or   |y|_p <= radius   (ball)

With the multiplier ``nu`` of ``|y|_p`` and a (sub)gradient ``s`` of the norm at y, ``y = x - nu s``: from outside
``nu > 0``, from inside ``nu < 0``, where the sphere is not a convex problem. The nearest point is then:

* p = 2: ``radius x / |x|``; from the center any point, here the first axis.
* p = 1: The sphere consists of the hyperplanes ``sum_i s_i y_i = radius``, ``s_i = +-1``, each restricted to the
  points with signs s. From inside, at distance ``(radius - s.x) / sqrt(m)``, the nearest is that with the signs of x,
  and moving there, along s, keeps them. So from inside as from outside ``|y_i| = max(|x_i| - nu, 0)``, where nu makes
  the sum right; from inside it is negative and every coordinate moves outward by the same amount.
* p = inf: From outside, every coordinate is clipped. From inside, the nearest face is that of the largest ``|x_i|``.
* other p > 1: ``lp.py``.

With a center c it is ``c + y(x - c)``. A coordinate that is zero counts as positive when it has to move outward.

References:
    Gould, Hartley, Campbell, Deep Declarative Networks, section 5.2 and table 1. Their gradient of the ball is zero
    inside; the projection is the identity there, and so is its derivative. Duchi, Shalev-Shwartz, Singer, Chandra,
    Efficient Projections onto the l1-Ball, 2008.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_choice
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.functional.projection.balls import L1, L2, Linf
from torchddn.functional.projection.lp import LpSphere, lp_norm, multiplier
from torchddn.functional.projection.vectors import Vectors
from torchddn.status import Solution, Status

__all__ = ["project_ball", "project_sphere"]

PLATEAUS = ("zero", "clarke")


@overload
def project_sphere(
    x: Tensor,
    p: float = ...,
    radius: float | Tensor = ...,
    dim: int = ...,
    *,
    center: float | Tensor | None = ...,
    plateau: str = ...,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def project_sphere(
    x: Tensor,
    p: float = ...,
    radius: float | Tensor = ...,
    dim: int = ...,
    *,
    center: float | Tensor | None = ...,
    plateau: str = ...,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def project_sphere(
    x: Tensor,
    p: float = 2,
    radius: float | Tensor = 1.0,
    dim: int = -1,
    *,
    center: float | Tensor | None = None,
    plateau: str = "zero",
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the point of the sphere ``|y|_p = radius`` nearest to each vector of ``x``.

    Exact for p = 1, 2 and inf, in a few passes over the data; p = 1 by Newton's method on the level to which the
    coordinates are cut, which ends after finitely many steps (up to 32 coordinates by a sort). For any other p > 1
    by Newton's method on the multiplier, within a bracket, to machine precision; from inside with p > 2, where several
    points can be stationary, by a scan of 64 values of the largest coordinate first, which tells minima apart down to
    that distance.

    Where several points are nearest, the answer is: from the center, the first axis (2 <= p <= inf) or the diagonal
    (p < 2), in positive direction; from inside with p > 2 and several largest ``|x_i|``, that which moves the
    first of them. Under :func:`torchddn.diagnostics` the record tells of such vectors.

    Args:
        x: Vectors along ``dim``, ``(*B, m)`` for the last axis.
        p: 1, 2, ``float("inf")``, or any number above 1.
        radius: Positive, broadcastable to ``(*B,)``.
        dim: Axis of the vectors.
        center: Of the sphere: a number, or a tensor that broadcasts to ``x``; None stands for zero. Then
            ``|y - center|_p = radius``, and what is said of x here holds of ``x - center``.
        plateau: What the gradient says of coordinates at which a small change of x changes nothing (p = 1: those that
            are zero in y; p = inf: those that are clipped). ``"zero"``: that, which is the derivative of y.
            ``"clarke"``: ``I - s s^T / (s^T s)``, the derivative without these inequalities, which keeps a direction
            of descent for them.
        on_failure: What to do about vectors with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; the multiplier ``nu`` has shape
            ``(*B, 1)``, other fields ``(*B,)``.

    Returns:
        ``y``, shaped as ``x`` and of its dtype (half precision computes in float32), with ``|y|_p = radius``.

    Raises:
        InvalidInputError: If an argument is wrong, or the vectors have no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the vector contains NaN or infinity.
        STALLED: p other than 1, 2, inf only: p or x / radius is too extreme for this precision. Try float64.

    Gradients:
        Exact in ``x``, ``radius`` and ``center``, of every order and in every mode; see ``plateau``. At the center of
        the L2 sphere zero in ``x``, the one of minimum norm. A vector that is not finite has gradient zero.

    Example:
        >>> project_sphere(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
        >>> project_sphere(torch.tensor([0.5, -2.0, 1.0, 0.1]), p=float("inf"))
        tensor([ 0.5000, -1.0000,  1.0000,  0.1000])

    References:
        Gould, Hartley, Campbell, Deep Declarative Networks, section 5.2 and table 1, where ``"zero"`` is D^z y.
    """
    return _project("project_sphere", x, p, radius, dim, center, plateau, on_failure, solution, ball=False)


@overload
def project_ball(
    x: Tensor,
    p: float = ...,
    radius: float | Tensor = ...,
    dim: int = ...,
    *,
    center: float | Tensor | None = ...,
    plateau: str = ...,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def project_ball(
    x: Tensor,
    p: float = ...,
    radius: float | Tensor = ...,
    dim: int = ...,
    *,
    center: float | Tensor | None = ...,
    plateau: str = ...,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def project_ball(
    x: Tensor,
    p: float = 2,
    radius: float | Tensor = 1.0,
    dim: int = -1,
    *,
    center: float | Tensor | None = None,
    plateau: str = "zero",
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the point of the ball ``|y|_p <= radius`` nearest to each vector of ``x``.

    ``x`` itself inside, on the sphere :func:`project_sphere` otherwise. The problem is convex and the answer unique.

    Args:
        x: Vectors along ``dim``, ``(*B, m)`` for the last axis.
        p: 1, 2, ``float("inf")``, or any number above 1.
        radius: Positive, broadcastable to ``(*B,)``.
        dim: Axis of the vectors.
        center: As of :func:`project_sphere`.
        plateau: As of :func:`project_sphere`; plays no part inside.
        on_failure: As of :func:`project_sphere`.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; the multiplier ``lam >= 0`` has
            shape ``(*B, 1)``, other fields ``(*B,)``.

    Returns:
        ``y``, shaped as ``x`` and of its dtype, with ``|y|_p <= radius``.

    Raises:
        InvalidInputError: If an argument is wrong, or the vectors have no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE, STALLED: As of :func:`project_sphere`.

    Gradients:
        The identity inside and on the sphere itself, where the projection has a kink; that of
        :func:`project_sphere` outside.

    Example:
        >>> project_ball(torch.tensor([[0.3, 0.4], [3.0, 4.0]]))
        tensor([[0.3000, 0.4000],
                [0.6000, 0.8000]])

    References:
        Gould, Hartley, Campbell, Deep Declarative Networks, section 5.2, where the gradient inside is zero: a slip.
    """
    return _project("project_ball", x, p, radius, dim, center, plateau, on_failure, solution, ball=True)


def _project(
    call: str,
    x: Tensor,
    p: float,
    radius: float | Tensor,
    dim: int,
    center: float | Tensor | None,
    plateau: str,
    on_failure: str,
    solution: bool,
    *,
    ball: bool,
) -> Tensor | Solution:
    vectors = Vectors.enter(call, x, dim, on_failure, solution)
    check_norm(call, p)
    check_choice(call, "plateau", plateau, PLATEAUS)
    r = vectors.positive("radius", radius)
    c = None if center is None else vectors.beside("center", center)
    rows = vectors.rows if c is None else vectors.rows - c
    if p == 2:
        formula = L2(ball)
    else:
        formula = {1: L1, math.inf: Linf}[p](ball, plateau) if p in (1, math.inf) else None

    def compute() -> Answer:
        y, *others = _onto_lp(rows, r, float(p), ball) if formula is None else solve(formula, rows, r)
        if c is None:
            return y, *others
        # The gradient of a vector that failed does not reach the center either.
        return torch.where(y.detach()[:, :1].isnan(), 0, c) + y, *others

    def details(y: Tensor) -> Mapping[str, Tensor]:
        at = y if c is None else y - c
        failed = y.detach()[:, :1].isnan()
        norm = lp_norm(at.detach(), float(p)) - r.detach()
        nu = torch.where(failed, torch.nan, _multiplier(at, torch.where(failed, 1, rows), r, float(p), ball))
        return {
            "feasibility": (norm.clamp(min=0) if ball else norm.abs()).squeeze(1),
            "complementarity": (nu.detach() * norm).abs().squeeze(1) if ball else torch.zeros_like(norm.squeeze(1)),
            "inequality_multipliers" if ball else "equality_multipliers": nu,
        }

    return vectors.leave(compute, f"L{p}", details, lambda: _choices(rows.detach(), r.detach(), float(p), ball))


def check_norm(call: str, p: object) -> None:
    if not isinstance(p, numbers.Real) or isinstance(p, bool):
        raise InvalidInputError(f"`{call}(p=...)` must be a number, got {p!r}.")
    if not float(p) >= 1:
        raise InvalidInputError(
            f'`{call}(p=...)` must be at least 1, got {p}; use 1, 2, `float("inf")` or any number between.'
        )


def _onto_lp(x: Tensor, radius: Tensor, p: float, ball: bool) -> Answer:
    finite = x.detach().isfinite().all(dim=1, keepdim=True)
    x = torch.where(finite, x, 0)
    scaled = x / radius
    regular = scaled.detach().isfinite().all(dim=1, keepdim=True)
    inside = lp_norm(torch.where(regular, scaled.detach(), 0), p) <= 1
    # A point that takes one step stands in for those that are not projected.
    solved = regular & ~inside if ball else regular
    stand_in = 2 * torch.eye(1, x.shape[1], dtype=x.dtype, device=x.device)
    unit, status, num_steps, violation = solve(LpSphere(p), torch.where(solved, scaled, stand_in))
    # Where x / radius overflows there is no answer in this precision.
    status = torch.where(regular.squeeze(1), status, int(Status.STALLED))
    status = torch.where(finite.squeeze(1), status, int(Status.NON_FINITE))
    y = torch.where(inside, x, radius * unit) if ball else radius * unit
    return torch.where(finite, y, torch.nan), status, num_steps, torch.where(finite.squeeze(1), violation, torch.nan)


def _multiplier(y: Tensor, x: Tensor, radius: Tensor, p: float, ball: bool) -> Tensor:
    """``nu``, ``(R, 1)``, differentiable, as the formulas of this file have it."""
    if p == 2:
        nu = lp_norm(x, 2) - radius
    elif p in (1, math.inf):
        along = torch.where(x < 0, -x, x)
        face = y.detach() != 0 if p == 1 else y.detach().abs() >= radius.detach()
        total, k = torch.where(face, along, 0).sum(dim=1, keepdim=True), face.sum(dim=1, keepdim=True)
        nu = (total - radius) / k.clamp(min=1) if p == 1 else total - k * radius
    else:
        nu = radius * multiplier(y / radius, x / radius, p)[1]
    return nu.clamp(min=0) if ball else nu


def _choices(x: Tensor, radius: Tensor, p: float, ball: bool) -> Mapping[str, Tensor]:
    """Where a choice was made among several answers or gradients, ``(R,)``."""
    size = lp_norm(x, p)
    on_sphere = (size == radius).squeeze(1)
    if ball:
        return {"on the sphere, the gradient is that of the inside": on_sphere}
    a = x.abs()
    ties = (a == a.amax(dim=1, keepdim=True)).sum(dim=1) > 1
    center = (a == 0).all(dim=1)
    inside = (size < radius).squeeze(1) & ~center
    remarks = {"at the center, the answer is one of many": center}
    if p == 1:
        remarks["inside with coordinates that are zero, which move in positive direction"] = inside & (a == 0).any(
            dim=1
        )
    if p > 2:
        remarks["inside with several largest coordinates, of which the first moves"] = inside & ties
    return remarks
