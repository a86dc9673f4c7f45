r"""Primal-dual interior points of quadratic programs, with or without the homogeneous embedding.

The homogeneous model has two more numbers, ``tau`` and ``kappa``, and always a solution that says what there is to
say::

    Q y + E'z + c tau = 0,     E y + s = b tau,     y'Q y / tau + c'y + b'z + kappa = 0,     s z = 0,   tau kappa = 0

If ``tau > 0``, then ``y / tau``, ``z / tau`` solve the program. If ``kappa > 0``, it has no solution, and the point is
the proof: either ``b'z < 0`` with ``E'z = 0``, so that no y satisfies the rows, or ``c'y < 0`` with ``Q y = 0`` and ``E
y + s = 0``, a direction in which a feasible y goes down for ever. Without the embedding ``tau = 1``, ``kappa = 0``:
fewer steps where there is a solution, and no proof where there is none.

Each step is Mehrotra's: a predictor towards the solution, whose success says how far to aim at the central path, and a
corrector with the predictor's second-order error. Both, and the direction in ``tau``, use one factorization.

References:
    Mehrotra, On the implementation of a primal-dual interior point method, 1992. Goulart, Chen, Clarabel: an
    interior-point solver for conic programs with quadratic objectives, 2024, sections 2 and 3.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.quadratic.condensed import Factor, factor
from torchddn.quadratic.program import Data, Program
from torchddn.solvers.base import RUNNING
from torchddn.solvers.vectors import divide, largest
from torchddn.status import Status

__all__ = ["PrimalDual", "State"]

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
class PrimalDual:
    """The method, for :func:`torchddn.solvers.base.iterate`.

    Attributes:
        homogeneous: Whether to solve the homogeneous model.
        rtol: Residuals and products, in the units of the data, at which an item is done.
        max_steps: Most steps for an item.
    """

    homogeneous: bool
    rtol: float
    max_steps: int

    def init(self, problem: Program, x: Sequence[Tensor], y: Tensor) -> State:
        data = Data(*x)
        inequality = _inequality(problem, data)
        W = torch.where(data.present, inequality.to(y.dtype), torch.inf)
        # Near zero where nothing else says where: there may be no smallest objective.
        start = factor(problem, data, W, _delta(y.dtype), y.new_tensor(_START))
        y, z = (part.squeeze(2) for part in start.approximate(-data.c.unsqueeze(2), data.b.unsqueeze(2)))
        # Slacks and multipliers of a least-squares solution, moved inside together.
        s, z_inside = torch.where(inequality, -z, torch.inf), torch.where(inequality, z, torch.inf)
        s, z_inside = (part + (1 - part.amin(1, keepdim=True)).clamp(min=0) for part in (s, z_inside))
        s, z = torch.where(inequality, s, 0.0), torch.where(inequality, z_inside, z)
        tau, kappa = torch.ones_like(y[:, 0]), torch.full_like(y[:, 0], float(self.homogeneous))
        return self._state(problem, data, _Iterate(y, z, s, tau, kappa), torch.ones_like(tau))

    def step(self, problem: Program, x: Sequence[Tensor], state: State) -> State:
        data, at, left = Data(*x), state.at, state.left
        inequality = _inequality(problem, data)
        W = torch.where(inequality, at.s / at.z, torch.where(data.present, 0.0, torch.inf))
        solve = _Direction(
            self.homogeneous, factor(problem, data, W, _delta(at.y.dtype), self._rho(left.mu)), at, left, inequality
        )
        nothing = torch.zeros_like(left.mu)
        predictor = solve.towards(nothing, None)
        alpha = _longest(at, predictor, inequality)
        if self.homogeneous:
            sigma = (1 - alpha) ** 3
        else:
            reached = _move(at, predictor, alpha)
            sigma = divide(_mean_product(reached, inequality, False), left.mu).clamp(max=1.0) ** 3
        change = solve.towards(sigma, predictor)
        alpha = _FRACTION * _longest(at, change, inequality).clamp(max=1 / _FRACTION)
        alpha = torch.where(inequality.any(1) | self.homogeneous, alpha, 1.0)
        at = _move(at, change, alpha)
        if self.homogeneous:
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
        if self.homogeneous:
            status = self._without_solution(problem, data, at, left, status)
        lost = ~(left.mu.isfinite() & left.dual.sum(1).isfinite()) | (state.alpha < _SHORTEST)
        return torch.where((status == RUNNING) & lost, int(Status.STALLED), status)

    def finish(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """``y``, ``z`` and ``s``."""
        at, tau = state.at, state.at.tau[:, None]
        return at.y / tau, at.z / tau, at.s / tau

    def _rho(self, mu: Tensor) -> Tensor:
        """What is added to Q: as little as possible, or in proportion to the residuals, so that no step is too long."""
        if self.homogeneous:
            return (1e-3 * mu).clamp(torch.finfo(mu.dtype).eps ** 0.4, 1e-4)
        return torch.full_like(mu, _delta(mu.dtype))

    def _state(self, problem: Program, data: Data, at: _Iterate, alpha: Tensor) -> State:
        Q_y = torch.bmm(data.Q, at.y.unsqueeze(2)).squeeze(2)
        pull = problem.times_transposed(data.R, at.z.unsqueeze(2)).squeeze(2)
        E_y = problem.times(data.R, at.y.unsqueeze(2)).squeeze(2)
        tau = at.tau[:, None]
        primal = torch.where(data.present, E_y + at.s - data.b * tau, 0.0)
        gap = at.kappa + ((Q_y / tau + data.c) * at.y).sum(1) + (data.b * at.z).sum(1)
        mu = _mean_product(at, _inequality(problem, data), self.homogeneous)
        return State(at, _Residuals(Q_y, Q_y + pull + data.c * tau, primal, gap, mu), alpha)

    def _without_solution(self, problem: Program, data: Data, at: _Iterate, left: _Residuals, status: Tensor) -> Tensor:
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

    def __init__(self, homogeneous: bool, system: Factor, at: _Iterate, left: _Residuals, inequality: Tensor) -> None:
        self._homogeneous, self._system, self._at, self._left = homogeneous, system, at, left
        self._inequality = inequality
        self._along: tuple[Tensor, Tensor] | None = None  # the change per unit of tau

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
        if not self._homogeneous:
            # To a few digits: what delta leaves of the residuals does not matter.
            dy, dz = (part.squeeze(2) for part in self._system.approximate(a.unsqueeze(2), d.unsqueeze(2)))
            return dy, dz, torch.zeros_like(e)
        at, data = self._at, self._system.data
        if self._along is None:
            both_a, both_d = torch.stack([a, -data.c], dim=2), torch.stack([d, data.b], dim=2)
            (dy, y_tau), (dz, z_tau) = (part.unbind(2) for part in self._system.solve(both_a, both_d))
            self._along = y_tau, z_tau
        else:
            dy, dz = (part.squeeze(2) for part in self._system.solve(a.unsqueeze(2), d.unsqueeze(2)))
        y_tau, z_tau = self._along
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


def _delta(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps ** 0.5


def _mean_product(at: _Iterate, inequality: Tensor, homogeneous: bool) -> Tensor:
    total, count = (at.s * at.z).sum(1), inequality.sum(1)
    if homogeneous:
        total, count = total + at.tau * at.kappa, count + 1
    return total / count.clamp(min=1)


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
