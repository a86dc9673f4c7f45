r"""First-order methods: each step evaluates ``f`` and its gradient once.

Solves, for each item::

    y = argmin_y f(y)

:class:`LBFGS` multiplies the gradient by an approximation of the inverse Hessian made of the last steps ``s`` and the
changes ``z`` of the gradient along them. :class:`GradientDescent` is the same without memory, or with steps of fixed
length. Both report CONVERGED when the gradient is small relative to the largest one met on the way, or when it is
what rounding of ``y`` makes of it, ``eps |f_yy| |y|``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchddn.derivatives import gradient, jvp, value_and_gradient
from torchddn.errors import InvalidInputError
from torchddn.problem import BatchedProblem
from torchddn.solvers.base import RUNNING, Inputs
from torchddn.solvers.options import check_count, check_number, check_suits, check_termination, default_rtol, far
from torchddn.solvers.search import Bracket, StrongWolfe
from torchddn.solvers.vectors import largest, length
from torchddn.status import Status

__all__ = ["LBFGS", "GradientDescent", "LBFGSState", "minimize_init", "minimize_restart", "minimize_step"]

Objective = Callable[[Tensor], Tensor]


class LBFGSState(NamedTuple):
    """A point, a direction, the search along it, and the memory."""

    y: Tensor  # (B, m)
    f: Tensor  # (B,)
    f_y: Tensor  # (B, m)
    d: Tensor  # (B, m)
    bracket: Bracket
    s: Tensor  # (B, k, m): last steps, newest last; zero where there is none yet
    z: Tensor  # (B, k, m): changes of the gradient along them
    gamma: Tensor  # (B,): inverse curvature along the last step
    steepness: Tensor  # (B,): largest |f_y| so far
    bend: Tensor  # (B,): largest |z| / |s| so far, an estimate of |f_yy|
    scale: Tensor  # (B,): largest |y| so far
    span: Tensor  # (B,): length scale at the start
    verdict: Tensor  # (B,): Status or RUNNING


@dataclasses.dataclass(frozen=True)
class LBFGS:
    """``y = argmin_y f(y)`` by the limited-memory BFGS method with a strong Wolfe line search.

    Superlinear in practice. Cost O(history m) per item and step beside one gradient: for many variables. A first-order
    method: a start where the gradient vanishes is returned, be it a minimum or not.

    Args:
        history: Pairs of step and gradient change that are kept.
        rtol: Converged when the largest entry of the gradient is at most ``rtol`` times the largest met so far; None
            for a value fitting the dtype.
        atol: Added to that, in units of the gradient.
        max_steps: Most steps, each one evaluation, for an item.
        search: The line search.

    Status:
        STALLED: No descent along the steepest direction: rounding, or a kink.
        UNBOUNDED: ``f`` fell until ``y`` was eps^-0.7 times the scale of the start away, or is -infinity.
        MAX_STEPS: Raise ``max_steps``; if the problem is ill-conditioned ``Newton`` needs far fewer steps.

    References:
        Nocedal, Wright, Numerical Optimization, 2nd edition, algorithms 7.4 and 7.5.
    """

    history: int = 10
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 1000
    search: StrongWolfe = dataclasses.field(default_factory=StrongWolfe)

    def __post_init__(self) -> None:
        check_termination(self)
        check_count(self, "history", self.history, least=0)
        if not isinstance(self.search, StrongWolfe):
            raise InvalidInputError(f"`LBFGS(search=...)` must be a `StrongWolfe` object, got {self.search!r}.")

    def check(self, problem: BatchedProblem) -> None:
        check_suits(self, problem, kinds=("minimize",))

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> LBFGSState:
        return minimize_init(self, lambda y: problem.objective(y, x), y)

    def step(self, problem: BatchedProblem, x: Inputs, state: LBFGSState) -> LBFGSState:
        return minimize_step(self, lambda y: problem.objective(y, x), state)

    def status(self, problem: BatchedProblem, x: Inputs, state: LBFGSState) -> Tensor:
        return _judge(self, state)

    def finish(self, problem: BatchedProblem, x: Inputs, state: LBFGSState) -> tuple[Tensor, Tensor]:
        return state.y, state.y.new_zeros(state.y.shape[0], 0)


class DescentState(NamedTuple):
    """A point and the step that led to it."""

    y: Tensor  # (B, m)
    f: Tensor  # (B,)
    f_y: Tensor  # (B, m)
    s: Tensor  # (B, m)
    steepness: Tensor  # (B,): largest |f_y| so far
    bend: Tensor  # (B,): largest |change of f_y| / |s| so far
    scale: Tensor  # (B,): largest |y| so far
    verdict: Tensor  # (B,): RUNNING


@dataclasses.dataclass(frozen=True)
class GradientDescent:
    r"""``y = argmin_y f(y)`` by steps along the gradient.

    Linear convergence, as slow as the Hessian is ill-conditioned. With a fixed step its unrolled derivative is the
    one that the literature on unrolling means.

    Args:
        step_size: Step per unit of gradient, ``y - step_size f_y``. None searches for one in every step (strong
            Wolfe), starting from the inverse curvature along the last step (Barzilai and Borwein).
        momentum: Fraction of the last step that is added (Polyak's heavy ball); needs a ``step_size``.
        rtol: Converged when the largest entry of the gradient is at most ``rtol`` times the largest met so far; None
            for a value fitting the dtype.
        atol: Added to that, in units of the gradient.
        max_steps: Most steps for an item.

    Raises:
        InvalidInputError: Also if ``momentum`` is given without ``step_size``.

    Status:
        NON_FINITE: A fixed step was too long and the iteration diverged: make it smaller than 2 / |f_yy|.
        STALLED, UNBOUNDED, MAX_STEPS: As for :class:`LBFGS`.

    References:
        Nocedal, Wright, Numerical Optimization, 2nd edition, section 3.3. Barzilai, Borwein, Two-point step size
        gradient methods, 1988.
    """

    step_size: float | None = None
    momentum: float = 0.0
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 5000

    def __post_init__(self) -> None:
        check_termination(self)
        if self.step_size is not None:
            check_number(self, "step_size", self.step_size, strict=True)
        check_number(self, "momentum", self.momentum)
        if self.momentum >= 1:
            raise InvalidInputError(f"`GradientDescent(momentum=...)` must be below 1, got {self.momentum!r}.")
        if self.momentum and self.step_size is None:
            raise InvalidInputError(
                f"`GradientDescent(momentum={self.momentum!r})` needs a fixed `step_size`: the line search that "
                f"`step_size=None` asks for wants a direction of descent."
            )

    def check(self, problem: BatchedProblem) -> None:
        check_suits(self, problem, kinds=("minimize",))

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> LBFGSState | DescentState:
        if self.step_size is None:
            return minimize_init(self._searching(), lambda y: problem.objective(y, x), y)
        f, f_y = value_and_gradient(lambda y: problem.objective(y, x), y)
        zeros = torch.zeros_like(f).detach()
        running = torch.full_like(zeros, RUNNING, dtype=torch.int64)
        return DescentState(y, f, f_y, torch.zeros_like(y), largest(f_y), zeros, largest(y), running)

    def step(self, problem: BatchedProblem, x: Inputs, state: Any) -> LBFGSState | DescentState:
        if self.step_size is None:
            return minimize_step(self._searching(), lambda y: problem.objective(y, x), state)
        s = self.momentum * state.s - self.step_size * state.f_y
        y = state.y + s
        f, f_y = value_and_gradient(lambda y: problem.objective(y, x), y)
        bend = _bend(state.bend, f_y - state.f_y, s, state.scale)
        steepness, scale = torch.maximum(state.steepness, largest(f_y)), torch.maximum(state.scale, largest(y))
        return DescentState(y, f, f_y, s, steepness, bend, scale, state.verdict)

    def status(self, problem: BatchedProblem, x: Inputs, state: Any) -> Tensor:
        return _judge(self, state)

    def finish(self, problem: BatchedProblem, x: Inputs, state: Any) -> tuple[Tensor, Tensor]:
        return state.y, state.y.new_zeros(state.y.shape[0], 0)

    def _searching(self) -> LBFGS:
        """The same without memory, but for the curvature along the last step."""
        return LBFGS(0, self.rtol, self.atol, self.max_steps)


def minimize_init(method: LBFGS, function: Objective, y: Tensor) -> LBFGSState:
    """The state of ``method`` at the start of the minimization of ``function``, from ``(B, m)`` to ``(B,)``."""
    num_items, m = y.shape
    f, f_y = value_and_gradient(function, y)
    size, slope = length(y), length(f_y)
    # One curvature gives the first step its length: along the gradient or, where that is zero, anywhere.
    anywhere = torch.full_like(y, m**-0.5)
    p = torch.where(slope[:, None] > 0, f_y.detach() / slope[:, None], anywhere)
    bent = jvp(lambda y: gradient(function, y), (y,), (p,)).detach()
    curvature, bend = (p * bent).sum(-1), length(bent)
    guess = torch.where(size > 0, size, 1.0) / torch.where(slope > 0, slope, 1.0)
    gamma = torch.where(curvature > 1e-3 * bend, 1 / curvature, guess)
    span = torch.maximum(size, gamma * slope)
    memory = y.new_zeros(num_items, method.history, m)
    d = -gamma[:, None] * f_y
    return LBFGSState(
        y=y,
        f=f.detach(),
        f_y=f_y,
        d=d,
        bracket=method.search.init(torch.ones_like(size), f.detach(), _slope(f_y, d)),
        s=memory,
        z=memory,
        gamma=gamma,
        steepness=largest(f_y),
        bend=bend,
        scale=largest(y),
        span=torch.where(span > 0, span, 1.0),
        verdict=torch.full_like(size, RUNNING, dtype=torch.int64),
    )


def minimize_step(method: LBFGS, function: Objective, state: LBFGSState) -> LBFGSState:
    """One evaluation of ``function``, and what follows from it."""
    eps = torch.finfo(state.y.dtype).eps
    # An item that has converged goes on only to be differentiated. Changes of its gradient are rounding now, and steps
    # made of them would amplify the derivative; a short step along the gradient contracts it.
    flat = _is_flat(method, state)
    short = -state.f_y / torch.where(state.bend > 0, state.bend, 1.0)[:, None]
    y = state.y + torch.where(flat[:, None], short, state.bracket.alpha[:, None] * state.d)
    f, f_y = value_and_gradient(function, y)
    f = f.detach()
    bracket, accepted, given_up = method.search.step(
        state.bracket, state.f, _slope(state.f_y, state.d), f, _slope(f_y, state.d)
    )
    accepted = accepted | flat

    s, z = y - state.y, f_y - state.f_y
    product = (s * z).sum(-1)
    remembered = accepted & ~flat & (product > eps * length(s) * length(z)).detach()
    memory_s, memory_z = (
        torch.where(remembered[:, None, None], torch.cat([old, new[:, None]], dim=1)[:, 1:], old)
        for old, new in ((state.s, s), (state.z, z))
    )
    # A search that finds nothing has a bad direction: forget what made it.
    memory_s, memory_z = (torch.where(given_up[:, None, None], 0.0, memory) for memory in (memory_s, memory_z))
    gamma = torch.where(remembered, (product / z.square().sum(-1)).detach(), state.gamma)

    y_next, f_y_next = (torch.where(accepted[:, None], *pair) for pair in ((y, state.y), (f_y, state.f_y)))
    f_next = torch.where(accepted, f, state.f)
    d = _direction(memory_s, memory_z, gamma, f_y_next)
    turns = accepted | given_up
    d = torch.where(turns[:, None], d, state.d)
    fresh = method.search.init(torch.ones_like(f), f_next, _slope(f_y_next, d))
    unbounded = (f == -torch.inf) | ((f < state.f) & (largest(y) > far(y.dtype) * state.span))
    stuck = given_up & ~state.s.detach().any(-1).any(-1)
    measurable = eps**0.5 * torch.maximum(state.steepness, state.bend * state.scale)
    verdict = torch.where(stuck, int(Status.STALLED), RUNNING)
    verdict = torch.where(stuck & (largest(state.f_y) <= measurable), int(Status.CONVERGED), verdict)
    return LBFGSState(
        y=y_next,
        f=f_next,
        f_y=f_y_next,
        d=d,
        bracket=Bracket(*(torch.where(turns, *pair) for pair in zip(fresh, bracket, strict=True))),
        s=memory_s,
        z=memory_z,
        gamma=gamma,
        steepness=torch.where(accepted, torch.maximum(state.steepness, largest(f_y)), state.steepness),
        bend=torch.where(accepted, _bend(state.bend, z, s, state.scale), state.bend),
        scale=torch.where(accepted, torch.maximum(state.scale, largest(y)), state.scale),
        span=state.span,
        verdict=torch.where(unbounded, int(Status.UNBOUNDED), verdict),
    )


def minimize_restart(method: LBFGS, state: LBFGSState, f: Tensor, f_y: Tensor, restarts: Tensor) -> LBFGSState:
    """The state with value and gradient at ``y`` replaced, and a new search, for the items that restart.

    The memory stays: pairs that the changed function would not produce make a poorer direction, not a wrong one.
    """
    d = _direction(state.s, state.z, state.gamma, f_y)
    bracket = method.search.init(torch.ones_like(f), f, _slope(f_y, d))
    return state._replace(
        f=torch.where(restarts, f, state.f),
        f_y=torch.where(restarts[:, None], f_y, state.f_y),
        d=torch.where(restarts[:, None], d, state.d),
        bracket=Bracket(*(torch.where(restarts, *pair) for pair in zip(bracket, state.bracket, strict=True))),
        verdict=torch.where(restarts, RUNNING, state.verdict),
    )


def _direction(s: Tensor, z: Tensor, gamma: Tensor, f_y: Tensor) -> Tensor:
    """``-H f_y`` with the inverse Hessian of the memory (the two-loop recursion)."""
    product = (s * z).sum(-1)  # (B, k)
    rho = torch.where(product > 0, 1 / torch.where(product > 0, product, 1.0), 0.0)
    q, weights = f_y, {}
    for i in reversed(range(s.shape[1])):
        weights[i] = rho[:, i] * (s[:, i] * q).sum(-1)
        q = q - weights[i][:, None] * z[:, i]
    q = gamma[:, None] * q
    for i in range(s.shape[1]):
        q = q + (weights[i] - rho[:, i] * (z[:, i] * q).sum(-1))[:, None] * s[:, i]
    descends = (_slope(f_y, q) > 0)[:, None]  # as it must, but for rounding
    return -torch.where(descends, q, gamma[:, None] * f_y)


def _bend(bend: Tensor, z: Tensor, s: Tensor, scale: Tensor) -> Tensor:
    """``bend`` with one more estimate ``|z| / |s|``, if the step is long enough for it not to be rounding."""
    size = length(s)
    measured = (size > torch.finfo(s.dtype).eps ** 0.5 * scale) & (size > 0)
    return torch.where(measured, torch.maximum(bend, length(z) / size), bend)


def _slope(f_y: Tensor, d: Tensor) -> Tensor:
    return (f_y * d).sum(-1).detach()


def _is_flat(method: LBFGS | GradientDescent, state: LBFGSState | DescentState) -> Tensor:
    """Whether the gradient is small compared with the steepest one, or is what rounding of ``y`` makes of it."""
    rtol = default_rtol(state.y.dtype) if method.rtol is None else method.rtol
    rounding = 16 * torch.finfo(state.y.dtype).eps * state.bend * state.scale
    return (largest(state.f_y) <= rtol * state.steepness + method.atol) | (length(state.f_y) <= rounding)


def _judge(method: LBFGS | GradientDescent, state: LBFGSState | DescentState) -> Tensor:
    verdict = torch.where(_is_flat(method, state), int(Status.CONVERGED), state.verdict)
    finite = (state.f + state.y.sum(-1) + state.f_y.sum(-1)).isfinite()
    return torch.where(finite, verdict, int(Status.NON_FINITE))
