"""Eigenvectors as modules."""

from torch import Tensor, nn

from torchddn.functional import bottom_eigenvectors, top_eigenvectors
from torchddn.functional.linear_algebra.spectral import check_block
from torchddn.status import Solution, check_failure_policy

__all__ = ["BottomEigenvectors", "TopEigenvectors"]


class TopEigenvectors(nn.Module):
    """The eigenvectors of the k largest eigenvalues, by :func:`torchddn.functional.top_eigenvectors`.

    Args:
        k: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> TopEigenvectors()(torch.diag(torch.tensor([1.0, 3.0]))).squeeze(-1)
        tensor([0., 1.])
    """

    def __init__(self, k: int = 1, *, on_failure: str = "warn") -> None:
        super().__init__()
        check_block("TopEigenvectors", k)
        check_failure_policy("TopEigenvectors", on_failure)
        self.k, self.on_failure = k, on_failure

    def forward(self, X: Tensor) -> Tensor:
        return top_eigenvectors(X, self.k, on_failure=self.on_failure)

    def solve(self, X: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return top_eigenvectors(X, self.k, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class BottomEigenvectors(nn.Module):
    """The eigenvectors of the k smallest eigenvalues, by :func:`torchddn.functional.bottom_eigenvectors`.

    Args:
        k: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> BottomEigenvectors()(torch.diag(torch.tensor([1.0, 3.0]))).squeeze(-1)
        tensor([1., 0.])
    """

    def __init__(self, k: int = 1, *, on_failure: str = "warn") -> None:
        super().__init__()
        check_block("BottomEigenvectors", k)
        check_failure_policy("BottomEigenvectors", on_failure)
        self.k, self.on_failure = k, on_failure

    def forward(self, X: Tensor) -> Tensor:
        return bottom_eigenvectors(X, self.k, on_failure=self.on_failure)

    def solve(self, X: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return bottom_eigenvectors(X, self.k, on_failure=self.on_failure, solution=True)

    def extra_repr(self) -> str:
        return f"k={self.k}"
