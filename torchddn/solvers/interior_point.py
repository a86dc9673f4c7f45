r"""A primal-dual interior-point method for minimization under equalities, inequalities and bounds.

Solves, for each item::

    y = argmin_y f(y)   subject to   h(y) = 0,   g(y) <= 0,   lower <= y <= upper

With the rows ``c = (h, g)`` it minimizes the barrier function ::

    phi(y) = f(y) + sum_i P(c_i(y)) - mu sum_j log(gap_j(y))

for smaller and smaller ``mu``; ``barrier.py`` says what ``P`` is. A row that is violated costs a finite price, so
that there is no interior to be found and none to be missed, redundant and contradictory rows do no harm, and the
slacks are known functions of ``c``. Each step is Newton's for the optimality conditions; see ``barrier_step.py``.
Where the Hessian is indefinite along the active constraints, inverse iteration finds the direction of least curvature,
and near a saddle or a maximum the step follows it: what is returned is a minimum.

Steps keep a part of every gap and are shortened until ``phi`` falls as predicted, or the error of the optimality
conditions halves while the problem looks convex. The first time a point rejects a step, the curvature of the
constraints that was met on the way corrects it, before it is shortened. Below the level where rounding decides about
``phi``, the error decides alone.

Where the price does not bring the constraints about, it grows; where it has grown without success, the objective
is dropped. The same method then minimizes the violation, until it is a small part of what it was, or is a minimum by
itself, which proves that there is no feasible point nearby.

The last step is Newton's on the active constraints alone. It tells a solution from a point that merely has a small
gradient on its way to infinity, and frees the answer of what the barrier has left of itself.

References:
    Nocedal, Wright, Numerical Optimization, 2nd edition, chapter 19. Waechter, Biegler, On the implementation of an
    interior-point filter line-search algorithm for large-scale nonlinear programming, 2006 (rules for ``mu``, distance
    to the boundary, safeguard of ``z``). Gould, Orban, Toint, An interior-point l1-penalty method for nonlinear
    optimization, 2003 (``P``). Where we differ: slacks are eliminated, and no filter is kept.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.problem import BatchedProblem
from torchddn.solvers.barrier import Box
from torchddn.solvers.barrier_problem import Barrier, Iterate, expand, is_equality, positive, violations
from torchddn.solvers.barrier_step import Move, propose
from torchddn.solvers.barrier_units import Guess, Units, measure, natural_error
from torchddn.solvers.base import RUNNING, Inputs
from torchddn.solvers.newton import any_direction
from torchddn.solvers.options import check_suits, check_termination, default_rtol, far
from torchddn.solvers.points import choose, is_finite, where_items
from torchddn.solvers.vectors import is_settled, largest, length, times
from torchddn.status import Status

__all__ = ["InteriorPoint"]

# The merit must fall by this fraction of what the model predicts (Nocedal and Wright, below 3.4).
_DECREASE = 1e-4

# Products of a multiplier and its distance stay within this factor of mu (Waechter and Biegler, equation 16), and at
# the start, where multipliers are guesses, within the second.
_SPREAD, _SPREAD_AT_START = 1e8, 10.0

# A barrier problem is solved when its error is below this many mu (Waechter and Biegler, section 2.1).
_SETTLED = 10.0

# Of the slope of f, the price of a row's violation at the start, after a detour, and where the objective is given up.
_PRICE, _PRICE_AFTER_DETOUR, _HIGHEST_PRICE = 10.0, 1e3, 1e7


@dataclasses.dataclass(frozen=True)
class InteriorPoint:
    r"""``y = argmin_y f(y)`` subject to ``h(y) = 0``, ``g(y) <= 0`` and bounds, by an interior-point method.

    For smooth problems, convex or not; see the file's head. Superlinear convergence. Works without an objective (any
    feasible point), with redundant rows, without an interior, and from any start. Cost O(m^3 + (p + q) m^2 +
    (p + q)^3) per item and step: for up to a few hundred variables and rows.

    Args:
        rtol: Converged when Newton's step on the active constraints changes no entry of ``y`` by more than
            ``sqrt(rtol)`` times the largest entry so far; None for a value fitting the dtype. The step is still taken,
            and squares the error.
        atol: Added to that, in units of ``y``.
        max_steps: Most steps for an item.

    Status:
        INFEASIBLE: The violation of the constraints has a minimum that is not zero, or bounds cross. Relax the
            constraints or start elsewhere.
        UNBOUNDED: ``y`` went eps^-0.7 times the scale of the start away while ``f`` fell, or ``f`` has no bound that
            the dtype could hold.
        STALLED: Rounding stops progress before the step is small: kinks, or a precision too low for the problem.
        MAX_STEPS: Start closer, or raise ``max_steps``. Also what a minimum without multipliers ends in.
        NON_FINITE: The functions are not finite at the start, after it was moved inside the bounds.

    References:
        Nocedal, Wright, Numerical Optimization, 2nd edition, chapter 19.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 300

    def __post_init__(self) -> None:
        check_termination(self)

    def check(self, problem: BatchedProblem) -> None:
        check_suits(self, problem, kinds=("minimize",), equality=True, inequality=True, bounds=True)

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> Iterate:
        eps = torch.finfo(y.dtype).eps
        box, y_0 = Box.of(problem, x, y), y
        y, weight = box.clip(y), torch.ones_like(y[:, :1])
        point = expand(problem, x, y, torch.cat([weight, y.new_zeros(len(y), problem.p + problem.q)], dim=1), box)
        guess = Guess.of(problem, point, box, largest(y_0))
        if problem.p + problem.q:
            # Now that multipliers are known, with the curvature of the constraints.
            point = expand(problem, x, y, torch.cat([weight, guess.dual], dim=1), box)
            guess = Guess.of(problem, point, box, largest(y_0))
        if box.exists:
            # The closer to the solution, the closer to the bounds the start may be.
            size = largest(torch.where(box.present, box.bound, 0.0).flatten(1)).clamp(min=1.0)
            y = box.push(y, 1e-2 * (size * guess.distance.clamp(eps**0.5, 1.0))[:, None])
            if not is_settled((y == point.y).all(1)):
                point = expand(problem, x, y, torch.cat([weight, guess.dual], dim=1), box)
                guess = Guess.of(problem, point, box, largest(y_0))
        steepness = length(point.c_y)
        price = largest(guess.dual * steepness) * guess.span / guess.unit
        running = torch.full_like(guess.unit, RUNNING, dtype=torch.int64)
        iterate = Iterate(
            point=point,
            dual=guess.dual,
            z=guess.z,
            mu=guess.unit * guess.distance.clamp(default_rtol(y.dtype), 0.1),
            price=(4 * price).clamp(min=_PRICE),
            bend=torch.zeros_like(guess.dual),
            w=any_direction(y.detach()),
            shift=guess.size / 32,
            reach=torch.full_like(guess.unit, torch.inf),
            steepness=steepness,
            scale=torch.maximum(largest(y_0), largest(y)),
            unit=guess.unit,
            span=guess.span,
            goal=torch.zeros_like(guess.unit),
            verdict=torch.where(box.crossed, int(Status.INFEASIBLE), running),
        )
        barrier = Barrier.of(problem, iterate, box)
        # Multipliers of inequalities must fit their slacks. Those of equalities are better than what a violation calls
        # for: with them the constraint is as stiff as it can be.
        centered = barrier.center(iterate, _SPREAD_AT_START)
        dual = torch.where(is_equality(problem, iterate.dual), iterate.dual, centered.dual)
        return centered._replace(dual=dual)

    def step(self, problem: BatchedProblem, x: Inputs, state: Iterate) -> Iterate:
        rtol = default_rtol(state.mu.dtype) if self.rtol is None else self.rtol
        box = Box.of(problem, x, state.point.y)
        barrier = Barrier.of(problem, state, box)
        state = barrier.center(state, _SPREAD)
        units = measure(problem, state, rtol, self.atol)
        move = propose(problem, x, state, barrier, units)
        outcome = _Outcome.of(problem, state, barrier, move, units, rtol)
        state_next = _advance(problem, state, barrier, move, outcome, units)
        return state_next._replace(verdict=_verdict(state, move, outcome))

    def status(self, problem: BatchedProblem, x: Inputs, state: Iterate) -> Tensor:
        sound = is_finite(state.point) | (state.verdict != RUNNING)
        return torch.where(sound, state.verdict, int(Status.NON_FINITE))

    def finish(self, problem: BatchedProblem, x: Inputs, state: Iterate) -> tuple[Tensor, Tensor]:
        least = torch.where(is_equality(problem, state.dual), -torch.inf, 0.0)
        return state.point.y, torch.maximum(state.dual, least)


class _Outcome(NamedTuple):
    """What became of a step, ``(B,)`` each unless it says otherwise."""

    accepted: Tensor
    settled: Tensor  # the barrier problem is solved
    stuck: Tensor  # no step is left to try
    final: Tensor  # mu is as small as it gets
    converges: Tensor
    strays: Tensor  # leaves the constraints so far that the price must be too low
    finite: Tensor
    predicted: Tensor  # by how much the merit should fall
    actual: Tensor
    violation: Tensor  # (B, p + q)
    violation_next: Tensor  # (B, p + q): at the trial point
    violated: Tensor  # beyond rounding
    mu_end: Tensor  # the last mu
    stationary: Tensor  # the error is small beside the forces, if not as small as it could be

    @staticmethod
    def of(
        problem: BatchedProblem, state: Iterate, barrier: Barrier, move: Move, units: Units, rtol: float
    ) -> "_Outcome":
        eps = torch.finfo(state.mu.dtype).eps
        point, trial, after = state.point, move.trial, barrier.at(move.trial)
        moved, finite = move.moved.detach(), is_finite(move.trial)

        # Whether the merit falls, and if that cannot be seen, the error.
        predicted = -(barrier.slope(point) * moved).sum(-1) - 0.5 * move.saddle.curvature(moved).clamp(max=0)
        actual = barrier.merit(point) - after.merit(trial)
        noise = 10 * eps * (barrier.weight * (point.f.abs() + trial.f.abs()) + barrier.rows.cost.abs())
        falls, at_rounding = actual >= _DECREASE * predicted.abs(), predicted.abs() <= noise
        error = barrier.error(point, state.dual, state.z, units.extent)
        error_next = after.error(trial, move.dual, move.z, units.extent)
        halves = move.saddle.convex & (error_next <= 0.5 * error)
        contracts = error_next <= torch.maximum(error, units.rounding)
        step_size = largest(moved)
        near, tiny = step_size <= eps**0.4 * units.reference, step_size <= rtol * units.reference
        accepted = finite & (falls | halves | ((near | at_rounding) & contracts) | tiny)

        violation, violation_next = (violations(problem, c, state.steepness) for c in (point.c, trial.c))
        violated = largest(violation) > eps**0.6 * units.reference
        strays = largest(violation_next) > 10 * torch.maximum(units.reference, state.span)
        strays = accepted & strays & (violation_next.sum(-1) > 2 * violation.sum(-1)) & ~state.restores
        accepted = accepted & ~strays
        settled = accepted & (error_next <= torch.maximum(_SETTLED * state.mu, units.rounding))

        converges = move.polishes
        if not is_settled(~converges):
            natural = natural_error(problem, point, state.dual, barrier.box, units)
            natural_next = natural_error(problem, trial, move.dual, barrier.box, units)
            better = finite & (natural_next <= natural.clamp(min=64 * eps))
            accepted = torch.where(move.polishes, better, accepted)
            least = torch.where(better, natural_next, natural)
            # Before mu is as small as it gets, another step is worth its while.
            enough = torch.where(
                state.mu <= 2 * units.mu_end, units.accuracy.clamp(min=eps**0.6), 0.01 * units.accuracy
            )
            converges = move.polishes & ~violated & (least <= enough)

        # As long as the violation is minimized, its price is what mu is compared with.
        cost = largest(barrier.rows.rho * violation_next * positive(state.steepness))
        mu_end = torch.where(state.restores, 0.1 * eps**0.4 * cost, units.mu_end)
        return _Outcome(
            accepted=accepted,
            settled=settled,
            stuck=~accepted & near,
            final=state.mu <= 2 * mu_end,
            converges=converges,
            strays=strays,
            finite=finite,
            predicted=predicted,
            actual=actual,
            violation=violation,
            violation_next=violation_next,
            violated=violated,
            mu_end=mu_end,
            stationary=error <= eps**0.25 * units.strength * units.extent,
        )

    @property
    def grows(self) -> Tensor:
        """Whether the violation doubles."""
        return self.violation_next.sum(-1) > 2 * self.violation.sum(-1)

    def returns(self, goal: Tensor) -> Tensor:
        """Whether the violation has become so small that the objective can be taken up again."""
        return (goal > 0) & self.accepted & (self.violation_next.sum(-1) <= goal)


def _verdict(state: Iterate, move: Move, outcome: _Outcome) -> Tensor:
    """What an item has come to by a step."""
    dtype, restores, trial = state.mu.dtype, state.restores, move.trial
    ended = outcome.final & (outcome.stuck | outcome.settled) & ~outcome.returns(state.goal)
    minimal = restores & ended & (outcome.settled | outcome.stationary)
    stalled = (restores & ended) | (outcome.stuck & outcome.final & ~outcome.violated)
    runs_away = outcome.accepted & (largest(trial.y) > far(dtype) * state.span) & (outcome.actual > 0)
    falls = runs_away | (trial.f <= -(torch.finfo(dtype).max ** 0.4))
    # Far away, the constraints can only hold relative to the distance.
    falls = falls & (largest(outcome.violation_next) <= torch.finfo(dtype).eps ** 0.3 * largest(trial.y)) & ~restores
    verdict = torch.full_like(state.verdict, RUNNING)
    for holds, status in (
        (stalled, Status.STALLED),
        (outcome.converges, Status.CONVERGED),
        (minimal & outcome.violated, Status.INFEASIBLE),
        (falls, Status.UNBOUNDED),
    ):
        verdict = torch.where(holds, int(status), verdict)
    return verdict


def _advance(
    problem: BatchedProblem, state: Iterate, barrier: Barrier, move: Move, outcome: _Outcome, units: Units
) -> Iterate:
    """The next iterate."""
    point, trial, accepted = state.point, move.trial, outcome.accepted
    walked = length(move.moved)
    bend = (trial.c - point.c - times(point.c_y, move.moved)).detach()
    by, eps = length(bend / move.saddle.row_scale), torch.finfo(walked.dtype).eps
    corrects = ~accepted & outcome.finite & ~move.corrected & (by > eps**0.5 * walked) & (by <= 0.5 * walked)
    corrects = corrects & (outcome.violation_next.sum(-1) > outcome.violation.sum(-1))
    # Minimum of the parabola through both values and the predicted slope.
    shrinkage = 0.5 * outcome.predicted / (outcome.predicted - outcome.actual)
    shorter = walked * shrinkage.nan_to_num(nan=0.1).clamp(0.05, 0.5)
    reach = torch.where(accepted, torch.maximum(state.reach, 4 * walked), shorter)
    reach = torch.where(corrects, state.reach, reach)

    reduces = outcome.settled | (outcome.stuck & ~outcome.final)
    relative = state.mu / state.unit
    mu = torch.maximum(state.unit * torch.minimum(0.2 * relative, relative**1.5), outcome.mu_end)
    price, raises = _next_price(problem, state, barrier, move, outcome, units, reduces)
    steepness = torch.maximum(state.steepness, length(trial.c_y))
    state_next = state._replace(
        point=choose(accepted, trial, point),
        dual=where_items(accepted, move.dual, state.dual),
        z=where_items(accepted, move.z, state.z),
        mu=torch.where(reduces, mu, state.mu),
        price=price,
        bend=torch.where(corrects[:, None], bend, 0.0),
        w=move.w,
        shift=move.saddle.next_shift(state.shift, move.curvature, units.size),
        reach=torch.where(reduces | (raises & accepted), torch.inf, reach),
        steepness=where_items(accepted, steepness, state.steepness),
        scale=torch.where(accepted, torch.maximum(state.scale, largest(trial.y)), state.scale),
    )

    enters = (price > _HIGHEST_PRICE) | (outcome.stuck & outcome.final)
    enters = enters & outcome.violated & ~state.restores
    changes = enters | outcome.returns(state.goal)
    if not is_settled(~changes):
        state_next = _change_objective(problem, state_next, barrier.box, enters, changes)
    return state_next


def _next_price(
    problem: BatchedProblem,
    state: Iterate,
    barrier: Barrier,
    move: Move,
    outcome: _Outcome,
    units: Units,
    reduces: Tensor,
) -> tuple[Tensor, Tensor]:
    """The price of violation, and whether it was raised."""
    if not state.dual.shape[-1]:
        return state.price, torch.zeros_like(reduces)
    rho, steepness = barrier.rows.rho, positive(torch.maximum(state.steepness, length(move.trial.c_y)))
    # A multiplier that wants to exceed the price of its row, which is not kept.
    wanted = torch.where(is_equality(problem, rho), move.wanted.abs(), move.wanted).detach()
    loose = outcome.violation_next * steepness > 10 * state.mu[:, None] / rho
    leaves_far = outcome.grows & (largest(outcome.violation_next) > 0.1 * units.reference)
    raises = (((wanted > 0.9 * rho) & loose).any(-1) | leaves_far) & outcome.accepted
    raises = (raises | outcome.strays) & ~state.restores
    price = torch.where(raises, 4 * state.price, state.price)
    # What a detour called for must not keep the rest of the way close to the constraints.
    dual = where_items(outcome.accepted, move.dual, state.dual)
    needed = 4 * largest(dual / rho) * state.price
    lower = torch.minimum(torch.maximum(0.25 * price, needed).clamp(min=_PRICE), price)
    return torch.where(reduces & ~raises & ~state.restores, lower, price), raises


def _change_objective(problem: BatchedProblem, state: Iterate, box: Box, enters: Tensor, changes: Tensor) -> Iterate:
    """The iterate with the objective dropped for items that enter, taken up again for others that change."""
    violation = violations(problem, state.point.c, state.steepness)
    size = torch.where(enters, largest(violation) * state.unit / state.span, state.unit)
    price = torch.where(enters, 1.0, torch.full_like(size, _PRICE_AFTER_DETOUR))
    goal = torch.where(enters, 0.1 * violation.sum(-1), 0.0)
    state = state._replace(
        mu=torch.where(changes, 0.1 * size, state.mu),
        price=torch.where(changes, price, state.price),
        goal=torch.where(changes, goal, state.goal),
        reach=torch.where(changes, torch.inf, state.reach),
    )
    barrier = Barrier.of(problem, state, box)
    dual = where_items(changes, barrier.rows.slope, state.dual)
    return state._replace(dual=dual, z=where_items(changes, barrier.mu_z / barrier.gaps, state.z))
