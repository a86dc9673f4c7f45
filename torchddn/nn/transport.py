"""Entropic optimal transport as a module."""

from torch import Tensor, nn

from torchddn.functional import optimal_transport
from torchddn.functional.nodes.arguments import check_choice, check_flag
from torchddn.functional.transport.door import GRADIENTS, MAX_STEPS
from torchddn.nn._scale import Scale
from torchddn.status import Solution, check_failure_policy

__all__ = ["OptimalTransport"]


class OptimalTransport(nn.Module):
    """Transports by :func:`torchddn.functional.optimal_transport`.

    Args:
        gamma: As of the function; a start if it is learned.
        atol: As of the function.
        max_steps: As of the function.
        normalize: As of the function.
        gradient: As of the function.
        learnable_gamma: Whether gamma is a parameter, kept positive as the exponential of one.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> OptimalTransport(gamma=2.0)(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor([[0.4404, 0.0596],
                [0.0596, 0.4404]])
    """

    def __init__(
        self,
        gamma: float | Tensor = 1.0,
        *,
        atol: float | None = None,
        max_steps: int = MAX_STEPS,
        normalize: bool = False,
        gradient: str = "exact",
        learnable_gamma: bool = False,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        check_flag("OptimalTransport", "normalize", normalize)
        check_choice("OptimalTransport", "gradient", gradient, GRADIENTS)
        check_failure_policy("OptimalTransport", on_failure)
        self.scale = Scale("OptimalTransport", "gamma", gamma, learnable_gamma)
        self.atol, self.max_steps, self.normalize = atol, max_steps, normalize
        self.gradient, self.on_failure = gradient, on_failure

    def forward(self, cost: Tensor, r: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        return optimal_transport(
            *(cost, r, c, self.scale()),
            atol=self.atol,
            max_steps=self.max_steps,
            normalize=self.normalize,
            gradient=self.gradient,
            on_failure=self.on_failure,
        )

    def solve(self, cost: Tensor, r: Tensor | None = None, c: Tensor | None = None) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return optimal_transport(
            *(cost, r, c, self.scale()),
            atol=self.atol,
            max_steps=self.max_steps,
            normalize=self.normalize,
            gradient=self.gradient,
            on_failure=self.on_failure,
            solution=True,
        )

    def extra_repr(self) -> str:
        return f"{self.scale.describe('gamma')}, gradient={self.gradient!r}"
