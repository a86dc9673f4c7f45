r"""Minimization of an upper objective by its hypergradient.

::

    repeat    y = argmin f(y, theta),   g = dJ/dtheta,   theta <- a step along -g that stays in the set
    until     the projected g is small

No step starts or ends at a point whose lower problem was not solved or whose hypergradient is not certified: there it
is shortened, and if that does not help refused, and the result says why.

References:
    Gould, tutorial slides on deep declarative networks, "Algorithm for solving bi-level optimization".
"""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchddn.bilevel.hypergradient import Hypergradient, Options, check_method, check_rtol, differentiate
from torchddn.bilevel.pair import Bilevel, Upper, as_pair, check_theta
from torchddn.bilevel.perturbation import estimate_errors
from torchddn.bilevel.quasi_newton import BFGS, Point, QuasiNewton
from torchddn.bilevel.region import Region
from torchddn.bilevel.result import BilevelResult, UpperStep
from torchddn.bilevel.sets import Constraint
from torchddn.bilevel.tolerance import SHARE, LowerTolerance
from torchddn.bilevel.torch_steps import TorchSteps
from torchddn.errors import ConvergenceWarning, DegenerateGradientWarning, InvalidInputError, SolveError
from torchddn.status import Status, check_failure_policy

__all__ = ["minimize_bilevel"]

BAD_GRADIENT_POLICIES = ("shorten", "raise", "ignore")

_CALL = "minimize_bilevel"


def minimize_bilevel(
    upper: Upper | Bilevel,
    lower: Any,
    theta0: Any,
    *,
    data: tuple[Any, ...] = (),
    constraint: Constraint | None = None,
    optimizer: BFGS | Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
    method: str = "implicit",
    num_steps: int | None = None,
    max_steps: int = 200,
    rtol: float | None = None,
    atol: float = 0.0,
    lower_rtol: float | str | None = "auto",
    on_bad_gradient: str = "shorten",
    on_failure: str = "warn",
) -> BilevelResult:
    r"""Returns ``argmin J(theta, y)`` subject to ``y = argmin_y f(y, theta)`` and ``theta`` in a set; a local minimum.

    Every lower solve starts from the last one's answer.

    Args:
        upper: ``J(theta, y)``, a scalar, or a :class:`Bilevel`, and then ``lower`` is None.
        lower: As for :class:`Bilevel`.
        theta0: Start, a tensor or a tree of them; projected onto the set first.
        data: As for :class:`Bilevel`.
        constraint: As for :class:`Bilevel`.
        optimizer: None for ``BFGS()``, projected quasi-Newton steps; or a function that makes a ``torch.optim``
            optimizer of a list of tensors, ``lambda params: torch.optim.Adam(params, lr=0.1)``.
        method: Of the hypergradients, see :func:`hypergradient`.
        num_steps: For ``method="unrolled"``.
        max_steps: Most upper steps.
        rtol: Converged when the largest entry of the projected hypergradient is at most ``rtol`` times the largest met
            so far; None for the square root of eps.
        atol: Added to that.
        lower_rtol: How exactly a large lower problem without constraints is solved by a first-order method: ``"auto"``
            begins with a residual of 1e-3 of the start's and asks for more as the upper level converges, and whenever
            the estimated error is above a tenth of the projected hypergradient; a number is where to begin; None is
            as exactly as the solver does.
        on_bad_gradient: At a point whose lower problem was not solved, or whose hypergradient failed its certificate or
            is one of many: ``"shorten"`` the step, and refuse it in the end; ``"raise"``; or ``"ignore"`` it.
        on_failure: If no minimum was found, as for :class:`torchddn.DeclarativeNode`.

    Raises:
        InvalidInputError: If an argument is wrong.
        SolveError: With ``on_bad_gradient="raise"`` at a bad point, with ``on_failure="raise"`` at a bad end.

    Status:
        MAX_STEPS: Raise ``max_steps`` or loosen ``rtol``; see ``history``.
        STALLED: No point along the step was better, or none was good: ``message`` says which.

    Example:
        >>> import torchddn as ddn
        >>> from torchddn.bilevel import Positive
        >>> follower = ddn.Problem.from_functions(  # q2 = (9 - q1) / 2
        ...     lambda q2, q1: -(q2 * (10 - q1 - q2) - q2).sum(), initial=lambda q1: 0 * q1
        ... )
        >>> leader = lambda q1, q2: -(q1 * (10 - q1 - q2) - q1).sum()
        >>> found = minimize_bilevel(leader, follower, torch.ones(1), constraint=Positive())
        >>> found.theta, found.y
        (tensor([4.5000]), tensor([[2.2500]]))
    """
    pair = as_pair(_CALL, upper, lower, data, constraint)
    check_theta(_CALL, theta0)
    check_method(_CALL, pair, method, num_steps)
    _check_options(optimizer, max_steps, rtol, atol, lower_rtol, on_bad_gradient, on_failure)
    region = Region(_CALL, pair.constraint, theta0)
    theta = region.project(region.flatten(theta0))
    tolerance = LowerTolerance(pair, region.unflatten(theta), lower_rtol, method)
    level = _UpperLevel(pair, region, tolerance, method, num_steps, on_bad_gradient)
    if optimizer is None or isinstance(optimizer, BFGS):
        steps: QuasiNewton | TorchSteps = QuasiNewton(optimizer or BFGS(), region)
    else:
        steps = TorchSteps(_CALL, optimizer, region, theta)
    small = torch.finfo(theta.dtype).eps ** 0.5 if rtol is None else rtol
    status, message = level.descend(theta, steps, max_steps, small, atol)
    if status is not Status.CONVERGED:
        _report(f"`{_CALL}` ended as {status.name} after {len(level.history) - 1} steps: {message}", on_failure)
    return level.result(status, message, on_failure)


class _Seen(NamedTuple):
    """An evaluation."""

    theta: Tensor
    found: Hypergradient


class _UpperLevel:
    """The upper problem at work: evaluates points, counts, and remembers what it saw."""

    def __init__(
        self,
        pair: Bilevel,
        region: Region,
        tolerance: LowerTolerance,
        method: str,
        num_steps: int | None,
        on_bad_gradient: str,
    ) -> None:
        self._pair, self._region, self._tolerance = pair, region, tolerance
        self._method, self._num_steps, self._on_bad_gradient = method, num_steps, on_bad_gradient
        self._seen: _Seen | None = None  # the last evaluation
        self._kept: _Seen | None = None  # that of the last accepted point
        self._num_solves = self._num_refused = self._solves_before = self._lower_steps = 0
        self._start = time.perf_counter()
        self.history: list[UpperStep] = []

    def descend(
        self, theta: Tensor, steps: QuasiNewton | TorchSteps, max_steps: int, rtol: float, atol: float
    ) -> tuple[Status, str]:
        """Steps until one of the tests is met."""
        point = self.evaluate(theta)
        point, size = self._accept(point)
        if point.objection:
            return self._status_of_start(), f"the start is bad: {point.objection}"
        largest = float(point.gradient.abs().max())
        for step in range(max_steps + 1):
            if size <= rtol * largest + atol:
                return Status.CONVERGED, ""
            if step == max_steps:
                break
            point_next, objection = steps.advance(point, self.evaluate, not self._tolerance.is_open)
            while point_next is None and self._tolerance.tighten(SHARE):
                point, size, _ = self._measure(self.evaluate(point.theta))
                if point.objection:
                    return Status.STALLED, f"the last point, solved with more digits, is bad: {point.objection}"
                point_next, objection = steps.advance(point, self.evaluate, not self._tolerance.is_open)
            if point_next is None:
                return self._stop(point, size, objection)
            point, size = self._accept(point_next)
            if point.objection:
                return Status.STALLED, f"the next point, solved with more digits, is bad: {point.objection}"
            largest = max(largest, float(point.gradient.abs().max()))
            self._tolerance.follow(size / largest if largest else 0.0)
        return Status.MAX_STEPS, f"{max_steps} steps were not enough. {Status.MAX_STEPS.advice}"

    def evaluate(self, theta: Tensor) -> Point:
        """Value and hypergradient at ``theta``."""
        if not bool(theta.isfinite().all()):
            self._num_refused += 1
            return Point(theta, math.nan, torch.full_like(theta, math.nan), "the step is not finite")
        options = Options(
            self._method,
            rtol=self._tolerance.current if self._tolerance.is_scheduled else None,
            num_steps=self._num_steps,
            solver=self._tolerance.solver,
            on_failure="ignore",
            good_enough=self._tolerance.good_enough,
        )
        with warnings.catch_warnings():
            # What they say is in `objection`, or in the history.
            warnings.simplefilter("ignore", DegenerateGradientWarning)
            found = differentiate(self._pair, self._region.unflatten(theta), options)
        self._num_solves += 1
        self._lower_steps += int(found.num_steps.max()) if found.num_steps.numel() else 0
        if found.objection:
            self._num_refused += 1
            if self._on_bad_gradient == "raise":
                raise SolveError(f"`{_CALL}`: at upper step {len(self.history)}: {found.objection}")
        objection = found.objection if self._on_bad_gradient != "ignore" else ""
        self._seen = _Seen(theta, found)
        return Point(theta, float(found.value), self._region.flatten(found.gradient), objection)

    def _accept(self, point: Point) -> tuple[Point, float]:
        """Notes a point, solved with as many digits as its hypergradient needs; and its projected gradient."""
        if self._seen is None or self._seen.theta is not point.theta:
            point = self.evaluate(point.theta)
        point, size, error = self._measure(point)
        while error > SHARE * size and self._tolerance.tighten(SHARE * size / error):
            point, size, error = self._measure(self.evaluate(point.theta))
        if point.objection and self.history:
            return point, size
        self._kept = self._seen
        self.history.append(
            UpperStep(
                value=point.value,
                projected_gradient=size,
                lower_steps=self._lower_steps,
                num_lower_solves=self._num_solves - self._solves_before,
                seconds=time.perf_counter() - self._start,
                lower_tolerance=self._tolerance.current,
                certificate=self._latest.certificate,
                error=error,
                one_sided=self._latest.one_sided,
            )
        )
        self._solves_before, self._lower_steps = self._num_solves, 0
        return point, size

    @property
    def _latest(self) -> Hypergradient:
        assert self._seen is not None
        return self._seen.found

    def _measure(self, point: Point) -> tuple[Point, float, float]:
        """The point with its noise, its projected gradient, and the error of its gradient; NaN where it is exact."""
        size = float(self._region.projected_gradient(point.theta, point.gradient).abs().max())
        if not self._tolerance.is_scheduled or point.objection:
            return point, size, math.nan
        theta = self._region.unflatten(point.theta)
        adjoint = self._pair.adjoint(theta, self._method, self._tolerance.current)
        errors = estimate_errors(self._pair, theta, self._latest.y, adjoint)
        # Trials have errors of the same size, and both are estimates.
        return point._replace(noise=4 * errors.value), size, errors.gradient

    def _stop(self, point: Point, size: float, objection: str) -> tuple[Status, str]:
        """Why there is no next point."""
        # The decrease that is left is lost in the rounding of the value.
        reach = size * max(1.0, float(point.theta.abs().max()))
        if reach <= torch.finfo(point.theta.dtype).eps ** 0.5 * abs(point.value):
            return Status.CONVERGED, ""
        if objection:
            return Status.STALLED, f"no step was good: {objection}"
        return Status.STALLED, f"no point along the step was better. {Status.STALLED.advice}"

    def _status_of_start(self) -> Status:
        status = self._latest.status
        bad = status[status != Status.CONVERGED]
        return Status(int(bad[0])) if len(bad) else Status.STALLED

    def result(self, status: Status, message: str, on_failure: str) -> BilevelResult:
        """Everything about the last accepted point."""
        assert self._kept is not None
        found = self._kept.found
        theta, y = self._region.unflatten(self._kept.theta), found.y
        if on_failure == "nan" and status is not Status.CONVERGED:
            theta, y = (pytree.tree_map(lambda leaf: torch.full_like(leaf, math.nan), part) for part in (theta, y))
        return BilevelResult(
            theta=theta,
            y=y,
            value=found.value,
            gradient=found.gradient,
            history=tuple(self.history),
            status=status,
            num_steps=len(self.history) - 1,
            num_lower_solves=self._num_solves,
            num_refused=self._num_refused,
            message=message,
        )


def _check_options(
    optimizer: object,
    max_steps: int,
    rtol: float | None,
    atol: float,
    lower_rtol: float | str | None,
    on_bad_gradient: str,
    on_failure: str,
) -> None:
    made = isinstance(optimizer, torch.optim.Optimizer)
    if made or not (optimizer is None or isinstance(optimizer, BFGS) or callable(optimizer)):
        raise InvalidInputError(
            f"`{_CALL}(optimizer=...)` must be None, `BFGS()`, or a function that makes an optimizer of a list of "
            f"tensors, such as `lambda params: torch.optim.Adam(params, lr=0.1)`, got {optimizer!r}."
        )
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 0:
        raise InvalidInputError(f"`{_CALL}(max_steps=...)` must be an integer, at least 0, got {max_steps!r}.")
    check_rtol(_CALL, "rtol", rtol)
    if isinstance(atol, bool) or not isinstance(atol, (int, float)) or not 0 <= atol < math.inf:
        raise InvalidInputError(f"`{_CALL}(atol=...)` must be a number, at least 0, got {atol!r}.")
    if lower_rtol != "auto":
        if isinstance(lower_rtol, str):
            raise InvalidInputError(f"`{_CALL}(lower_rtol=...)` must be 'auto', a number or None, got {lower_rtol!r}.")
        check_rtol(_CALL, "lower_rtol", lower_rtol)
    if on_bad_gradient not in BAD_GRADIENT_POLICIES:
        raise InvalidInputError(
            f"`{_CALL}(on_bad_gradient=...)` must be one of {', '.join(map(repr, BAD_GRADIENT_POLICIES))}, got "
            f"{on_bad_gradient!r}."
        )
    check_failure_policy(_CALL, on_failure)


def _report(message: str, on_failure: str) -> None:
    if on_failure == "raise":
        raise SolveError(message)
    if on_failure == "warn":
        warnings.warn(message, ConvergenceWarning, stacklevel=3)
