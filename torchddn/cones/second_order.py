r"""The second-order cone ``{(t, u): |u| <= t}``: its projection and the derivative of that.

Outside of the cone and of its polar, ``(t, u)`` projects onto ``(t + |u|) / 2 (1, u / |u|)``.
"""

import torch
from torch import Tensor

__all__ = ["project", "slope"]


def project(w: Tensor) -> Tensor:
    """The nearest points of the cone, shaped as ``w``, ``(*B, d)``."""
    t, u = w[..., :1], w[..., 1:]
    length = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    safe = torch.where(length > 0, length, 1)
    boundary = 0.5 * (t + length) * torch.cat([torch.ones_like(t), u / safe], dim=-1)
    return torch.where(length <= t, w, torch.where(length <= -t, 0, boundary))


def slope(w: Tensor) -> Tensor:
    """The derivative of the projection, ``(*B, d, d)``, symmetric, itself differentiable in ``w``.

    On the boundary of the cone that from outside, except at the apex, where it is zero.
    """
    t, u = w[..., :1], w[..., 1:]
    length = torch.linalg.vector_norm(u.detach(), dim=-1, keepdim=True)
    inside, outside = (length < t).unsqueeze(-1), (length <= -t).unsqueeze(-1)
    # Where the formula does not count it must not divide by zero, nor must its derivative.
    counts = ~(inside | outside).squeeze(-1)
    u = torch.where(counts, u, 1)
    length = torch.where(counts, u.square().sum(-1, keepdim=True), 1).sqrt()
    direction, ratio = u / length, (t / length).unsqueeze(-1)
    eye = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
    outer = direction.unsqueeze(-1) * direction.unsqueeze(-2)
    head = torch.cat([torch.ones_like(t), direction], dim=-1).unsqueeze(-2)
    body = torch.cat([direction.unsqueeze(-1), (1 + ratio) * eye[1:, 1:] - ratio * outer], dim=-1)
    boundary = 0.5 * torch.cat([head, body], dim=-2)
    return torch.where(inside, eye, torch.where(outside, 0, boundary))
