"""The soft choice of k out of m as a module."""

from torch import Tensor, nn

from torchddn.functional import soft_top_k
from torchddn.nn._held import describe, hold
from torchddn.nn._scale import Scale
from torchddn.status import Solution, check_failure_policy

__all__ = ["SoftTopK"]


class SoftTopK(nn.Module):
    """Chooses the k largest scores softly by :func:`torchddn.functional.soft_top_k`.

    Args:
        k: As of the function. A parameter is learned.
        gamma: As of the function; a start if it is learned.
        dim: As of the function.
        learnable_gamma: Whether gamma is a parameter, kept positive as the exponential of one.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> SoftTopK(k=2)(torch.tensor([2.0, 0.0, -1.0, 1.0]))
        tensor([0.8176, 0.3775, 0.1824, 0.6225])
    """

    k: float | Tensor

    def __init__(
        self,
        k: float | Tensor,
        gamma: float | Tensor = 1.0,
        dim: int = -1,
        *,
        learnable_gamma: bool = False,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        check_failure_policy("SoftTopK", on_failure)
        hold(self, k=k)
        self.scale = Scale("SoftTopK", "gamma", gamma, learnable_gamma)
        self.dim, self.on_failure = dim, on_failure

    def forward(self, x: Tensor) -> Tensor:
        return soft_top_k(x, self.k, self.scale(), self.dim, on_failure=self.on_failure)

    def solve(self, x: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return soft_top_k(x, self.k, self.scale(), self.dim, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"{describe(k=self.k)}, {self.scale.describe('gamma')}, dim={self.dim}"
