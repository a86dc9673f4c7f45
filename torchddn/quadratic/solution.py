"""Solving quadratic programs: the quick way for all, the safe way for what is left, and how each item ended."""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.quadratic.backends import OWN, guess_all
from torchddn.quadratic.condensed import weakest
from torchddn.quadratic.embedding import Embedding
from torchddn.quadratic.mehrotra import Mehrotra
from torchddn.quadratic.polish import ActiveSet
from torchddn.quadratic.program import Data, Program
from torchddn.quadratic.scaling import equilibrate
from torchddn.solvers.base import iterate
from torchddn.solvers.vectors import largest, times
from torchddn.status import Status

__all__ = ["Answer", "solve_program"]

# Steps of the quick way, with and without the embedding; few items take half as many.
_QUICK_STEPS, _QUICK_CHANGES = 25, 8
_SAFE_CHANGES = 15
# Digits that tell which rows are active. Single precision has them, and from this size on it is the faster.
_QUICK_RTOL = 7e-4
_QUICK_SINGLE = 32


class Answer(NamedTuple):
    """What is known of a batch of programs, nothing of it differentiable."""

    y: Tensor  # (B, m)
    z: Tensor  # (B, N)
    active: Tensor  # (B, N): rows that hold with equality
    weak: Tensor  # (B, N): those of them, and of the others, with neither multiplier nor slack
    status: Tensor  # (B,)
    num_steps: Tensor  # (B,)
    error: Tensor  # (B,): the worst violation of a condition, in units of the data
    L: Tensor  # (B, m, m): the factor of Q + E'w E, the last that was made
    w: Tensor  # (B, N): large weights of the active rows
    regular: Tensor  # (B,): whether there is such a factor, and its pivots say that the solution is isolated


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
        point = _guess(program, scaled, max_steps)
    else:
        y, z, s, status = guess_all(backend, program, scaled)
        point = _Point(y, z, s, status, torch.zeros_like(status))
    answer = _improve(program, scaled, point, False, _QUICK_CHANGES)
    left = torch.nonzero(answer.status != Status.CONVERGED).flatten()
    if len(left):
        double = Data(*(part[left] for part in scaled)).to(torch.float64)
        embedding = Embedding(1e-9, max_steps)
        state, status, num_steps = iterate(embedding, program, double, double.c)
        point = _Point(*embedding.finish(state), status, num_steps)
        safe = _improve(program, double, point, True, _SAFE_CHANGES)
        safe = safe._replace(num_steps=safe.num_steps + answer.num_steps[left])
        if eps > torch.finfo(torch.float64).eps:  # its weights are too large for fewer digits
            safe = safe._replace(regular=torch.zeros_like(safe.regular))
        answer = Answer(
            *(whole.index_copy(0, left, part.to(whole.dtype)) for whole, part in zip(answer, safe, strict=True))
        )
    return answer._replace(
        y=answer.y * units.y,
        z=answer.z * units.z,
        L=answer.L * (units.f.sqrt() / units.y).unsqueeze(2),
        w=answer.w * units.z / units.s,
    )


class _Point(NamedTuple):
    """Where a method ended."""

    y: Tensor
    z: Tensor
    s: Tensor
    status: Tensor
    num_steps: Tensor


def _guess(program: Program, data: Data, max_steps: int) -> _Point:
    """The solution to a few digits."""
    method = Mehrotra(_QUICK_RTOL, min(max_steps, _QUICK_STEPS))
    few = data.to(torch.float32) if program.m >= _QUICK_SINGLE else data
    state, status, num_steps = iterate(method, program, (*few, *method.rows(program, few)), few.c)
    y, z, s = (part.to(data.c.dtype) for part in state[:3])
    return _Point(y, z, s, status, num_steps)


def _improve(program: Program, data: Data, point: _Point, believed: bool, most_changes: int) -> Answer:
    """The active-set method from a point; ``believed`` says whether CONVERGED holds where it does not improve that."""
    y, z, s, status, num_steps = point
    y, z, s = (torch.where(part.isfinite(), part, 0.0) for part in (y, z, s))
    proved = (status == Status.INFEASIBLE) | (status == Status.UNBOUNDED)
    exact, ended, num_changes = iterate(ActiveSet(most_changes), program, (*data, z, s), y)
    better = ((ended == Status.CONVERGED) & ~proved)[:, None]
    status = torch.where(better.squeeze(1), int(Status.CONVERGED), status)
    if not believed:  # a few digits are no solution
        status = torch.where(better.squeeze(1) | (status != Status.CONVERGED), status, int(Status.STALLED))
    y, z = torch.where(better, exact.y, y), torch.where(better, exact.z, z)
    equality = torch.arange(program.num_rows, device=y.device) < program.p
    active = torch.where(better, exact.active, equality | (z > s)) & data.present
    pull = times(data.Q, y) + program.times_transposed(data.R, z) + data.c
    slack = torch.where(data.present, data.b - program.times(data.R, y), 0.0)
    small = torch.finfo(y.dtype).eps ** 0.5 * torch.where(better, 1.0, 1e3)
    force, length = 1 + largest(z)[:, None], 1 + torch.maximum(largest(data.b), largest(y))[:, None]
    weak = data.present & ~equality & (z.abs() <= small * force) & (slack.abs() <= small * length)
    violation = torch.where(equality, slack.abs(), (-slack).clamp(min=0))
    parts = pull / force, violation / length, slack * z / (force * length)
    error = torch.stack([largest(part) for part in parts]).amax(0)
    w = torch.where(better & active, 1 / weakest(y.dtype), 0.0)
    # Below this a pivot may be made of what the factor adds to the diagonal.
    regular = better.squeeze(1) & (exact.L.diagonal(dim1=1, dim2=2).amin(1) > torch.finfo(y.dtype).eps ** 0.3)
    return Answer(y, z, active, weak, status, num_steps + num_changes, error, exact.L, w, regular)
