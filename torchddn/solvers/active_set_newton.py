r"""Newton's method on the conditions of a minimum, inequalities and bounds included: few cheap steps, or none at all.

The conditions ``min(lam, -g) = 0`` and ``y = clip(y - L_y, lower, upper)`` have a kink where a constraint becomes
active, and a derivative on either side. Newton's method with the derivative of the side where the point lies, a
*semismooth* method, is the primal-dual active set strategy: each step solves the equations of the constraints that look
active at the point, and it converges quadratically to a strict minimum from close by.

Close by is where a layer usually starts: from the last solution, or in a problem that is almost quadratic. There this
takes a third of the steps of an interior-point method, and each costs half. It has no safeguards but one: it *resigns*
from an item as soon as anything is not as it should be close to a strict minimum (curvature along the constraints,
independent active rows, contraction), and leaves it to a solver that has them.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.active_set import ActiveSet, decide
from torchddn.fusion import fused, is_fused
from torchddn.optimality import Held, Measures, Scales, measure_known
from torchddn.problem import BatchedProblem
from torchddn.solvers.base import RUNNING, Inputs, Proof, Result, Run, Solver, is_differentiated, solve
from torchddn.solvers.expansion import Expansion
from torchddn.solvers.vectors import back_substitute, identity_like, is_settled, largest, row_sum_norm, times
from torchddn.status import Status

__all__ = ["ActiveSetNewton", "Hybrid"]

# Steps that need not bring a point closer: while the active set settles, errors may grow.
_PATIENCE = 4

# What is that close to its limit, relative to the size of y, may be active at the start.
_NEAR = 1e-6

# In units of the curvature, what the squares of the constraints weigh where the curvature is not convex; the more, the
# fewer digits are left.
_WEIGHTS = (2.0, 1e4)


class _Point(NamedTuple):
    """A point with everything that is known about it, ``c`` and ``c_y`` of rows ``(h, g)``."""

    y: Tensor
    dual: Tensor
    f: Tensor
    c: Tensor
    f_y: Tensor
    c_y: Tensor
    L_yy: Tensor
    stiffness: Tensor  # (B, 1): norm of L_yy


class _State(NamedTuple):
    point: _Point
    held: Held  # of the step that led here
    error: Tensor  # (B,): that of the conditions, in units of the problem
    moved: Tensor  # (B,): length of the last step, in units of y
    setbacks: Tensor  # (B,): steps that brought it no closer
    num_steps: Tensor
    is_minimum: Tensor  # (B,): whether the last step was that of a strict minimum
    f_start: Tensor  # (B,): objective of a feasible start, else infinite
    status: Tensor


@dataclasses.dataclass(frozen=True)
class ActiveSetNewton:
    """The method. Items from which it resigns end as STALLED, wherever they are.

    Attributes:
        max_steps: Most steps before it resigns.

    References:
        Hintermueller, Ito, Kunisch, The Primal-Dual Active Set Strategy as a Semismooth Newton Method, 2002.
    """

    max_steps: int = 16

    def check(self, problem: BatchedProblem) -> None:
        """Takes every minimization."""

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> _State:
        return _begin(problem, x, y)

    def step(self, problem: BatchedProblem, x: Inputs, state: _State) -> _State:
        if is_fused(problem):
            step, is_minimum = _trusting_step(problem, x, state)
            if bool(is_minimum):
                return step
        return _step(problem, x, state, trusting=False)

    def status(self, problem: BatchedProblem, x: Inputs, state: _State) -> Tensor:
        return state.status

    def finish(self, problem: BatchedProblem, x: Inputs, state: _State) -> tuple[Tensor, Tensor]:
        point = state.point
        return point.y, point.dual

    def prove(self, problem: BatchedProblem, x: Inputs, state: _State) -> Proof | None:
        """What the last expansion says of the points; None unless every one of them is a strict minimum."""
        active, is_strict, measures = _judge(problem, x, state)
        if not bool((is_strict & (state.status == Status.CONVERGED)).all()):
            return None
        return Proof(active if problem.is_inequality_constrained else None, measures)


@dataclasses.dataclass(frozen=True)
class Hybrid:
    """``ActiveSetNewton``, and for the items from which it resigns another solver, from their start.

    Attributes:
        robust: The other solver.
    """

    robust: Solver

    @property
    def name(self) -> str:
        """What did the work, for people."""
        return f"ActiveSetNewton, {type(self.robust).__name__}"

    @property
    def finds_minima(self) -> bool:
        """Whether the other solver's own test of convergence includes curvature, as this one's does."""
        return getattr(self.robust, "finds_minima", False)

    def check(self, problem: BatchedProblem) -> None:
        """As the other solver's."""
        self.robust.check(problem)

    def run(self, problem: BatchedProblem, x: Inputs, y: Tensor, solve_again: Run) -> Result:
        if is_differentiated() or solve_again is not solve:
            return solve_again(self.robust, problem, x, y)  # its steps are the ones to differentiate
        found = solve(ActiveSetNewton(), problem, x, y)
        left = torch.nonzero(found.status != Status.CONVERGED).flatten()
        if not len(left):
            return found
        part, part_x = problem.select(x, left)
        again = solve_again(self.robust, part, part_x, y[left])
        num_steps = again.num_steps + found.num_steps[left]
        merged = [
            whole.index_copy(0, left, rows) for whole, rows in zip(found[:4], (*again[:3], num_steps), strict=True)
        ]
        return Result(*merged, proof=None)


@fused
def _begin(problem: BatchedProblem, x: Inputs, y: Tensor) -> _State:
    lower, upper = problem.bounds(x)
    y = _clip(problem, x, y)
    point = _expand(problem, x, y, None)
    units = _units(point, x)
    error, violation = _errors(problem, x, point, units)
    eps = torch.finfo(y.dtype).eps
    f_start = torch.where(violation <= eps**0.5, point.f, torch.inf)
    none = torch.zeros_like(point.f)
    held = _active(problem, x, point)
    possible = (error < torch.inf) & (lower <= upper).all(1)
    setbacks = torch.where(possible, torch.zeros_like(error), torch.inf)
    status = torch.where(setbacks > _PATIENCE, int(Status.STALLED), RUNNING)
    return _State(point, held, error, none + torch.inf, setbacks, none, none > 0, f_start, status)


@fused
def _trusting_step(problem: BatchedProblem, x: Inputs, state: _State) -> tuple[_State, Tensor]:
    """The step if every item is close to a strict minimum, and whether that is so: nothing is read on the way."""
    step = _step(problem, x, state, trusting=True)
    return step, step.is_minimum.all()


def _step(problem: BatchedProblem, x: Inputs, state: _State, trusting: bool) -> _State:
    held = _active(problem, x, state.point)
    y, dual, is_minimum = _newton(problem, x, state.point, held, trusting)
    point = _expand(problem, x, y, dual)
    units = _units(point, x)
    error = _errors(problem, x, point, units)[0]
    moved = largest(y - state.point.y) / units.length
    setbacks = state.setbacks + ~((error <= 0.5 * state.error) & is_minimum)
    setbacks = torch.where(error < torch.inf, setbacks, torch.inf)
    eps = torch.finfo(error.dtype).eps
    # The curvature that the last step saw is that of this point only if the step was short.
    arrived = is_minimum & (error <= eps**0.85) & (moved <= eps**0.4)
    status = torch.where(arrived, int(Status.CONVERGED), RUNNING)
    risen = point.f - state.f_start > eps**0.5 * (state.f_start.abs() + point.f.abs())
    status = torch.where((setbacks > _PATIENCE) | (arrived & risen), int(Status.STALLED), status)
    return _State(point, held, error, moved, setbacks, state.num_steps + 1, is_minimum, state.f_start, status)


@fused
def _judge(problem: BatchedProblem, x: Inputs, state: _State) -> tuple[ActiveSet, Tensor, Measures]:
    """The active set, whether it is the one of the last step and without weakly active ones, and the errors."""
    point = state.point
    units = _units(point, x)
    L_y = point.f_y + times(point.c_y.mT, point.dual)
    weak = torch.finfo(point.y.dtype).eps ** 0.5
    active = decide(problem, point.y, point.dual, x, units, weak, L_y, point.c[:, problem.p :])
    held = active.held(problem)
    same = [(a == b).all(1) for a, b in zip(held, state.held, strict=True)]
    is_strict = torch.stack([~active.weak.any(1), *same]).all(0)
    return active, is_strict, measure_known(problem, point.y, point.dual, x, held, point.f, point.c, L_y)


def _guess_multipliers(problem: BatchedProblem, x: Inputs, y: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """Those of a start, ``(B, p + q)``: what balances the objective best, of the rows and variables that look free.

    From the last solution these are right at once; without them, its bounds would look active or not at random.
    """
    p, num_rows = problem.p, problem.p + problem.q
    if not num_rows:
        return y.new_zeros(y.shape[0], 0)
    f_y, A, c = slopes[:, 0], slopes[:, 1:], values[:, 1:]
    length = torch.maximum(largest(y), largest(x[-1]))[:, None]
    size = torch.linalg.vector_norm(A, dim=-1)
    size = torch.where(size > 0, size, 1.0)
    near = c > -_NEAR * size * length
    near[:, :p] = True
    if problem.has_bounds:
        lower, upper = problem.bounds(x)
        A = A.masked_fill((torch.minimum(y - lower, upper - y) <= _NEAR * length)[:, None], 0.0)
    A = A * (near / size)[..., None]
    gram = A @ A.mT
    gram.diagonal(dim1=-2, dim2=-1).add_(torch.where(near, torch.finfo(y.dtype).eps ** 0.5, 1.0))
    dual = -back_substitute(torch.linalg.cholesky_ex(gram)[0], times(A, f_y)) * near / size
    dual[:, p:].clamp_(min=0)
    return dual.nan_to_num(0.0, 0.0, 0.0)


def _expand(problem: BatchedProblem, x: Inputs, y: Tensor, dual: Tensor | None) -> _Point:
    """What is known at ``y``; without multipliers, those that fit."""
    at = Expansion(lambda y: problem.values(y, x), y, problem.work(x))
    values, slopes = at.value, at.slopes
    dual = _guess_multipliers(problem, x, y, values, slopes) if dual is None else dual
    L_yy = at.curvature(torch.cat([torch.ones_like(y[:, :1]), dual], dim=1))
    size = row_sum_norm(L_yy)[:, None]
    stiffness = torch.where(size == 0, 1.0, size)  # NaN where an entry of the matrix is no number
    return _Point(y, dual, values[:, 0], values[:, 1:], slopes[:, 0], slopes[:, 1:], L_yy, stiffness)


def _units(point: _Point, x: Inputs) -> Scales:
    length = torch.maximum(largest(point.y), largest(x[-1]))
    length = torch.where(length > 0, length, 1.0)
    rows = torch.linalg.vector_norm(point.c_y, dim=-1)
    own = torch.maximum(largest(point.f_y), point.stiffness[:, 0] * length)
    force = torch.maximum(own, largest(point.dual * rows))
    return Scales(force, own, length, torch.where(rows > 0, rows, 1.0))


def _errors(problem: BatchedProblem, x: Inputs, point: _Point, units: Scales) -> tuple[Tensor, Tensor]:
    """As ``optimality.kkt_error``, from what is known; infinite where a number is not finite."""
    L_y = (point.f_y + times(point.c_y.mT, point.dual)) / units.force[:, None]
    parts, violations = [L_y], []
    if problem.has_bounds:
        lower, upper = ((bound - point.y) / units.length[:, None] for bound in problem.bounds(x))
        parts = [torch.minimum(torch.maximum(-L_y, lower), upper)]  # the point itself is inside
    if point.c.shape[1]:
        c = point.c / (units.rows * units.length[:, None])
        h, g = c[:, : problem.p], c[:, problem.p :]
        lam = (point.dual * units.rows / units.force[:, None])[:, problem.p :]
        parts += [h, torch.minimum(lam, -g)]
        violations = [h, g.clamp(min=0)]
        parts.append(point.dual * point.c / (units.own * units.length)[:, None])
    error = largest(torch.cat(parts, dim=1)) + 0 * point.stiffness[:, 0] + 0 * point.f
    violation = largest(torch.cat(violations, dim=1)) if violations else torch.zeros_like(error)
    return error.nan_to_num(nan=torch.inf), violation


def _active(problem: BatchedProblem, x: Inputs, point: _Point) -> Held:
    """The constraints on whose side the point lies."""
    y, stiffness = point.y, point.stiffness
    p, none = problem.p, torch.zeros_like(point.y, dtype=torch.bool)
    rows = torch.ones_like(point.c, dtype=torch.bool)
    if problem.q:
        per_force = point.c_y[:, p:].square().sum(-1) / stiffness
        rows = torch.cat([rows[:, :p], point.dual[:, p:] * per_force + point.c[:, p:] > 0], dim=1)
    if not problem.has_bounds:
        return Held(rows, none, none)
    lower, upper = problem.bounds(x)
    target = y - (point.f_y + times(point.c_y.mT, point.dual)) / stiffness
    fixed = lower == upper
    return Held(rows, (target < lower) | fixed, (target > upper) | fixed)


def _newton(
    problem: BatchedProblem, x: Inputs, point: _Point, held: Held, trusting: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The next ``y`` and ``dual``, and whether the step is that of a strict minimum.

    If ``trusting``, an item without the curvature or the independent rows of one gets nothing that is of use.
    """
    y, H, A, rhs, c = point.y, point.L_yy, point.c_y, -point.f_y, point.c
    put, stiffness = y, point.stiffness
    if problem.has_bounds:
        put = held.put(problem, y, x)
        jump, out = put - y, held.variables
        rhs = (rhs - times(H, jump)).masked_fill(out, 0.0)
        c = c + times(A, jump)
        H = H.masked_fill(out[:, None] | out[..., None], 0.0)
        H.diagonal(dim1=-2, dim2=-1).add_(out * stiffness)
        A = A.masked_fill(out[:, None], 0.0)
    if not A.shape[1]:
        L, definite = _factor(H)
        return _clip(problem, x, put + back_substitute(L, rhs)), point.dual, definite
    d, dual, definite, independent = _saddle_step(H, A, rhs, c, held.rows, stiffness, trusting)
    return _clip(problem, x, put + d), dual, definite & independent


def _saddle_step(
    H: Tensor, A: Tensor, rhs: Tensor, c: Tensor, rows: Tensor, stiffness: Tensor, trusting: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``H d + A' n = rhs``, ``A d = -c`` in the ``rows`` that count, and ``n = 0`` in the others.

    Returns ``d``, ``n``, whether ``H`` is positive definite along the rows, and whether they are independent; where
    not, ``d`` is a compromise.
    """
    num_rows = A.shape[1]
    size = torch.linalg.vector_norm(A, dim=-1)
    size = torch.where(size > 0, size, 1.0)
    kept = rows.to(H.dtype)
    A, c = A * (kept / size)[..., None], kept * c / size
    L, definite = _factor(H)
    weight = torch.zeros_like(stiffness)
    for factor in _WEIGHTS:
        if trusting or is_settled(definite):
            break
        # Convex along the constraints is enough: their squares change neither the step nor the multipliers.
        weight = torch.where(definite[:, None], weight, factor * stiffness)
        L_along, along = _factor(H + weight[..., None] * (A.mT @ A))
        L = torch.where(definite[:, None, None], L, L_along)
        definite = definite | along
    else:
        L = torch.where(definite[:, None, None], L, stiffness.sqrt()[..., None] * identity_like(H))
    rhs = rhs - times(A.mT, weight * c)
    both = torch.cholesky_solve(torch.cat([A.mT, rhs[..., None]], dim=2), L)
    S = A @ both[..., :num_rows]
    # A row that does not count is an equation of its own.
    S.diagonal(dim1=-2, dim2=-1).add_((1 - kept) / stiffness)
    L_S, independent = _factor(S)
    if not (trusting or is_settled(independent)):
        # Too many rows look active: a compromise may bring some of them off again.
        S.diagonal(dim1=-2, dim2=-1).add_(1e-2 / stiffness)
        L_S = torch.where(independent[:, None, None], L_S, torch.linalg.cholesky_ex(S)[0])
    n = back_substitute(L_S, times(A, both[..., num_rows]) + c)
    d = both[..., num_rows] - times(both[..., :num_rows], n)
    return d, n * kept / size, definite, independent


def _factor(K: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor, and whether it is one of a matrix that is definite beyond rounding."""
    L, info = torch.linalg.cholesky_ex(K)
    pivots, entries = L.diagonal(dim1=-2, dim2=-1).square(), K.diagonal(dim1=-2, dim2=-1)
    return L, (info == 0) & (pivots > torch.finfo(K.dtype).eps ** 0.75 * entries).all(-1)


def _clip(problem: BatchedProblem, x: Inputs, y: Tensor) -> Tensor:
    if not problem.has_bounds:
        return y
    lower, upper = problem.bounds(x)
    return torch.minimum(torch.maximum(y, lower), upper)
