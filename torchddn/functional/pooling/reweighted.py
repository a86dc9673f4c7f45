r"""The robust mean of points under a convex penalty, by reweighted least squares alone.

Solves, for each item of x, n points in R^m with weights c (one each unless given)::

    0 = f_y(y) = sum_i c_i kappa1(z_i) r_i          r_i = y - x_i,  z_i = |r_i|

A reweighted step, ``y - f_y / k`` with ``k = sum_i c_i kappa1(z_i)``, leaves ``I - H / k`` of the gradient. If points
lie on all sides, as they do in many coordinates, that is a few hundredths, and three looks at them are all. No step
can increase ``f``, so that nothing is to be compared. Items of which a step leaves more are given up.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from torchddn.functional.nodes.found import Found
from torchddn.functional.pooling.descent import FAST, NOISE
from torchddn.functional.pooling.kernel import points_kernel
from torchddn.penalties import Penalty

__all__ = ["Look", "centered_look", "fused_look", "reweight"]

_MAX_LOOKS = 8

# What is seen from ``y``: where the step goes, and the length of the gradient and whether it is zero to rounding.
Look = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def reweight(look: Look, y: Tensor) -> Found:
    """Where the steps from ``y``, ``(R, m)``, end; the residual is ``|f_y|`` where last looked at."""
    running = torch.ones_like(y[:, 0], dtype=torch.bool)
    converged, num_steps = torch.zeros_like(running), torch.zeros_like(running, dtype=torch.int64)
    slope = torch.full_like(y[:, 0], torch.inf)
    for _ in range(_MAX_LOOKS):
        reweighted, slope_next, at_rest = look(y)
        y = torch.where((running & slope_next.isfinite()).unsqueeze(1), reweighted, y)
        converged = converged | (running & at_rest)
        fast = slope_next <= FAST * slope
        slope = torch.where(running, slope_next, slope)
        running = running & ~at_rest & fast
        if not bool(running.any()):
            break
        num_steps += running
    return Found(y, num_steps, converged, slope)


def centered_look(penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, center: Tensor) -> Look:
    """By products with the points relative to the ``center``, as in the descents from many starts."""
    z_0 = torch.linalg.vector_norm(x, dim=2)
    squares, column = z_0.square().unsqueeze(1), alpha.unsqueeze(1)
    eps, tiny = torch.finfo(x.dtype).eps, torch.finfo(x.dtype).tiny
    resolved = alpha.square() > tiny / eps  # squares that underflow do not count

    def look(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shift = y - center
        square = shift.square().sum(dim=1, keepdim=True)
        moved = bool((square > 0).any())
        z = z_0
        if moved:
            z = torch.baddbmm(squares, shift.unsqueeze(1), x.mT, alpha=-2).squeeze(1)
            z = z.add_(square).clamp_(min=0).sqrt_()
        kappa1 = penalty.kappa1(z, column)
        kappa1 = kappa1 if c is None else c * kappa1
        total = kappa1.sum(dim=1)
        step = torch.bmm(kappa1.unsqueeze(1), x).squeeze(1) / total.unsqueeze(1) - shift
        slope = total * torch.linalg.vector_norm(step, dim=1)
        rounding = (kappa1 * z).sum(dim=1) + total * torch.linalg.vector_norm(y, dim=1)
        at_rest = (slope <= NOISE * eps * rounding) & resolved
        if moved and bool(at_rest.any()):
            kappa2 = penalty.kappa2(z, column)
            kappa2 = kappa2 if c is None else c * kappa2
            # The error of z^2, about eps |shift|^2, must not do more to the gradient.
            at_rest = at_rest & ((kappa2 * z).sum(dim=1).abs() * square.squeeze(1) <= rounding)
        return y + step, slope, at_rest

    return look


def fused_look(penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None) -> Look:
    """By kernels, which form the differences and keep none of them."""
    return lambda y: points_kernel(_look_at, penalty, x, alpha, c, y)[:3]


def _look_at(
    penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As a look; ``kappa1`` too, since the compiler keeps what is returned, and else finds it for each coordinate."""
    r = y.unsqueeze(1) - x
    z = r.square().sum(dim=2).sqrt()
    kappa1 = penalty.kappa1(z, alpha.unsqueeze(1))
    kappa1 = kappa1 if c is None else c * kappa1
    total, pull = kappa1.sum(dim=1), (kappa1 * z).sum(dim=1)
    gradient = (kappa1.unsqueeze(2) * r).sum(dim=1)
    slope, size = gradient.square().sum(dim=1).sqrt(), y.square().sum(dim=1).sqrt()
    at_rest = slope <= NOISE * torch.finfo(x.dtype).eps * (pull + total * size)
    return y - gradient / total.unsqueeze(1), slope, at_rest, kappa1
