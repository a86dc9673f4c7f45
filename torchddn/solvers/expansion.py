"""Value and derivatives of a batched function at one point, from one evaluation where that is possible."""

from collections.abc import Callable

from torch import Tensor

from torchddn.derivatives import Linearization, inside_transform, jacobian
from torchddn.solvers.base import is_differentiated

__all__ = ["value_and_jacobian"]


def value_and_jacobian(function: Callable[[Tensor], Tensor], y: Tensor, work: int) -> tuple[Tensor, Tensor]:
    """Returns ``(B, r)`` and ``(B, r, m)`` of a function from ``(B, m)`` to ``(B, r)``."""
    if inside_transform():
        return function(y), jacobian(function, y, work)
    linearization = Linearization(function, y, work)
    value = linearization.value if is_differentiated() else linearization.value.detach()
    return value, linearization.dense()
