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
* other p > 1: :mod:`torchddn.functional._lp`.

A coordinate that is zero counts as positive when it has to move outward.

References:
    Gould, Hartley, Campbell, Deep Declarative Networks, section 5.2 and table 1. Their gradient of the ball is zero
    inside; the projection is the identity there, and so is its derivative. Duchi, Shalev-Shwartz, Singer, Chandra,
    Efficient Projections onto the l1-Ball, 2008.
"""

import math
import numbers
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from torchddn.compiler import uncompiled
from torchddn.diagnostics import timed
from torchddn.errors import InvalidInputError
from torchddn.functional._arguments import check_choice, check_dims, check_flag, check_floating, positive, wide
from torchddn.functional._handmade import solve
from torchddn.functional._lp import LpSphere, lp_norm, multiplier
from torchddn.functional._outcome import conclude, solution_of
from torchddn.status import Solution, Status, check_failure_policy

__all__ = ["project_ball", "project_sphere"]

PLATEAUS = ("zero", "clarke")


@overload
def project_sphere(
    x: Tensor,
    p: float = ...,
    radius: float | Tensor = ...,
    dim: int = ...,
    *,
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
    plateau: str = ...,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
@uncompiled
def project_sphere(
    x: Tensor,
    p: float = 2,
    radius: float | Tensor = 1.0,
    dim: int = -1,
    *,
    plateau: str = "zero",
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the point of the sphere ``|y|_p = radius`` nearest to each vector of ``x``.

    Exact for p = 1 (by sorting, O(m log m)), 2 and inf. For any other p > 1 by Newton's method on the multiplier,
    within a bracket, to machine precision; from inside with p > 2, where several points can be stationary, by a scan of
    64 values of the largest coordinate first, which tells minima apart down to that distance.

    Where several points are nearest, the answer is: from the center, the first axis (2 <= p <= inf) or the diagonal
    (p < 2), in positive direction; from inside with p > 2 and several largest ``|x_i|``, that which moves the
    first of them.

    Args:
        x: Vectors along ``dim``, ``(*B, m)`` for the last axis.
        p: 1, 2, ``float("inf")``, or any number above 1.
        radius: Positive, broadcastable to ``(*B,)``.
        dim: Axis of the vectors.
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
        Exact in ``x`` and ``radius``, of every order and in every mode; see ``plateau``. At the center of the L2
        sphere zero in ``x``, the one of minimum norm. A vector that is not finite has gradient zero.

    Example:
        >>> project_sphere(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
        >>> project_sphere(torch.tensor([0.5, -2.0, 1.0, 0.1]), p=float("inf"))
        tensor([ 0.5000, -1.0000,  1.0000,  0.1000])

    References:
        Gould, Hartley, Campbell, Deep Declarative Networks, section 5.2 and table 1, where ``"zero"`` is D^z y.
    """
    return _project("project_sphere", x, p, radius, dim, plateau, on_failure, solution, ball=False)


@overload
def project_ball(
    x: Tensor,
    p: float = ...,
    radius: float | Tensor = ...,
    dim: int = ...,
    *,
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
    plateau: str = ...,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
@uncompiled
def project_ball(
    x: Tensor,
    p: float = 2,
    radius: float | Tensor = 1.0,
    dim: int = -1,
    *,
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
    return _project("project_ball", x, p, radius, dim, plateau, on_failure, solution, ball=True)


class _Projection(NamedTuple):
    """``y``, ``(R, m)``, and ``nu``, ``(R, 1)``, both differentiable; status, steps and violation, ``(R,)``."""

    y: Tensor
    nu: Tensor
    status: Tensor
    num_steps: Tensor
    violation: Tensor


def _project(
    call: str,
    x: Tensor,
    p: float,
    radius: float | Tensor,
    dim: int,
    plateau: str,
    on_failure: str,
    solution: bool,
    *,
    ball: bool,
) -> Tensor | Solution:
    check_floating(call, "x", x, "(*B, m)", 1)
    check_norm(call, p)
    if isinstance(dim, tuple | list):
        raise InvalidInputError(f"`{call}(dim=...)` must be one integer, got {dim!r}. Flatten the axes of the vector.")
    (axis,) = check_dims(call, dim, x.dim())
    check_choice(call, "plateau", plateau, PLATEAUS)
    check_failure_policy(call, on_failure)
    check_flag(call, "solution", solution)
    moved = wide(x).movedim(axis, -1)
    if moved.shape[-1] == 0:
        raise InvalidInputError(f"`{call}(x=...)` must have coordinates along dim={dim}, got shape {tuple(x.shape)}.")
    batch, m = moved.shape[:-1], moved.shape[-1]
    radius = positive(call, "radius", radius, batch, moved).reshape(-1, 1)
    rows = moved.reshape(-1, m)
    size = rows.detach().abs().amax(dim=1, keepdim=True)
    finite = size.isfinite()
    project = {1: _onto_l1, 2: _onto_l2, math.inf: _onto_linf}.get(p, _onto_lp)
    rows, size = torch.where(finite, rows, 0), torch.where(finite, size, 0)
    solver = f"L{p}"
    with timed() as file:
        found = project(rows, radius, size, p, plateau, ball)
        y = torch.where(finite, found.y, torch.nan)
        status = torch.where(finite.squeeze(1), found.status, int(Status.NON_FINITE))
        violation = torch.where(finite.squeeze(1), found.violation, torch.nan)
        y = conclude(call, y, status, violation, on_failure, num_steps=found.num_steps, solver=solver, file=file)
    result = y.reshape(*batch, m).movedim(-1, axis).to(x.dtype)
    if not solution:
        return result
    plain = y.detach()
    norm = lp_norm(plain, float(p)) - radius.detach()
    nu = torch.where(finite, found.nu.clamp(min=0) if ball else found.nu, torch.nan)
    numbers = {
        "objective": (plain - rows.detach()).square().sum(dim=1) / 2,
        "status": status,
        "num_steps": found.num_steps,
        "stationarity": torch.zeros_like(violation),
        "feasibility": (norm.clamp(min=0) if ball else norm.abs()).squeeze(1),
        "complementarity": (nu.detach() * norm).abs().squeeze(1) if ball else torch.zeros_like(violation),
    }
    multipliers = {"inequality_multipliers" if ball else "equality_multipliers": nu.reshape(*batch, 1)}
    fields = {name: tensor.reshape(batch) for name, tensor in numbers.items()}
    return solution_of(result, **fields, **multipliers, solver=solver)


def check_norm(call: str, p: object) -> None:
    if not isinstance(p, numbers.Real) or isinstance(p, bool):
        raise InvalidInputError(f"`{call}(p=...)` must be a number, got {p!r}.")
    if not float(p) >= 1:
        raise InvalidInputError(
            f'`{call}(p=...)` must be at least 1, got {p}; use 1, 2, `float("inf")` or any number between.'
        )


def _onto_l2(x: Tensor, radius: Tensor, size: Tensor, p: float, plateau: str, ball: bool) -> _Projection:
    # Dividing by the largest coordinate first keeps squares from overflowing, and as a constant it changes no
    # derivative, because y does not depend on the length of x.
    regular = size > 0
    size = torch.where(regular, size, 1)
    direction = torch.where(regular, x / size, _first_axis(x))
    length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    nu = torch.where(regular, size * length, 0) - radius
    y = direction * (radius / length)
    return _exact(torch.where(nu <= 0, x, y) if ball else y, nu)


def _onto_l1(x: Tensor, radius: Tensor, size: Tensor, p: float, plateau: str, ball: bool) -> _Projection:
    # Taken from the largest |x_i|, the numbers of the support are no larger than the radius, and so are their errors.
    s = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
    shifted = x - s * size
    below = s * shifted.detach()  # |x_i| - max |x_i|
    descending = below.sort(dim=1, descending=True).values
    count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    # The k largest are the support for the last k at which the k-th is above the level of the first k.
    level = (descending.cumsum(dim=1) - radius.detach()) / count
    k = (descending > level).sum(dim=1, keepdim=True).clamp(min=1)
    support = below >= descending.gather(1, k - 1)
    level = (torch.where(support, s * shifted, 0).sum(dim=1, keepdim=True) - radius) / support.sum(dim=1, keepdim=True)
    nu = size + level
    elsewhere = torch.zeros_like(x) if plateau == "zero" else x - x.detach()
    y = torch.where(support, shifted - s * level, elsewhere)
    return _exact(torch.where(nu <= 0, x, y) if ball else y, nu)


def _onto_linf(x: Tensor, radius: Tensor, size: Tensor, p: float, plateau: str, ball: bool) -> _Projection:
    a = x.detach().abs()
    if ball:
        clipped = a > radius.detach()
    else:
        largest = torch.zeros_like(a, dtype=torch.bool).scatter(1, a.argmax(dim=1, keepdim=True), True)
        clipped = torch.where(size >= radius.detach(), a >= radius.detach(), largest)
    s = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
    along = torch.where(clipped, s * x, 0).sum(dim=1, keepdim=True)
    num_clipped = clipped.sum(dim=1, keepdim=True)
    nu = along - num_clipped * radius
    face = s * radius
    if plateau == "clarke":
        slack = x - s * along / num_clipped.clamp(min=1)
        face = face + (slack - slack.detach())
    return _exact(torch.where(clipped, face, x), nu)


def _onto_lp(x: Tensor, radius: Tensor, size: Tensor, p: float, plateau: str, ball: bool) -> _Projection:
    scaled = x / radius
    regular = scaled.detach().isfinite().all(dim=1, keepdim=True)
    inside = lp_norm(torch.where(regular, scaled.detach(), 0), p) <= 1
    # A point that takes one step stands in for those that are not projected.
    solved = regular & ~inside if ball else regular
    scaled = torch.where(solved, scaled, 2 * _first_axis(x))
    unit, status, num_steps, violation = solve(LpSphere(float(p)), scaled)
    # Where x / radius overflows there is no answer in this precision.
    status = torch.where(regular.squeeze(1), status, int(Status.STALLED))
    nu = radius * torch.where(solved, multiplier(unit, scaled, float(p))[1], 0)
    y = torch.where(inside, x, radius * unit) if ball else radius * unit
    return _Projection(y, nu, status, num_steps, violation)


def _exact(y: Tensor, nu: Tensor) -> _Projection:
    zeros = torch.zeros_like(nu.detach().squeeze(1))
    integers = torch.zeros_like(zeros, dtype=torch.int64)
    return _Projection(y, nu, integers + int(Status.CONVERGED), integers, zeros)


def _first_axis(x: Tensor) -> Tensor:
    """``e_1``, shaped so that it broadcasts with ``x``."""
    return torch.eye(1, x.shape[1], dtype=x.dtype, device=x.device)
