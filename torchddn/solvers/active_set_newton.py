r"""Newton's method on the conditions of a minimum, inequalities and bounds included: few cheap steps, or none at all.

The conditions ``min(lam, -g) = 0`` and ``y = clip(y - L_y, lower, upper)`` have a kink where a constraint becomes
active, and a derivative on either side. Newton's method with the derivative of the side where the point lies, a
*semismooth* method, is the primal-dual active set strategy: each step solves the equations of the constraints that look
active at the point, and it converges quadratically to a strict minimum from close by.

Close by is where a layer usually starts: from the last solution, or in a problem that is almost quadratic. There this
takes a third of the steps of an interior-point method, and each costs half. From a few variables on, what costs is the
curvature and its factors: they are used twice, for a step and for a *simplified* one from where it led, and the two
together converge with order three (Traub).

What gradients have taught of the structure of the Hessian serves here as well: where it is a diagonal, a band, blocks
or a diagonal plus low rank, a step reads it by a few products, looks by one more whether it is, and costs O(m). There
it is patient, and shortens steps that leave the domain of a function, because another solver would take much longer.

It has no other safeguards but one: it *resigns* from an item as soon as anything is not as it should be close to a
strict minimum (curvature along the constraints, independent active rows, contraction), and leaves it to another solver.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.active_set import ActiveSet, decide
from torchddn.derivatives import hessian, hessian_products
from torchddn.fusion import fused
from torchddn.linear import Declaration, DenseMatrix, Operator
from torchddn.optimality import Held, Measures, Scales, lagrangian, measure_known
from torchddn.problem import BatchedProblem
from torchddn.solvers.base import RUNNING, Inputs, Proof, Result, Run, Solver, is_differentiated, solve
from torchddn.solvers.expansion import Expansion
from torchddn.solvers.kkt_factors import KKTFactors, factorize
from torchddn.solvers.structured_factors import FACTORED, StructuredFactors, factorize_structured, row_sum_bound
from torchddn.solvers.vectors import back_substitute, is_settled, largest, row_sum_norm, times
from torchddn.status import Status
from torchddn.structure import agree, generic, of_curvature

__all__ = ["ActiveSetNewton", "Hybrid"]

# Most steps, and steps that need not bring a point closer, since errors may grow while the active set settles: with
# the structure of the curvature, where they cost little beside what another solver would take.
_LONG, _PATIENT = 64, 12

# What is that close to its limit, relative to the size of y, may be active at the start.
_NEAR = 1e-6

# Numbers in the rows of a batch, which are dense.
_MOST_NUMBERS = 2**25

# Calls in a row in which most items were not as believed, after which nobody believes it any more.
_MOST_RESIGNED = 3

# How much shorter a step is made that leaves the domain of a function, and how often.
_SHORTER, _MOST_SHORTENED = 0.3, 10

# From so many variables on, matrices cost more than calls, and it pays to use their factors twice.
_LARGE = 16


_Factors = KKTFactors | StructuredFactors


class _Point(NamedTuple):
    """A point and what is known there, ``c`` and ``c_y`` of rows ``(h, g)``, without its curvature."""

    y: Tensor
    dual: Tensor
    f: Tensor
    c: Tensor
    f_y: Tensor
    c_y: Tensor
    stiffness: Tensor  # (B, 1): norm of L_yy where the last step came from


class _State(NamedTuple):
    point: _Point
    held: Tensor  # which constraints the step that led here held, in numbers
    error: Tensor  # (B,): that of the conditions, in units of the problem
    moved: Tensor  # (B,): length of the last step, in units of y
    setbacks: Tensor  # (B,): steps that brought it no closer
    f_start: Tensor  # (B,): objective of a feasible start, else infinite
    status: Tensor


@dataclasses.dataclass(frozen=True)
class ActiveSetNewton:
    """The method. Items from which it resigns end as STALLED, wherever they are.

    Attributes:
        max_steps: Most steps before it resigns.
        patience: Steps that need not bring a point closer: while the active set settles, errors may grow.
        curvature: What the Hessian of the Lagrangian is believed to look like, one of ``FACTORED``; an item of which it
            is not true, or which is not convex, is resigned from. None for no structure.

    References:
        Hintermueller, Ito, Kunisch, The Primal-Dual Active Set Strategy as a Semismooth Newton Method, 2002.
        Traub, Iterative Methods for the Solution of Equations, 1964.
    """

    max_steps: int = 16
    patience: int = 4
    curvature: Declaration | None = None

    def check(self, problem: BatchedProblem) -> None:
        """Takes every minimization."""

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> _State:
        return _begin(problem, x, y)

    def step(self, problem: BatchedProblem, x: Inputs, state: _State) -> _State:
        return _step(problem, x, state, self, trusting=False)[0]

    def trusting_step(self, problem: BatchedProblem, x: Inputs, state: _State) -> tuple[_State, Tensor]:
        """The step if every item is close to a strict minimum, and for which that is so."""
        return _step(problem, x, state, self, trusting=True)

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
        forms_matrices: Whether Hessians may be formed. Else the method is tried only where the curvature has a
            structure and there are few rows; where no gradient has found one yet it is looked for.
    """

    robust: Solver
    forms_matrices: bool = True

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
        found = _by_structure(problem, x, y, looks=not self.forms_matrices)
        if self.forms_matrices:
            found = _complete(found, ActiveSetNewton(), problem, x, y, solve)
        return _complete(found, self.robust, problem, x, y, solve_again)


def _by_structure(problem: BatchedProblem, x: Inputs, y: Tensor, looks: bool) -> Result | None:
    """What the method finds if the curvature has a structure; None if nobody knows of one that helps."""
    if len(y) * (problem.p + problem.q) * problem.m > _MOST_NUMBERS:
        return None
    belief = of_curvature(problem, x, y, looks)
    if belief is None or not isinstance(belief.H, FACTORED) or belief.num_resigned >= _MOST_RESIGNED:
        return None
    found = solve(ActiveSetNewton(_LONG, _PATIENT, belief.H), problem, x, y)
    num_left = int((found.status != Status.CONVERGED).sum()) if found.proof is None else 0
    belief.num_resigned = belief.num_resigned + 1 if 2 * num_left > len(y) else 0
    return found


def _complete(found: Result | None, solver: Solver, problem: BatchedProblem, x: Inputs, y: Tensor, run: Run) -> Result:
    """What was found, and for the items of which nothing was found what ``solver`` finds from their start."""
    if found is None:
        return run(solver, problem, x, y)
    if found.proof is not None:
        return found
    left = torch.nonzero(found.status != Status.CONVERGED).flatten()
    if not len(left):
        return found
    part, part_x = problem.select(x, left)
    again = run(solver, part, part_x, y[left])
    num_steps = again.num_steps + found.num_steps[left]
    merged = [whole.index_copy(0, left, rows) for whole, rows in zip(found[:4], (*again[:3], num_steps), strict=True)]
    return Result(*merged, proof=None)


@fused
def _begin(problem: BatchedProblem, x: Inputs, y: Tensor) -> _State:
    lower, upper = problem.bounds(x)
    y = _clip(problem, x, y)
    point = _evaluate(problem, x, y, None, torch.zeros_like(y[:, :1]))
    error, violation = _errors(problem, x, point, _units(point, x))
    eps = torch.finfo(y.dtype).eps
    f_start = torch.where(violation <= eps**0.5, point.f, torch.inf)
    none = torch.zeros_like(point.f)
    possible = (error < torch.inf) & (lower <= upper).all(1)
    setbacks = torch.where(possible, none, torch.inf)
    status = torch.where(setbacks > 0, int(Status.STALLED), RUNNING)
    held = _in_numbers(problem, _active(problem, x, point, torch.ones_like(point.stiffness)), y)
    # Without the curvature there is no unit of force: the first step is judged by itself.
    return _State(point, held, none + torch.inf, none + torch.inf, setbacks, f_start, status)


def _step(
    problem: BatchedProblem, x: Inputs, state: _State, method: ActiveSetNewton, trusting: bool
) -> tuple[_State, Tensor]:
    """The next state, and for which items nothing but reading could make a better one."""
    before, curvature = state.point, method.curvature
    if curvature is None:
        matrix = _curvature(problem, x, before)
        L_yy, stiffness = DenseMatrix(matrix, symmetric=True), _positive(row_sum_norm(matrix))
        held = _active(problem, x, before, stiffness)
        factors = factorize(matrix, before.c_y, stiffness, held, problem.has_bounds, trusting)
    else:
        L_yy, is_so = _believed_curvature(problem, x, before, curvature)
        stiffness = _positive(row_sum_bound(L_yy))
        held = _active(problem, x, before, stiffness)
        factors = factorize_structured(L_yy, before.c_y, stiffness, held, problem.has_bounds)
        factors = factors._replace(margin=torch.where(is_so, factors.margin, 0.0))
    y, dual = _newton_step(problem, x, before, L_yy, held, factors)
    if problem.m >= _LARGE:
        y, dual = _simplified_step(problem, x, factors, before.y, y, dual)
    point = _evaluate(problem, x, y, dual, stiffness)
    is_minimum = factors.margin > 0
    in_full = torch.ones_like(is_minimum)
    if curvature is not None:
        in_full = _is_inside(point)
        if not trusting:
            hopeless = (state.status != RUNNING) | ~_is_inside(before)
            point = _back_inside(problem, x, before, point, in_full | hopeless)
    units = _units(point, x)
    error = _errors(problem, x, point, units)[0]
    moved = largest(point.y - before.y) / units.length
    setbacks = state.setbacks + (in_full & ~((error <= 0.5 * state.error) & is_minimum))
    setbacks = torch.where(error < torch.inf, setbacks, torch.inf)
    eps = torch.finfo(error.dtype).eps
    # The curvature that the last step saw is that of this point only if the step was short.
    short = (0.1 * factors.margin).clamp(eps**0.4, eps**0.25)
    arrived = is_minimum & (error <= eps**0.85) & (moved <= short)
    status = torch.where(arrived, int(Status.CONVERGED), RUNNING)
    risen = point.f - state.f_start > eps**0.5 * (state.f_start.abs() + point.f.abs())
    resigns = (setbacks > method.patience) | (arrived & risen)
    if curvature is not None:
        resigns = resigns | ~is_minimum
    status = torch.where(resigns, int(Status.STALLED), status)
    marks = _in_numbers(problem, held, point.y)
    trusted = is_minimum if curvature is None else in_full
    return _State(point, marks, error, moved, setbacks, state.f_start, status), trusted


@fused
def _judge(problem: BatchedProblem, x: Inputs, state: _State) -> tuple[ActiveSet, Tensor, Measures]:
    """The active set, whether it is the one of the last step and without weakly active ones, and the errors."""
    point = state.point
    units = _units(point, x)
    L_y = point.f_y + times(point.c_y.mT, point.dual)
    weak = torch.finfo(point.y.dtype).eps ** 0.5
    active = decide(problem, point.y, point.dual, x, units, weak, L_y, point.c[:, problem.p :])
    held = active.held(problem)
    is_strict = ~active.weak_items(problem) & (_in_numbers(problem, held, point.y) == state.held).all(1)
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


def _evaluate(problem: BatchedProblem, x: Inputs, y: Tensor, dual: Tensor | None, stiffness: Tensor) -> _Point:
    """What is known at ``y``; without multipliers, those that fit."""
    at = Expansion(lambda y: problem.values(y, x), y, problem.work(x))
    dual = _guess_multipliers(problem, x, y, at.value, at.slopes) if dual is None else dual
    return _Point(y, dual, at.value[:, 0], at.value[:, 1:], at.slopes[:, 0], at.slopes[:, 1:], stiffness)


def _curvature(problem: BatchedProblem, x: Inputs, point: _Point) -> Tensor:
    """``L_yy``, ``(B, m, m)``."""
    return hessian(lambda y: lagrangian(problem, y, point.dual, x), point.y, problem.work(x))


def _believed_curvature(
    problem: BatchedProblem, x: Inputs, point: _Point, declaration: Declaration
) -> tuple[Operator, Tensor]:
    """``L_yy`` as it is declared, and of which items that is true, ``(B,)``."""
    m, y = problem.m, point.y
    z = generic(m, y)
    probes = torch.cat([declaration.probes(m, y), z[None]])
    products = hessian_products(lambda y: lagrangian(problem, y, point.dual, x), y, probes, problem.work(x))
    L_yy = declaration.operator(products[:-1], symmetric=True)
    return L_yy, agree(products[-1], L_yy.matvec(z.expand_as(y)), 0.5)


def _positive(size: Tensor) -> Tensor:
    """As a unit, ``(B, 1)``; NaN stays."""
    return torch.where(size == 0, 1.0, size)[:, None]


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


def _active(problem: BatchedProblem, x: Inputs, point: _Point, stiffness: Tensor) -> Held:
    """The constraints on whose side the point lies."""
    y = point.y
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


def _in_numbers(problem: BatchedProblem, held: Held, like: Tensor) -> Tensor:
    """One for what is held and zero for the rest, ``(B, p + q)``, and ``2 m`` more where there are bounds."""
    return (torch.cat(held, dim=1) if problem.has_bounds else held.rows).to(like.dtype)


def _newton_step(
    problem: BatchedProblem, x: Inputs, point: _Point, L_yy: Operator, held: Held, factors: _Factors
) -> tuple[Tensor, Tensor]:
    """The next ``y`` and ``dual``."""
    start, rhs, c = point.y, -point.f_y, point.c
    if problem.has_bounds:
        start = held.put(problem, point.y, x)
        jump = start - point.y
        rhs, c = rhs - L_yy.matvec(jump), c + times(point.c_y, jump)
    d, dual = factors.solve(rhs, c)
    return _clip(problem, x, start + d), dual


def _simplified_step(
    problem: BatchedProblem, x: Inputs, factors: _Factors, before: Tensor, y: Tensor, dual: Tensor
) -> tuple[Tensor, Tensor]:
    """One more step with the derivatives ``before`` the last one, for items that come closer by it: it costs little.

    Close to a solution both together converge with order three. A step of more than half the length of the one before
    says that the item is not close (Deuflhard's test of monotonicity).
    """
    at = Expansion(lambda y: problem.values(y, x), y, problem.work(x))
    L_y = at.slopes[:, 0] + times(at.slopes[:, 1:].mT, dual)
    d, change = factors.solve(-L_y, at.value[:, 1:])
    nearer = _clip(problem, x, y + d)
    close = (largest(nearer - y) <= 0.5 * largest(y - before))[:, None]
    return torch.where(close, nearer, y), torch.where(close, dual + change, dual)


def _is_inside(point: _Point) -> Tensor:
    """Which items are where all functions are defined, ``(B,)``."""
    return (point.f + point.f_y.sum(1) + point.c.sum(1) + point.c_y.sum((1, 2))).isfinite()


def _back_inside(problem: BatchedProblem, x: Inputs, before: _Point, point: _Point, inside: Tensor) -> _Point:
    """The point with a shorter step for items that left the domain of their functions, such as that of a logarithm."""
    for _ in range(_MOST_SHORTENED):
        if is_settled(inside):
            break
        y = torch.where(inside[:, None], point.y, before.y + _SHORTER * (point.y - before.y))
        point = _evaluate(problem, x, y, point.dual, point.stiffness)
        inside = _is_inside(point)
    return point


def _clip(problem: BatchedProblem, x: Inputs, y: Tensor) -> Tensor:
    if not problem.has_bounds:
        return y
    lower, upper = problem.bounds(x)
    return torch.minimum(torch.maximum(y, lower), upper)
