r"""Sequential quadratic programming with constraints of every kind.

Solves, for each item, with the rows ``c = (h, g)`` and ``A = c_y``::

    y = argmin_y f(y)   subject to   h(y) = 0,   g(y) <= 0,   lower <= y <= upper

Each step solves a convex quadratic program with elastic rows, ::

    d = argmin_d  1/2 d'H d + f_y'd + sigma.|c + A d|      subject to   lower <= y + d <= upper

in which ``|c|`` stands for what is violated. It says which rows and bounds will hold as equations: the *working set*.
Newton's step for these equations, that of ``newton.py``, takes the place of ``d`` if it respects all others and does
as much for the merit ``f + sigma.|c|``. So convergence is quadratic and the answer as exact as rounding allows.

``H`` is ``L_yy`` with curvature added across the last working set, where the constraints decide and not ``L``, and as
much more as makes it positive definite. A step that does not reduce the merit as predicted, after the second-order
correction, is shortened. Where the program leaves rows violated, it is compared with one at a price ``sigma`` beside
which the objective is rounding, and ``sigma`` grows until the first does nearly as much about them as the second. Where
the second can do nothing either, the constraints contradict each other nearby.

Constraints that hold without a multiplier do not count where curvature is asked for: at a saddle on a bound the step
follows the direction of least curvature to the inside.

References:
    Nocedal, Wright, Numerical Optimization, 2nd edition, sections 18.3 and 18.5. Fletcher, Practical Methods of
    Optimization, 2nd edition, section 14.3. Byrd, Nocedal, Waltz, Steering exact penalty methods for nonlinear
    programming, 2008. Morales, Nocedal, Wu, A sequential quadratic programming algorithm with an
    additional equality constrained phase, 2012. Gill, Wong, Convexification schemes for SQP methods, 2014.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from torchddn.problem import BatchedProblem
from torchddn.solvers.base import RUNNING, Delegate, Inputs, freeze
from torchddn.solvers.lagrangian import (
    Point,
    Scales,
    System,
    expand,
    fit_multipliers,
    least_curvature,
    make_convex,
    measure,
    row_scales,
)
from torchddn.solvers.merit import Merit, descent, violation
from torchddn.solvers.newton import EqualitySQP, any_direction
from torchddn.solvers.options import check_suits, check_termination, default_rtol, falls_away, far
from torchddn.solvers.points import choose, detached, is_finite, where_items
from torchddn.solvers.quadratic import Quadratic, solve_quadratic
from torchddn.solvers.stride import Stride
from torchddn.solvers.vectors import divide, identity_like, is_settled, largest, length, times
from torchddn.status import Status

__all__ = ["SQP"]

# How fast the price of a violation grows where it has to, and how often in a step.
_GROWTH = 10.0
_MOST_RAISES = 4


@dataclasses.dataclass(frozen=True)
class SQP(Delegate):
    r"""``y = argmin_y f(y)`` subject to constraints of every kind, by sequential quadratic programming.

    Without inequalities and bounds Newton's method on the optimality conditions, made to find minima; with them, that
    on the constraints that a quadratic program finds to be active. Quadratic convergence: answers are accurate to
    rounding. Works without an objective (any feasible point) and with redundant rows. Cost O(m^3 + p m^2) per item and
    step, ten to twenty times that with inequalities or bounds; memory O(m^2): for up to a few hundred variables.

    Args:
        rtol: Converged when a full step changes no entry of ``y`` by more than ``rtol`` times the largest entry so
            far; None for a value fitting the dtype. The step is still taken, so that the error is much smaller.
        atol: Added to that, in units of ``y``.
        max_steps: Most steps for an item.

    Status:
        INFEASIBLE: No step reduces the violation any more. Relax the constraints or start elsewhere.
        UNBOUNDED: ``y`` went eps^-0.7 start scales away while the merit fell, or no finite point attains the infimum.
        STALLED: Rounding stops progress before the step is small: kinks, or a precision too low for the problem.
        MAX_STEPS: Start closer, or raise ``max_steps``.

    Example:
        >>> import torch, torchddn as ddn
        >>> x = torch.tensor([[2.0, -1.0]])
        >>> ddn.argmin(lambda y, x: (y - x).square().sum(), torch.zeros(2), x, bounds=(0.0, 1.0), solver="SQP")
        tensor([[1., 0.]])

    References:
        Nocedal, Wright, Numerical Optimization, 2nd edition, chapter 18. Where we differ: no second evaluation
        decides about the correction, since it is always made; the inertia is controlled by Cholesky alone.
    """

    finds_minima: ClassVar[bool] = True  # its own test of convergence includes curvature

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_termination(self)

    def check(self, problem: BatchedProblem) -> None:
        check_suits(self, problem, kinds=("minimize",), equality=True, inequality=True, bounds=True)

    def method(self, problem: BatchedProblem) -> "EqualitySQP | _ElasticSQP":
        method = _ElasticSQP if problem.is_inequality_constrained else EqualitySQP
        return method(self.rtol, self.atol, self.max_steps)


class _WorkingSet(NamedTuple):
    """What a quadratic program found to hold."""

    rows: Tensor  # (B, r): as equations
    violated: Tensor  # (B, r): not at all
    nu: Tensor  # (B, r): its multipliers, zero for the other rows
    at_lower: Tensor  # (B, m)
    at_upper: Tensor  # (B, m)

    @property
    def held(self) -> Tensor:
        return self.at_lower | self.at_upper

    def fit(self, f_y: Tensor, c_y: Tensor, p: int) -> Tensor:
        """The multipliers nearest to the program's that balance ``f_y`` best where nothing is held."""
        free = ~self.held
        rest = torch.where(free, f_y + times(c_y.mT, self.nu), 0.0)
        more = fit_multipliers(rest, c_y * self.rows[..., None] * free[:, None])
        nu = self.nu + torch.where(self.rows, more, 0.0)
        return torch.cat([nu[:, :p], nu[:, p:].clamp(min=0)], dim=1)


class _State(NamedTuple):
    """Where an item is, and what it has learned on its way."""

    point: Point
    working: _WorkingSet
    w: Tensor  # (B, m): direction of least curvature, unit
    shift: Tensor  # (B,): tau that last made an indefinite Hessian definite
    reach: Tensor  # (B,): longest step to try; infinite until a step fails
    price: Tensor  # (B,): of a violation, as a slope of f
    force: Tensor  # (B,): largest |f_y| so far
    steepness: Tensor  # (B, r): longest gradient of each row so far
    scale: Tensor  # (B,): largest |y| so far
    span: Tensor  # (B,): length scale at the start
    stride: Stride
    verdict: Tensor  # (B,): Status or RUNNING


@dataclasses.dataclass(frozen=True)
class _ElasticSQP:
    """What :class:`SQP` is where there are inequalities or bounds."""

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 200

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> _State:
        lower, upper = problem.bounds(x)
        crossed = (lower > upper).any(-1)
        y = _clip(y, lower, upper)
        rows = problem.constraints(y, x).detach() >= 0
        rows[:, : problem.p] = True
        nothing = torch.zeros_like(rows, dtype=y.dtype)
        working = _WorkingSet(rows, torch.zeros_like(rows), nothing, y <= lower, y >= upper)
        point = _expand(problem, x, y, working)
        scales = _measure(point, working, largest(y))
        return _State(
            point=point,
            working=working,
            w=any_direction(y),
            shift=scales.size / 32,
            reach=torch.full_like(point.f, torch.inf),
            price=torch.zeros_like(point.f),
            force=length(point.f_y),
            steepness=length(point.h_y),
            scale=largest(y),
            span=scales.distance,
            stride=Stride.of(point.f),
            verdict=torch.where(crossed, int(Status.INFEASIBLE), RUNNING),
        )

    def step(self, problem: BatchedProblem, x: Inputs, state: _State) -> _State:
        move = _propose(problem, x, state)
        accepted, verdict, stride = self._judge(problem, x, state, move)
        trial, walked = move.trial, move.alpha * length(move.d)
        return _State(
            point=choose(accepted, trial, state.point),
            working=move.working,
            w=move.w,
            shift=move.system.next_shift(state.shift, move.curvature, move.scales),
            reach=torch.where(accepted, torch.maximum(state.reach, 4 * walked), walked * move.merit.shrinkage),
            # A price that a detour called for must not keep the rest of the way close to the constraints.
            price=torch.where(accepted & ~move.torn, 0.25 * move.price, move.price),
            force=torch.where(accepted, torch.maximum(state.force, length(trial.f_y)), state.force),
            steepness=where_items(accepted, torch.maximum(state.steepness, length(trial.h_y)), state.steepness),
            scale=torch.where(accepted, torch.maximum(state.scale, largest(trial.y)), state.scale),
            span=state.span,
            stride=stride,
            verdict=verdict,
        )

    def status(self, problem: BatchedProblem, x: Inputs, state: _State) -> Tensor:
        crossed = state.verdict == Status.INFEASIBLE
        return torch.where(is_finite(state.point) | crossed, state.verdict, int(Status.NON_FINITE))

    def finish(self, problem: BatchedProblem, x: Inputs, state: _State) -> tuple[Tensor, Tensor]:
        return state.point.y, state.point.nu

    def _judge(self, problem: BatchedProblem, x: Inputs, state: _State, move: "_Move") -> tuple[Tensor, Tensor, Stride]:
        """Whether each item takes its step, what it has come to, and how its steps are."""
        point, trial, scales, merit = state.point, move.trial, move.scales, move.merit
        eps = torch.finfo(point.y.dtype).eps
        rtol = default_rtol(point.y.dtype) if self.rtol is None else self.rtol
        tolerance = rtol * scales.reference + self.atol
        near = move.alpha * largest(move.d) <= eps**0.4 * scales.reference
        error, at_rounding = _error(problem, x, point, scales), 16 * eps * scales.reference
        error_next = _error(problem, x, trial, scales)
        contracts = error_next <= torch.maximum(error, at_rounding)
        small = (largest(move.d) <= tolerance) & move.solved
        accepted = is_finite(trial) & (merit.falls | ((near | merit.at_rounding) & contracts) | small)

        distance = violation(point.h.detach(), problem.p) / _positive(state.steepness)
        violated = largest(distance) > eps**0.4 * scales.reference
        stuck = ~accepted & near
        # Rounding decides where the steps do not become shorter any more.
        size = divide(largest(move.d), scales.reference)
        newton = move.solved & move.system.convex & (move.system.tau == 0)
        shrinks = newton & accepted & (size <= 0.5 * state.stride.last)
        proved = small & newton
        optimal = small | ((error <= at_rounding) & ~shrinks)
        optimal = optimal | (stuck & ((error <= eps**0.5 * scales.reference) | merit.at_rounding))
        runs_away = accepted & (largest(trial.y) > far(point.y.dtype) * state.span) & (merit.actual > 0)
        optimal = optimal & move.system.convex & (move.convex | stuck) & ~violated
        stride = state.stride.next(size, accepted, newton & (move.alpha >= 1), divide(error_next, error))
        runs_away = (runs_away & ~violated) | falls_away(trial.f) | (optimal & ~proved & state.stride.drifts)
        verdict = torch.full_like(state.verdict, RUNNING)
        for holds, status in (
            (stuck, Status.STALLED),
            (optimal, Status.CONVERGED),
            (violated & move.hopeless, Status.INFEASIBLE),
            (runs_away, Status.UNBOUNDED),
        ):
            verdict = torch.where(holds, int(status), verdict)
        return accepted, verdict, stride


class _Move(NamedTuple):
    """A step ``alpha d``, where it leads, and what it was made of."""

    d: Tensor
    alpha: Tensor
    trial: Point
    merit: Merit
    working: _WorkingSet
    price: Tensor
    torn: Tensor  # whether the program violates rows
    hopeless: Tensor  # whether no step violates them less
    solved: Tensor  # whether d is known to solve the program
    w: Tensor
    curvature: Tensor  # along w
    convex: Tensor  # whether L curves up, whatever constraints without a multiplier hide
    scales: Scales
    system: System


def _propose(problem: BatchedProblem, x: Inputs, state: _State) -> _Move:
    point, bounds = state.point, problem.bounds(x)
    model = _Model.of(problem, x, state)
    scales = model.scales
    price, most = _prices(model, state)
    program, price, hopeless = _steer(model, price, most)
    sigma, working = price[:, None] / model.steepness, program.working

    lower, upper = torch.maximum(bounds[0] - point.y, -model.box), torch.minimum(bounds[1] - point.y, model.box)
    at = torch.where(working.at_lower, lower, torch.where(working.at_upper, upper, 0.0))
    equations = _restrict(point, working, at, scales)
    system = make_convex(equations, state.shift, scales)
    newton, nu = system.newton_step(equations)
    newton = torch.where(working.held, at, newton)
    pushes = _pushes(model, newton.detach(), nu.detach(), working)
    d = where_items(pushes & _is_as_good(model, newton.detach(), program, sigma), newton, program.d)

    w, curvature, convex, side = _curvature(model, program, system, state)
    escapes = ~convex & (curvature < 0) & (length(d) <= 0.1 * scales.distance)
    if not is_settled(~escapes):
        # Near a saddle or maximum: leave along w.
        leap = torch.where(escapes, torch.minimum(0.5 * scales.distance, state.reach), 0.0)
        d = d + (leap * side)[:, None] * w
    alpha = (state.reach / length(d)).nan_to_num(nan=1.0).clamp(max=1.0)
    y = _clip(point.y + alpha[:, None] * d, *bounds)
    if problem.p + problem.q:
        y = _correct(problem, x, point, working, system, y)
    # The next step must not take for a constraint what was only as far as this model goes.
    own = working._replace(
        at_lower=working.at_lower & (lower > -model.box).detach(),
        at_upper=working.at_upper & (upper < model.box).detach(),
    )
    trial = _expand(problem, x, y, own)
    merit = Merit.of(point, trial, d, alpha, sigma, model.point.L_yy, problem.p)
    torn, solved = working.violated.any(-1), program.solved & pushes
    return _Move(d, alpha, trial, merit, own, price, torn, hopeless, solved, w, curvature, convex, scales, system)


class _Program(NamedTuple):
    """What a quadratic program says."""

    d: Tensor
    working: _WorkingSet
    weak_rows: Tensor  # (B, r): of the working set, without a multiplier
    weak_bounds: Tensor  # (B, m)
    solved: Tensor


class _Model(NamedTuple):
    """The quadratic programs around a point, which differ in the price of a violation; constants."""

    point: Point
    H: Tensor  # positive definite
    c: Tensor  # (B, m)
    box: Tensor  # (B, 1): longest entry of d
    lower: Tensor  # (B, m): of d
    upper: Tensor
    steepness: Tensor  # (B, r): longest gradient of each row so far
    scales: Scales
    is_equality: Tensor  # (r,)
    p: int

    @staticmethod
    def of(problem: BatchedProblem, x: Inputs, state: _State) -> "_Model":
        point, last = detached(state.point), state.working
        scales = _measure(point, last, state.scale)
        gaps = problem.bounds(x)[0].detach() - point.y, problem.bounds(x)[1].detach() - point.y
        is_equality = torch.arange(point.h.shape[1], device=point.h.device) < problem.p
        # Along what holds and will go on holding the curvature of L decides, so across it some may be added.
        close = 1e-2 * scales.distance[:, None]
        rows = last.rows & (is_equality | (point.h.abs() <= close * row_scales(point.h_y)))
        held = (last.at_lower & (-gaps[0] <= close)) | (last.at_upper & (gaps[1] <= close))
        system = make_convex(_select(point, rows, point.nu), state.shift, scales, held)
        h = torch.where(is_equality, point.h, 0.0) / system.row_scale
        # Where tau had to be made up, so was the length of d.
        most = torch.where(system.convex, torch.finfo(h.dtype).eps ** -0.25, 10.0) * scales.distance
        box = torch.where(system.tau > 0, most, torch.inf)[:, None]
        # Where H is singular, only a tiny tau keeps steps from being infinite: let them be long.
        singular = system.convex & (system.tau > 0)
        loose = torch.minimum(system.tau, torch.finfo(h.dtype).eps ** 0.5 * divide(length(point.f_y), scales.distance))
        excess = torch.where(singular & (loose > 0), system.tau - loose, 0.0)
        return _Model(
            point=point,
            H=system.K.detach() - excess[:, None, None] * identity_like(system.K),
            c=point.f_y + system.rho[:, None] * times(system.A.mT, h),  # of h + A d = 0, nothing is felt
            box=box,
            lower=torch.maximum(gaps[0], -box),
            upper=torch.minimum(gaps[1], box),
            steepness=_positive(torch.maximum(state.steepness, length(point.h_y))),
            scales=scales,
            is_equality=is_equality,
            p=problem.p,
        )

    def solve(self, price: Tensor, skip: Tensor) -> _Program:
        """The program at a price, made in units in which its numbers are of order one."""
        point, scales, row_scale = self.point, self.scales, row_scales(self.point.h_y)
        weight = price[:, None] * row_scale / self.steepness
        unit, force = scales.distance, torch.maximum(scales.curvature * scales.distance, 1e-2 * largest(weight))
        weight = (weight / force[:, None]).clamp(min=torch.finfo(weight.dtype).eps ** 0.5)
        found = solve_quadratic(
            Quadratic(
                H=self.H * (unit / force)[:, None, None],
                c=self.c / force[:, None],
                A=point.h_y / row_scale[..., None],
                b=-point.h / row_scale / unit[:, None],
                sigma=weight,
                kappa=torch.where(self.is_equality, weight, 0.0),
                lower=self.lower / unit[:, None],
                upper=self.upper / unit[:, None],
            ),
            skip | ~is_finite(point),
        )
        nu = torch.where(found.active | found.violated, found.n * force[:, None] / row_scale, 0.0)
        working = _WorkingSet(found.active, found.violated, nu, found.at_lower, found.at_upper)
        d = (found.d * unit[:, None]).nan_to_num(nan=0.0)
        return _Program(d, working, found.weak_rows & found.active, found.weak_bounds & working.held, found.solved)

    def violation(self, d: Tensor) -> Tensor:
        """Of all rows, after a step in the linear model, ``(B,)``."""
        c = self.point.h + times(self.point.h_y, d)
        return (torch.where(self.is_equality, c.abs(), c.clamp(min=0)) / self.steepness).sum(-1)


def _prices(model: _Model, state: _State) -> tuple[Tensor, Tensor]:
    """The price of a violation, more than any multiplier is worth, and the highest that it may become."""
    point, scales = model.point, model.scales
    needed = 2 * largest(torch.where(state.working.rows, point.nu, 0.0) * model.steepness)
    usual = scales.curvature * scales.distance
    # Multipliers and curvature beside a violated row are made of its price.
    needed = torch.where(state.working.violated.any(-1), 0.0, torch.maximum(needed, 1e-2 * usual))
    most = torch.finfo(needed.dtype).eps ** -0.5 * torch.where(state.force > 0, state.force, needed)
    price = torch.minimum(torch.maximum(torch.maximum(state.price, needed), length(point.f_y)), most)
    price = torch.where(price > 0, price, usual)
    return price, torch.maximum(most, price)


def _steer(model: _Model, price: Tensor, most: Tensor) -> tuple[_Program, Tensor, Tensor]:
    """The program at a price at which it does almost all that can be done about the rows, and whether nothing can."""
    program = model.solve(price, torch.zeros_like(price, dtype=torch.bool))
    now = model.violation(torch.zeros_like(model.c))
    torn = program.working.violated.any(-1) & (now > torch.finfo(now.dtype).eps ** 0.6 * model.scales.distance)
    if is_settled(~torn):
        return program, price, torn
    best = model.violation(model.solve(most, ~torn).d)
    for _ in range(_MOST_RAISES):
        low = torn & (now - model.violation(program.d) < 0.9 * (now - best)) & (price < most)
        if is_settled(~low):
            break
        price = torch.where(low, torch.minimum(_GROWTH * price, most), price)
        program = freeze(low, model.solve(price, ~low), program)
    return program, price, torn & (now - best <= torch.finfo(price.dtype).eps ** 0.5 * now)


def _is_as_good(model: _Model, d: Tensor, program: _Program, sigma: Tensor) -> Tensor:
    """Whether Newton's step respects what is not in the working set, and does as much as the program's."""
    point, scales, eps = model.point, model.scales, torch.finfo(d.dtype).eps
    c = point.h + times(point.h_y, d)
    tolerance = eps**0.5 * (1e-3 * scales.distance + length(d))[:, None]
    slack = ~program.working.rows & ~program.working.violated
    inside = ((d >= model.lower - tolerance) & (d <= model.upper + tolerance)).all(-1)
    inside = inside & (~slack | (c <= tolerance * row_scales(point.h_y))).all(-1)
    gain, hope = (descent(point, step, sigma, model.p) for step in (d, program.d))
    return inside & ((gain >= 0.1 * hope) | (length(d) <= eps**0.4 * scales.reference))


def _pushes(model: _Model, d: Tensor, nu: Tensor, working: _WorkingSet) -> Tensor:
    """Whether every inequality and bound of the working set pushes, and none pulls."""
    point, scales = model.point, model.scales
    tolerance = torch.finfo(d.dtype).eps ** 0.75 * (scales.curvature * scales.distance)[:, None]
    slope = point.f_y + times(point.h_y.mT, nu) + times(point.L_yy, d)
    fine = ~(working.at_lower & (slope < -tolerance)) & ~(working.at_upper & (slope > tolerance))
    return fine.all(-1) & (model.is_equality | (nu * row_scales(point.h_y) >= -tolerance)).all(-1)


def _curvature(
    model: _Model, program: _Program, system: System, state: _State
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The direction ``w`` of least curvature, its curvature, whether ``L`` is convex, and which way to go along ``w``.

    A constraint that holds without a multiplier does not keep a step from leaving it on its feasible side.
    """
    point, working, scales = model.point, program.working, model.scales
    w, curvature = least_curvature(system, state.w)
    convex, forth, back = system.convex, torch.ones_like(system.convex), torch.ones_like(system.convex)
    weak = (program.weak_rows.any(-1) | program.weak_bounds.any(-1)) & (length(program.d) <= 0.1 * scales.distance)
    if not is_settled(~weak):
        strong = working._replace(
            rows=working.rows & ~program.weak_rows,
            at_lower=working.at_lower & ~program.weak_bounds,
            at_upper=working.at_upper & ~program.weak_bounds,
        )
        free = make_convex(_restrict(point, strong, torch.zeros_like(point.y), scales), state.shift, scales)
        w_free, curvature_free = least_curvature(free, state.w)
        away = [torch.where(program.weak_rows, times(point.h_y, w_free) / row_scales(point.h_y), 0.0)]
        away.append(torch.where(program.weak_bounds, torch.where(working.at_upper, w_free, -w_free), 0.0))
        outwards, tolerance = torch.cat(away, dim=1), torch.finfo(w.dtype).eps ** 0.25
        forth_free, back_free = (outwards <= tolerance).all(-1), (outwards >= -tolerance).all(-1)
        leaves = weak & ~free.convex & (forth_free | back_free)
        w, curvature = where_items(leaves, w_free, w), torch.where(leaves, curvature_free, curvature)
        convex, forth, back = convex & ~leaves, ~leaves | forth_free, ~leaves | back_free
    falls = (point.L_y * w).sum(-1) <= 0
    return w, curvature, convex, torch.where((falls & forth) | ~back, 1.0, -1.0).to(w)


def _correct(
    problem: BatchedProblem, x: Inputs, point: Point, working: _WorkingSet, system: System, y: Tensor
) -> Tensor:
    """``y``, brought back to where the linearized constraints say it should be."""
    moved = y - point.y
    bend = problem.constraints(y, x) - point.h - times(point.h_y, moved)
    c, _ = system.solve(torch.zeros_like(y), -torch.where(working.rows, bend, 0.0) / system.row_scale)
    c = torch.where(working.held, 0.0, c)
    usable = length(c) <= 0.5 * length(moved)  # False for NaN
    return where_items(usable, _clip(y + c, *problem.bounds(x)), y)


def _expand(problem: BatchedProblem, x: Inputs, y: Tensor, working: _WorkingSet) -> Point:
    return expand(problem, x, y, lambda f_y, c_y: working.fit(f_y, c_y, problem.p))


def _select(point: Point, rows: Tensor, nu: Tensor) -> Point:
    """The point with the given rows alone, as far as first derivatives go."""
    L_y = point.f_y + times(point.h_y.mT, nu)
    h, h_y = torch.where(rows, point.h, 0.0), point.h_y * rows[..., None]
    return point._replace(nu=torch.where(rows, nu, 0.0), h=h, h_y=h_y, L_y=L_y)


def _measure(point: Point, working: _WorkingSet, scale: Tensor) -> Scales:
    """The units, with the slopes of what is free and the rows that are not slack."""
    free, rows = ~working.held, working.rows | working.violated
    part = _select(point, rows, torch.where(rows, point.nu, 0.0))
    # Of a row whose gradient is held altogether the length would be lost.
    size = row_scales(part.h_y)
    h, h_y, nu = part.h / size, part.h_y * free[:, None] / size[..., None], part.nu * size
    scales = measure(part._replace(h=h, h_y=h_y, nu=nu, L_y=part.L_y * free), scale)
    # At a vertex, nothing is free to have a slope.
    slope = length(point.f_y) / scales.distance
    return scales._replace(curvature=torch.where((scales.size == 0) & (slope > 0), slope, scales.curvature))


def _restrict(point: Point, working: _WorkingSet, at: Tensor, scales: Scales) -> Point:
    """The problem in the free variables, with the rows of the working set as equations; the others move to ``at``."""
    free = ~working.held
    part = _select(point, working.rows, working.nu)
    L_yy = part.L_yy * free[:, None] * free[..., None] + torch.diag_embed(working.held * scales.curvature[:, None])
    L_y = torch.where(free, part.L_y + times(point.L_yy, at), 0.0)
    return part._replace(
        nu=working.nu, h=part.h + times(part.h_y, at), h_y=part.h_y * free[:, None], L_y=L_y, L_yy=L_yy
    )


def _clip(y: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    y = torch.where(y < lower, lower, y)
    return torch.where(y > upper, upper, y)


def _positive(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1.0)


def _error(problem: BatchedProblem, x: Inputs, point: Point, scales: Scales) -> Tensor:
    """How far the optimality conditions are from holding, as a length in ``y``."""
    point, p = detached(point), problem.p
    lower, upper = problem.bounds(x)
    step = point.L_y / scales.curvature[:, None]
    step = torch.minimum(torch.maximum(step, point.y - upper), point.y - lower)
    row_scale = row_scales(point.h_y)
    distance, worth = point.h / row_scale, point.nu * row_scale / scales.curvature[:, None]
    # A tiny violation at a huge price is no rounding.
    dear = divide(point.nu.abs() * row_scale, length(point.f_y)[:, None]).clamp(min=1.0)
    distance = torch.where(distance > 0, distance * dear, distance)
    left = torch.cat([distance[:, :p], torch.maximum(distance, -worth)[:, p:]], dim=1)
    return length(step) + length(left)
