"""Projection onto balls of weighted and grouped norms as modules."""

from torch import Tensor, nn

from torchddn.functional import project_l21_ball, project_weighted_l1_ball
from torchddn.nn._held import describe, hold
from torchddn.nn._scale import Scale
from torchddn.status import Solution, check_failure_policy

__all__ = ["ProjectL21Ball", "ProjectWeightedL1Ball"]


class ProjectWeightedL1Ball(nn.Module):
    """Projects vectors onto a weighted L1 ball by :func:`torchddn.functional.project_weighted_l1_ball`.

    Args:
        weights: As of the function. A parameter is learned.
        radius: As of the function; a start if it is learned.
        dim: As of the function.
        learnable_radius: Whether the radius is a parameter, kept positive as the exponential of one.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectWeightedL1Ball(torch.tensor([1.0, 2.0]), radius=2.0)(torch.tensor([3.0, 1.0]))
        tensor([2., 0.])
    """

    weights: float | Tensor

    def __init__(
        self,
        weights: float | Tensor,
        radius: float | Tensor = 1.0,
        dim: int = -1,
        *,
        learnable_radius: bool = False,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        check_failure_policy("ProjectWeightedL1Ball", on_failure)
        self.scale = Scale("ProjectWeightedL1Ball", "radius", radius, learnable_radius)
        hold(self, weights=weights)
        self.dim, self.on_failure = dim, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return project_weighted_l1_ball(x, self.weights, self.scale(), self.dim, on_failure=self.on_failure)

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_weighted_l1_ball(
            x, self.weights, self.scale(), self.dim, on_failure=self.on_failure, solution=True
        )

    def extra_repr(self) -> str:
        return f"{self.scale.describe('radius')}, {describe(weights=self.weights)}, dim={self.dim}"


class ProjectL21Ball(nn.Module):
    """Projects vectors onto an L21 ball, group by group, by :func:`torchddn.functional.project_l21_ball`.

    Args:
        radius: As of the function; a start if it is learned.
        dim: As of the function.
        group_dim: As of the function.
        learnable_radius: Whether the radius is a parameter, kept positive as the exponential of one.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectL21Ball(radius=2.0)(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        tensor([[1.2000, 1.6000],
                [0.0000, 0.0000]])
    """

    def __init__(
        self,
        radius: float | Tensor = 1.0,
        dim: int = -1,
        group_dim: int = -2,
        *,
        learnable_radius: bool = False,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        check_failure_policy("ProjectL21Ball", on_failure)
        self.scale = Scale("ProjectL21Ball", "radius", radius, learnable_radius)
        self.dim, self.group_dim, self.on_failure = dim, group_dim, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return project_l21_ball(x, self.scale(), self.dim, self.group_dim, on_failure=self.on_failure)

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_l21_ball(x, self.scale(), self.dim, self.group_dim, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"{self.scale.describe('radius')}, dim={self.dim}, group_dim={self.group_dim}"
