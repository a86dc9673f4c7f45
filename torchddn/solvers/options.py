"""Checks at the door: the knobs that solvers share, and which solver suits which problem."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.problem import BatchedProblem

__all__ = [
    "check_choice",
    "check_count",
    "check_number",
    "check_suits",
    "check_termination",
    "default_rtol",
    "falls_away",
    "far",
]

_KINDS = {"minimize": "a minimum", "root": "a root", "fixed_point": "a fixed point"}


def default_rtol(dtype: torch.dtype) -> float:
    """Far enough above rounding to be reached, far enough below 1e-9 (float64) to be right: eps^(3/4)."""
    return torch.finfo(dtype).eps ** 0.75


def far(dtype: torch.dtype) -> float:
    """How many lengths of the start away ``y`` is taken to be on its way to infinity."""
    return torch.finfo(dtype).eps ** -0.7


def falls_away(f: Tensor) -> Tensor:
    """Whether an objective is on its way to minus infinity: its square overflows."""
    return f < -(torch.finfo(f.dtype).max ** 0.5)


def check_number(solver: object, name: str, value: object, least: float = 0.0, strict: bool = False) -> None:
    """Raises unless ``value`` is a finite number, at least (or, if strict, above) ``least``."""
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value < least
        or (strict and value == least)
    ):
        bound = f"above {least:g}" if strict else f"at least {least:g}"
        raise InvalidInputError(f"`{_name(solver)}({name}=...)` must be a finite number {bound}, got {value!r}.")


def check_count(solver: object, name: str, value: object, least: int = 1) -> None:
    """Raises unless ``value`` is an integer, at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidInputError(f"`{_name(solver)}({name}=...)` must be an integer, at least {least}, got {value!r}.")


def check_choice(solver: object, name: str, value: object, choices: Sequence[str]) -> None:
    """Raises unless ``value`` is one of the words."""
    if value not in choices:
        words = ", ".join(map(repr, choices))
        raise InvalidInputError(f"`{_name(solver)}({name}=...)` must be one of {words}, got {value!r}.")


def check_termination(solver: Any) -> None:
    """Checks the fields ``rtol`` (None for the default), ``atol`` and ``max_steps``."""
    if solver.rtol is not None:
        check_number(solver, "rtol", solver.rtol)
    check_number(solver, "atol", solver.atol)
    check_count(solver, "max_steps", solver.max_steps)


def check_suits(
    solver: object,
    problem: BatchedProblem,
    *,
    kinds: Sequence[str],
    equality: bool = False,
    inequality: bool = False,
    bounds: bool = False,
    residual: bool = False,
    scalar: bool = False,
) -> None:
    """Raises if the solver is none for the problem, and names one that is.

    Args:
        solver: Whose name opens the message.
        problem: What is to be solved.
        kinds: Kinds of problem that it solves.
        equality: Whether it can hold equalities.
        inequality: Whether it can hold inequalities.
        bounds: Whether it can hold bounds.
        residual: Whether it needs ``residual``.
        scalar: Whether it needs ``m = 1``.
    """
    if problem.kind not in kinds:
        reason = f"the problem is to find {_KINDS[problem.kind]}"
    elif problem.p and not equality:
        reason = f"the problem has {problem.p} equality constraint{'s' * (problem.p > 1)}"
    elif problem.q and not inequality:
        reason = f"the problem has {problem.q} inequality constraint{'s' * (problem.q > 1)}"
    elif problem.has_bounds and not bounds:
        reason = "the problem has bounds"
    elif residual and not problem.has_residual:
        reason = "the objective is not a sum of squares with a `residual`"
    elif scalar and problem.m != 1:
        reason = f"the problem has {problem.m} variables instead of one"
    else:
        return
    raise InvalidInputError(
        f"`{problem.call}(solver=...)`: `{_name(solver)}` cannot solve this, because {reason}. Use {_instead(problem)}."
    )


def _instead(problem: BatchedProblem) -> str:
    if problem.is_inequality_constrained:
        return "`InteriorPoint()`, or `AugmentedLagrangian()` for many variables"
    if problem.p:
        return "`SQP()`, or `AugmentedLagrangian()` for many variables"
    return {
        "minimize": "`Newton()`, or `LBFGS()` for many variables",
        "root": "`Newton()`, or `Broyden()` for many variables",
        "fixed_point": "`Anderson()`",
    }[problem.kind]


def _name(solver: object) -> str:
    return type(solver).__name__
