"""How a ready node ends: failures are reported as ``on_failure=`` says, and a Solution is made if asked for."""

from functools import partial

import torch
from torch import Tensor

from torchddn.diagnostics import File, forward_record, is_recording
from torchddn.functional.nodes.reading import read
from torchddn.status import Solution, Status, report_failures

__all__ = ["conclude", "solution_of"]


def conclude(
    call: str,
    y: Tensor,
    status: Tensor,
    residual: Tensor,
    on_failure: str,
    *,
    num_steps: Tensor,
    solver: str,
    file: File,
) -> Tensor:
    """Reports the items that failed, and returns ``y``, with NaN for these items if that is the policy.

    Args:
        call: Name that opens the message.
        y: ``(R, ...)``.
        status: ``(R,)`` of :class:`torchddn.Status`. Not read, and so not waited for, under ``"ignore"`` and ``"nan"``.
        residual: ``(R,)``, the quantity whose worst value the message names.
        on_failure: One of the four words.
        num_steps: ``(R,)``, for the record.
        solver: Name of the method, for the record.
        file: Files the record, if somebody listens.
    """

    def look(status: Tensor, residual: Tensor, num_steps: Tensor) -> None:
        status, residual, num_steps = status.flatten(), residual.flatten(), num_steps.flatten()
        file(partial(forward_record, call, solver, status, num_steps, residual))
        report_failures(call, status, residual, on_failure)

    if on_failure in ("warn", "raise") or is_recording():
        read(look, status, residual, num_steps)
    if on_failure != "nan":
        return y
    failed = (status != int(Status.CONVERGED)).reshape(-1, *[1] * (y.dim() - 1))
    return torch.where(failed, torch.nan, y)


def solution_of(
    y: Tensor,
    objective: Tensor,
    status: Tensor,
    num_steps: Tensor,
    stationarity: Tensor,
    solver: str,
    *,
    feasibility: Tensor | None = None,
    complementarity: Tensor | None = None,
    equality_multipliers: Tensor | None = None,
    inequality_multipliers: Tensor | None = None,
) -> Solution:
    """A :class:`torchddn.Solution` whose numbers for reading carry no graph; what is not given is zero or None."""
    zeros = torch.zeros_like(stationarity.detach())
    return Solution(
        y=y,
        equality_multipliers=equality_multipliers,
        inequality_multipliers=inequality_multipliers,
        lower_multipliers=None,
        upper_multipliers=None,
        objective=objective.detach(),
        status=status,
        num_steps=num_steps,
        stationarity=stationarity.detach(),
        feasibility=zeros if feasibility is None else feasibility.detach(),
        complementarity=zeros if complementarity is None else complementarity.detach(),
        solver=solver,
    )
