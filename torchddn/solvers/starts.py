"""Where to start: from several points at once, or from the last answer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchddn.derivatives import inside_transform
from torchddn.errors import InvalidInputError
from torchddn.problem import BatchedProblem
from torchddn.solvers.base import Composite, Inputs, Result, Run, Solver, is_solver, solve
from torchddn.solvers.options import check_count, check_number
from torchddn.status import Status

__all__ = ["MultiStart", "WarmStart"]

Sampler = Callable[[Tensor, int, torch.Generator], Tensor]


@dataclasses.dataclass(frozen=True)
class MultiStart:
    r"""The best of several solves of each item, from different starts, all in one batch.

    The first start is the given one. Among the solves that converged the one with the lowest objective is taken;
    objectives that differ by rounding only count as equal, and the earlier start wins, so that the same branch is
    chosen every time. If none converged, the first start's result is returned as it is. Costs ``num_starts`` times
    the work and memory.

    Args:
        solver: What solves from each start.
        num_starts: How many, the given one included.
        spread: Standard deviation of the normal numbers that are added to the given start, in units of ``y``. Every
            item of a batch gets the same ones.
        sampler: Instead: a function of ``(y, num_starts, generator)`` that returns all starts,
            ``(B, num_starts, m)``.
        generator: Source of the numbers; None takes a new one, with the same seed, in every solve.

    Status:
        That of the solve that was taken; ``num_steps`` likewise.

    Example:
        >>> import torch, torchddn as ddn
        >>> best = ddn.solvers.MultiStart(ddn.solvers.Newton(), num_starts=16, spread=2.0)
        >>> f = lambda y, x: (y**4 - 3 * y**2 + x * y).sum()
        >>> ddn.argmin(f, torch.zeros(1), torch.tensor([[1.0], [-1.0]]), solver=best).round(decimals=3)
        tensor([[-1.3010],
                [ 1.3010]])
    """

    solver: Solver | Composite
    num_starts: int = 8
    spread: float = 1.0
    sampler: Sampler | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        _check_solver(self, self.solver)
        check_count(self, "num_starts", self.num_starts)
        check_number(self, "spread", self.spread, strict=True)
        if self.sampler is not None and not callable(self.sampler):
            raise InvalidInputError(
                f"`MultiStart(sampler=...)` must be a function of (y, num_starts, generator), got {self.sampler!r}."
            )
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise InvalidInputError(
                f"`MultiStart(generator=...)` must be a `torch.Generator` or None, got {self.generator!r}."
            )

    def check(self, problem: BatchedProblem) -> None:
        self.solver.check(problem)

    def run(self, problem: BatchedProblem, x: Inputs, y: Tensor, solve_again: Run) -> Result:
        starts = self._starts(y)
        all_starts, all_x = problem.repeat(x, self.num_starts)
        result = solve_again(self.solver, all_starts, all_x, starts.flatten(0, 1))
        value = torch.zeros_like(result.y[:, 0])
        if problem.kind == "minimize":
            value = all_starts.objective(result.y, all_x).detach()
        converged = result.status == Status.CONVERGED
        value = torch.where(converged, value, torch.inf).unflatten(0, (-1, self.num_starts))
        lowest = value.amin(1, keepdim=True)
        # Two minima that are equal, or one found twice: their values differ by what is left of the solves' errors.
        tie = torch.finfo(value.dtype).eps ** 0.5 * lowest.abs()
        first = (value <= torch.where(lowest.isfinite(), lowest + tie, lowest)).to(torch.int8).argmax(1)
        taken = first + self.num_starts * torch.arange(len(y), device=y.device)
        y, dual, status, num_steps, _ = result
        return Result(*(part.index_select(0, taken) for part in (y, dual, status, num_steps)), proof=None)

    def _starts(self, y: Tensor) -> Tensor:
        if self.sampler is not None:
            generator = self.generator or torch.Generator(y.device).manual_seed(0)
            starts = self.sampler(y, self.num_starts, generator)
            expected = (y.shape[0], self.num_starts, y.shape[1])
            if not isinstance(starts, Tensor) or tuple(starts.shape) != expected:
                raise InvalidInputError(
                    f"`MultiStart(sampler=...)` must return a tensor of shape (B, num_starts, m) = {expected}, got "
                    f"{tuple(starts.shape) if isinstance(starts, Tensor) else starts!r}."
                )
            return starts.to(y)
        return y[:, None] + self.spread * self._noise(y)

    def _noise(self, y: Tensor) -> Tensor:
        """``(num_starts, m)``, the first row zero."""
        shape = (self.num_starts - 1, y.shape[1])
        if self.generator is None:
            # NumPy's, because `torch.func.vmap` refuses to run torch's generators.
            noise = torch.as_tensor(np.random.default_rng(0).standard_normal(shape))
        else:
            noise = torch.randn(shape, generator=self.generator, dtype=torch.float64, device=self.generator.device)
        return torch.cat([y.new_zeros(1, y.shape[1]), noise.to(y)])


class WarmStart:
    """Another solver that starts where its last solve ended.

    Of use while inputs change little from call to call, as in training on full batches or in tracking: fewer steps,
    and the same branch of solutions every time. An item that did not converge last time starts from its given start.
    A batch of another size, dtype or device starts afresh. Inside ``torch.func`` transforms nothing is remembered.

    The object is what remembers: use one for each node, and call ``reset`` when the data change.

    Args:
        solver: What solves.

    Status:
        That of ``solver``.

    Example:
        >>> from torchddn.solvers import Newton
        >>> WarmStart(Newton())
        WarmStart(Newton(rtol=None, atol=0.0, max_steps=200))
    """

    def __init__(self, solver: Solver | Composite) -> None:
        _check_solver(self, solver)
        self.solver = solver
        self._last: tuple[Tensor, Tensor] | None = None  # read and replaced as a whole: threads see one or the other

    def __repr__(self) -> str:
        return f"WarmStart({self.solver!r})"

    def reset(self) -> None:
        """Forgets the last answer."""
        self._last = None

    def check(self, problem: BatchedProblem) -> None:
        self.solver.check(problem)

    def run(self, problem: BatchedProblem, x: Inputs, y: Tensor, solve_again: Run) -> Result:
        if inside_transform():
            return solve_again(self.solver, problem, x, y)
        last = self._last
        if last is not None and _matches(last[0], y):
            y = torch.where(last[1][:, None], last[0], y)
        result = solve_again(self.solver, problem, x, y)
        if solve_again is solve:  # a few steps that are only differentiated answer nothing
            self._last = (result.y.detach().clone(), result.status == Status.CONVERGED)
        return result


def _matches(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and left.device == right.device


def _check_solver(owner: object, solver: Any) -> None:
    if not is_solver(solver):
        raise InvalidInputError(
            f"`{type(owner).__name__}(solver=...)` must be a solver object such as `Newton()`, got {solver!r}."
        )
