"""The merit ``f + sigma.|c|`` of a point, by which steps that trade the objective for the constraints are judged."""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.solvers.lagrangian import Point
from torchddn.solvers.points import detached
from torchddn.solvers.vectors import times

__all__ = ["DECREASE", "Merit", "descent", "violation"]

# The merit must fall by this fraction of what the model predicts (Nocedal and Wright, below 3.4).
DECREASE = 1e-4


def violation(c: Tensor, p: int) -> Tensor:
    """By how much each row of ``c = (h, g)``, of which ``p`` are equalities, does not hold."""
    return torch.cat([c[:, :p].abs(), c[:, p:].clamp(min=0)], dim=1) if c.shape[1] > p else c.abs()


class Merit(NamedTuple):
    """The change of the merit from a point to a trial point, ``(B,)`` each."""

    actual: Tensor
    predicted: Tensor
    falls: Tensor  # as it should
    at_rounding: Tensor  # too little to be seen
    shrinkage: Tensor  # by how much to shorten the step if it is rejected

    @staticmethod
    def of(
        point: Point, trial: Point, d: Tensor, alpha: Tensor | float, sigma: Tensor, curvature: Tensor, p: int
    ) -> "Merit":
        """The change that the step ``alpha d`` makes; ``curvature`` is ``L_yy``."""
        point, trial, d = detached(point), detached(trial), d.detach()
        predicted = _predict(point, d, alpha, sigma, curvature, p)
        penalty, penalty_next = ((sigma * violation(c, p)).sum(-1) for c in (point.h, trial.h))
        actual = point.f - trial.f + penalty - penalty_next
        noise = 10 * torch.finfo(d.dtype).eps * (point.f.abs() + trial.f.abs() + penalty + penalty_next)
        # Minimum of the parabola through both values and the predicted slope.
        shrinkage = (0.5 * predicted / (predicted - actual)).nan_to_num(nan=0.1).clamp(0.05, 0.5)
        return Merit(actual, predicted, actual >= DECREASE * predicted.abs(), predicted.abs() <= noise, shrinkage)

    def where(self, condition: Tensor, other: "Merit") -> "Merit":
        """``other`` for the items for which the condition holds."""
        return Merit(*(torch.where(condition, theirs, ours) for ours, theirs in zip(self, other, strict=True)))


def _predict(point: Point, d: Tensor, alpha: Tensor | float, sigma: Tensor, curvature: Tensor, p: int) -> Tensor:
    """By how much the merit falls on the step ``alpha d`` in a model with curvature downwards only."""
    bent = (d * times(curvature, d)).sum(-1).clamp(max=0)
    return alpha * descent(point, d, sigma, p) - 0.5 * alpha**2 * bent


def descent(point: Point, d: Tensor, sigma: Tensor, p: int) -> Tensor:
    """By how much the merit falls on the step ``d`` in the linear model."""
    gain = (sigma * (violation(point.h, p) - violation(point.h + times(point.h_y, d), p))).sum(-1)
    return gain - (point.f_y * d).sum(-1)
