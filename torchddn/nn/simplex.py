"""Projection onto the simplex, and sparse probabilities, as modules."""

from torch import Tensor, nn

from torchddn.functional import entmax15, project_capped_simplex, project_simplex, sparsemax
from torchddn.nn._held import describe, hold
from torchddn.nn._scale import Scale
from torchddn.status import Solution, check_failure_policy

__all__ = ["Entmax15", "ProjectCappedSimplex", "ProjectSimplex", "Sparsemax"]


class ProjectSimplex(nn.Module):
    """Projects vectors onto the simplex by :func:`torchddn.functional.project_simplex`.

    Args:
        radius: As of the function; a start if it is learned.
        dim: As of the function.
        learnable_radius: Whether the radius is a parameter, kept positive as the exponential of one.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectSimplex(radius=2.0)(torch.tensor([3.0, 2.0, 0.0]))
        tensor([1.5000, 0.5000, 0.0000])
    """

    def __init__(
        self, radius: float | Tensor = 1.0, dim: int = -1, *, learnable_radius: bool = False, on_failure: str = "warn"
    ) -> None:
        super().__init__()
        check_failure_policy("ProjectSimplex", on_failure)
        self.scale = Scale("ProjectSimplex", "radius", radius, learnable_radius)
        self.dim, self.on_failure = dim, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return project_simplex(x, self.scale(), self.dim, on_failure=self.on_failure)

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_simplex(x, self.scale(), self.dim, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"{self.scale.describe('radius')}, dim={self.dim}"


class Sparsemax(nn.Module):
    """Turns scores into probabilities with exact zeros by :func:`torchddn.functional.sparsemax`.

    Args:
        dim: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> Sparsemax()(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])
    """

    def __init__(self, dim: int = -1, *, on_failure: str = "warn") -> None:
        super().__init__()
        check_failure_policy("Sparsemax", on_failure)
        self.dim, self.on_failure = dim, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return sparsemax(x, self.dim, on_failure=self.on_failure)

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return sparsemax(x, self.dim, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Entmax15(nn.Module):
    """Turns scores into probabilities with exact zeros by :func:`torchddn.functional.entmax15`.

    Args:
        dim: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> Entmax15()(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.6740, 0.3260, 0.0000])
    """

    def __init__(self, dim: int = -1, *, on_failure: str = "warn") -> None:
        super().__init__()
        check_failure_policy("Entmax15", on_failure)
        self.dim, self.on_failure = dim, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return entmax15(x, self.dim, on_failure=self.on_failure)

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return entmax15(x, self.dim, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class ProjectCappedSimplex(nn.Module):
    """Projects vectors onto the capped simplex by :func:`torchddn.functional.project_capped_simplex`.

    Args:
        radius: As of the function; a start if it is learned.
        upper: As of the function. A parameter is learned.
        dim: As of the function.
        learnable_radius: Whether the radius is a parameter, kept positive as the exponential of one.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectCappedSimplex(radius=2.0)(torch.tensor([3.0, 0.9, 0.5, -1.0]))
        tensor([1.0000, 0.7000, 0.3000, 0.0000])
    """

    upper: float | Tensor

    def __init__(
        self,
        radius: float | Tensor = 1.0,
        upper: float | Tensor = 1.0,
        dim: int = -1,
        *,
        learnable_radius: bool = False,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        check_failure_policy("ProjectCappedSimplex", on_failure)
        self.scale = Scale("ProjectCappedSimplex", "radius", radius, learnable_radius)
        hold(self, upper=upper)
        self.dim, self.on_failure = dim, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return project_capped_simplex(x, self.scale(), self.upper, self.dim, on_failure=self.on_failure)

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_capped_simplex(x, self.scale(), self.upper, self.dim, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"{self.scale.describe('radius')}, {describe(upper=self.upper)}, dim={self.dim}"
