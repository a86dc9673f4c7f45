"""The analytic center of a polyhedron as a module."""

from torch import Tensor, nn

from torchddn.functional import analytic_center
from torchddn.nn._held import describe, hold
from torchddn.status import Solution, check_failure_policy

__all__ = ["AnalyticCenter"]


class AnalyticCenter(nn.Module):
    """Finds centers by :func:`torchddn.functional.analytic_center` of polyhedra that share their normals.

    Args:
        G: As of the function. A parameter is learned.
        A: As of the function. A parameter is learned.
        max_steps: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> AnalyticCenter(torch.tensor([[1.0], [-1.0]]))(torch.tensor([[3.0, 1.0], [0.0, 4.0]]))
        tensor([[ 1.],
                [-2.]])
    """

    G: Tensor
    A: Tensor | None

    def __init__(self, G: Tensor, A: Tensor | None = None, *, max_steps: int = 100, on_failure: str = "warn") -> None:
        super().__init__()
        check_failure_policy("AnalyticCenter", on_failure)
        hold(self, G=G, A=A)
        self.max_steps, self.on_failure = max_steps, on_failure

    def forward(self, h: Tensor, b: Tensor | None = None) -> Tensor:
        """``(*B, m)`` for the offsets ``h``, ``(*B, q)``, and the right-hand sides ``b``, ``(*B, p)``."""
        return self.solve(h, b).y

    def solve(self, h: Tensor, b: Tensor | None = None) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return analytic_center(
            self.G, h, self.A, b, max_steps=self.max_steps, on_failure=self.on_failure, solution=True
        )

    def extra_repr(self) -> str:
        return describe(G=self.G, A=self.A)
