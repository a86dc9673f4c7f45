"""The matrix of an adjoint as if nothing was active and nothing inactive: where structure is looked for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn import optimality
from torchddn.derivatives import Linearization
from torchddn.problem import BatchedProblem
from torchddn.structure.system import Product

__all__ = ["unmasked"]


def unmasked(problem: BatchedProblem, z: Tensor, x: Sequence[Tensor]) -> Product:
    """``K u`` at ``z = (y, dual)``, ``(B, s)``, with every row and no variable at a bound.

    A row without a multiplier would hide its curvature: it gets one.
    """
    m = problem.m
    dual = z[:, m:]
    place = torch.arange(1, dual.shape[1] + 1, dtype=z.dtype, device=z.device)
    size = dual.abs().amax(1, keepdim=True) if dual.shape[1] else z[:, :1]
    generic = (0.5 + (place * 0.6180339887498949).frac()) * torch.where(size > 0, size, 1.0)
    point = torch.cat([z[:, :m], torch.where(dual == 0, generic, dual)], dim=1)
    held = None
    if problem.is_inequality_constrained:
        none = torch.zeros_like(z[:, :m], dtype=torch.bool)
        held = optimality.Held(torch.ones_like(dual, dtype=torch.bool), none, none)
    return Linearization(lambda z: optimality.residual(problem, z, x, held), point, problem.work(x)).vjp
