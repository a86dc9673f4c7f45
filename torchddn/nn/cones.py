"""Projection onto the second-order cone and the positive semidefinite matrices as modules."""

from torch import Tensor, nn

from torchddn.functional import project_psd, project_second_order_cone
from torchddn.nn._held import describe, hold
from torchddn.status import Solution, check_failure_policy

__all__ = ["ProjectPSD", "ProjectSecondOrderCone"]


class ProjectPSD(nn.Module):
    """Projects matrices onto the positive semidefinite ones by :func:`torchddn.functional.project_psd`.

    Args:
        minimum: As of the function. A parameter is learned.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectPSD()(torch.tensor([[3.0, 0.0], [0.0, -1.0]]))
        tensor([[3., 0.],
                [0., 0.]])
    """

    minimum: float | Tensor

    def __init__(self, minimum: float | Tensor = 0.0, *, on_failure: str = "warn") -> None:
        super().__init__()
        check_failure_policy("ProjectPSD", on_failure)
        hold(self, minimum=minimum)
        self.on_failure = on_failure

    def forward(self, X: Tensor) -> Tensor:
        return project_psd(X, self.minimum, on_failure=self.on_failure)

    def solve(self, X: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_psd(X, self.minimum, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return describe(minimum=self.minimum)


class ProjectSecondOrderCone(nn.Module):
    """Projects vectors onto the cone by :func:`torchddn.functional.project_second_order_cone`.

    Args:
        dim: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectSecondOrderCone()(torch.tensor([1.0, 3.0, 4.0]))
        tensor([3.0000, 1.8000, 2.4000])
    """

    def __init__(self, dim: int = -1, *, on_failure: str = "warn") -> None:
        super().__init__()
        check_failure_policy("ProjectSecondOrderCone", on_failure)
        self.dim, self.on_failure = dim, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return project_second_order_cone(x, self.dim, on_failure=self.on_failure)

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_second_order_cone(x, self.dim, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
