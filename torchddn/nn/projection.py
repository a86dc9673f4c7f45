"""Projection onto spheres and balls as modules."""

from torch import Tensor, nn

from torchddn.functional import project_ball, project_sphere
from torchddn.functional.nodes.arguments import check_choice
from torchddn.functional.projection.spheres import PLATEAUS, check_norm
from torchddn.nn._held import describe, hold
from torchddn.nn._scale import Scale
from torchddn.status import Solution, check_failure_policy

__all__ = ["ProjectBall", "ProjectSphere"]


class ProjectSphere(nn.Module):
    """Projects vectors onto a sphere by :func:`torchddn.functional.project_sphere`.

    Args:
        p: As of the function.
        radius: As of the function; a start if it is learned.
        dim: As of the function.
        center: As of the function. A parameter is learned.
        plateau: As of the function.
        learnable_radius: Whether the radius is a parameter, kept positive as the exponential of one.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectSphere(radius=2.0)(torch.tensor([3.0, 4.0]))
        tensor([1.2000, 1.6000])
    """

    center: float | Tensor | None

    def __init__(
        self,
        p: float = 2,
        radius: float | Tensor = 1.0,
        dim: int = -1,
        *,
        center: float | Tensor | None = None,
        plateau: str = "zero",
        learnable_radius: bool = False,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        check_norm("ProjectSphere", p)
        check_choice("ProjectSphere", "plateau", plateau, PLATEAUS)
        check_failure_policy("ProjectSphere", on_failure)
        self.scale = Scale("ProjectSphere", "radius", radius, learnable_radius)
        hold(self, center=center)
        self.p, self.dim, self.plateau, self.on_failure = p, dim, plateau, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return project_sphere(
            x, self.p, self.scale(), self.dim, center=self.center, plateau=self.plateau, on_failure=self.on_failure
        )

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_sphere(
            x,
            self.p,
            self.scale(),
            self.dim,
            center=self.center,
            plateau=self.plateau,
            on_failure=self.on_failure,
            solution=True,
        )

    def extra_repr(self) -> str:
        held = describe(center=self.center)
        return f"p={self.p}, {self.scale.describe('radius')}, dim={self.dim}, plateau={self.plateau!r}, {held}"


class ProjectBall(nn.Module):
    """Projects vectors onto a ball by :func:`torchddn.functional.project_ball`.

    Args:
        p: As of the function.
        radius: As of the function; a start if it is learned.
        dim: As of the function.
        center: As of the function. A parameter is learned.
        plateau: As of the function.
        learnable_radius: Whether the radius is a parameter, kept positive as the exponential of one.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectBall(p=float("inf"))(torch.tensor([0.5, -4.0]))
        tensor([ 0.5000, -1.0000])
    """

    center: float | Tensor | None

    def __init__(
        self,
        p: float = 2,
        radius: float | Tensor = 1.0,
        dim: int = -1,
        *,
        center: float | Tensor | None = None,
        plateau: str = "zero",
        learnable_radius: bool = False,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        check_norm("ProjectBall", p)
        check_choice("ProjectBall", "plateau", plateau, PLATEAUS)
        check_failure_policy("ProjectBall", on_failure)
        self.scale = Scale("ProjectBall", "radius", radius, learnable_radius)
        hold(self, center=center)
        self.p, self.dim, self.plateau, self.on_failure = p, dim, plateau, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return project_ball(
            x, self.p, self.scale(), self.dim, center=self.center, plateau=self.plateau, on_failure=self.on_failure
        )

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_ball(
            x,
            self.p,
            self.scale(),
            self.dim,
            center=self.center,
            plateau=self.plateau,
            on_failure=self.on_failure,
            solution=True,
        )

    def extra_repr(self) -> str:
        held = describe(center=self.center)
        return f"p={self.p}, {self.scale.describe('radius')}, dim={self.dim}, plateau={self.plateau!r}, {held}"
