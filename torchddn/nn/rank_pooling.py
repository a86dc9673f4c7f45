"""Rank pooling as a module."""

from torch import Tensor, nn

from torchddn.functional import rank_pooling
from torchddn.nn._held import describe, hold
from torchddn.nn._scale import Scale
from torchddn.status import Solution, check_failure_policy

__all__ = ["RankPooling"]


class RankPooling(nn.Module):
    """Pools sequences by :func:`torchddn.functional.rank_pooling`.

    Args:
        C: As of the function; a start if it is learned.
        epsilon: As of the function. A parameter is learned.
        loss: As of the function.
        smoothing: As of the function.
        frames: As of the function.
        learnable_C: Whether C is a parameter, kept positive as the exponential of one.
        max_steps: As of the function.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> RankPooling(C=1.0, epsilon=0.0)(torch.eye(2))
        tensor([0.5000, 1.0000])
    """

    epsilon: float | Tensor

    def __init__(
        self,
        C: float | Tensor = 1.0,
        epsilon: float | Tensor = 0.1,
        *,
        loss: str = "squared",
        smoothing: float = 0.0,
        frames: str = "as given",
        learnable_C: bool = False,
        max_steps: int = 60,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        self.C = Scale("RankPooling", "C", C, learnable_C)
        check_failure_policy("RankPooling", on_failure)
        hold(self, epsilon=epsilon)
        self.loss, self.smoothing, self.frames = loss, smoothing, frames
        self.max_steps, self.on_failure = max_steps, on_failure

    def forward(self, sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(*B, D)`` for frames ``(*B, T, D)``, of which ``mask``, boolean ``(*B, T)``, says which count."""
        return self.solve(sequence, mask).y

    def solve(self, sequence: Tensor, mask: Tensor | None = None) -> Solution:
        """What ``forward`` returns, with everything that is known about it."""
        return rank_pooling(
            sequence,
            self.C(),
            self.epsilon,
            loss=self.loss,
            smoothing=self.smoothing,
            frames=self.frames,
            mask=mask,
            max_steps=self.max_steps,
            on_failure=self.on_failure,
            solution=True,
        )

    def extra_repr(self) -> str:
        kept = describe(epsilon=self.epsilon, loss=self.loss, smoothing=self.smoothing, frames=self.frames)
        return f"{self.C.describe('C')}, {kept}"
