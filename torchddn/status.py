"""How a solve ended, item by item, and what is done about an item that failed."""

import dataclasses
import enum
import warnings
from typing import Any

import torch
from torch import Tensor

from torchddn.errors import (
    ConvergenceWarning,
    InfeasibleError,
    InvalidInputError,
    SolveError,
    UnboundedError,
)

__all__ = ["FAILURE_POLICIES", "PrimalDual", "Solution", "Status", "check_failure_policy", "report_failures"]

FAILURE_POLICIES = ("warn", "raise", "nan", "ignore")


class Status(enum.IntEnum):
    """How the solve of one item ended; ``advice`` says in one sentence what to try.

    Example:
        >>> Status.MAX_STEPS.advice
        'Raise max_steps, loosen rtol, start closer, or try another solver.'
    """

    CONVERGED = 0
    MAX_STEPS = 1
    STALLED = 2
    INFEASIBLE = 3
    UNBOUNDED = 4
    NON_FINITE = 5

    @property
    def advice(self) -> str:
        return _ADVICE[self]


_ADVICE = {
    Status.CONVERGED: "Nothing to do: the optimality conditions hold to tolerance.",
    Status.MAX_STEPS: "Raise max_steps, loosen rtol, start closer, or try another solver.",
    Status.STALLED: "No further progress in this precision: use float64, rescale the problem, or smooth kinks.",
    Status.INFEASIBLE: "The constraints conflict near this point: relax them or start elsewhere.",
    Status.UNBOUNDED: "The objective falls without limit: add a regularizer, a constraint or a bound.",
    Status.NON_FINITE: "The start, the input or a function value is NaN or infinite: check this item's data.",
}


@dataclasses.dataclass(frozen=True)
class Solution:
    """The answer of a node with everything that is known about it, per item.

    ``y`` and the multipliers are differentiable; the rest is for reading.

    Attributes:
        y: Decision, structured as the start was, each tensor ``(B, ...)``.
        equality_multipliers: ``nu`` of ``L = f + nu.h + lam.g``, ``(B, p)``; None without equalities.
        inequality_multipliers: ``lam >= 0``, ``(B, q)``; None without inequalities.
        lower_multipliers: Of ``lower <= y``, ``(B, m)``; None without bounds.
        upper_multipliers: Of ``y <= upper``, ``(B, m)``; None without bounds.
        objective: Value at ``y``, ``(B,)``; zeros where there is no objective.
        status: Integer tensor of :class:`Status`, ``(B,)``.
        num_steps: Solver steps taken, ``(B,)``.
        stationarity: Largest entry of the Lagrangian's gradient (or of a root's residual), ``(B,)``.
        feasibility: Largest constraint violation, ``(B,)``.
        complementarity: Largest ``|lam * g|``, ``(B,)``.
        solver: Which solver answered (what ``"auto"`` chose).
    """

    y: Any
    equality_multipliers: Tensor | None
    inequality_multipliers: Tensor | None
    lower_multipliers: Tensor | None
    upper_multipliers: Tensor | None
    objective: Tensor
    status: Tensor
    num_steps: Tensor
    stationarity: Tensor
    feasibility: Tensor
    complementarity: Tensor
    solver: str


@dataclasses.dataclass(frozen=True)
class PrimalDual:
    """What a problem's own ``solve`` may return instead of ``y`` alone: ``y`` with its multipliers.

    Without them, multipliers are estimated by least squares. Those of bounds follow from the others.

    Attributes:
        y: Decision, each tensor ``(B, ...)``.
        equality_multipliers: ``nu`` of ``L = f + nu.h + lam.g``, ``(B, p)``.
        inequality_multipliers: ``lam >= 0``, ``(B, q)``.
    """

    y: Any
    equality_multipliers: Tensor | None = None
    inequality_multipliers: Tensor | None = None


def check_failure_policy(call: str, on_failure: object) -> None:
    """Raises if ``on_failure`` is not one of the four words."""
    if on_failure not in FAILURE_POLICIES:
        raise InvalidInputError(
            f"`{call}(on_failure=...)` must be one of {', '.join(map(repr, FAILURE_POLICIES))}, got {on_failure!r}."
        )


def report_failures(call: str, status: Tensor, residual: Tensor, on_failure: str) -> None:
    """Warns of, or raises for, the items of ``status`` that did not converge.

    Args:
        call: Name that opens the message.
        status: ``(B,)`` of :class:`Status`. Reading it waits for the device, once.
        residual: ``(B,)``, the quantity whose worst value the message names.
        on_failure: ``"warn"``, ``"raise"``; ``"nan"`` and ``"ignore"`` say nothing here.
    """
    if on_failure not in ("warn", "raise"):
        return
    failed = status != Status.CONVERGED
    if not bool(failed.any()):
        return
    message = _describe(call, status, residual, failed)
    if on_failure == "warn":
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return
    codes = set(status[failed].tolist())
    if codes == {int(Status.INFEASIBLE)}:
        raise InfeasibleError(message)
    if codes == {int(Status.UNBOUNDED)}:
        raise UnboundedError(message)
    raise SolveError(message)


def _describe(call: str, status: Tensor, residual: Tensor, failed: Tensor) -> str:
    items = torch.nonzero(failed).flatten().tolist()
    residuals = residual.detach()[failed]
    worst = residuals.max().item()  # NaN wins, as it should
    lines = [
        f"`{call}`: {len(items)} of {status.numel()} items did not converge "
        f"(items {_shorten(items)}; worst residual {worst:.2e})."
    ]
    for code in sorted(set(status[failed].tolist())):
        count = int((status == code).sum())
        lines.append(f"{count} x {Status(code).name}: {Status(code).advice}")
    return " ".join(lines)


def _shorten(items: list[int], most: int = 8) -> str:
    shown = ", ".join(map(str, items[:most]))
    return shown if len(items) <= most else f"{shown}, ..."
