"""What a lower problem of the estimators is: a function of the hyperparameters, and a judge of its answer."""

from typing import Protocol

import torch
from torch import Tensor

from torchddn.status import Solution, Status

__all__ = ["Fit", "answer"]


class Fit(Protocol):
    """A model on all folds, and how wrong it is on what they left out.

    Attributes:
        scale: The error of a model that knows nothing, about: what a difference of errors is to be compared with.
    """

    scale: float

    def solve(self, theta: Tensor, /) -> Solution:
        """The solution of every fold, differentiable in ``theta``, the logarithms of the hyperparameters."""
        ...

    def error(self, y: Tensor, /) -> Tensor:
        """The cross-validation error of a solution, a scalar."""
        ...


def answer(y: Tensor, solver: str, num_steps: int = 0, solved: Tensor | None = None) -> Solution:
    """The solution of every fold, ``(K, ...)``, of which those are good that are finite and ``solved``, ``(K,)``."""
    size = len(y)
    finite = y.detach().flatten(1).isfinite().all(1)
    status = torch.where(finite, int(Status.CONVERGED), int(Status.NON_FINITE))
    if solved is not None:
        status = torch.where(finite & ~solved, int(Status.MAX_STEPS), status)
    nothing = torch.zeros(size, dtype=y.dtype)
    return Solution(
        y=y,
        equality_multipliers=None,
        inequality_multipliers=None,
        lower_multipliers=None,
        upper_multipliers=None,
        objective=nothing,
        status=status,
        num_steps=torch.full((size,), num_steps),
        stationarity=nothing,
        feasibility=nothing,
        complementarity=nothing,
        solver=solver,
    )
