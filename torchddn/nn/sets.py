"""Projection onto boxes, halfspaces, affine sets and the monotone cone as modules."""

from torch import Tensor, nn

from torchddn.functional import project_affine, project_box, project_halfspace, project_monotone
from torchddn.nn._held import describe, hold
from torchddn.status import Solution, check_failure_policy

__all__ = ["ProjectAffine", "ProjectBox", "ProjectHalfspace", "ProjectMonotone"]


class ProjectBox(nn.Module):
    """Projects vectors onto a box by :func:`torchddn.functional.project_box`.

    Args:
        lower: As of the function. A parameter is learned.
        upper: As of the function. A parameter is learned.
        dim: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectBox(lower=0.0)(torch.tensor([-1.0, 3.0]))
        tensor([0., 3.])
    """

    lower: float | Tensor | None
    upper: float | Tensor | None

    def __init__(
        self,
        lower: float | Tensor | None = None,
        upper: float | Tensor | None = None,
        dim: int = -1,
        *,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        check_failure_policy("ProjectBox", on_failure)
        hold(self, lower=lower, upper=upper)
        self.dim, self.on_failure = dim, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return project_box(x, self.lower, self.upper, self.dim, on_failure=self.on_failure)

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_box(x, self.lower, self.upper, self.dim, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"{describe(lower=self.lower, upper=self.upper)}, dim={self.dim}"


class ProjectHalfspace(nn.Module):
    """Projects vectors onto a halfspace by :func:`torchddn.functional.project_halfspace`.

    Args:
        normal: As of the function. A parameter is learned.
        offset: As of the function. A parameter is learned.
        dim: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectHalfspace(torch.tensor([1.0, 1.0]), 2.0)(torch.tensor([3.0, 1.0]))
        tensor([2., 0.])
    """

    normal: Tensor
    offset: float | Tensor

    def __init__(
        self, normal: Tensor, offset: float | Tensor = 0.0, dim: int = -1, *, on_failure: str = "warn"
    ) -> None:
        super().__init__()
        check_failure_policy("ProjectHalfspace", on_failure)
        hold(self, normal=normal, offset=offset)
        self.dim, self.on_failure = dim, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return project_halfspace(x, self.normal, self.offset, self.dim, on_failure=self.on_failure)

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_halfspace(x, self.normal, self.offset, self.dim, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"{describe(normal=self.normal, offset=self.offset)}, dim={self.dim}"


class ProjectAffine(nn.Module):
    """Projects vectors onto an affine set by :func:`torchddn.functional.project_affine`.

    Args:
        A: As of the function. A parameter is learned.
        b: As of the function. A parameter is learned.
        dim: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectAffine(torch.ones(1, 3), 6.0)(torch.tensor([3.0, 4.0, 5.0]))
        tensor([1., 2., 3.])
    """

    A: Tensor
    b: float | Tensor

    def __init__(self, A: Tensor, b: float | Tensor = 0.0, dim: int = -1, *, on_failure: str = "warn") -> None:
        super().__init__()
        check_failure_policy("ProjectAffine", on_failure)
        hold(self, A=A, b=b)
        self.dim, self.on_failure = dim, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return project_affine(x, self.A, self.b, self.dim, on_failure=self.on_failure)

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_affine(x, self.A, self.b, self.dim, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"{describe(A=self.A, b=self.b)}, dim={self.dim}"


class ProjectMonotone(nn.Module):
    """Projects vectors onto the monotone cone by :func:`torchddn.functional.project_monotone`.

    Args:
        dim: As of the function.
        increasing: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectMonotone()(torch.tensor([1.0, 3.0, 2.0]))
        tensor([1.0000, 2.5000, 2.5000])
    """

    def __init__(self, dim: int = -1, increasing: bool = True, *, on_failure: str = "warn") -> None:
        super().__init__()
        check_failure_policy("ProjectMonotone", on_failure)
        self.dim, self.increasing, self.on_failure = dim, increasing, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return project_monotone(x, self.dim, self.increasing, on_failure=self.on_failure)

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_monotone(x, self.dim, self.increasing, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, increasing={self.increasing}"
