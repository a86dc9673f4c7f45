"""The search of hyperparameters that the estimators share: down the cross-validation error, by its hypergradient."""

import warnings
from typing import NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from torchddn.bilevel.descent import minimize_bilevel
from torchddn.bilevel.quasi_newton import BFGS
from torchddn.bilevel.sets import Box
from torchddn.bilevel.sklearn.fit import Fit
from torchddn.solvers import StrongWolfe
from torchddn.status import Solution, Status

__all__ = ["Limits", "Path", "search"]

# At a kink no number of trials finds a better point. Along a line the search is the whole problem: let it solve that.
_MANY = BFGS(max_trials=10)
_ALONG_A_LINE = BFGS(max_trials=10, search=StrongWolfe(curvature=0.1))

# A gain that is this small beside the error of knowing nothing is rounding.
_NOTHING = 1e-12


class Limits(NamedTuple):
    """Of the logarithms of the hyperparameters, each ``(p,)`` or ``(1,)``."""

    low: Tensor
    high: Tensor


class Path(NamedTuple):
    """Where a search went, a row for each lower solve, and where it ended.

    Attributes:
        found: The logarithms of the hyperparameters at the end, ``(p,)``.
        theta: Those of each lower solve, ``(S, p)``.
        error: The cross-validation error there, ``(S,)``.
        num_steps: Upper steps.
    """

    found: Tensor
    theta: Tensor
    error: Tensor
    num_steps: int

    def then(self, other: "Path") -> "Path":
        """This search with a later one of more hyperparameters, for which the last one of this stood."""
        missing = other.theta.shape[1] - self.theta.shape[1]
        theta = torch.cat([self.theta, self.theta[:, -1:].expand(-1, missing)], dim=1)
        return Path(
            other.found,
            torch.cat([theta, other.theta]),
            torch.cat([self.error, other.error]),
            self.num_steps + other.num_steps,
        )


def search(call: str, fit: Fit, starts: Tensor, limits: Limits, max_iter: int, tol: float | None) -> Path:
    """Returns the way from the best of ``starts`` to a minimum of the cross-validation error.

    Args:
        call: Name that opens a warning.
        fit: The lower problem.
        starts: Logarithms, ``(S, p)``; moved to the limits.
        limits: Of them.
        max_iter: Most upper steps.
        tol: As ``rtol`` of :func:`torchddn.bilevel.minimize_bilevel`; None for 1e-6 with one hyperparameter, else 1e-3.
    """
    thetas: list[Tensor] = []
    errors: list[Tensor] = []

    def lower(theta: Tensor) -> Solution:
        thetas.append(theta.detach())
        return fit.solve(theta)

    def upper(_theta: Tensor, y: Tensor) -> Tensor:
        error = fit.error(y)
        errors.append(error.detach())
        return error

    starts = starts.clamp(*limits)
    is_one = starts.shape[1] == 1
    if len(starts) > 1:
        with torch.no_grad():
            scan = torch.stack([upper(start, lower(start).y) for start in starts])
        starts = starts[scan.nan_to_num(torch.inf).argmin()][None]
    found = minimize_bilevel(
        upper,
        lower,
        starts[0],
        constraint=Box(*limits),
        optimizer=_ALONG_A_LINE if is_one else _MANY,
        max_steps=max_iter,
        atol=_NOTHING * fit.scale,
        rtol=(1e-6 if is_one else 1e-3) if tol is None else tol,
        on_failure="ignore",
    )
    # A kink of the error, where a feature or a vector joins or leaves, may be its minimum: there no step is better, and
    # the search has ended as it should.
    if found.status is Status.MAX_STEPS or (found.num_refused and found.status is not Status.CONVERGED):
        message = f"{call}: the search of hyperparameters did not converge, and its best point is used: {found.message}"
        warnings.warn(message, ConvergenceWarning, stacklevel=4)
    return Path(found.theta, torch.stack(thetas), torch.stack(errors), found.num_steps)
