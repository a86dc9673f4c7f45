r"""Primal-dual interior points of the homogeneous embedding of a quadratic program: a solution, or a proof.

The model has two more numbers, ``tau`` and ``kappa``, and always a solution that says what there is to say::

    Q y + E'z + c tau = 0,     E y + s = b tau,     y'Q y / tau + c'y + b'z + kappa = 0,     s z = 0,   tau kappa = 0

If ``tau > 0``, then ``y / tau``, ``z / tau`` solve the program. If ``kappa > 0``, it has no solution, and the point is
the proof: either ``b'z < 0`` with ``E'z = 0``, so that no y satisfies the rows, or ``c'y < 0`` with ``Q y = 0`` and ``E
y + s = 0``, a direction in which a feasible y goes down for ever.

Each step is Mehrotra's: a predictor towards the solution, whose success says how far to aim at the central path, and a
corrector with the predictor's second-order error. Both, and the direction in ``tau``, use one factorization.

References:
    Goulart, Chen, Clarabel: an interior-point solver for conic programs with quadratic objectives, 2024, sections 2
    and 3.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.quadratic.condensed import Factor, factor, weakest
from torchddn.quadratic.program import Data, Program
from torchddn.solvers.base import RUNNING
from torchddn.solvers.vectors import largest, times
from torchddn.status import Status

__all__ = ["Embedding", "State"]

# How much of the way to the nearest boundary a step may go.
_FRACTION = 0.99
# Curvature that is added to the objective to find a start.
_START = 1e-2
# A step that is shorter leads nowhere, and one is enough to know.
_SHORTEST = 1e-6


class _Iterate(NamedTuple):
    """A point, or a change of one; slacks of the first p rows, and of rows that do not exist, are zero."""

    y: Tensor  # (B, m)
    z: Tensor  # (B, N)
    s: Tensor  # (B, N)
    tau: Tensor  # (B,)
    kappa: Tensor  # (B,)


class _Residuals(NamedTuple):
    """What is left of the equations at a point."""

    Q_y: Tensor
    dual: Tensor  # (B, m)
    primal: Tensor  # (B, N)
    gap: Tensor  # (B,)
    mu: Tensor  # (B,): mean product of complementary numbers


class State(NamedTuple):
    """A point with what is known of it."""

    at: _Iterate
    left: _Residuals
    alpha: Tensor  # (B,): length of the last step


@dataclasses.dataclass(frozen=True)
class Embedding:
    """The method, for :func:`torchddn.solvers.base.iterate`.

    Attributes:
        rtol: Residuals and products, in the units of the data, at which an item is done.
        max_steps: Most steps for an item.
    """

    rtol: float
    max_steps: int

    def init(self, problem: Program, x: Sequence[Tensor], y: Tensor) -> State:
        data = Data(*x)
        inequality = _inequality(problem, data)
        w = _weights(data, inequality.to(y.dtype))
        # Near zero where nothing else says where: there may be no smallest objective.
        y, z, _ = factor(problem, data, w, y.new_tensor(_START)).approximate(-data.c, w * data.b)
        # Slacks and multipliers of a least-squares solution, moved inside together.
        s, z_inside = torch.where(inequality, -z, torch.inf), torch.where(inequality, z, torch.inf)
        s, z_inside = (part + (1 - part.amin(1, keepdim=True)).clamp(min=0) for part in (s, z_inside))
        s, z = torch.where(inequality, s, 0.0), torch.where(inequality, z_inside, z)
        one = torch.ones_like(y[:, 0])
        return self._state(problem, data, _Iterate(y, z, s, one, one), one)

    def step(self, problem: Program, x: Sequence[Tensor], state: State) -> State:
        data, at, left = Data(*x), state.at, state.left
        inequality = _inequality(problem, data)
        w = _weights(data, torch.where(inequality, at.s / at.z, 0.0))
        # In proportion to the residuals, so that no step is too long.
        rho = (1e-3 * left.mu).clamp(torch.finfo(w.dtype).eps ** 0.4, 1e-4)
        solve = _Direction(factor(problem, data, w, rho), data, at, left, inequality)
        predictor = solve.towards(torch.zeros_like(left.mu), None)
        change = solve.towards((1 - _longest(at, predictor, inequality)) ** 3, predictor)
        alpha = _FRACTION * _longest(at, change, inequality)
        at = _move(at, change, alpha)
        # The model is homogeneous: a point may be divided by any positive number.
        size = torch.maximum(at.tau, at.kappa)
        at = _Iterate(*(part / (size[:, None] if part.dim() == 2 else size) for part in at))
        return self._state(problem, data, at, alpha)

    def status(self, problem: Program, x: Sequence[Tensor], state: State) -> Tensor:
        data, at, left = Data(*x), state.at, state.left
        tau, rtol = at.tau, self.rtol
        size_b, size_c = 1 + largest(data.b), 1 + largest(data.c)
        objective = ((0.5 * left.Q_y / tau[:, None] + data.c) * at.y).sum(1) / tau
        duality = left.mu / tau.square() * _inequality(problem, data).sum(1)
        solved = (largest(left.primal) <= rtol * tau * (size_b + largest(at.y) / tau)) & (
            largest(left.dual) <= rtol * tau * (size_c + largest(at.z) / tau)
        )
        solved = solved & (duality <= rtol * (1 + objective.abs()))
        status = torch.where(solved, int(Status.CONVERGED), RUNNING)
        status = self._without_solution(data, at, left, status)
        lost = ~(left.mu.isfinite() & left.dual.sum(1).isfinite()) | (state.alpha < _SHORTEST)
        return torch.where((status == RUNNING) & lost, int(Status.STALLED), status)

    def finish(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """``y``, ``z`` and ``s``."""
        at, tau = state.at, state.at.tau[:, None]
        return at.y / tau, at.z / tau, at.s / tau

    def _state(self, problem: Program, data: Data, at: _Iterate, alpha: Tensor) -> State:
        Q_y = times(data.Q, at.y)
        pull = problem.times_transposed(data.R, at.z)
        E_y = problem.times(data.R, at.y)
        tau = at.tau[:, None]
        primal = torch.where(data.present, E_y + at.s - data.b * tau, 0.0)
        gap = at.kappa + ((Q_y / tau + data.c) * at.y).sum(1) + (data.b * at.z).sum(1)
        mu = _mean_product(at, _inequality(problem, data))
        return State(at, _Residuals(Q_y, Q_y + pull + data.c * tau, primal, gap, mu), alpha)

    def _without_solution(self, data: Data, at: _Iterate, left: _Residuals, status: Tensor) -> Tensor:
        """The status of items whose point proves that there is no solution."""
        rise, fall = -(data.b * at.z).sum(1), -(data.c * at.y).sum(1)
        tau = at.tau[:, None]
        pull = left.dual - left.Q_y - data.c * tau
        proved = torch.finfo(rise.dtype).eps ** 0.45
        infeasible = (rise > 0) & (largest(pull) <= proved * rise)
        away = left.primal + torch.where(data.present, data.b * tau, 0.0)
        unbounded = (fall > 0) & (torch.maximum(largest(left.Q_y), largest(away)) <= proved * fall)
        status = torch.where((status == RUNNING) & unbounded, int(Status.UNBOUNDED), status)
        return torch.where((status == RUNNING) & infeasible, int(Status.INFEASIBLE), status)


class _Direction:
    """Newton's steps at one point, by one factorization."""

    def __init__(self, system: Factor, data: Data, at: _Iterate, left: _Residuals, inequality: Tensor) -> None:
        self._system, self._data, self._at, self._left = system, data, at, left
        self._inequality = inequality
        # The change per unit of tau.
        self._y_tau, self._z_tau = system.solve(data.Q, -data.c, data.b)

    def towards(self, sigma: Tensor, predictor: _Iterate | None) -> _Iterate:
        """The step that reduces residuals and products to the share ``sigma``, ``(B,)``."""
        at, left, inequality = self._at, self._left, self._inequality
        goal, kept = sigma * left.mu, (1 - sigma)[:, None]
        at_s, at_kappa = goal[:, None] - at.s * at.z, goal - at.tau * at.kappa
        if predictor is not None:
            at_s = at_s - predictor.s * predictor.z
            at_kappa = at_kappa - predictor.tau * predictor.kappa
        pushed = torch.where(inequality, at_s / at.z, 0.0)
        a, d = -kept * left.dual, -kept * left.primal - pushed
        dy, dz, dtau = self._solve(a, d, -(1 - sigma) * left.gap - at_kappa / at.tau)
        ds = torch.where(inequality, pushed - at.s / at.z * dz, 0.0)
        return _Iterate(dy, dz, ds, dtau, (at_kappa - at.kappa * dtau) / at.tau)

    def _solve(self, a: Tensor, d: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at, data, y_tau, z_tau = self._at, self._data, self._y_tau, self._z_tau
        dy, dz = self._system.solve(data.Q, a, d)
        Q_xi = self._left.Q_y / at.tau[:, None]
        slope = 2 * Q_xi + data.c
        curvature = (at.y * Q_xi).sum(1) / at.tau
        per_tau = (slope * y_tau).sum(1) + (data.b * z_tau).sum(1) - at.kappa / at.tau - curvature
        dtau = (e - (slope * dy).sum(1) - (data.b * dz).sum(1)) / per_tau
        return dy + dtau[:, None] * y_tau, dz + dtau[:, None] * z_tau, dtau


def _inequality(program: Program, data: Data) -> Tensor:
    """Which rows are inequalities that exist, ``(B, N)``."""
    behind = torch.arange(program.num_rows, device=data.present.device) >= program.p
    return data.present & behind


def _weights(data: Data, W: Tensor) -> Tensor:
    """``1 / (W + delta)``; zero where there is no row."""
    return torch.where(data.present, 1 / (W + weakest(W.dtype)), 0.0)


def _mean_product(at: _Iterate, inequality: Tensor) -> Tensor:
    return ((at.s * at.z).sum(1) + at.tau * at.kappa) / (inequality.sum(1) + 1)


def _longest(at: _Iterate, change: _Iterate, inequality: Tensor) -> Tensor:
    """The step, at most 1, that takes the first number to zero."""
    reach = torch.ones_like(at.tau)
    for value, step, counts in (
        (at.s, change.s, True),
        (at.z, change.z, inequality),
        (at.tau[:, None], change.tau[:, None], True),
        (at.kappa[:, None], change.kappa[:, None], True),
    ):
        if value.shape[1]:
            reach = torch.minimum(reach, torch.where((step < 0) & counts, -value / step, 1.0).amin(1))
    return reach


def _move(at: _Iterate, change: _Iterate, alpha: Tensor) -> _Iterate:
    column = alpha[:, None]
    return _Iterate(
        *(value + (column if value.dim() == 2 else alpha) * step for value, step in zip(at, change, strict=True))
    )
