r"""Projected quasi-Newton steps for the upper level: few of them, since each costs a lower solve.

The step minimizes a quadratic model over the set ::

    d = argmin_d  g . d + 1/2 d' B d   subject to   theta + d in the set

and is followed by a line search with the strong Wolfe conditions, as far as the set reaches. Up to a few hundred upper
variables ``B`` is the matrix of the BFGS method, and the step a quadratic program. Beyond, it is kept as the last pairs
of steps and gradient changes, of which a constrained step uses the last one only (spectral projected gradient).

References:
    Nocedal, Wright, Numerical Optimization, 2nd edition, equations 6.19, 6.20 and 7.24 and procedure 18.2. Schmidt, van
    den Berg, Friedlander, Murphy, Optimizing costly functions with simple constraints, 2009. Birgin, Martinez, Raydan,
    Nonmonotone spectral projected gradient methods on convex sets, 2000.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.bilevel.region import Region
from torchddn.errors import InvalidInputError
from torchddn.functional import quadratic_program
from torchddn.solvers import StrongWolfe
from torchddn.solvers.options import check_count

__all__ = ["BFGS", "Point", "QuasiNewton"]

# Up to so many upper variables a dense matrix and a quadratic program cost less than a lower solve.
_DENSE_SIZE = 256

_FEW_TRIALS = 8


class Point(NamedTuple):
    """An upper point that was evaluated.

    ``objection`` says why it must not be stepped to, or from; values that differ by ``noise`` or less are the same.
    """

    theta: Tensor  # (n,)
    value: float
    gradient: Tensor  # (n,)
    objection: str
    noise: float = 0.0


Evaluate = Callable[[Tensor], Point]


@dataclasses.dataclass(frozen=True)
class BFGS:
    """The default optimizer of the upper level.

    Args:
        history: Pairs that are kept where there are too many upper variables for a matrix.
        max_trials: Most evaluations for one step.
        search: The line search.
    """

    history: int = 20
    max_trials: int = 30
    search: StrongWolfe = dataclasses.field(default_factory=StrongWolfe)

    def __post_init__(self) -> None:
        check_count(self, "history", self.history)
        check_count(self, "max_trials", self.max_trials)
        if not isinstance(self.search, StrongWolfe):
            raise InvalidInputError(f"`BFGS(search=...)` must be a `StrongWolfe` object, got {self.search!r}.")


class QuasiNewton:
    """The method at work on one upper problem."""

    def __init__(self, method: BFGS, region: Region) -> None:
        self._method, self._region = method, region
        self._model: _Dense | _Limited = _Dense() if region.size <= _DENSE_SIZE else _Limited(method.history)

    def advance(self, point: Point, evaluate: Evaluate, patient: bool) -> tuple[Point | None, str]:
        """The next point, or None and why there is none; who is not patient can look more closely at ``point``."""
        num_trials = self._method.max_trials if patient else _FEW_TRIALS
        found, objection = self._search(point, evaluate, num_trials)
        if found is None and patient and not self._model.is_fresh:
            self._model.forget()
            found, objection = self._search(point, evaluate, num_trials)
        if found is not None:
            self._model.learn(found.theta - point.theta, found.gradient - point.gradient)
        return found, objection

    def _search(self, point: Point, evaluate: Evaluate, num_trials: int) -> tuple[Point | None, str]:
        """A point along the model's step that satisfies the Wolfe conditions, or ends where the set does."""
        d = self._model.step(point, self._region)
        slope = float(point.gradient @ d)
        if not slope < 0:
            return None, ""
        farthest = self._region.farthest(point.theta, d)
        as_tensor = point.gradient.new_tensor
        start = as_tensor([point.value]), as_tensor([slope])
        bracket = self._method.search.init(as_tensor([min(1.0, farthest)]), *start)
        objection = ""
        for _ in range(num_trials):
            alpha = float(bracket.alpha)
            trial = evaluate(self._region.project(point.theta + alpha * d))
            objection = trial.objection or objection
            value = torch.nan if trial.objection else trial.value
            # Where values are too inexact to tell, the search goes by slopes.
            value = point.value if abs(value - point.value) <= point.noise else value
            now = as_tensor([value]), as_tensor([float(trial.gradient @ d)])
            bracket, accepted, given_up = self._method.search.step(bracket, *start, *now)
            at_end = alpha >= farthest and value <= point.value + self._method.search.decrease * alpha * slope
            if bool(accepted) or at_end:
                return trial, ""
            if bool(given_up):
                break
            bracket = bracket._replace(alpha=bracket.alpha.clamp(max=farthest))
        return None, objection


def _first_curvature(point: Point) -> float:
    """With which the first step is about as long as ``theta``, in its largest entry, or half of one."""
    return float(point.gradient.abs().max()) / (0.5 * max(1.0, float(point.theta.abs().max())))


class _Dense:
    """``B`` as a matrix, in float64."""

    def __init__(self) -> None:
        self._B: Tensor | None = None

    @property
    def is_fresh(self) -> bool:
        return self._B is None

    def forget(self) -> None:
        self._B = None

    def step(self, point: Point, region: Region) -> Tensor:
        theta, g = point.theta.double(), point.gradient.double()
        B = self._B if self._B is not None else _first_curvature(point) * torch.eye(len(g)).to(g)
        lower, upper = region.lower.double() - theta, region.upper.double() - theta
        if not len(region.sums):
            d = -torch.linalg.solve(B, g)
            if bool(((lower <= d) & (d <= upper)).all()):
                return d.to(point.theta)
        A = region.sums.double()[None] if len(region.sums) else None
        b = None if A is None else A.new_zeros(1, A.shape[1])
        limits = (lower.clamp(max=0)[None], upper.clamp(min=0)[None])
        d = quadratic_program(B[None], g[None], A, b, None, None, *limits, on_failure="ignore")[0]
        return d.clamp(*(limit[0] for limit in limits)).to(point.theta)

    def learn(self, s: Tensor, z: Tensor) -> None:
        s, z = s.double(), z.double()
        curvature = s @ z
        if self._B is None:
            if not curvature > 0:
                return
            self._B = (z @ z) / curvature * torch.eye(len(s)).to(s)
        Bs = self._B @ s
        model = s @ Bs
        # Powell's damping, for a line search that ended at a limit, where the curvature may have any sign. A positive
        # one is believed, however small: else B would need many steps to forget a region of strong curvature.
        if curvature < 1e-4 * model:
            z = z + (1 - 1e-4) * model / (model - curvature) * (Bs - z)
            curvature = s @ z
        if bool(curvature > 0) and bool(model > 0):
            self._B = self._B + torch.outer(z, z) / curvature - torch.outer(Bs, Bs) / model


class _Limited:
    """The last steps ``S`` and gradient changes ``Z``, ``(k, n)``, oldest first."""

    def __init__(self, history: int) -> None:
        self._history = history
        self.forget()

    @property
    def is_fresh(self) -> bool:
        return not self._S

    def forget(self) -> None:
        self._S: list[Tensor] = []
        self._Z: list[Tensor] = []

    def step(self, point: Point, region: Region) -> Tensor:
        g = point.gradient
        if self.is_fresh:
            return self._projected(point, region, _first_curvature(point))
        s, z = self._S[-1], self._Z[-1]
        if not region.is_free:
            return self._projected(point, region, float((z @ z) / (s @ z)))
        S, Z = torch.stack(self._S), torch.stack(self._Z)
        gamma = (s @ z) / (z @ z)
        R = torch.triu(S @ Z.T)
        D = torch.diag(R.diagonal())
        # Equation 7.24: H = gamma I + [S, gamma Z] [[R^-T (D + gamma Z'Z) R^-1, -R^-T], [-R^-1, 0]] [S, gamma Z]'.
        a = torch.linalg.solve_triangular(R, (S @ g)[:, None], upper=True)
        b = (D + gamma * Z @ Z.T) @ a - gamma * (Z @ g)[:, None]
        c = torch.linalg.solve_triangular(R.T, b, upper=False)
        return -(gamma * g + S.T @ c[:, 0] - gamma * Z.T @ a[:, 0])

    def learn(self, s: Tensor, z: Tensor) -> None:
        if float(s @ z) > torch.finfo(s.dtype).eps * float(s.norm() * z.norm()):
            self._S = [*self._S, s][-self._history :]
            self._Z = [*self._Z, z][-self._history :]

    def _projected(self, point: Point, region: Region, curvature: float) -> Tensor:
        return region.project(point.theta - point.gradient / curvature) - point.theta
