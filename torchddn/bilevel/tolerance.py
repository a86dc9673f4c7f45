r"""How exactly the lower level is solved while the upper one is still far away.

Small problems are solved to rounding, which costs nothing extra. A large one is solved until its gradient is a fraction
of what it is at the start, the fraction falling with the upper level's own projected gradient; and the linear system of
the hypergradient to the same fraction. The estimate of the error that this makes decides whether it was enough: above
``SHARE`` of the projected hypergradient, the same point is solved again with more digits.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from torchddn import solvers
from torchddn.bilevel.pair import Bilevel
from torchddn.derivatives import gradient
from torchddn.problem import BatchedProblem
from torchddn.solvers.base import Inputs, Result, Run
from torchddn.solvers.options import default_rtol
from torchddn.verification import DENSE_LIMIT

__all__ = ["SHARE", "LowerTolerance"]

# Of the projected hypergradient may be error.
SHARE = 0.1

_FIRST = 1e-3


class _Chosen:
    """The solver that suits the problem, so that a warm start can be put around "auto"."""

    def check(self, problem: BatchedProblem) -> None:
        solvers.choose(problem).check(problem)

    def run(self, problem: BatchedProblem, x: Inputs, y: Tensor, solve_again: Run) -> Result:
        return solve_again(solvers.choose(problem), problem, x, y)


class LowerTolerance:
    """The lower solver, warm, and its tolerance.

    Attributes:
        solver: What solves the lower problem; None for its own ``solve`` or a function.
        current: Residual that is asked for, relative to the start's; NaN where solves are as exact as they get.
        good_enough: The same in the units of the lower gradient; 0 where exact.
    """

    def __init__(self, pair: Bilevel, theta: Any, first: float | str | None, method: str) -> None:
        self.solver: Any = None
        self.current, self.good_enough, self.floor = float("nan"), 0.0, 0.0
        problem = pair.problem
        if problem is None or method == "substitution":
            return
        if pair.solver == "auto" and problem.function("solve") is not None:
            return
        base: Any = _Chosen() if pair.solver == "auto" else pair.solver
        self.solver = base if isinstance(base, solvers.WarmStart) else solvers.WarmStart(base)
        if not pair.is_unconstrained:
            return
        batched, x = pair.flat(theta)
        base = solvers.choose(batched) if pair.solver == "auto" else pair.solver
        if not isinstance(base, (solvers.LBFGS, solvers.GradientDescent)):
            return
        self._base, self._unit = base, _steepness(batched, x)
        if first is not None and batched.m > DENSE_LIMIT and method in ("implicit", "cg"):
            self.floor = torch.finfo(x[-1].dtype).eps ** 0.7
            self._set(_FIRST if first == "auto" else float(first))
        else:
            # Relative to the gradient at a warm start, which is small already, it would be out of reach.
            self._demand(default_rtol(x[-1].dtype) if base.rtol is None else base.rtol)

    @property
    def is_scheduled(self) -> bool:
        """Whether solves are less exact than they could be."""
        return self.good_enough > 0

    @property
    def is_open(self) -> bool:
        """Whether there are more digits to have."""
        return self.is_scheduled and self.current > self.floor

    def tighten(self, factor: float) -> bool:
        """Asks for a residual smaller by ``factor``; False if there is no more to have."""
        if not self.is_open:
            return False
        self._set(max(self.floor, self.current * min(factor, 0.5)))
        return True

    def follow(self, progress: float) -> None:
        """Lets the tolerance fall with the upper level's progress, its projected gradient relative to the first one."""
        if self.is_scheduled:
            self._set(max(self.floor, min(self.current, _FIRST * progress)))

    def _set(self, current: float) -> None:
        self.current, self.good_enough = current, 2 * current * self._unit
        self._demand(current)

    def _demand(self, rtol: float) -> None:
        self.solver.solver = dataclasses.replace(self._base, rtol=0.0, atol=self._base.atol + rtol * self._unit)


def _steepness(problem: BatchedProblem, x: Inputs) -> float:
    """The lower gradient at its start, the least of the followers'."""
    with torch.no_grad():
        largest = gradient(lambda y: problem.objective(y, x), x[-1]).abs().amax(1)
    largest = largest[largest > 0]
    return float(largest.min()) if len(largest) else 1.0
