r"""Robust pooling: the mean, with a penalty that outliers cannot rule.

Solves, for numbers or for points ``x_i`` with weights ``c_i`` (one each unless given)::

    y(x) = argmin_y  sum_i c_i phi(|y - x_i|; alpha)

With ``r_i = y - x_i``, ``kappa1 = phi' / z``, ``kappa2 = (phi'' - phi' / z) / z^2`` and the incoming gradient ``v``::

    H w = v               H = sum_i c_i (kappa1(|r_i|) I + kappa2(|r_i|) r_i r_i^T)
    dJ/dx_i = c_i (kappa1(|r_i|) w + kappa2(|r_i|) (r_i.w) r_i),        dJ/dc_i = -kappa1(|r_i|) r_i.w

so the backward pass costs one pass over the points and one m x m system, and stores no Jacobian.

References:
    Gould, Hartley, Campbell, Deep Declarative Networks, section 5.1. Gould, Campbell, Ben-Shabat, Koneputugodage, Xu,
    Exploiting Problem Structure in Deep Declarative Networks, equations 4 to 10.
"""

from typing import Literal, overload

import torch
from torch import Tensor

from torchddn import penalties
from torchddn.diagnostics import timed
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_dims, check_flag, check_floating, positive, wide
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.functional.nodes.outcome import conclude, solution_of
from torchddn.functional.pooling.scalar import ScalarPooling
from torchddn.functional.pooling.vector import VectorPooling
from torchddn.functional.pooling.weights import Weighted, check_mask, check_weights, weigh
from torchddn.penalties import Penalty, Quadratic
from torchddn.status import Solution, Status, check_failure_policy

__all__ = ["robust_pool", "robust_vector_pool"]


@overload
def robust_pool(
    x: Tensor,
    penalty: str | Penalty = ...,
    alpha: float | Tensor = ...,
    dim: int | tuple[int, ...] = ...,
    keepdim: bool = ...,
    *,
    weights: Tensor | None = ...,
    mask: Tensor | None = ...,
    on_failure: str = ...,
    compile: bool = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def robust_pool(
    x: Tensor,
    penalty: str | Penalty = ...,
    alpha: float | Tensor = ...,
    dim: int | tuple[int, ...] = ...,
    keepdim: bool = ...,
    *,
    weights: Tensor | None = ...,
    mask: Tensor | None = ...,
    on_failure: str = ...,
    compile: bool = ...,
    solution: Literal[True],
) -> Solution: ...
def robust_pool(
    x: Tensor,
    penalty: str | Penalty = "huber",
    alpha: float | Tensor = 1.0,
    dim: int | tuple[int, ...] = -1,
    keepdim: bool = False,
    *,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    on_failure: str = "warn",
    compile: bool = False,
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the robust mean of ``x`` over the axes ``dim``, one number at a time.

    y(x) = argmin_y sum_i c_i phi(y - x_i; alpha). The minimizer is *global* for every penalty:

    * quadratic: the mean;
    * pseudo-Huber and Huber (convex): Newton's method within a shrinking bracket, which cannot fail. Huber may have
      an interval of minimizers (no point is an inlier of the middle); the answer is its midpoint;
    * truncated quadratic: exactly, from sorted points and prefix sums; of equal minima the one with the smaller y;
    * Welsch: bounds on cells of width alpha / 16, then Newton; of equal minima the one with the smaller y.
      D = sum c (1 - phi) is proven to be within 1/2048 of the largest possible, and the answer is the global minimizer
      unless D stays that close to its maximum all the way from there to another local one.

    Cost O(n log n) per item at most, memory that of ``x`` and a few ten megabytes.

    Args:
        x: Numbers to pool, any shape with at least one axis.
        penalty: ``"quadratic"``, ``"pseudo_huber"``, ``"huber"``, ``"welsch"``, ``"truncated_quadratic"``, or an object
            of :mod:`torchddn.penalties`.
        alpha: Scale of the penalty, positive, loosely how far an inlier may be from y; broadcastable to the output.
        dim: Axis or axes to pool over.
        keepdim: Whether these axes stay, with length one.
        weights: How much each number counts, c; finite and not negative, broadcastable to ``x``. A weight of two is the
            number twice. One each unless given.
        mask: True for the numbers that count; bool, broadcastable to ``x``. Others may be NaN or infinite.
        on_failure: What to do about items with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb other items.
        compile: Whether to make kernels of the passes over the numbers, for each shape of them: the tenth call takes
            some seconds, later ones half of the time for pseudo-Huber and Huber, and hardly less for the others.
            Without a C++ compiler, nothing is gained.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; its fields are shaped as the output.

    Returns:
        ``y``, the shape of ``x`` without the axes ``dim``, and its dtype (half precision computes in float32).

    Raises:
        InvalidInputError: If an argument is wrong, or there are no numbers to pool.
        SolveError: If an item fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the item contains NaN or infinity, or none of it counts; its answer is NaN.
        STALLED: Welsch only, for a density that is flat to rounding; the answer is as good as any.

    Gradients:
        Exact in ``x``, ``alpha`` and ``weights``, of every order and in every mode: ``dy/dx_i = c_i phi''(r_i) / S``
        and ``dy/dc_i = -phi'(r_i) / S`` with ``S = sum_j c_j phi''(r_j)``.
        Where points lie at distance alpha of a Huber or truncated quadratic mean, y has a kink; they count as
        inliers. Where ``S = 0`` (the interval of Huber) the problem does not determine the gradient; the
        one of minimum norm, zero, is returned with a DegenerateGradientWarning. An item that is not finite has
        gradient zero.

    Example:
        >>> x = torch.tensor([0.1, 0.2, 0.15, 8.0])
        >>> robust_pool(x, "huber"), robust_pool(x, "truncated_quadratic")
        (tensor(0.4833), tensor(0.1500))

    References:
        Gould, Hartley, Campbell, Deep Declarative Networks, section 5.1 and table 2.
    """
    call = "robust_pool"
    check_floating(call, "x", x, "(n,) or more axes", 1)
    penalty = penalties.get(penalty, call)
    dims = check_dims(call, dim, x.dim())
    check_flag(call, "keepdim", keepdim)
    check_failure_policy(call, on_failure)
    check_flag(call, "compile", compile)
    check_flag(call, "solution", solution)
    rest = [d for d in range(x.dim()) if d not in dims]
    num_points = torch.Size([x.shape[d] for d in dims]).numel()
    if num_points == 0:
        raise InvalidInputError(
            f"`{call}(x=...)` must have numbers to pool over dim={dim!r}, got shape {tuple(x.shape)}."
        )
    shape = torch.Size([1 if d in dims else size for d, size in enumerate(x.shape) if keepdim or d not in dims])
    numbers = wide(x)
    alpha = positive(call, "alpha", alpha, shape, numbers).reshape(-1)
    weights = check_weights(call, weights, x.shape, numbers)
    mask = check_mask(call, mask, x.shape, numbers)

    def rows(t: Tensor) -> Tensor:
        return t.permute(*rest, *dims).reshape(shape.numel(), num_points)

    points = weigh(rows(numbers), None if weights is None else rows(weights), None if mask is None else rows(mask))
    solver = type(penalty).__name__
    with timed() as file:
        y, status, num_steps, residual = _solve(ScalarPooling(penalty, compile), points, alpha)
        y = conclude(call, y, status, residual, on_failure, num_steps=num_steps, solver=solver, file=file)
    if not solution:
        return y.reshape(shape).to(x.dtype)
    r, alpha = y.detach().unsqueeze(1) - points.x.detach(), alpha.detach().unsqueeze(1)
    objective, stationarity = _total(penalty.phi(r, alpha), points), _total(penalty.dphi(r, alpha), points).abs()
    fields = (t.reshape(shape) for t in (objective, status, num_steps, stationarity))
    return solution_of(y.reshape(shape).to(x.dtype), *fields, solver=solver)


@overload
def robust_vector_pool(
    points: Tensor,
    penalty: str | Penalty = ...,
    alpha: float | Tensor = ...,
    *,
    weights: Tensor | None = ...,
    mask: Tensor | None = ...,
    on_failure: str = ...,
    compile: bool = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def robust_vector_pool(
    points: Tensor,
    penalty: str | Penalty = ...,
    alpha: float | Tensor = ...,
    *,
    weights: Tensor | None = ...,
    mask: Tensor | None = ...,
    on_failure: str = ...,
    compile: bool = ...,
    solution: Literal[True],
) -> Solution: ...
def robust_vector_pool(
    points: Tensor,
    penalty: str | Penalty = "huber",
    alpha: float | Tensor = 1.0,
    *,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    on_failure: str = "warn",
    compile: bool = False,
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the robust mean of points in R^m: a penalty on their whole distance.

    y(x) = argmin_y sum_i c_i phi(|y - x_i|; alpha), with the Euclidean norm, so that the answer turns with the points:

    * quadratic: the mean;
    * pseudo-Huber and Huber (convex): reweighted least squares, accelerated by Newton, from the mean. Huber has many
      minimizers only if points lie on a line and none is an inlier; the answer is the one found from the mean;
    * Welsch and truncated quadratic: descents from the mean, the coordinatewise median, the Huber mean, and the best
      points that are more than alpha apart; the lowest objective wins, the first of equals. The answer is a local
      minimizer and never worse than the best point (the best of 4096 evenly spaced ones if there are more). The
      truncated quadratic of up to 64 points starts from all of them, under larger alphas first: in the plane that found
      the global minimizer of every one of 500 random sets. With m = 1 it is the global minimizer, as of
      :func:`robust_pool`.

    Cost O(n m + m^3) per step and item; Welsch and truncated quadratic compare all pairs first, O(n^2 m).

    Args:
        points: ``(*B, n, m)``: n points in R^m.
        penalty: ``"quadratic"``, ``"pseudo_huber"``, ``"huber"``, ``"welsch"``, ``"truncated_quadratic"``, or an object
            of :mod:`torchddn.penalties`.
        alpha: Scale of the penalty, positive, loosely how far an inlier may be from y; broadcastable to ``(*B,)``.
        weights: How much each point counts, c; finite and not negative, broadcastable to ``(*B, n)``. A weight of two
            is the point twice. One each unless given.
        mask: True for the points that count, for sets of different sizes; bool, broadcastable to ``(*B, n)``. Others
            may be NaN or infinite.
        on_failure: What to do about items that fail: ``"warn"``, ``"raise"``, ``"nan"`` (their answer is NaN) or
            ``"ignore"``. Items with a number that is not finite are NaN in any case and do not disturb others.
        compile: Whether to make kernels of the passes over the points, for each shape of them: the tenth call takes
            some seconds, later ones three quarters of the time for pseudo-Huber and Huber in more than 24 coordinates,
            and hardly less for the others. Without a C++ compiler, nothing is gained.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; its fields are ``(*B,)``.

    Returns:
        ``y``, ``(*B, m)``, of the dtype of ``points`` (half precision computes in float32).

    Raises:
        InvalidInputError: If an argument is wrong, or there are no points to pool.
        SolveError: If an item fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the item contains NaN or infinity, or none of it counts; its answer is NaN.
        MAX_STEPS: after 200 steps the gradient is not yet zero to rounding; the answer is usable.
        STALLED: no further decrease in this precision; the answer is usable. Try float64.

    Gradients:
        Exact in ``points``, ``alpha`` and ``weights``, of every order and in every mode, by the formula of this file.
        Where H is singular (the problem has many solutions nearby) it is the one of minimum norm, and a
        DegenerateGradientWarning says so. Where points lie at distance alpha of the answer, y may have a kink; they
        count as inliers.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [0.2, 0.0], [0.1, 0.3], [50.0, -90.0]])
        >>> robust_vector_pool(points, "truncated_quadratic")
        tensor([0.1000, 0.1000])

    References:
        Gould, Campbell, Ben-Shabat, Koneputugodage, Xu, Exploiting Problem Structure in Deep Declarative Networks,
        section "Robust Vector Pooling".
    """
    call = "robust_vector_pool"
    check_floating(call, "points", points, "(*B, n, m)", 2)
    penalty = penalties.get(penalty, call)
    check_failure_policy(call, on_failure)
    check_flag(call, "compile", compile)
    check_flag(call, "solution", solution)
    *batch, n, m = points.shape
    if n == 0 or m == 0:
        raise InvalidInputError(
            f"`{call}(points=...)` must have points with coordinates, got shape {tuple(points.shape)}."
        )
    shape = torch.Size(batch)
    flat = wide(points).reshape(shape.numel(), n, m)
    alpha = positive(call, "alpha", alpha, shape, flat).reshape(-1)
    weights = check_weights(call, weights, points.shape[:-1], flat)
    mask = check_mask(call, mask, points.shape[:-1], flat)
    weighted = weigh(
        flat, None if weights is None else weights.reshape(-1, n), None if mask is None else mask.reshape(-1, n)
    )
    solver = type(penalty).__name__
    with timed() as file:
        y, status, num_steps, residual = _solve(VectorPooling(penalty, compile), weighted, alpha)
        y = conclude(call, y, status, residual, on_failure, num_steps=num_steps, solver=solver, file=file)
    if not solution:
        return y.reshape(*shape, m).to(points.dtype)
    r, alpha = y.detach().unsqueeze(1) - weighted.x.detach(), alpha.detach().unsqueeze(1)
    z = torch.linalg.vector_norm(r, dim=2)
    objective = _total(penalty.phi(z, alpha), weighted)
    gradient = _total(penalty.kappa1(z, alpha).unsqueeze(2) * r, weighted)
    fields = (t.reshape(shape) for t in (objective, status, num_steps, torch.linalg.vector_norm(gradient, dim=1)))
    return solution_of(y.reshape(*shape, m).to(points.dtype), *fields, solver=solver)


def _total(values: Tensor, points: Weighted) -> Tensor:
    """The weighted sum of ``values``, ``(R, n, ...)``, over the points."""
    if points.c is None or points.scale is None:
        return values.sum(dim=1)
    c = (points.c.detach() * points.scale.unsqueeze(1)).reshape(*points.c.shape, *[1] * (values.dim() - 2))
    return torch.where(c > 0, c * values, 0).sum(dim=1)


def _solve(formula: ScalarPooling | VectorPooling, points: Weighted, alpha: Tensor) -> Answer:
    """``y``, status, steps and residual by the formula, or as the mean."""
    x, c, _ = points
    if not isinstance(formula.penalty, Quadratic):
        return solve(formula, x, alpha) if c is None else solve(formula, x, alpha, c)
    column = [-1, *[1] * (x.dim() - 2)]
    if c is None:
        y = x.mean(dim=1)
        sound = y.detach().isfinite() if y.dim() == 1 else y.detach().isfinite().all(dim=1)
    else:
        sound = x.detach().sum(dim=tuple(range(1, x.dim()))).isfinite() & (c.detach() > 0).any(dim=1)
        # What is not finite would pass through zero weights, and into gradients shared with other items.
        x = torch.where(sound.reshape(-1, *[1] * (x.dim() - 1)), x, 0)
        c = torch.where(sound.unsqueeze(1), c, 1)
        y = (c.reshape(*c.shape, *column[1:]) * x).sum(dim=1) / c.sum(dim=1).reshape(column)
    # Whoever differentiates in alpha gets zero, and not an error.
    y = torch.where(sound.reshape(column), y + (0 * alpha).reshape(column), torch.nan)
    status = torch.where(sound, int(Status.CONVERGED), int(Status.NON_FINITE))
    residual = torch.where(sound, x.new_zeros(()), torch.nan)
    return y, status, torch.zeros_like(status), residual
