r"""The robust mean of points: descents from several starts.

Solves, for each item of x, n points in R^m with weights c (one each unless given)::

    y(x, alpha, c) = argmin_y  f(y) = sum_i c_i phi(|y - x_i|; alpha)

A convex penalty needs one start, the mean. Otherwise all starts of all items descend as one batch, and the lowest wins.
"""

import torch
from torch import Tensor

from torchddn.functional.nodes.blocks import block_size, blocks, sorted_rows
from torchddn.functional.pooling.centered_descent import Curvature, descend_centered, newton_step
from torchddn.functional.pooling.descent import NOISE, Descent, Local, descend
from torchddn.functional.pooling.reweighted import fused_look, reweight
from torchddn.penalties import Huber, Penalty
from torchddn.status import Status

__all__ = ["minimize"]

_MAX_STEPS = 200
_MAX_CENTERED_STEPS = 40  # of which another descent takes up what is left
_NUM_POINT_STARTS = 8  # data points, more than alpha apart, from which to descend
_NUM_CANDIDATES = 4096  # data points whose objective is looked at
_FEW = 64  # up to so many points each is a start of the truncated quadratic
_WIDER = (2.0, 1.6, 1.3, 1.15)  # alphas from which it descends
_DENSE = 24  # up to so many coordinates a factorization of the Hessian is cheaper than products with it


def minimize(
    penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, mean: Tensor, compile: bool = False
) -> Descent:
    """The best local minimizer found; ``x`` is ``(R, n, m)``, its ``mean`` without weights, ``c`` is ``(R, n)``."""
    if c is not None:
        mean = (c.unsqueeze(1) @ x).squeeze(1) / c.sum(dim=1, keepdim=True)
    if penalty.convex:
        return _minimize_convex(penalty, x, alpha, c, mean, compile)
    middle = sorted_rows(x)[:, (x.shape[1] - 1) // 2] if c is None else _weighted_median(x, c)
    huber = _minimize_convex(Huber(), x, alpha, c, mean, compile).y
    starts = torch.cat([torch.stack([mean, middle, huber], dim=1), _point_starts(penalty, x, alpha, c, middle)], dim=1)
    return _best_descent(penalty, x, alpha, c, starts, center=middle)


def _minimize_convex(
    penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, mean: Tensor, compile: bool
) -> Descent:
    """The minimizer; by kernels as long as reweighted steps are fast, for those who ask for it."""
    if not compile or x.shape[2] <= _DENSE:
        return _best_descent(penalty, x, alpha, c, mean.unsqueeze(1), center=mean)
    y, num_steps, converged, slope = reweight(fused_look(penalty, x.contiguous(), alpha, c), mean)
    found = Descent(y, slope * torch.nan, torch.full_like(num_steps, Status.CONVERGED), num_steps, slope)
    if bool(converged.all()):
        return found
    rest = (~converged).nonzero().squeeze(1)
    last = _best_descent(
        penalty, x[rest], alpha[rest], None if c is None else c[rest], y[rest].unsqueeze(1), mean[rest]
    )
    last = last._replace(num_steps=last.num_steps + num_steps[rest])
    return Descent(*(mine.index_copy(0, rest, theirs) for mine, theirs in zip(found, last, strict=True)))


def _best_descent(
    penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, starts: Tensor, center: Tensor
) -> Descent:
    """The lowest of the ends of the descents from all starts, ``(R, k, m)``."""
    num_starts, item = starts.shape[1], torch.arange(len(x), device=x.device)
    if x.shape[2] <= _DENSE:
        row = item.repeat_interleave(num_starts)
        found, exact = _descend_from(penalty, x, alpha, c, starts.flatten(0, 1), row), None
    else:
        found, exact = _descend_centered(penalty, x, alpha, c, starts, center)
    if num_starts > 1:
        chosen = item * num_starts + _first_lowest(found.objective.unflatten(0, (-1, num_starts)))
        found = Descent(*(field[chosen] for field in found))
    if exact is None:
        return found
    # The truncated quadratic jumps, and of several starts the objective was compared: both are settled exactly.
    done = exact & (found.status == Status.CONVERGED) if penalty.convex else torch.zeros_like(item, dtype=torch.bool)
    if bool(done.all()):
        return found
    rest = (~done).nonzero().squeeze(1)
    last = _descend_from(penalty, x, alpha, c, found.y[rest], rest)
    last = last._replace(num_steps=last.num_steps + found.num_steps[rest])
    return Descent(*(mine.index_copy(0, rest, theirs) for mine, theirs in zip(found, last, strict=True)))


def _descend_centered(
    penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, starts: Tensor, center: Tensor
) -> tuple[Descent, Tensor]:
    """As ``descend_centered``, with few enough items at a time for what depends on start and point."""
    parts = []
    size = block_size(starts.shape[1] * x.shape[1], x.device)
    for at in (slice(start, start + size) for start in range(0, len(x), size)):
        weights = None if c is None else c[at]
        found, exact = descend_centered(penalty, x[at], alpha[at], weights, starts[at], center[at], _MAX_CENTERED_STEPS)
        parts.append((*found, exact))
    *fields, exact = (torch.cat(part) for part in zip(*parts, strict=True))
    return Descent(*fields), exact


def _point_starts(penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, middle: Tensor) -> Tensor:
    """Starts from the data, ``(R, k, m)``; ``middle`` is amid them, ``(R, m)``.

    The truncated quadratic has many shallow minima, since each point that enters or leaves makes one. In small sets
    each point descends under larger alphas first, which smooths them out, and all stations of that way are starts.
    """
    n = x.shape[1]
    if n > _FEW or not penalty.isotropic:
        return _best_points(penalty, x, alpha, c, middle)
    row = torch.arange(len(x), device=x.device).repeat_interleave(n)
    y, starts = x.flatten(0, 1), [x]
    for factor in _WIDER:
        y = _descend_from(penalty, x, factor * alpha, c, y, row).y
        starts.append(y.unflatten(0, (-1, n)))
    return torch.cat(starts, dim=1)


def _weighted_median(x: Tensor, c: Tensor) -> Tensor:
    """Of each coordinate: the first number up to which half of the weight lies."""
    ordered, order = x.sort(dim=1)
    reached = c.unsqueeze(2).expand_as(x).gather(1, order).cumsum(dim=1) >= c.sum(dim=1).reshape(-1, 1, 1) / 2
    return ordered.gather(1, reached.to(torch.int8).argmax(dim=1, keepdim=True)).squeeze(1)


def _descend_from(
    penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, starts: Tensor, row: Tensor | None = None
) -> Descent:
    """Descends from each start, in the item that ``row`` names, or its own."""
    row = torch.arange(len(x), device=x.device) if row is None else row

    def look(y: Tensor, items: Tensor) -> Local:
        parts = []
        for at, some in blocks(len(y), x, row[items]):
            weights = None if c is None else c[some]
            parts.append(_look(penalty, x[some], alpha[some].unsqueeze(1), weights, y[at]))
        return Local(*(torch.cat(part) for part in zip(*parts, strict=True)))

    return descend(look, starts, _MAX_STEPS)


def _look(penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, y: Tensor) -> Local:
    eps = torch.finfo(x.dtype).eps
    r = torch.sub(y.unsqueeze(1), x, out=x)
    z = torch.linalg.vector_norm(r, dim=2)
    phi, kappa1, weights = penalty.phi(z, alpha), penalty.kappa1(z, alpha), penalty.weights(z, alpha)
    if c is not None:
        phi, kappa1, weights = c * phi, c * kappa1, c * weights
        weights = weights / torch.where(weights.sum(dim=1, keepdim=True) > 0, weights.sum(dim=1, keepdim=True), 1)
    objective, total = phi.sum(dim=1), kappa1.sum(dim=1)
    sums = torch.bmm(torch.stack([kappa1, weights], dim=1), r)
    gradient, reweighted = sums[:, 0], y - sums[:, 1]
    slope, size = torch.linalg.vector_norm(gradient, dim=1), torch.linalg.vector_norm(y, dim=1)
    pull = (kappa1 * z).sum(dim=1)
    at_rest = slope <= NOISE * eps * (pull + total * size)
    newton = reweighted
    if not penalty.isotropic and not bool(at_rest.all()):
        kappa2 = penalty.kappa2(z, alpha)
        kappa2 = kappa2 if c is None else c * kappa2
        solver = _by_factor if r.shape[2] <= _DENSE else _by_products
        step, usable = solver(r, total, kappa2, gradient)
        newton = torch.where(usable.unsqueeze(1), y - step, reweighted)
    return Local(
        objective,
        NOISE * eps * (objective + pull * size),
        slope,
        at_rest,
        reweighted,
        newton,
    )


def _by_factor(r: Tensor, total: Tensor, kappa2: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's step, and whether the Hessian is positive definite."""
    H = r.mT @ (kappa2.unsqueeze(2) * r)
    H.diagonal(dim1=1, dim2=2).add_(total.unsqueeze(1))
    factor, info = torch.linalg.cholesky_ex(H)
    step = torch.cholesky_solve(gradient.unsqueeze(2), factor).squeeze(2)
    return step, (info == 0) & step.isfinite().all(dim=1)


def _by_products(r: Tensor, total: Tensor, kappa2: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The same without a Hessian."""
    origin, gradient = torch.zeros_like(gradient).unsqueeze(1), gradient.unsqueeze(1)
    step, usable = newton_step(Curvature(r, origin, total.reshape(-1, 1, 1), kappa2.unsqueeze(1)), gradient)
    return step.squeeze(1), usable.flatten()


def _best_points(penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, middle: Tensor) -> Tensor:
    """The data points with the lowest objective, each more than alpha from the others, ``(R, k, m)``."""
    n, k = x.shape[1], min(x.shape[1], _NUM_POINT_STARTS)
    candidates = x[:, :: -(-n // _NUM_CANDIDATES)]
    objective = x.new_empty(candidates.shape[:2], dtype=torch.float64)
    for at, _ in blocks(len(x), x):
        weights = None if c is None else c[at]
        objective[at] = _objective_at(penalty, x[at], alpha[at], weights, candidates[at], middle[at])
    if c is not None:
        objective = torch.where(c[:, :: -(-n // _NUM_CANDIDATES)] > 0, objective, torch.inf)
    chosen = []
    for _ in range(k):
        best = candidates[torch.arange(len(x), device=x.device), _first_lowest(objective)]
        chosen.append(best)
        near = torch.linalg.vector_norm(candidates - best.unsqueeze(1), dim=2) <= alpha.unsqueeze(1)
        objective = torch.where(near, torch.inf, objective)
    return torch.stack(chosen, dim=1)


def _first_lowest(objective: Tensor) -> Tensor:
    """The first of those that are lowest up to rounding, so that equals do not change places, ``(R,)``."""
    lowest = objective.amin(dim=1, keepdim=True)
    return (objective <= lowest * (1 + NOISE * torch.finfo(objective.dtype).eps)).to(torch.int8).argmax(dim=1)


def _objective_at(penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, y: Tensor, middle: Tensor) -> Tensor:
    """``f`` at several points of each item, ``(R, k)``.

    Distances come from a matrix product; it is taken of centered data in float64, since it subtracts squares.
    """
    center = middle.unsqueeze(1)
    x, y, alpha = (x - center).double(), (y - center).double(), alpha.double().reshape(-1, 1, 1)
    parts = []
    for some in y.split(block_size(len(x) * x.shape[1], x.device), dim=1):
        z = torch.cdist(some, x, compute_mode="use_mm_for_euclid_dist")
        phi = penalty.phi(z, alpha)
        parts.append(phi.sum(dim=2) if c is None else (phi @ c.double().unsqueeze(2)).squeeze(2))
    return torch.cat(parts, dim=1)
