r"""Mehrotra's primal-dual method for quadratic programs that have a solution: to a few digits, in few operations.

A step goes towards ::

    Q y + c + E'z = 0,   E y + s = b,   s z = mu      with s, z > 0 behind the first p rows

first with mu = 0, to see how far that leads, and then with the mu that this allows and the second-order error of the
first. Both directions have one matrix. No product with it is needed to know what is left of the equations afterwards:
they are linear, and a step of length alpha leaves the share that it says.

References:
    Mehrotra, On the implementation of a primal-dual interior point method, 1992. Here with one step length for y and z,
    which a quadratic objective couples.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.quadratic.condensed import Factor, Move, factor, weakest
from torchddn.quadratic.program import Data, Program
from torchddn.solvers.base import RUNNING
from torchddn.solvers.vectors import divide, largest, times
from torchddn.status import Status

__all__ = ["Mehrotra", "MehrotraState", "Rows"]

# How much of the way to the nearest boundary a step may go.
_FRACTION = 0.99
# Curvature that is added to the objective to find a start.
_START = 1e-2
# A step that is shorter leads nowhere, and one is enough to know.
_SHORTEST = 1e-6


class Rows(NamedTuple):
    """What does not change along the way."""

    signed: Tensor  # (B, N): one for inequalities, zero for equalities and for rows that do not exist
    idle: Tensor  # (B, N): one for the others
    fixed: Tensor  # (B, N): the weight of equalities, zero for the others
    count: Tensor  # (B,): number of inequalities, at least one
    size_b: Tensor  # (B,)
    size_c: Tensor  # (B,)


class MehrotraState(NamedTuple):
    """A point, and what is left of the equations there.

    Rows that are no inequality have the slack one, to divide by, and those that do not exist the multiplier zero.
    """

    y: Tensor  # (B, m)
    z: Tensor  # (B, N)
    s: Tensor  # (B, N)
    dual: Tensor  # (B, m)
    primal: Tensor  # (B, N)
    mu: Tensor  # (B,): mean product of slack and multiplier
    alpha: Tensor  # (B,): length of the last step


@dataclasses.dataclass(frozen=True)
class Mehrotra:
    """The method, for :func:`torchddn.solvers.base.iterate`, on data with their :class:`Rows`.

    Attributes:
        rtol: Residuals and products, in the units of the data, at which an item is done.
        max_steps: Most steps for an item.
    """

    rtol: float
    max_steps: int

    def rows(self, problem: Program, data: Data) -> Rows:
        """What the method is to know of the rows."""
        place = torch.arange(problem.num_rows, device=data.b.device)
        signed = (data.present & (place >= problem.p)).to(data.c.dtype)
        fixed = (data.present & (place < problem.p)).to(data.c.dtype) / weakest(data.c.dtype)
        return Rows(signed, 1 - signed, fixed, signed.sum(1).clamp(min=1), 1 + largest(data.b), 1 + largest(data.c))

    def init(self, problem: Program, x: Sequence[Tensor], y: Tensor) -> MehrotraState:
        data, rows = _split(x)
        signed = rows.signed
        # Near zero where nothing else says where: there may be no smallest objective.
        system = factor(problem, data, rows.fixed + signed, y.new_tensor(_START))
        y, z, E_y = system.approximate(-data.c, (rows.fixed + signed) * data.b)
        # Slacks and multipliers of a least-squares solution, moved inside together.
        s = _inside(-z, signed)
        z = torch.where(signed > 0, _inside(z, signed), z)
        dual = times(data.Q, y) + data.c + problem.times_transposed(data.R, z)
        primal = (signed + (rows.fixed > 0)) * (E_y - data.b) + signed * s
        return MehrotraState(y, z, s, dual, primal, (signed * s * z).sum(1) / rows.count, torch.ones_like(y[:, 0]))

    def step(self, problem: Program, x: Sequence[Tensor], state: MehrotraState) -> MehrotraState:
        data, rows = _split(x)
        s, z, mu = state.s, state.z, state.mu
        delta = weakest(z.dtype)
        # With s + delta z for the slack nothing is divided by a multiplier, which may be zero.
        per_slack = rows.signed / (s + delta * z)
        w = per_slack * z + rows.fixed
        system = factor(problem, data, w, mu.new_tensor(torch.finfo(z.dtype).eps ** 0.75))
        w_primal = w * state.primal
        product = rows.signed * s * z

        move, ds = _direction(system, rows, -state.dual, per_slack * product - w_primal, state.primal)
        alpha = (1 / _fall(rows, state, move, ds).clamp(min=1.0)).unsqueeze(1)
        reached = (rows.signed * (s + alpha * ds) * (z + alpha * move.dz)).sum(1) / rows.count
        sigma = divide(reached, mu).clamp(max=1.0) ** 3

        kept, goal = (1 - sigma).unsqueeze(1), (sigma * mu).unsqueeze(1)
        w_d = per_slack * (product + ds * move.dz - goal) - kept * w_primal
        move, ds = _direction(system, rows, -kept * state.dual, w_d, kept * state.primal)
        alpha = _FRACTION / _fall(rows, state, move, ds).clamp(min=_FRACTION)
        by = alpha.unsqueeze(1)
        s, z = s + by * ds, z + by * move.dz
        return MehrotraState(
            state.y + by * move.dy,
            z,
            s,
            (1 - by * kept) * state.dual - by * system.rho * move.dy,
            state.primal + by * ((rows.fixed > 0) * move.E_dy - kept * rows.signed * state.primal),
            (rows.signed * s * z).sum(1) / rows.count,
            alpha,
        )

    def status(self, problem: Program, x: Sequence[Tensor], state: MehrotraState) -> Tensor:
        data, rows = _split(x)
        y, z, _, dual, primal, mu, alpha = state
        solved = largest(primal) <= self.rtol * (rows.size_b + largest(y))
        solved = solved & (largest(dual) <= self.rtol * (rows.size_c + largest(z)))
        # With what is left of the equations small, this is twice the objective.
        value = (data.c * y).sum(1) - (data.b * z).sum(1)
        solved = solved & (mu * rows.count <= self.rtol * (1 + 0.5 * value.abs()))
        lost = ~(mu.isfinite() & dual.sum(1).isfinite()) | (alpha < _SHORTEST)
        status = torch.where(lost, int(Status.STALLED), RUNNING)
        # Without inequalities there is nothing to find out.
        return torch.where(solved | (rows.signed.amax(1) == 0), int(Status.CONVERGED), status)


def _split(x: Sequence[Tensor]) -> tuple[Data, Rows]:
    return Data(*x[:5]), Rows(*x[5:])


def _inside(part: Tensor, signed: Tensor) -> Tensor:
    """Shifted together until the least is one; one where there is no inequality."""
    part = torch.where(signed > 0, part, torch.inf)
    part = part + (1 - part.amin(1, keepdim=True)).clamp(min=0)
    return torch.where(signed > 0, part, 1.0)


def _direction(system: Factor, rows: Rows, a: Tensor, w_d: Tensor, primal: Tensor) -> tuple[Move, Tensor]:
    """The Newton step, and its change of the slacks, which keeps the rows of inequalities linear."""
    move = system.approximate(a, w_d)
    return move, -rows.signed * (primal + move.E_dy)


def _fall(rows: Rows, state: MehrotraState, move: Move, ds: Tensor) -> Tensor:
    """How many times a whole step would take the first number to zero, ``(B,)``."""
    z = torch.addcmul(rows.idle, rows.signed, state.z)
    return -torch.minimum(ds / state.s, rows.signed * move.dz / z).amin(1)
