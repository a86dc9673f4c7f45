r"""Roots and fixed points without second derivatives.

Solves, for each item::

    F(y) = 0            or            y = T(y),  that is  F(y) = T(y) - y = 0

:class:`Anderson` and :class:`Broyden` need values of ``F`` only and scale to many variables, :class:`Bisection`
is for one variable and cannot fail once ``F`` has changed sign.
"""

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.derivatives import jacobian, jvp, vjp
from torchddn.errors import InvalidInputError
from torchddn.problem import BatchedProblem
from torchddn.solvers.base import RUNNING, Inputs
from torchddn.solvers.least_squares import inverse
from torchddn.solvers.options import check_count, check_number, check_suits, check_termination, default_rtol, far
from torchddn.solvers.vectors import identity_like, largest, length, times
from torchddn.status import Status

__all__ = ["Anderson", "Bisection", "Broyden"]


# By how much of its start |F| may rise (half as much the next time, and so on).
_SLACK = 0.01
# Largest m for which Broyden starts from the Jacobian itself.
_DENSE_SIZE = 200


class AndersonState(NamedTuple):
    """A point, its residual ``T(y) - y``, and the last changes of both."""

    y: Tensor  # (B, m)
    F: Tensor  # (B, m)
    steps: Tensor  # (B, k, m): last changes of y, newest last; zero where there is none yet
    changes: Tensor  # (B, k, m): changes of F along them
    best: Tensor  # (B,): smallest |F| so far
    scale: Tensor  # (B,): largest |y| so far


@dataclasses.dataclass(frozen=True)
class Anderson:
    r"""``y`` with ``y = T(y)`` by Anderson's acceleration of ``y <- T(y)``.

    Each step takes the combination of the last ``history + 1`` points whose linear extrapolation leaves the smallest
    residual, and applies ``T`` to it. Converges also where ``T`` is no contraction, for linear ``T`` in at most
    ``m + 1`` steps if the history allows. Cost O(history m + history^3) per item and step beside one evaluation.

    Args:
        history: Past points in the combination; 0 is the plain iteration.
        mixing: Fraction of the residual that is added, in (0, 1]; below 1 damps an iteration that diverges.
        regularization: Tikhonov weight of the combination, relative to the changes it combines; at least what rounding
            asks for.
        rtol: Converged when no entry of ``T(y) - y`` exceeds ``rtol`` times the largest entry of ``y`` so far; None
            for a value fitting the dtype.
        atol: Added to that, in units of ``y``.
        max_steps: Most steps, each one evaluation of ``T``, for an item.

    Status:
        NON_FINITE: The iteration diverged. Lower ``mixing``, or use ``Newton``.
        MAX_STEPS: Raise ``max_steps`` or ``history``.

    References:
        Walker, Ni, Anderson acceleration for fixed-point iterations, 2011. Where we differ: the history is dropped
        when ``|F|`` rises to ten times the smallest so far.
    """

    history: int = 5
    mixing: float = 1.0
    regularization: float = 1e-12
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 500

    def __post_init__(self) -> None:
        check_termination(self)
        check_count(self, "history", self.history, least=0)
        check_number(self, "mixing", self.mixing, strict=True)
        if self.mixing > 1:
            raise InvalidInputError(f"`Anderson(mixing=...)` must be at most 1, got {self.mixing!r}.")
        check_number(self, "regularization", self.regularization)

    def check(self, problem: BatchedProblem) -> None:
        check_suits(self, problem, kinds=("fixed_point",))

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> AndersonState:
        F = problem.residual(y, x)
        memory = y.new_zeros(y.shape[0], self.history, y.shape[1])
        return AndersonState(y, F, memory, memory, length(F), largest(y))

    def step(self, problem: BatchedProblem, x: Inputs, state: AndersonState) -> AndersonState:
        steps, changes = state.steps, state.changes
        y = state.y + self.mixing * state.F
        if self.history:
            gamma = self._combination(changes, state.F)[..., None]
            y = y - ((steps + self.mixing * changes) * gamma).sum(1)
        F = problem.residual(y, x)
        lost = (length(F) > 10 * state.best)[:, None, None]
        steps, changes = (
            torch.where(lost, 0.0, torch.cat([old, new[:, None]], dim=1)[:, 1:])
            for old, new in ((steps, y - state.y), (changes, F - state.F))
        )
        best = torch.minimum(state.best, length(F))
        return AndersonState(y, F, steps, changes, best, torch.maximum(state.scale, largest(y)))

    def status(self, problem: BatchedProblem, x: Inputs, state: AndersonState) -> Tensor:
        return _judge(self, state.y, state.F, state.scale)

    def finish(self, problem: BatchedProblem, x: Inputs, state: AndersonState) -> tuple[Tensor, Tensor]:
        return state.y, state.y.new_zeros(state.y.shape[0], 0)

    def _combination(self, changes: Tensor, F: Tensor) -> Tensor:
        """``argmin_gamma |F - changes' gamma|^2``, ``(B, k)``, each change scaled to length one."""
        k, m = changes.shape[1:]
        # Changes may depend on each other, and always do when there are more than m. Rounding moves the eigenvalues of
        # their products by about sqrt(m) k eps, and Cholesky needs k^2 eps beyond that (Higham, theorem 10.7).
        noise = k * (k + m**0.5) * torch.finfo(F.dtype).eps
        size = length(changes)
        size = torch.where(size > 0, size, 1.0)
        unit = changes / size[..., None]
        gram = unit @ unit.mT
        ridge = max(self.regularization, noise) * identity_like(gram)
        # Zero rows stand for what is not there yet: with ones on the diagonal they get the coefficient zero.
        missing = torch.diag_embed((length(changes) == 0).to(F.dtype))
        K = gram + ridge + missing
        L, info = torch.linalg.cholesky_ex(K.detach())
        # Products of fewer digits than the dtype has (TF32) may be indefinite all the same: then a plain step.
        positive = (info == 0)[:, None, None]
        L = torch.where(positive, L, identity_like(L))
        right = torch.where(positive, unit @ F[..., None], 0.0)
        gamma = torch.cholesky_solve(right.detach(), L)
        for _ in range(2):  # exact first and second derivatives through a constant factor; and corrects rounding
            gamma = gamma + torch.cholesky_solve(right - K @ gamma, L)
        return gamma[..., 0] / size


class BroydenState(NamedTuple):
    """A point, a direction, and an inverse Jacobian: ``inverse + sum_i left_i right_i^T``."""

    y: Tensor  # (B, m)
    F: Tensor  # (B, m)
    d: Tensor  # (B, m)
    inverse: Tensor  # (B, m, m), or (B, 1, 1) for a multiple of the identity
    left: Tensor  # (B, k, m): newest last, zero where there is none yet
    right: Tensor  # (B, k, m)
    alpha: Tensor  # (B,): how much of d to try
    slack: Tensor  # (B,): by how much |F| may rise
    scale: Tensor  # (B,): largest |y| so far
    span: Tensor  # (B,): length scale at the start
    verdict: Tensor  # (B,): Status or RUNNING


@dataclasses.dataclass(frozen=True)
class Broyden:
    r"""``y`` with ``F(y) = 0`` by Broyden's (good) method.

    A quasi-Newton method: every trial point, accepted or not, makes a rank-one correction of the inverse Jacobian.
    It starts from minus the identity for a fixed point; for a root from the inverse Jacobian if ``m`` is at most
    200, and else from the multiple of the identity that is right along ``F``. Superlinear convergence. Cost
    O(history m) per item and step beside one evaluation, plus O(m^2) for a root of few variables.

    Args:
        history: Rank-one corrections that are kept; when there are more, all are dropped.
        rtol: Converged when the next step changes no entry of ``y`` by more than ``rtol`` times the largest entry so
            far; None for a value fitting the dtype.
        atol: Added to that, in units of ``y``.
        max_steps: Most steps, each one evaluation, for an item.

    Status:
        STALLED: No shorter step reduces ``|F|``. Start closer, or use ``Newton``.
        UNBOUNDED: ``|F|`` fell until ``y`` was eps^-0.7 times the scale of the start away.
        MAX_STEPS: Raise ``max_steps`` or ``history``.

    References:
        Nocedal, Wright, Numerical Optimization, 2nd edition, section 11.1. Li, Fukushima, A derivative-free line
        search and global convergence of Broyden-like method, 2000 (``|F|`` may rise a little, ever less).
    """

    history: int = 30
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 500

    def __post_init__(self) -> None:
        check_termination(self)
        check_count(self, "history", self.history)

    def check(self, problem: BatchedProblem) -> None:
        check_suits(self, problem, kinds=("root", "fixed_point"))

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> BroydenState:
        F = problem.residual(y, x)
        inverse = _first_inverse(problem, x, y, F).detach()
        memory = y.new_zeros(y.shape[0], self.history, y.shape[1])
        size = length(F)
        d = -_apply(inverse, memory, memory, F)
        running = torch.full_like(size, RUNNING, dtype=torch.int64)
        span = torch.maximum(length(y), length(d))
        return BroydenState(
            y=y,
            F=F,
            d=d,
            inverse=inverse,
            left=memory,
            right=memory,
            alpha=torch.ones_like(size),
            slack=_SLACK * size,
            scale=largest(y),
            span=torch.where(span > 0, span, 1.0),
            verdict=running,
        )

    def step(self, problem: BatchedProblem, x: Inputs, state: BroydenState) -> BroydenState:
        eps = torch.finfo(state.y.dtype).eps
        s = state.alpha[:, None] * state.d
        y = state.y + s
        F = problem.residual(y, x)
        size, size_next = length(state.F), length(F)
        finite = size_next.isfinite()
        small = largest(s) <= 16 * eps * state.scale
        accepted = finite & ((size_next <= size + state.slack) | small)

        left, right = self._updated(state, s.detach(), (F - state.F).detach())
        y_next, F_next = (torch.where(accepted[:, None], *pair) for pair in ((y, state.y), (F, state.F)))
        d = -_apply(state.inverse, left, right, F_next)
        # No step, however short, reduces |F|: rounding, if the full step is about as small as it should be.
        stuck = ~accepted & (largest(s) <= 64 * eps * state.scale)
        close = largest(state.d) <= 1e3 * default_rtol(y.dtype) * state.scale
        verdict = torch.where(stuck, torch.where(close, int(Status.CONVERGED), int(Status.STALLED)), RUNNING)
        verdict = torch.where(largest(y_next) > far(y.dtype) * state.span, int(Status.UNBOUNDED), verdict)
        alpha = torch.where(accepted, 1.0, state.alpha * torch.where(finite, 0.5, 0.1))
        return BroydenState(
            y=y_next,
            F=F_next,
            d=d,
            inverse=state.inverse,
            left=left,
            right=right,
            alpha=alpha,
            slack=torch.where(accepted & (size_next > size), 0.5 * state.slack, state.slack),
            scale=torch.where(accepted, torch.maximum(state.scale, largest(y)), state.scale),
            span=state.span,
            verdict=verdict,
        )

    def status(self, problem: BatchedProblem, x: Inputs, state: BroydenState) -> Tensor:
        verdict = _judge(self, state.y, state.d, state.scale)
        return torch.where((verdict == RUNNING) | (state.verdict == Status.UNBOUNDED), state.verdict, verdict)

    def finish(self, problem: BatchedProblem, x: Inputs, state: BroydenState) -> tuple[Tensor, Tensor]:
        # The next step is known already, and near the end it is worth a digit or two.
        near = largest(state.d) <= torch.finfo(state.y.dtype).eps ** 0.5 * state.scale
        return state.y + torch.where(near[:, None], state.d, 0.0), state.y.new_zeros(state.y.shape[0], 0)

    def _updated(self, state: BroydenState, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The rank-one terms with the one after which the inverse Jacobian maps ``z`` to ``s``."""
        tiny = torch.finfo(s.dtype).eps
        full = (state.left[:, 0] != 0).any(-1)[:, None, None]
        left, right = (torch.where(full, 0.0, terms) for terms in (state.left, state.right))
        predicted = _apply(state.inverse, left, right, z)
        transposed = _apply(state.inverse.mT, right, left, s)
        product = (s * predicted).sum(-1)
        sound = product.abs() > tiny * length(s) * length(predicted)  # False for NaN
        new = (s - predicted) / torch.where(sound, product, 1.0)[:, None]
        left, right = (
            torch.cat([terms, torch.where(sound[:, None], term, 0.0)[:, None]], dim=1)[:, 1:]
            for terms, term in ((left, new), (right, transposed))
        )
        return left, right


class BisectionState(NamedTuple):
    """The two ends, what ``F`` is there, ``(B,)`` each, and where this began."""

    lower: Tensor
    upper: Tensor
    F_lower: Tensor
    F_upper: Tensor
    start: Tensor
    scale: Tensor  # largest |end| at the start
    size: Tensor  # largest |F| at the first ends


@dataclasses.dataclass(frozen=True)
class Bisection:
    r"""The scalar ``y`` with ``F(y) = 0`` between two points where ``F`` has different signs, by bisection.

    Halves the bracket until rounding stops it, then takes one Newton step inside it (which carries the derivative
    when the solve is unrolled). Converges for every continuous ``F``, in about 55 steps in float64.

    Args:
        lower: Lower end of the bracket; None looks for one below the start, at doubling distances.
        upper: Upper end of the bracket; None looks for one above the start.
        rtol: Converged when the bracket is at most ``rtol`` times its larger end wide; None for rounding level.
        atol: Added to that, in units of ``y``.
        max_steps: Most steps, each one evaluation, for an item.

    Raises:
        InvalidInputError: Also if ``lower`` is not below ``upper``, or the problem has more than one variable.

    Status:
        INFEASIBLE: ``F`` has the same sign at both ends, or no change of sign was found. Give another bracket.
        STALLED: The sign changes at a jump or a pole, where there is no root.

    References:
        Press et al., Numerical Recipes, 3rd edition, section 9.1.
    """

    lower: float | None = None
    upper: float | None = None
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 300

    def __post_init__(self) -> None:
        check_termination(self)
        for name in ("lower", "upper"):
            if getattr(self, name) is not None:
                check_number(self, name, getattr(self, name), least=-math.inf)
        if self.lower is not None and self.upper is not None and not self.lower < self.upper:
            raise InvalidInputError(
                f"`Bisection(lower=..., upper=...)` must be in ascending order, got {self.lower!r} and {self.upper!r}."
            )

    def check(self, problem: BatchedProblem) -> None:
        check_suits(self, problem, kinds=("root", "fixed_point"), scalar=True)

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> BisectionState:
        y = y[:, 0].detach()
        width = torch.where(y != 0, 0.1 * y.abs(), 1.0)
        lower = y - width if self.lower is None else torch.full_like(y, self.lower)
        upper = y + width if self.upper is None else torch.full_like(y, self.upper)
        # A start on the wrong side of the end that was given says nothing.
        if self.lower is not None and self.upper is None:
            upper = torch.where(upper > lower, upper, lower + torch.where(lower != 0, 0.1 * lower.abs(), 1.0))
        if self.upper is not None and self.lower is None:
            lower = torch.where(lower < upper, lower, upper - torch.where(upper != 0, 0.1 * upper.abs(), 1.0))
        F_lower, F_upper = (_scalar(problem, x, end) for end in (lower, upper))
        scale = torch.maximum(lower.abs(), upper.abs())
        return BisectionState(lower, upper, F_lower, F_upper, y, scale, torch.maximum(F_lower.abs(), F_upper.abs()))

    def step(self, problem: BatchedProblem, x: Inputs, state: BisectionState) -> BisectionState:
        lower, upper, F_lower, F_upper, *rest = state
        bracketed = _changes_sign(F_lower, F_upper)
        width = upper - lower
        # Without a change of sign: beyond the end where |F| is smaller, as far as the interval is wide.
        down = torch.full_like(bracketed, self.lower is None)
        if self.lower is None and self.upper is None:
            ratio = F_lower.abs() / F_upper.abs()
            # Where F is flat, to both sides in turn.
            down = torch.where((ratio - 1).abs() > 1e-3, ratio < 1, state.start - lower <= upper - state.start)
        y = torch.where(bracketed, lower + 0.5 * width, torch.where(down, lower - width, upper + width))
        F = _scalar(problem, x, y)
        to_lower = torch.where(bracketed, F.sign() * F_lower.sign() > 0, down)
        is_root = bracketed & (F == 0)
        # Where the sign changes outside, the old interval makes place for the new one beside it.
        changed = ~bracketed & _changes_sign(F, torch.where(down, F_lower, F_upper))

        def replace(lower: Tensor, upper: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
            lower_next = torch.where(to_lower | is_root, new, torch.where(changed & ~down, upper, lower))
            upper_next = torch.where(~to_lower | is_root, new, torch.where(changed & down, lower, upper))
            return lower_next, upper_next

        return BisectionState(*replace(lower, upper, y), *replace(F_lower, F_upper, F), *rest)

    def status(self, problem: BatchedProblem, x: Inputs, state: BisectionState) -> Tensor:
        eps = torch.finfo(state.lower.dtype).eps
        end = torch.maximum(state.lower.abs(), state.upper.abs())
        # A root at zero has no digits to be relative to.
        reference = torch.maximum(end, eps * state.scale)
        narrow = state.upper - state.lower <= (4 * eps if self.rtol is None else self.rtol) * reference + self.atol
        bracketed = _changes_sign(state.F_lower, state.F_upper)
        searching = (self.lower is None or self.upper is None) & (end <= far(end.dtype) * state.scale)
        vanishes = torch.minimum(state.F_lower.abs(), state.F_upper.abs()) <= eps**0.25 * state.size
        if self.rtol is not None or self.atol:
            vanishes = vanishes | (state.upper - state.lower > 4 * eps * reference)
        verdict = torch.where(
            bracketed,
            torch.where(narrow, torch.where(vanishes, int(Status.CONVERGED), int(Status.STALLED)), RUNNING),
            torch.where(searching & (state.F_lower + state.F_upper).isfinite(), RUNNING, int(Status.INFEASIBLE)),
        )
        return torch.where((state.size + state.scale).isfinite(), verdict, int(Status.NON_FINITE))

    def finish(self, problem: BatchedProblem, x: Inputs, state: BisectionState) -> tuple[Tensor, Tensor]:
        y = (state.lower + 0.5 * (state.upper - state.lower))[:, None]
        (F_y,) = vjp(lambda y: problem.residual(y, x), (y,), torch.ones_like(y))
        F_y = F_y.detach()
        newton = -problem.residual(y, x) / torch.where(F_y != 0, F_y, torch.inf)
        usable = newton.detach().abs() <= (state.upper - state.lower)[:, None]
        # Where the bracket is too tight for the step its value is rounding, and yet its derivative is the root's.
        return y + torch.where(usable, newton, newton - newton.detach()), y.new_zeros(y.shape[0], 0)


def _changes_sign(left: Tensor, right: Tensor) -> Tensor:
    return left.sign() * right.sign() <= 0


def _scalar(problem: BatchedProblem, x: Inputs, y: Tensor) -> Tensor:
    return problem.residual(y[:, None], x)[:, 0].detach()


def _first_inverse(problem: BatchedProblem, x: Inputs, y: Tensor, F: Tensor) -> Tensor:
    if problem.kind == "fixed_point":
        return -y.new_ones(y.shape[0], 1, 1)
    if problem.m <= _DENSE_SIZE:
        return inverse(jacobian(lambda y: problem.residual(y, x), y, problem.work(x)).detach())
    bent = jvp(lambda y: problem.residual(y, x), (y,), (F.detach(),))
    square = bent.square().sum(-1)
    gamma = (F * bent).sum(-1) / torch.where(square > 0, square, 1.0)
    return torch.where(gamma != 0, gamma, 1.0)[:, None, None]


def _apply(inverse: Tensor, left: Tensor, right: Tensor, vector: Tensor) -> Tensor:
    """``(inverse + sum_i left_i right_i^T) vector``."""
    scaled = inverse[:, 0] * vector if inverse.shape[1] == 1 else times(inverse, vector)
    return scaled + times(left.mT, times(right, vector))


def _judge(method: Anderson | Broyden, y: Tensor, step: Tensor, scale: Tensor) -> Tensor:
    rtol = default_rtol(y.dtype) if method.rtol is None else method.rtol
    verdict = torch.where(largest(step) <= rtol * scale + method.atol, int(Status.CONVERGED), RUNNING)
    return torch.where((y.sum(-1) + step.sum(-1)).isfinite(), verdict, int(Status.NON_FINITE))
