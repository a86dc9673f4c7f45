r"""The exponential cone, the closure of ``{(x, y, z): y > 0, y exp(x / y) <= z}``: projection and derivative.

A point v that is not in the cone or its polar, nor above the face y = 0, projects onto the curved boundary, on a ray
of slope ``r = x / y``. What is left of v is along the normal there::

    v = alpha (r, 1, e^r) + beta (1, 1 - r, -e^-r)          alpha, beta > 0

The first two components give alpha and beta, and the third an equation for r that increases where both are positive.

The derivative keeps p, since the cone is one, and removes the normal n. What it does to the third direction t, at right
angles to both, follows from ``argmin |p - v|^2 / 2`` subject to ``g(p) = p_y exp(p_x / p_y) - p_z = 0`` with multiplier
mu: it shrinks t by ``1 + mu t'g_pp t``, where ``g_pp = e^r / p_y (1, -r, 0)(1, -r, 0)'``.

References:
    Friberg, Projection onto the exponential cone: a univariate root-finding problem, 2021.
"""

import torch
from torch import Tensor

from torchddn.cones.bisection import bisect

__all__ = ["project", "slope"]

# Exponents beyond this are those of points that are on the face y = 0 in every digit.
_FAR = 700.0


def project(w: Tensor) -> Tensor:
    """The nearest points of the cone, shaped as ``w``, ``(*B, 3)``."""
    inside, polar, face, low, high = _regions(w)
    x, y, z = w.unbind(-1)
    curved = ~(inside | polar | face)
    # Elsewhere any point that has a root will do.
    x, y, z = torch.where(curved, x, 1), torch.where(curved, y, 0), torch.where(curved, z, 0)
    low, high = torch.where(curved, low, 1), torch.where(curved, high, _FAR)

    def excess(r: Tensor) -> Tensor:
        square = r * (r - 1) + 1
        return (((r - 1) * x + y) * r.exp() - (x - r * y) * (-r).exp()) / square - z

    r = bisect(excess, low, high)
    square = r * (r - 1) + 1
    # Of the two ways to alpha the one that has no large exponential.
    steep = (z + (x - r * y) / square * (-r).clamp(max=0).exp()) * (-r).clamp(max=0).exp()
    alpha = torch.where(r > 0, steep, ((r - 1) * x + y) / square).clamp(min=0)
    boundary = torch.stack([alpha * r, alpha, alpha * r.exp()], dim=-1)
    flat = torch.stack([w[..., 0].clamp(max=0), torch.zeros_like(x), w[..., 2].clamp(min=0)], dim=-1)
    answer = torch.where(face.unsqueeze(-1), flat, boundary)
    return torch.where(inside.unsqueeze(-1), w, torch.where(polar.unsqueeze(-1), 0, answer))


def slope(w: Tensor, s: Tensor) -> Tensor:
    """The derivative of the projection ``s`` of ``w``, ``(*B, 3, 3)``, symmetric, differentiable in both."""
    inside, polar, face, _, _ = _regions(w.detach())
    curved = ~(inside | polar | face) & (s[..., 1] > 0)
    x, y = torch.where(curved, s[..., 0], 0), torch.where(curved, s[..., 1], 1)
    r = (x / y).clamp(-_FAR / 2, _FAR / 2)
    steep = curved & (r > 0)
    # g_pp has the size e^r / p_y, and mu is what is left of v in z. If r is large, mu is lost in the digits of z; then
    # mu e^r is what is left in x.
    left = torch.where(steep, w[..., 0] - s[..., 0], s[..., 2] - w[..., 2]).clamp(min=0)
    curvature = left * r.clamp(max=0).exp() / y
    one, zero = torch.ones_like(r), torch.zeros_like(r)
    grow = r.detach().clamp(min=0)  # lengths do not count, and large exponentials overflow
    along = _unit(torch.stack([r * (-grow).exp(), (-grow).exp() * one, (r - grow).exp()], dim=-1))
    normal = _unit(torch.stack([(r - grow).exp(), (r - grow).exp() * (1 - r), -(-grow).exp() * one], dim=-1))
    across = torch.linalg.cross(along, normal)
    bend = across[..., 0] - r * across[..., 1]
    kept = (1 / (1 + curvature * bend.square()))[..., None, None]
    boundary = _outer(along) + kept * _outer(across)
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    flat = torch.diag_embed(torch.stack([w[..., 0] < 0, zero > 0, w[..., 2] > 0], dim=-1).to(w.dtype))
    answer = torch.where(curved[..., None, None], boundary, flat)
    inside, polar = inside[..., None, None], polar[..., None, None]
    return torch.where(inside, eye, torch.where(polar, 0, answer))


def _unit(v: Tensor) -> Tensor:
    return v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)


def _outer(v: Tensor) -> Tensor:
    return v.unsqueeze(-1) * v.unsqueeze(-2)


def _regions(w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Which points are in the cone, in its polar, above the face ``y = 0``; and for the others bounds of the slope."""
    x, y, z = w.unbind(-1)
    positive = torch.where(y > 0, y, 1)
    inside = (y > 0) & (y * (x / positive).clamp(max=_FAR).exp() <= z) | (y == 0) & (x <= 0) & (z >= 0)
    pushed = torch.where(x > 0, x, 1)
    polar = (x > 0) & (pushed * (y / pushed - 1).clamp(max=_FAR).exp() <= -z) | (x == 0) & (y <= 0) & (z <= 0)
    low, high = torch.full_like(x, -_FAR), torch.full_like(x, _FAR)
    by_x, by_y = 1 - y / torch.where(x == 0, 1, x), x / torch.where(y == 0, 1, y)
    low = torch.where(x > 0, torch.maximum(low, by_x), low)
    high = torch.where(x < 0, torch.minimum(high, by_x), high)
    low = torch.where(y < 0, torch.maximum(low, by_y), low)
    high = torch.where(y > 0, torch.minimum(high, by_y), high)
    face = (x <= 0) & (y <= 0) | (low >= _FAR) | (high <= -_FAR)
    return inside, polar, face & ~inside & ~polar, low, high
