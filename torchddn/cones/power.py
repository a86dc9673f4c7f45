r"""Power cones ``{(x, z): x >= 0, prod x_i^a_i >= |z|}`` with positive a of sum one: projection and derivative.

A point ``(x0, z0)`` outside of the cone and of its polar projects onto ``x_i = (x0_i + sqrt(x0_i^2 + 4 a_i r (|z0| -
r))) / 2`` and ``|z| = r``, the root of ``sum a_i log x_i(r) = log r`` between zero and ``|z0|``.

The derivative is that of ``argmin |p - v|^2 / 2`` subject to ``g(p) = |z| - prod x_i^a_i = 0``, with the normal ``n =
g_p`` and ``M = I + mu g_pp``, diagonal plus rank one: ``M^-1 - M^-1 n n'M^-1 / (n'M^-1 n)``.

References:
    Hien, Differential properties of Euclidean projection onto power cone, 2015.
"""

import torch
from torch import Tensor

from torchddn.cones.bisection import bisect

__all__ = ["project", "slope"]

_FAR = 700.0


def project(w: Tensor, a: Tensor) -> Tensor:
    """The nearest points of the cone, shaped as ``w``, ``(*B, d)``; exponents ``a``, broadcastable to ``(*B, d - 1)``.

    The last entry of a point is the one that the others bound.
    """
    inside, polar, flat = _regions(w, a)
    x, z = w[..., :-1], w[..., -1]
    curved = ~(inside | polar | flat)
    x = torch.where(curved.unsqueeze(-1), x, 0)
    height = torch.where(curved, z.abs(), 1)

    def lifted(logit: Tensor) -> tuple[Tensor, Tensor]:
        r, rest = height * torch.sigmoid(logit), height * torch.sigmoid(-logit)
        product = 4 * a * (r * rest).unsqueeze(-1)
        root = (x.square() + product).sqrt()
        # Without cancellation on either side of zero.
        above = 0.5 * (x.clamp(min=0) + root)
        below = 0.5 * product / (root - x.clamp(max=0))
        return torch.where(x > 0, above, below), r

    def excess(logit: Tensor) -> Tensor:
        points, r = lifted(logit)
        return r.log() - (a * points.log()).sum(-1)

    points, r = lifted(bisect(excess, torch.full_like(height, -_FAR), torch.full_like(height, _FAR)))
    boundary = torch.cat([points, (r * z.sign()).unsqueeze(-1)], dim=-1)
    face = torch.cat([w[..., :-1].clamp(min=0), torch.zeros_like(w[..., -1:])], dim=-1)
    answer = torch.where(flat.unsqueeze(-1), face, boundary)
    return torch.where(inside.unsqueeze(-1), w, torch.where(polar.unsqueeze(-1), 0, answer))


def slope(w: Tensor, s: Tensor, a: Tensor) -> Tensor:
    """The derivative of the projection ``s`` of ``w``, ``(*B, d, d)``, symmetric, differentiable in both."""
    inside, polar, flat = _regions(w.detach(), a)
    curved = ~(inside | polar | flat) & (s.detach()[..., :-1] > 0).all(-1) & (s[..., -1] != 0)
    x = torch.where(curved.unsqueeze(-1), s[..., :-1], 1)
    z, sign = torch.where(curved, s[..., -1].abs(), 1), w[..., -1:].sign()
    mu = torch.where(curved, w[..., -1].abs() - s[..., -1].abs(), 1).clamp(min=0)
    weight = (mu * z).unsqueeze(-1)
    shrunk = 1 / (x.square() + weight * a)  # the inverse of the diagonal of M is x^2 times this
    bend = a * x * shrunk
    rank_one = (mu * z / (a * x.square() * shrunk).sum(-1))[..., None, None]
    top = torch.diag_embed(x.square() * shrunk) + rank_one * bend.unsqueeze(-1) * bend.unsqueeze(-2)
    d = w.shape[-1]
    M_inverse = torch.nn.functional.pad(top, (0, 1, 0, 1))
    corner = torch.zeros(d, d, dtype=w.dtype, device=w.device)
    corner[-1, -1] = 1
    M_inverse = M_inverse + corner
    normal = torch.cat([-z.unsqueeze(-1) * a / x, sign], dim=-1)
    pulled = (M_inverse @ normal.unsqueeze(-1)).squeeze(-1)
    along = (normal * pulled).sum(-1)[..., None, None]
    boundary = M_inverse - pulled.unsqueeze(-1) * pulled.unsqueeze(-2) / along
    # On the face z = 0 a small z stays if those x that are pushed away have less than half of the weight.
    pushed = w[..., :-1] <= 0
    stays = (torch.where(pushed, a, 0).sum(-1, keepdim=True) < 0.5).to(w.dtype)
    face = torch.diag_embed(torch.cat([(~pushed).to(w.dtype), stays], dim=-1))
    eye = torch.eye(d, dtype=w.dtype, device=w.device)
    answer = torch.where(curved[..., None, None], boundary, face)
    inside, polar = inside[..., None, None], polar[..., None, None]
    return torch.where(inside, eye, torch.where(polar, 0, answer))


def _regions(w: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which points are in the cone, in its polar, and in the plane ``z = 0`` but in neither of the two."""
    x, z = w[..., :-1], w[..., -1].abs()
    log_mean = (a * x.clamp(min=0).log()).sum(-1)
    inside = (x >= 0).all(-1) & (z <= log_mean.exp())
    log_polar = (a * ((-x).clamp(min=0) / a).log()).sum(-1)
    polar = (x <= 0).all(-1) & (z <= log_polar.exp())
    return inside, polar & ~inside, (z == 0) & ~inside & ~polar
