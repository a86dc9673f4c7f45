"""What a minimization of an upper objective tells."""

import dataclasses
from typing import Any

from torch import Tensor

from torchddn.status import Status

__all__ = ["BilevelResult", "UpperStep"]


@dataclasses.dataclass(frozen=True)
class UpperStep:
    """One accepted point of the upper level.

    Attributes:
        value: ``J``.
        projected_gradient: Largest entry of the projected hypergradient.
        lower_steps: Steps of the lower solver since the last accepted point, the most of a follower in each solve.
        num_lower_solves: Lower solves since then.
        seconds: Since the start.
        lower_tolerance: Residual that the lower solver was asked for, relative to the start's; NaN where solves are as
            exact as they get.
        certificate: Of the hypergradient, see :class:`Hypergradient`.
        error: Estimate of the hypergradient's error by the inexact lower solve; NaN where solves are exact.
        one_sided: Whether the hypergradient is one-sided.
    """

    value: float
    projected_gradient: float
    lower_steps: int
    num_lower_solves: int
    seconds: float
    lower_tolerance: float
    certificate: float
    error: float
    one_sided: bool


@dataclasses.dataclass(frozen=True)
class BilevelResult:
    """What :func:`minimize_bilevel` returns: plain tensors, no graph.

    Attributes:
        theta: The upper variables.
        y: The lower solution there, ``(B, ...)``.
        value: ``J``, a scalar.
        gradient: The hypergradient there, structured as ``theta``.
        history: One :class:`UpperStep` for the start and for each step.
        status: CONVERGED, MAX_STEPS, STALLED, or at a bad start what the lower problem ended as.
        num_steps: Upper steps.
        num_lower_solves: Lower solves, each of all followers as one batch.
        num_refused: Evaluations that ended at a bad point.
        message: Why it stopped, if not because it converged.
    """

    theta: Any
    y: Any
    value: Tensor
    gradient: Any
    history: tuple[UpperStep, ...]
    status: Status
    num_steps: int
    num_lower_solves: int
    num_refused: int
    message: str
