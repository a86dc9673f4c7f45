r"""Descents of many starts on the points of one item, by matrix products alone.

With points and starts relative to a center, ``z_i^2 = |x_i|^2 - 2 x_i.y + |y|^2``: all starts of an item see its points
in two matrix products, and no difference ``y - x_i`` is formed. The price is an error of about ``eps |y|^2`` in
``z_i^2``, from the center to the answer. What it does to the gradient is known; where that is more than rounding of
the gradient itself, the answer is only a start for a descent that forms the differences.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.pooling.descent import FAST, NOISE, Descent, Local, descend
from torchddn.functional.pooling.reweighted import centered_look, reweight
from torchddn.penalties import Penalty
from torchddn.status import Status

__all__ = ["Curvature", "descend_centered", "newton_step"]

_NUM_PRODUCTS = 6  # for a Newton step, which need not be exact


class Curvature(NamedTuple):
    """``H = total I + sum_i kappa2_i r_i r_i^T`` at ``y``, ``(R, k, m)``; ``x`` is ``(R, n, m)``."""

    x: Tensor
    y: Tensor
    total: Tensor
    kappa2: Tensor

    def times(self, w: Tensor) -> Tensor:
        x, y, total, kappa2 = self
        along = kappa2 * ((y * w).sum(dim=2, keepdim=True) - torch.bmm(w, x.mT))
        return total * w + along.sum(dim=2, keepdim=True) * y - torch.bmm(along, x)


def descend_centered(
    penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, starts: Tensor, center: Tensor, max_steps: int
) -> tuple[Descent, Tensor]:
    """Where the descents from ``starts``, ``(R, k, m)``, end, flat, and whether that is exact to rounding.

    The center, ``(R, m)``, is best amid the inliers.
    """
    num_rows, num_starts, m = starts.shape
    x = x - center.unsqueeze(1)
    first = None
    if penalty.convex and num_starts == 1:
        first = reweight(centered_look(penalty, x, alpha, c, center), starts.squeeze(1))
        if bool(first.converged.all()):
            status, unknown = torch.full_like(first.num_steps, Status.CONVERGED), first.residual * torch.nan
            return Descent(first.y, unknown, status, first.num_steps, first.residual), first.converged
        starts = first.y.unsqueeze(1)
    center = center.unsqueeze(1)
    squares = torch.linalg.vector_norm(x, dim=2).square_().unsqueeze(1)
    c = None if c is None else c.unsqueeze(1)
    alpha = alpha.reshape(-1, 1, 1)
    flat = (starts - center).reshape(-1, m)
    exact = torch.zeros_like(flat[:, 0], dtype=torch.bool)
    slope = torch.full_like(flat[:, 0], torch.inf)  # where last looked at
    numbers = torch.finfo(x.dtype)
    resolved = (alpha.square() > numbers.tiny / numbers.eps).reshape(-1, 1)  # squares that underflow do not count

    def look(y: Tensor, items: Tensor) -> Local:
        if len(items) == len(flat):
            flat.copy_(y)
            before = slope.view(num_rows, num_starts)
            seen, precise = _look(penalty, x, squares, alpha, c, flat.view_as(starts), center, before)
            exact.copy_((precise & resolved).flatten())
            slope.copy_(seen.slope.flatten())
            return Local(*(field.flatten(0, 1) for field in seen))
        # Other starts of an item are looked from once more, which is cheaper than a copy of the points for each.
        flat[items] = y
        rows, place = torch.unique(items // num_starts, return_inverse=True)
        at = place * num_starts + items % num_starts
        if 2 * len(rows) >= num_rows:  # a copy of most points costs more than a look at all
            rows, at = slice(None), items
        some = None if c is None else c[rows]
        before = slope.view(num_rows, num_starts)[rows]
        seen, precise = _look(
            penalty, x[rows], squares[rows], alpha[rows], some, flat.view_as(starts)[rows], center[rows], before
        )
        exact[items] = (precise & resolved[rows]).flatten()[at]
        seen = Local(*(field.flatten(0, 1)[at] for field in seen))
        slope[items] = seen.slope
        return seen

    found = descend(look, flat.clone(), max_steps)
    y = (found.y.unflatten(0, (num_rows, num_starts)) + center).flatten(0, 1)
    num_steps = found.num_steps if first is None else found.num_steps + first.num_steps
    return found._replace(y=y, num_steps=num_steps), exact


def _look(
    penalty: Penalty,
    x: Tensor,
    squares: Tensor,
    alpha: Tensor,
    c: Tensor | None,
    y: Tensor,
    center: Tensor,
    slope_prev: Tensor,
) -> tuple[Local, Tensor]:
    """What is seen from ``y``, ``(R, k, m)``, and whether the gradient is exact to rounding, ``(R, k)``."""
    eps = torch.finfo(x.dtype).eps
    length = torch.linalg.vector_norm(y, dim=2)
    if bool((length == 0).all()):
        z = squares.sqrt().expand(-1, y.shape[1], -1)
    else:
        # (-2 y) x^T has a row for each start, which makes of a single one a fast product.
        z = torch.baddbmm(squares, y, x.mT, alpha=-2).add_(length.square().unsqueeze(2)).clamp_(min=0).sqrt_()
    phi, kappa1, kappa2 = (f(z, alpha) for f in (penalty.phi, penalty.kappa1, penalty.kappa2))
    if c is not None:
        phi, kappa1, kappa2 = c * phi, c * kappa1, c * kappa2
    objective, total, pull = phi.sum(dim=2), kappa1.sum(dim=2), (kappa1 * z).sum(dim=2)
    # kappa1 is weights times total, and where all weights are zero nothing moves.
    reweighted = torch.where((total > 0).unsqueeze(2), torch.bmm(_weights(penalty, z, alpha, c, kappa1), x), y)
    gradient = total.unsqueeze(2) * (y - reweighted)
    slope, size = torch.linalg.vector_norm(gradient, dim=2), torch.linalg.vector_norm(y + center, dim=2)
    rounding = pull + total * size
    noise = NOISE * eps * (objective + pull * size + total * length.square())
    blur = (kappa2 * z).sum(dim=2).abs() * length.square()  # what the error of z^2 does to the gradient
    at_rest = slope <= NOISE * eps * (rounding + blur)
    precise = (slope <= NOISE * eps * rounding) & (blur <= rounding)
    newton = reweighted
    fast = at_rest | (slope <= FAST * slope_prev)
    if not penalty.isotropic and not bool(fast.all()):
        step, usable = newton_step(Curvature(x, y, total.unsqueeze(2), kappa2), gradient)
        newton = torch.where(usable & ~fast.unsqueeze(2), y - step, reweighted)
    return Local(objective, noise, slope, at_rest, reweighted, newton), precise


def _weights(penalty: Penalty, z: Tensor, alpha: Tensor, c: Tensor | None, kappa1: Tensor) -> Tensor:
    """``kappa1``, in which ``c`` is, divided by its sum, which may underflow unless the penalty is convex."""
    weights = kappa1
    if not penalty.convex:
        weights = penalty.weights(z, alpha)
        weights = weights if c is None else c * weights
    total = weights.sum(dim=2, keepdim=True)
    return weights / torch.where(total > 0, total, 1)


def newton_step(H: Curvature, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """By a few conjugate gradient steps; not usable where they meet negative curvature, ``(R, k, 1)``."""
    step, residual, direction = torch.zeros_like(gradient), gradient, gradient
    square = residual.square().sum(dim=2, keepdim=True)
    goal = 1e-4 * square
    usable = torch.ones_like(square, dtype=torch.bool)
    for _ in range(_NUM_PRODUCTS):
        product = H.times(direction)
        curvature = (direction * product).sum(dim=2, keepdim=True)
        usable &= (curvature > 0) | (square <= goal)
        share = torch.where((square > goal) & (curvature > 0), square / curvature, 0)
        step, residual = step + share * direction, residual - share * product
        square_prev, square = square, residual.square().sum(dim=2, keepdim=True)
        if bool(((square <= goal) | ~usable).all()):
            break
        direction = residual + torch.where(square_prev > 0, square / square_prev, 0) * direction
    return step, usable & step.isfinite().all(dim=2, keepdim=True)
