"""The one loop in which every solver runs, and what a solver must be able to do.

A solver is four short methods. ``init`` makes the state, ``step`` moves every item, ``status`` judges every item,
``finish`` hands back the answer and the multipliers. The state is a ``NamedTuple`` of tensors whose first axis is
the batch (or of such tuples). The loop freezes the items that have stopped, counts, and stops, so that no solver
writes a mask; it waits for the device once per step, to see whether an item still runs.

A *composite* (:class:`torchddn.solvers.MultiStart`, ``WarmStart``, ``SciPy``) runs other solvers, or a library,
instead: it has one method ``run`` and is handed the loop.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar, runtime_checkable

import torch
from torch import Tensor

from torchddn.active_set import ActiveSet
from torchddn.derivatives import inside_transform
from torchddn.fusion import fused, is_fused
from torchddn.optimality import Measures
from torchddn.problem import BatchedProblem
from torchddn.status import Status

__all__ = [
    "RUNNING",
    "Batch",
    "Composite",
    "Delegate",
    "Method",
    "Proof",
    "Result",
    "Solver",
    "freeze",
    "is_differentiated",
    "is_solver",
    "iterate",
    "solve",
    "unroll",
]

RUNNING = -1

# Numbers in the matrices of a batch that is small.
_SMALL = 2**20

State = Any
Inputs = Sequence[Tensor]
_Tree = TypeVar("_Tree")


class Proof(NamedTuple):
    """What a solver knows of points that are strict minima beyond doubt, every one of the batch."""

    active: ActiveSet | None  # None without inequalities and bounds
    measures: Measures


class Result(NamedTuple):
    """What a solve returns."""

    y: Tensor  # (B, m)
    dual: Tensor  # (B, p + q): multipliers nu, then lam, of L = f + nu.h + lam.g
    status: Tensor  # (B,) of Status
    num_steps: Tensor  # (B,)
    proof: Proof | None = None


class Batch(Protocol):
    """A batch of problems, as the loop sees it."""

    def select(self, x: Inputs, items: Tensor, /) -> tuple[Any, Inputs]:
        """The problems of some items only, and their inputs."""
        ...


class Method(Protocol):
    """The part of a solver that the loop runs; of problems of any kind."""

    @property
    def max_steps(self) -> int: ...
    def init(self, problem: Any, x: Inputs, y: Tensor, /) -> State: ...
    def step(self, problem: Any, x: Inputs, state: Any, /) -> State: ...
    def status(self, problem: Any, x: Inputs, state: Any, /) -> Tensor: ...


@runtime_checkable
class Solver(Protocol):
    """An iterative method, in four methods and a check at the door."""

    @property
    def max_steps(self) -> int:
        """Most steps for an item."""
        ...

    def check(self, problem: BatchedProblem) -> None:
        """Raises InvalidInputError, naming a solver that can, if this one cannot solve the problem."""
        ...

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> State:
        """The state at the start ``y``, ``(B, m)``."""
        ...

    def step(self, problem: BatchedProblem, x: Inputs, state: State) -> State:
        """The next state; differentiable operations only, and nothing that reads a tensor's values."""
        ...

    def status(self, problem: BatchedProblem, x: Inputs, state: State) -> Tensor:
        """``(B,)`` of :class:`~torchddn.Status`, or RUNNING."""
        ...

    def finish(self, problem: BatchedProblem, x: Inputs, state: State) -> tuple[Tensor, Tensor]:
        """``y``, ``(B, m)``, and ``dual``, ``(B, p + q)``."""
        ...


class Prover(Protocol):
    """A solver that can vouch for its points."""

    def prove(self, problem: BatchedProblem, x: Inputs, state: Any) -> Proof | None:
        """What is known of the final points, if all of them are strict minima."""
        ...


class Trusting(Method, Protocol):
    """A solver whose step is simpler where every item is well behaved: a straight line, which can be one kernel."""

    def trusting_step(self, problem: Any, x: Inputs, state: Any) -> tuple[State, Tensor]:
        """The next state, and for which items it is the one of ``step``, ``(B,)``; nothing is read on the way."""
        ...


class Delegate:
    """The four methods of a solver that leaves them to another one, which it picks by the kind of problem."""

    def method(self, problem: BatchedProblem) -> Any:
        """The solver that does the work."""
        raise NotImplementedError

    def init(self, problem: BatchedProblem, x: Inputs, y: Tensor) -> Any:
        return self.method(problem).init(problem, x, y)

    def step(self, problem: BatchedProblem, x: Inputs, state: Any) -> Any:
        return self.method(problem).step(problem, x, state)

    def status(self, problem: BatchedProblem, x: Inputs, state: Any) -> Tensor:
        return self.method(problem).status(problem, x, state)

    def finish(self, problem: BatchedProblem, x: Inputs, state: Any) -> tuple[Tensor, Tensor]:
        return self.method(problem).finish(problem, x, state)


Run = Callable[["Solver | Composite", BatchedProblem, Inputs, Tensor], Result]


@runtime_checkable
class Composite(Protocol):
    """A solver that has no steps of its own."""

    def check(self, problem: BatchedProblem) -> None:
        """As for :class:`Solver`."""
        ...

    def run(self, problem: BatchedProblem, x: Inputs, y: Tensor, solve_again: Run) -> Result:
        """The result; ``solve_again`` runs another solver: it is :func:`solve`, unless this one is being unrolled."""
        ...


def solve(solver: "Solver | Composite", problem: BatchedProblem, x: Inputs, y: Tensor) -> Result:
    """Returns the solution of each item, found by ``solver`` from the start ``y``.

    Differentiable if grad mode is on (:func:`unroll` is the way to do that inside transforms).

    Args:
        solver: An object of ``torchddn.solvers``.
        problem: The batched problem.
        x: Its inputs and parameters.
        y: Start, ``(B, m)``.

    Raises:
        InvalidInputError: If the solver cannot solve problems of this kind.

    Status:
        MAX_STEPS: The item was still running after ``max_steps`` steps of the solver.
        NON_FINITE: The start, or something evaluated there, is not finite.
    """
    solver.check(problem)
    if not len(y):
        none = torch.zeros(0, dtype=torch.int64, device=y.device)
        return Result(y, y.new_zeros(0, problem.p + problem.q), none, none)
    if isinstance(solver, Composite):
        return solver.run(problem, x, y, solve)
    state, status, num_steps = iterate(solver, problem, x, y)
    y, dual = solver.finish(problem, x, state)
    proof = solver.prove(problem, x, state) if _is_prover(solver) else None
    return Result(y, dual, status, num_steps, proof)


def iterate(solver: Method, problem: Batch, x: Inputs, y: Tensor) -> tuple[State, Tensor, Tensor]:
    """The loop: the last state of each item, its status and its number of steps, from the start ``y``.

    The problem may be of any kind that the solver knows, if a part of it can be taken.
    """
    everything = state = solver.init(problem, x, y)
    status = solver.status(problem, x, state)
    num_steps = torch.zeros_like(status)
    items = torch.arange(len(y), device=y.device)
    part, part_x = problem, x
    has_kernels = isinstance(problem, BatchedProblem) and is_fused(problem)
    trusting = solver if has_kernels and _is_trusting(solver) else None
    # A kernel takes one number of items, and for small ones a step without it costs more than items that have stopped.
    keeps_whole = has_kernels and len(y) * y.shape[1] ** 2 <= _SMALL
    num_running = int((status == RUNNING).sum())
    for _ in range(solver.max_steps):
        if not num_running:
            break
        if 2 * num_running <= len(items) and not keeps_whole:
            # Most of the work is for items that have stopped: go on with the others alone.
            everything = _write(everything, items, state)
            items = items[status[items] == RUNNING]
            state = _take(everything, items)
            part, part_x = problem.select(x, items)
        if trusting is not None and isinstance(part, BatchedProblem) and part is problem:
            *moved, counts = _advance(part, trusting, x, state, status, num_steps)
            num_left, num_distrusted = counts.tolist()
            if not num_distrusted:
                (state, status, num_steps), num_running = moved, num_left
                continue
        running = status[items] == RUNNING
        state_next = solver.step(part, part_x, state)
        state = state_next if num_running == len(items) else freeze(running, state_next, state)
        num_steps = num_steps.index_add(0, items, running.long())
        judged = torch.where(running, solver.status(part, part_x, state), status[items])
        status = status.index_copy(0, items, judged)
        num_running = int((judged == RUNNING).sum())
    return _write(everything, items, state), _final(status), num_steps


@fused
def _advance(
    problem: BatchedProblem, solver: Trusting, x: Inputs, state: State, status: Tensor, num_steps: Tensor
) -> tuple[State, Tensor, Tensor, Tensor]:
    """State, status and number of steps after one step of the items that run.

    Also how many still run after it, and of how many it is not to be trusted.
    """
    running = status == RUNNING
    state_next, is_trusted = solver.trusting_step(problem, x, state)
    state = freeze(running, state_next, state)
    status = torch.where(running, solver.status(problem, x, state), status)
    counts = torch.stack([(status == RUNNING).sum(), (running & ~is_trusted).sum()])
    return state, status, num_steps + running.long(), counts


def unroll(
    solver: "Solver | Composite", problem: BatchedProblem, x: Inputs, y: Tensor, num_steps: int | None = None
) -> tuple[Tensor, Tensor]:
    """Returns ``y`` and ``dual`` after exactly ``num_steps`` differentiable steps (None: the solver's ``max_steps``).

    Nothing is read, so it runs inside ``torch.func`` transforms, and nothing is frozen. An item that has converged
    goes on: its further steps move it by rounding errors only, and each brings the derivative closer to that of
    the solution. (Solvers see to that in their steps, where they could not tell rounding from progress.)

    Raises:
        InvalidInputError: If the solver cannot solve problems of this kind, or has no steps to differentiate.
    """
    result = _unroll(solver, problem, x, y, num_steps=num_steps)
    return result.y, result.dual


def _unroll(
    solver: "Solver | Composite", problem: BatchedProblem, x: Inputs, y: Tensor, num_steps: int | None
) -> Result:
    solver.check(problem)
    if isinstance(solver, Composite):
        return solver.run(problem, x, y, functools.partial(_unroll, num_steps=num_steps))
    state = solver.init(problem, x, y)
    status = solver.status(problem, x, state)
    count = solver.max_steps if num_steps is None else num_steps
    for _ in range(count):
        state = solver.step(problem, x, state)
        status = torch.where(status == RUNNING, solver.status(problem, x, state), status)
    y, dual = solver.finish(problem, x, state)
    return Result(y, dual, _final(status), torch.full_like(status, count))


def is_solver(candidate: object) -> "TypeGuard[Solver | Composite]":
    """Whether an object (not a class) has the methods of a solver."""
    return not isinstance(candidate, type) and isinstance(candidate, (Solver, Composite))


# One method tells: to look for every method of a protocol takes as long as several operations of torch.
def _is_prover(solver: object) -> "TypeGuard[Prover]":
    return hasattr(solver, "prove")


def _is_trusting(solver: object) -> "TypeGuard[Trusting]":
    return hasattr(solver, "trusting_step")


def is_differentiated() -> bool:
    """Whether the steps now running may be differentiated, so that they must carry derivatives."""
    return torch.is_grad_enabled() or inside_transform()


def _final(status: Tensor) -> Tensor:
    return torch.where(status == RUNNING, int(Status.MAX_STEPS), status)


def freeze(running: Tensor, state_next: _Tree, state: _Tree) -> _Tree:
    """``state_next`` for the items that run, ``state`` for the others."""
    return _map(lambda new, old: torch.where(running.reshape(-1, *[1] * (new.dim() - 1)), new, old), state_next, state)


def _take(state: _Tree, items: Tensor) -> _Tree:
    return _map(lambda leaf: leaf[items], state)


def _write(everything: _Tree, items: Tensor, state: _Tree) -> _Tree:
    """``everything`` with the rows of ``items``, distinct and ascending, replaced by those of ``state``."""
    return _map(
        lambda whole, rows: rows if len(rows) == len(whole) else whole.index_copy(0, items, rows), everything, state
    )


def _map(function: Callable[..., Tensor], *trees: Any) -> Any:
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    return type(first)(*(_map(function, *leaves) for leaves in zip(*trees, strict=True)))
