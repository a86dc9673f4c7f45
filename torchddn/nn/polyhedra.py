"""Projection onto polyhedra, that of doubly stochastic matrices among them, as modules."""

from typing import Any

from torch import Tensor, nn

from torchddn.functional import project_birkhoff, project_polyhedron
from torchddn.nn._held import describe, hold
from torchddn.status import Solution, check_failure_policy

__all__ = ["ProjectBirkhoff", "ProjectPolyhedron"]


class ProjectBirkhoff(nn.Module):
    """Projects matrices onto the doubly stochastic ones by :func:`torchddn.functional.project_birkhoff`.

    Args:
        max_steps: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectBirkhoff()(torch.tensor([[0.4, 0.0], [0.1, 0.2]]))
        tensor([[0.6250, 0.3750],
                [0.3750, 0.6250]])
    """

    def __init__(self, *, max_steps: int = 500, on_failure: str = "warn") -> None:
        super().__init__()
        check_failure_policy("ProjectBirkhoff", on_failure)
        self.max_steps, self.on_failure = max_steps, on_failure

    def forward(self, X: Tensor, r: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        return project_birkhoff(X, r, c, max_steps=self.max_steps, on_failure=self.on_failure)

    def solve(self, X: Tensor, r: Tensor | None = None, c: Tensor | None = None) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_birkhoff(X, r, c, max_steps=self.max_steps, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"max_steps={self.max_steps}"


class ProjectPolyhedron(nn.Module):
    """Projects vectors onto a polyhedron by :func:`torchddn.functional.project_polyhedron`.

    Args:
        G: As of the function. A parameter is learned, here and below.
        h: As of the function.
        A: As of the function.
        b: As of the function.
        lower: As of the function.
        upper: As of the function.
        weakly_active: As of the function.
        infeasible: As of the function.
        max_steps: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectPolyhedron(torch.ones(1, 2), torch.ones(1))(torch.tensor([2.0, 2.0]))
        tensor([0.5000, 0.5000])
    """

    def __init__(
        self,
        G: Tensor | None = None,
        h: Tensor | None = None,
        A: Tensor | None = None,
        b: Tensor | None = None,
        lower: Tensor | float | None = None,
        upper: Tensor | float | None = None,
        *,
        weakly_active: str = "active",
        infeasible: str = "warn",
        max_steps: int = 60,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        check_failure_policy("ProjectPolyhedron", on_failure)
        hold(self, G=G, h=h, A=A, b=b, lower=lower, upper=upper)
        self.weakly_active, self.infeasible = weakly_active, infeasible
        self.max_steps, self.on_failure = max_steps, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return project_polyhedron(x, **self._given())

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_polyhedron(x, **self._given(), solution=True)

    def _given(self) -> dict[str, Any]:
        names = ("G", "h", "A", "b", "lower", "upper", "weakly_active", "infeasible", "max_steps", "on_failure")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        return describe(**{name: self._given()[name] for name in ("G", "h", "A", "b", "lower", "upper")})
