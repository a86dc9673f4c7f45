"""Solving quadratic programs: the quick way for all, the safe way for what is left, and how each item ended."""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.quadratic.backends import OWN, guess_all
from torchddn.quadratic.interior_point import PrimalDual
from torchddn.quadratic.polish import ActiveSet
from torchddn.quadratic.program import Data, Program
from torchddn.quadratic.scaling import equilibrate
from torchddn.solvers.base import iterate
from torchddn.solvers.vectors import largest
from torchddn.status import Status

__all__ = ["Answer", "solve_program"]

# Steps of the quick way, with and without the embedding; few items take half as many.
_QUICK_STEPS, _QUICK_CHANGES = 25, 8
_SAFE_CHANGES = 15


class Answer(NamedTuple):
    """What is known of a batch of programs, nothing of it differentiable."""

    y: Tensor  # (B, m)
    z: Tensor  # (B, N)
    active: Tensor  # (B, N): rows that hold with equality
    weak: Tensor  # (B, N): those of them, and of the others, with neither multiplier nor slack
    status: Tensor  # (B,)
    num_steps: Tensor  # (B,)
    error: Tensor  # (B,): the worst violation of a condition, in units of the data


def solve_program(program: Program, data: Data, max_steps: int, backend: str = OWN) -> Answer:
    """Returns the solution of each program; ``max_steps`` is for an item that needs the safe way.

    First a primal-dual method without the embedding, to a few digits, and the active-set method from there: exact, or a
    resignation. The items that are left get the homogeneous model in double precision, to rounding, which ends
    with a solution or with a proof that there is none; where the active-set method cannot improve its point, that
    stays. Another ``backend`` replaces the first method only.

    Status:
        INFEASIBLE, UNBOUNDED: Proved, up to rounding.
        MAX_STEPS, STALLED: Neither a solution nor a proof; the point is the last one.
    """
    scaled, units = equilibrate(program, data)
    eps = torch.finfo(data.c.dtype).eps
    if backend == OWN:
        answer = _attempt(program, scaled, PrimalDual(False, eps**0.2, min(max_steps, _QUICK_STEPS)), _QUICK_CHANGES)
    else:
        y, z, s, status = guess_all(backend, program, scaled)
        answer = _improve(program, scaled, _Point(y, z, s, status, torch.zeros_like(status)), False, _QUICK_CHANGES)
    left = torch.nonzero(answer.status != Status.CONVERGED).flatten()
    if len(left):
        double = Data(*(part[left].double() if part.is_floating_point() else part[left] for part in scaled))
        safe = _attempt(program, double, PrimalDual(True, 1e-9, max_steps), _SAFE_CHANGES)
        safe = safe._replace(num_steps=safe.num_steps + answer.num_steps[left])
        answer = Answer(
            *(whole.index_copy(0, left, part.to(whole.dtype)) for whole, part in zip(answer, safe, strict=True))
        )
    return answer._replace(y=answer.y * units.y, z=answer.z * units.z)


def _attempt(program: Program, data: Data, method: PrimalDual, most_changes: int) -> Answer:
    """One method, and the active-set method from where it ends; CONVERGED if that is exact, or the first was."""
    state, status, num_steps = iterate(method, program, data, data.c)
    y, z, s = (torch.where(part.isfinite(), part, 0.0) for part in method.finish(state))
    return _improve(program, data, _Point(y, z, s, status, num_steps), method.homogeneous, most_changes)


class _Point(NamedTuple):
    """Where a method ended."""

    y: Tensor
    z: Tensor
    s: Tensor
    status: Tensor
    num_steps: Tensor


def _improve(program: Program, data: Data, point: _Point, believed: bool, most_changes: int) -> Answer:
    """The active-set method from a point; ``believed`` says whether CONVERGED holds where it does not improve that."""
    y, z, s, status, num_steps = point
    proved = (status == Status.INFEASIBLE) | (status == Status.UNBOUNDED)
    exact, ended, num_changes = iterate(ActiveSet(most_changes), program, (*data, z, s), y)
    better = ((ended == Status.CONVERGED) & ~proved)[:, None]
    status = torch.where(better.squeeze(1), int(Status.CONVERGED), status)
    if not believed:  # a few digits are no solution
        status = torch.where(better.squeeze(1) | (status != Status.CONVERGED), status, int(Status.STALLED))
    y, z = torch.where(better, exact.y, y), torch.where(better, exact.z, z)
    equality = torch.arange(program.num_rows, device=y.device) < program.p
    active = torch.where(better, exact.active, equality | (z > s)) & data.present
    pull = torch.bmm(data.Q, y.unsqueeze(2)) + program.times_transposed(data.R, z.unsqueeze(2))
    pull = pull.squeeze(2) + data.c
    slack = torch.where(data.present, data.b - program.times(data.R, y.unsqueeze(2)).squeeze(2), 0.0)
    small = torch.finfo(y.dtype).eps ** 0.5 * torch.where(better, 1.0, 1e3)
    force, length = 1 + largest(z)[:, None], 1 + torch.maximum(largest(data.b), largest(y))[:, None]
    weak = data.present & ~equality & (z.abs() <= small * force) & (slack.abs() <= small * length)
    violation = torch.where(equality, slack.abs(), (-slack).clamp(min=0))
    parts = pull / force, violation / length, slack * z / (force * length)
    error = torch.stack([largest(part) for part in parts]).amax(0)
    return Answer(y, z, active, weak, status, num_steps + num_changes, error)
