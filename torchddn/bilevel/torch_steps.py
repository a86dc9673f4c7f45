"""Optimizers of torch at the upper level."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchddn.bilevel.quasi_newton import Evaluate, Point
from torchddn.bilevel.region import Region
from torchddn.errors import InvalidInputError

__all__ = ["TorchSteps"]

# Halvings of a step that ends at a bad point, before it is refused.
_MAX_HALVINGS = 20


class TorchSteps:
    """Steps of an optimizer of ``torch.optim``, each projected, and halved while it ends at a bad point.

    The optimizer may call its closure at further points, as ``torch.optim.LBFGS`` does. At a bad one it sees an
    infinite value and no gradient.
    """

    def __init__(self, call: str, factory: Callable[[list[Tensor]], Any], region: Region, theta: Tensor) -> None:
        self._region = region
        self._flat = theta.clone().requires_grad_()
        self._optimizer = factory([self._flat])
        if not isinstance(self._optimizer, torch.optim.Optimizer):
            raise InvalidInputError(
                f"`{call}(optimizer=...)` must make a `torch.optim.Optimizer` of a list of tensors, as `lambda params: "
                f"torch.optim.Adam(params, lr=0.1)` does, got {self._optimizer!r}."
            )

    def advance(self, point: Point, evaluate: Evaluate, patient: bool) -> tuple[Point | None, str]:
        """The next point, or None and why there is none."""
        self._write(point)

        def closure() -> Tensor:
            theta = self._flat.detach()
            seen = point if torch.equal(theta, point.theta) else evaluate(theta.clone())
            self._flat.grad = torch.zeros_like(theta) if seen.objection else seen.gradient.clone()
            return theta.new_tensor(torch.inf if seen.objection else seen.value)

        self._optimizer.step(closure)
        theta = self._region.project(self._flat.detach().clone())
        trial = evaluate(theta)
        for _ in range(_MAX_HALVINGS):
            if not trial.objection:
                self._write(trial)
                return trial, ""
            theta = 0.5 * (theta.nan_to_num() + point.theta)
            trial = evaluate(theta)
        return None, trial.objection

    def _write(self, point: Point) -> None:
        with torch.no_grad():
            self._flat.copy_(point.theta)
