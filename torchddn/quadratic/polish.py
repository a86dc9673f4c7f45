r"""From a point near a solution to the solution: Newton's method on the rows that are active there.

With the active rows as equations a quadratic program is one linear system. If its solution violates no other row and no
multiplier has the wrong sign, it is the solution, exactly; else the rows in question change sides, and the next system
is solved from there (the primal-dual active-set method, a semismooth Newton method).

References:
    Hintermüller, Ito, Kunisch, The primal-dual active set strategy as a semismooth Newton method, 2002.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.quadratic.condensed import factor, weakest
from torchddn.quadratic.program import Data, Program
from torchddn.solvers.base import RUNNING
from torchddn.solvers.vectors import largest, times
from torchddn.status import Status

__all__ = ["ActiveSet", "ActiveSetState"]

# The first solve, and one correction with its true residual; another step has more of them, if that is not enough.
_NUM_SOLVES = 2


class ActiveSetState(NamedTuple):
    """A point that holds the active rows as equations."""

    y: Tensor  # (B, m)
    z: Tensor  # (B, N): zero on rows that are not active
    active: Tensor  # (B, N)
    wrong: Tensor  # (B, N): rows on the wrong side
    error: Tensor  # (B,): of the equations, in the units of the data
    gained: Tensor  # (B,): whether the last step, with the same rows, has made the error much smaller
    L: Tensor  # (B, m, m): the factor of Q + E'E / delta for the active rows


@dataclasses.dataclass(frozen=True)
class ActiveSet:
    """The method, for :func:`torchddn.solvers.base.iterate`, from ``y``, with ``z`` and ``s`` last in ``x``."""

    max_steps: int

    def init(self, problem: Program, x: Sequence[Tensor], y: Tensor) -> ActiveSetState:
        *numbers, z, s = x
        data = Data(*numbers)
        equality = _equality(problem, data)
        active = data.present & (equality | (z > s))
        nothing = torch.full_like(y[:, 0], torch.inf)
        return _solve(problem, data, equality, active, y, z, nothing)

    def step(self, problem: Program, x: Sequence[Tensor], state: ActiveSetState) -> ActiveSetState:
        data = Data(*x[:-2])
        before = torch.where(state.wrong.any(1), torch.inf, state.error)  # other rows, another system
        equality, active = _equality(problem, data), state.active ^ state.wrong
        return _solve(problem, data, equality, active, state.y, state.z, before)

    def status(self, problem: Program, x: Sequence[Tensor], state: ActiveSetState) -> Tensor:
        eps = torch.finfo(state.y.dtype).eps
        right = ~state.wrong.any(1)
        # To rounding; or as near to it as corrections come, for a matrix that is nearly singular.
        exact = (state.error <= eps**0.9) | (~state.gained & (state.error <= eps**0.7))
        lost = ~state.error.isfinite() | (right & ~exact & ~state.gained)
        status = torch.where(right & exact, int(Status.CONVERGED), RUNNING)
        return torch.where(lost, int(Status.STALLED), status)


def _equality(program: Program, data: Data) -> Tensor:
    first = torch.arange(program.num_rows, device=data.present.device) < program.p
    return first.expand_as(data.present)


def _solve(
    program: Program, data: Data, equality: Tensor, active: Tensor, y: Tensor, z: Tensor, before: Tensor
) -> ActiveSetState:
    """The solution with the active rows as equations, found from ``y`` and ``z`` by corrections."""
    _, c, _, b, present = data
    eps = torch.finfo(y.dtype).eps
    w = active / weakest(y.dtype)
    system = factor(program, data, w, y.new_tensor(eps**0.75))
    z = torch.where(active, z, 0.0)
    for _ in range(_NUM_SOLVES):
        _, pull, slack = _look(program, data, y, z)
        dy, dz, _ = system.approximate(-pull, w * slack)
        y, z = y + dy, z + dz
    Q_y, pull, slack = _look(program, data, y, z)
    force = 1 + torch.maximum(largest(c), torch.maximum(largest(Q_y), largest(z)))
    length = 1 + torch.maximum(largest(b), largest(y))
    # Rounding decides nothing: a row with neither multiplier nor slack stays where it is.
    none = eps**0.75
    drops = active & ~equality & (z < -none * force[:, None])
    joins = present & ~active & (slack < -none * length[:, None])
    error = torch.maximum(largest(pull) / force, largest(torch.where(active, slack, 0.0)) / length)
    error = torch.where(system.ok, error, torch.inf).nan_to_num(nan=torch.inf)
    return ActiveSetState(y, z, active, drops | joins, error, error <= 0.1 * before, system.L)


def _look(program: Program, data: Data, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``Q y``, ``Q y + c + E'z`` and ``b - E y``."""
    Q_y = times(data.Q, y)
    return Q_y, Q_y + data.c + program.times_transposed(data.R, z), data.b - program.times(data.R, y)
