"""Isotonic regression and total variation as modules."""

from torch import Tensor, nn

from torchddn.functional import isotonic_regression, total_variation
from torchddn.nn._scale import Scale
from torchddn.status import Solution, check_failure_policy

__all__ = ["IsotonicRegression", "TotalVariation"]


class IsotonicRegression(nn.Module):
    """Fits monotone vectors by :func:`torchddn.functional.isotonic_regression`.

    Args:
        increasing: As of the function.
        dim: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> IsotonicRegression()(torch.tensor([1.0, 3.0, 2.0]), weights=torch.tensor([1.0, 1.0, 3.0]))
        tensor([1.0000, 2.2500, 2.2500])
    """

    def __init__(self, increasing: bool = True, dim: int = -1, *, on_failure: str = "warn") -> None:
        super().__init__()
        check_failure_policy("IsotonicRegression", on_failure)
        self.increasing, self.dim, self.on_failure = increasing, dim, on_failure

    def forward(self, x: Tensor, weights: float | Tensor | None = None) -> Tensor:
        return isotonic_regression(x, weights, self.increasing, self.dim, on_failure=self.on_failure)

    def solve(self, x: Tensor, weights: float | Tensor | None = None) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return isotonic_regression(x, weights, self.increasing, self.dim, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"increasing={self.increasing}, dim={self.dim}"


class TotalVariation(nn.Module):
    """Makes vectors piecewise constant by :func:`torchddn.functional.total_variation`.

    Args:
        strength: As of the function, and positive; a start if it is learned.
        dim: As of the function.
        learnable_strength: Whether the strength is a parameter, kept positive as the exponential of one.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> TotalVariation(1.0)(torch.tensor([1.0, 3.0, 2.0, 9.0, 8.0]))
        tensor([2.0000, 2.5000, 2.5000, 8.0000, 8.0000])
    """

    def __init__(
        self,
        strength: float | Tensor = 1.0,
        dim: int = -1,
        *,
        learnable_strength: bool = False,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        check_failure_policy("TotalVariation", on_failure)
        self.scale = Scale("TotalVariation", "strength", strength, learnable_strength)
        self.dim, self.on_failure = dim, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return total_variation(x, self.scale(), self.dim, on_failure=self.on_failure)

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return total_variation(x, self.scale(), self.dim, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"{self.scale.describe('strength')}, dim={self.dim}"
