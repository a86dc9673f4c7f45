r"""Test problems whose answer is known, stated once and usable by any solver.

Each is a :class:`torchddn.Problem` for one vector of data ``x``, ``(n,)``, ::

    y(x) = argmin_y f(y, x)   subject to   h(y, x) = 0,   g(y, x) <= 0,   lower(x) <= y <= upper(x)

with its standard data and start, and with what is known of the answer at these data.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchddn.problem import Problem
from torchddn.status import Status

__all__ = ["INF", "ReferenceProblem", "stated"]

INF = float("inf")

# The table of test problems states functions of (y, x) that return a scalar, a tensor or a tuple of scalars.
ItemFunction = Callable[[Tensor, Tensor], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceProblem:
    """A test problem with its standard data, its standard start, and what is known of its answer.

    Attributes:
        name: Unique; Hock and Schittkowski's are ``"HS 1"``, ``"HS 2"``, and so on.
        problem: The problem of one item, a function of one vector of data.
        data: The standard data, n numbers.
        start: The standard start, m numbers; ``problem.initial`` returns it.
        optimum: Least objective known at the standard data; None where there is none.
        solution: Where it is attained, if that is known; one point of several, where there are several.
        outcomes: The right answers of a solver, such as ``(Status.CONVERGED,)`` or ``(Status.INFEASIBLE,)``.
        regular: Whether active constraints are linearly independent, their multipliers positive and the reduced
            Hessian positive definite at the solution: ``y`` is then a smooth function of the data.
        tags: What is special about it, words of :func:`torchddn.testing.tags`.
        source: Where it comes from.
        spread: Relative size of the changes of data under which the problem stays what it is.

    Example:
        >>> from torchddn.testing import collection
        >>> example = collection("HS 71")[0]
        >>> example.kind, example.optimum
        ('mixed', 17.01401728916)
        >>> example.x(2).shape
        torch.Size([2, 4])
    """

    name: str
    problem: Problem
    data: tuple[float, ...]
    start: tuple[float, ...]
    optimum: float | None
    solution: tuple[float, ...] | None
    outcomes: tuple[Status, ...]
    regular: bool
    tags: frozenset[str]
    source: str
    spread: float

    @property
    def kind(self) -> str:
        """``"unconstrained"``, ``"bounds"``, ``"equality"``, ``"inequality"`` (with bounds or not) or ``"mixed"``."""
        has = {name for name in ("equality", "inequality", "bounds") if self.problem.function(name) is not None}
        if "equality" in has:
            return "equality" if has == {"equality"} else "mixed"
        return next((name for name in ("inequality", "bounds") if name in has), "unconstrained")

    @property
    def solvable(self) -> bool:
        """Whether there is a minimum that a solver should find."""
        return self.outcomes == (Status.CONVERGED,)

    def x(self, size: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
        """``size`` copies of the standard data, ``(size, n)``."""
        return torch.tensor(self.data, dtype=dtype).repeat(size, 1)

    def perturb(
        self, size: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Returns a batch of data near the standard ones, for which the problem is of the same kind, ``(size, n)``.

        Each number is multiplied by one within ``1 - spread`` and ``1 + spread``; zeros stay zeros.
        """
        x = self.x(size, dtype)
        noise = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(dtype)
        return x * (1 + self.spread * (2 * noise - 1))


def stated(
    name: str,
    data: tuple[float, ...],
    start: tuple[float, ...],
    objective: ItemFunction | None = None,
    *,
    equality: ItemFunction | None = None,
    inequality: ItemFunction | None = None,
    bounds: Callable[[Tensor], tuple[Any, Any]] | None = None,
    optimum: float | None = None,
    solution: tuple[float, ...] | None = None,
    outcomes: tuple[Status, ...] = (Status.CONVERGED,),
    regular: bool = True,
    tags: tuple[str, ...] = (),
    source: str = "",
    spread: float = 1e-2,
) -> ReferenceProblem:
    """Returns a test problem from functions in the shortest form.

    Args:
        name: As in :class:`ReferenceProblem`, like every argument that is not described here.
        data: See there.
        start: See there.
        objective: ``f(y, x)``, a scalar.
        equality: ``h(y, x)``, a tensor or a tuple of scalars.
        inequality: ``g(y, x) <= 0``, a tensor or a tuple of scalars.
        bounds: ``(lower, upper)`` as functions of ``x``: each a number for all entries, or a tuple of numbers and
            scalars.
        optimum: See there.
        solution: See there.
        outcomes: See there.
        regular: See there; nothing is regular that has no solution.
        tags: See there.
        source: See there.
        spread: See there.
    """
    m = len(start)

    def limits(x: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = bounds(x)  # pyright: ignore[reportOptionalCall]
        return _vector(lower, x, m), _vector(upper, x, m)

    problem = Problem.from_functions(
        objective,
        equality and _stacked(equality),
        inequality and _stacked(inequality),
        limits if bounds is not None else None,
        lambda x: x.new_tensor(start),
    )
    return ReferenceProblem(
        name=name,
        problem=problem,
        data=tuple(map(float, data)),
        start=tuple(map(float, start)),
        optimum=optimum,
        solution=solution,
        outcomes=outcomes,
        regular=regular and outcomes == (Status.CONVERGED,),
        tags=frozenset(tags),
        source=source,
        spread=spread,
    )


def _stacked(function: ItemFunction) -> Callable[[Tensor, Tensor], Tensor]:
    def evaluate(y: Tensor, x: Tensor) -> Tensor:
        value = function(y, x)
        return torch.stack(value) if isinstance(value, tuple) else value

    return evaluate


def _vector(value: Any, like: Tensor, size: int) -> Tensor:
    if not isinstance(value, tuple):
        value = (value,) * size
    return torch.stack([part if isinstance(part, Tensor) else like.new_full((), part) for part in value])
