"""Value and derivatives of a batched function at one point, from one evaluation where that is possible."""

from collections.abc import Callable

import torch
from torch import Tensor

from torchddn.derivatives import (
    Linearization,
    dense_rows,
    gradient,
    hessian,
    inside_transform,
    jacobian,
    value_and_gradient,
)
from torchddn.solvers.base import is_differentiated

__all__ = ["value_and_jacobian", "value_gradient_hessian", "value_jacobian_hessian"]


def value_and_jacobian(function: Callable[[Tensor], Tensor], y: Tensor, work: int) -> tuple[Tensor, Tensor]:
    """Returns ``(B, r)`` and ``(B, r, m)`` of a function from ``(B, m)`` to ``(B, r)``."""
    if inside_transform():
        return function(y), jacobian(function, y, work)
    linearization = Linearization(function, y, work)
    value = linearization.value if is_differentiated() else linearization.value.detach()
    return value, linearization.dense()


def value_gradient_hessian(function: Callable[[Tensor], Tensor], y: Tensor, work: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ``f``, ``(B,)``, without a graph, and ``f_y``, ``f_yy``, of a function with values ``(B,)``."""
    if inside_transform():
        return function(y).detach(), gradient(function, y), hessian(function, y, work)
    values: list[Tensor] = []

    def f_y(y: Tensor) -> Tensor:
        value, slope = value_and_gradient(function, y)
        values.append(value.detach())
        return slope

    slope, curvature = value_and_jacobian(f_y, y, work)
    return values[0], slope, curvature


def value_jacobian_hessian(
    function: Callable[[Tensor], Tensor], y: Tensor, weights: Tensor, work: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ``F``, ``(B, r)``, ``F_y``, ``(B, r, m)``, and the Hessian of ``weights . F``, ``(B, m, m)``."""
    if inside_transform():
        value, slopes = function(y), jacobian(function, y, work)
        return value, slopes, hessian(lambda y: (weights * function(y)).sum(-1), y, work)
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = y.view_as(y) if keep_graph and y.requires_grad else y.detach().requires_grad_()
        value = function(leaf)
        slopes = dense_rows(value, leaf, work, keep_graph)
        L_y = None
        if value.requires_grad:
            (L_y,) = torch.autograd.grad(value, leaf, weights, create_graph=True, allow_unused=True)
        if L_y is None:
            L_y = torch.zeros_like(leaf)
        curvature = dense_rows(L_y, leaf, work, keep_graph)
    return (value if keep_graph else value.detach()), slopes, curvature
