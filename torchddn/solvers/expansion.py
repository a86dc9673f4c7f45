"""Value and derivatives of a batched function at one point, from one evaluation where that is possible."""

from collections.abc import Callable

from torch import Tensor

from torchddn.derivatives import Linearization, gradient, hessian, inside_transform, jacobian, value_and_gradient
from torchddn.solvers.base import is_differentiated

__all__ = ["value_and_jacobian", "value_gradient_hessian"]


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
