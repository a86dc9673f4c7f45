"""The nearest matrix with orthonormal columns, and the nearest rotation, as modules."""

from torch import Tensor, nn

from torchddn.functional import project_orthogonal, project_rotation
from torchddn.status import Solution, check_failure_policy

__all__ = ["ProjectOrthogonal", "ProjectRotation"]


class ProjectOrthogonal(nn.Module):
    """Makes the columns of matrices orthonormal by :func:`torchddn.functional.project_orthogonal`.

    Args:
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectOrthogonal()(torch.tensor([[3.0], [4.0]]))
        tensor([[0.6000],
                [0.8000]])
    """

    def __init__(self, *, on_failure: str = "warn") -> None:
        super().__init__()
        check_failure_policy("ProjectOrthogonal", on_failure)
        self.on_failure = on_failure

    def forward(self, X: Tensor) -> Tensor:
        return project_orthogonal(X, on_failure=self.on_failure)

    def solve(self, X: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_orthogonal(X, on_failure=self.on_failure, solution=True)


class ProjectRotation(nn.Module):
    """Makes rotations of matrices by :func:`torchddn.functional.project_rotation`.

    Args:
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> ProjectRotation()(torch.tensor([[0.0, -3.0], [2.0, 0.0]]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """

    def __init__(self, *, on_failure: str = "warn") -> None:
        super().__init__()
        check_failure_policy("ProjectRotation", on_failure)
        self.on_failure = on_failure

    def forward(self, X: Tensor) -> Tensor:
        return project_rotation(X, on_failure=self.on_failure)

    def solve(self, X: Tensor) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return project_rotation(X, on_failure=self.on_failure, solution=True)
