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
from torchddn.functional.pooling.descent import NOISE
from torchddn.functional.pooling.kernel import points_kernel
from torchddn.penalties import Penalty

__all__ = ["reweight"]

_MAX_LOOKS = 8
_FAST = 0.05  # As long as a step leaves this share of the gradient, another is cheaper than products with the Hessian.

# What is seen from ``y``: where the step goes, and the length of the gradient and whether it is zero to rounding.
_Look = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def reweight(
    penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, mean: Tensor, compile: bool = False
) -> Found:
    """Where the steps from the ``mean``, ``(R, m)``, end; the residual is ``|f_y|`` where last looked at."""
    look = _fused_look(penalty, x.contiguous(), alpha, c) if compile else _centered_look(penalty, x, alpha, c, mean)
    y = mean
    running = torch.ones_like(alpha, dtype=torch.bool)
    converged, num_steps = torch.zeros_like(running), torch.zeros_like(running, dtype=torch.int64)
    slope = torch.full_like(alpha, torch.inf)
    for _ in range(_MAX_LOOKS):
        reweighted, slope_next, at_rest = look(y)
        at_rest = running & at_rest
        going = running & ~at_rest & (slope_next <= _FAST * slope)
        y = torch.where((going | at_rest).unsqueeze(1), reweighted, y)
        slope = torch.where(running, slope_next, slope)
        converged, running = converged | at_rest, going
        if not bool(running.any()):
            break
        num_steps += running
    return Found(y, num_steps, converged, slope)


def _centered_look(penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None, center: Tensor) -> _Look:
    """By products with the points relative to the ``center``, as in the descents from many starts."""
    x = x - center.unsqueeze(1)
    z_0 = torch.linalg.vector_norm(x, dim=2)
    squares, column = z_0.square().unsqueeze(1), alpha.unsqueeze(1)
    eps, tiny = torch.finfo(x.dtype).eps, torch.finfo(x.dtype).tiny
    resolved = alpha.square() > tiny / eps  # squares that underflow do not count

    def look(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, shift, square = z_0, None, None
        if y is not center:
            shift = y - center
            square = shift.square().sum(dim=1, keepdim=True)
            z = torch.baddbmm(squares, shift.unsqueeze(1), x.mT, alpha=-2).squeeze(1)
            z = z.add_(square).clamp_(min=0).sqrt_()
        kappa1 = penalty.kappa1(z, column)
        kappa1 = kappa1 if c is None else c * kappa1
        total = kappa1.sum(dim=1)
        step = torch.bmm(kappa1.unsqueeze(1), x).squeeze(1) / total.unsqueeze(1)
        step = step if shift is None else step - shift
        slope = total * torch.linalg.vector_norm(step, dim=1)
        rounding = (kappa1 * z).sum(dim=1) + total * torch.linalg.vector_norm(y, dim=1)
        at_rest = (slope <= NOISE * eps * rounding) & resolved
        if square is not None and bool(at_rest.any()):
            kappa2 = penalty.kappa2(z, column)
            kappa2 = kappa2 if c is None else c * kappa2
            # The error of z^2, about eps |shift|^2, must not do more to the gradient.
            at_rest = at_rest & ((kappa2 * z).sum(dim=1).abs() * square.squeeze(1) <= rounding)
        return y + step, slope, at_rest

    return look


def _fused_look(penalty: Penalty, x: Tensor, alpha: Tensor, c: Tensor | None) -> _Look:
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
