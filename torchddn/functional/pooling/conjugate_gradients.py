r"""Systems with the Hessian of a sum of penalties, by conjugate gradients.

Solves, for each item::

    H w = v               H = k I + sum_i kappa2_i r_i r_i^T

An answer counts if its residual, with the true ``H``, is zero to rounding, and ``H`` was positive where the way went.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.pooling.kernel import points_kernel

__all__ = ["Hessian", "conjugate_gradients", "row_products"]

_NUM_PRODUCTS = 32  # with H, before a factorization is cheaper


class Hessian(NamedTuple):
    """``r_i = y - x_i``, ``(R, n, m)``, is kept, or formed in kernels: ``x`` is then the points, else ``r``.

    ``y``, ``(R, m)``, or None if ``r`` is kept; ``k``, ``(R, 1)``; ``kappa2``, ``(R, n)``.
    """

    x: Tensor
    y: Tensor | None
    k: Tensor
    kappa2: Tensor

    def times(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """``H w`` and ``r.w``."""
        x, y, k, kappa2 = self
        if y is None:
            along = row_products(x, w)
            return k * w + torch.bmm((kappa2 * along).unsqueeze(1), x).squeeze(1), along
        r = y.unsqueeze(1) - x
        along = (r * w.unsqueeze(1)).sum(dim=2)
        return k * w + ((kappa2 * along).unsqueeze(2) * r).sum(dim=1), along


class _State(NamedTuple):
    """After some products; ``along = r.w``, and ``way`` is what ``w`` went, ``(R, 1)``."""

    w: Tensor
    along: Tensor
    residual: Tensor
    direction: Tensor
    square: Tensor
    positive: Tensor
    way: Tensor


def conjugate_gradients(H: Hessian, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``w``, ``r.w``, and whether that counts."""
    eps = torch.finfo(v.dtype).eps
    square = v.square().sum(dim=1, keepdim=True)
    goal = (8 * eps) ** 2 * square
    none = torch.zeros_like(square)
    state = _State(torch.zeros_like(v), torch.zeros_like(H.kappa2), v, v, square, none == 0, none)
    for _ in range(_NUM_PRODUCTS):
        state = _step(H, goal, state) if H.y is None else points_kernel(_step, H, goal, state)
        if bool((state.square <= goal).all()):
            break
    w, along = state.w, state.along
    size = torch.linalg.vector_norm(v, dim=1) + H.k.squeeze(1) * torch.linalg.vector_norm(w, dim=1)
    # The residual was found by subtraction, each time with an error of the product: few steps need no other proof.
    left = (state.square.sqrt() + 4 * eps * H.k * state.way).squeeze(1)
    if bool((left > 32 * eps * size).any()):
        product, along = H.times(w) if H.y is None else points_kernel(Hessian.times, H, w)
        left = torch.linalg.vector_norm(v - product, dim=1)
    return w, along, state.positive.squeeze(1) & (left <= 32 * eps * size)


def _step(H: Hessian, goal: Tensor, state: _State) -> _State:
    w, along, residual, direction, square, positive, way = state
    product, along_direction = H.times(direction)
    curvature = (direction * product).sum(dim=1, keepdim=True)
    running, convex = square > goal, curvature > 0
    share = torch.where(running & convex, square / curvature, 0)
    residual = residual - share * product
    square_next = residual.square().sum(dim=1, keepdim=True)
    return _State(
        w + share * direction,
        torch.addcmul(along, share, along_direction),
        residual,
        residual + torch.where(square > 0, square_next / square, 0) * direction,
        square_next,
        positive & (convex | ~running),
        way + share * direction.square().sum(dim=1, keepdim=True).sqrt(),
    )


def row_products(r: Tensor, w: Tensor) -> Tensor:
    """``r_i.w``; `r @ w` may copy r, and on CPU takes three times as long."""
    return torch.bmm(w.unsqueeze(1), r.mT).squeeze(1)
