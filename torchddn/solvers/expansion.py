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

__all__ = ["Expansion", "value_and_jacobian", "value_gradient_hessian"]


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


class Expansion:
    """A function from ``(B, m)`` to ``(B, r)`` at ``y``, evaluated once: value, Jacobian, then Hessians of its sums.

    Attributes:
        value: ``F``, ``(B, r)``.
        slopes: ``F_y``, ``(B, r, m)``.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], y: Tensor, work: int) -> None:
        self._function, self._y, self._work = function, y, work
        if inside_transform():
            self.value, self.slopes = function(y), jacobian(function, y, work)
            return
        keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            self._leaf = y.view_as(y) if keep_graph and y.requires_grad else y.detach().requires_grad_()
            self._value = function(self._leaf)
            self.slopes = dense_rows(self._value, self._leaf, work, keep_graph)
        self.value = self._value if keep_graph else self._value.detach()

    def curvature(self, weights: Tensor) -> Tensor:
        """The Hessian of ``weights . F``, ``(B, m, m)``; ``weights`` are ``(B, r)`` and do not depend on ``y``."""
        if inside_transform():
            return hessian(lambda y: (weights * self._function(y)).sum(-1), self._y, self._work)
        leaf, slope = self._leaf, None
        with torch.enable_grad():
            if self._value.requires_grad:
                (slope,) = torch.autograd.grad(self._value, leaf, weights, create_graph=True, allow_unused=True)
            slope = torch.zeros_like(leaf) if slope is None else slope
        return dense_rows(slope, leaf, self._work, torch.is_grad_enabled())
