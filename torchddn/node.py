"""Nodes: a problem, a solver and an adjoint become a layer.

A solver knows nothing of gradients and an adjoint nothing of solvers; this file introduces them to each other,
checks what comes in at the door, and reports what went wrong.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchddn import optimality, solvers
from torchddn.active_set import ActiveSet
from torchddn.adjoint import Adjoint, Answer, Implicit
from torchddn.bounds import read_by_functions
from torchddn.compiler import uncompiled
from torchddn.diagnostics import forward_record, timed
from torchddn.door import START_WORDS, flat_start, prepare
from torchddn.errors import ConvergenceWarning, InvalidInputError
from torchddn.implicit import Found, Report
from torchddn.kernels import Kernels
from torchddn.multipliers import estimate_multipliers
from torchddn.problem import BatchedProblem, FixedPoint, Problem, Root, check_bounds, mend
from torchddn.status import PrimalDual, Solution, Status, check_failure_policy, report_failures
from torchddn.verification import check_answer, verify

__all__ = ["DeclarativeNode", "argmin", "fixed_point", "root"]


class DeclarativeNode(nn.Module):
    r"""A layer whose output is the solution of an optimization problem.

    ::

        y(x) = argmin_y f(y, x)   subject to   h(y, x) = 0,   g(y, x) <= 0,   lower(x) <= y <= upper(x)

    Args:
        problem: What the output must be, for one item.
        solver: ``"auto"``, a name or an object of ``torchddn.solvers``. With ``"auto"``, a problem that has its
            own ``solve`` is solved by it.
        adjoint: How to differentiate: ``Implicit()`` unless said otherwise.
        on_failure: ``"warn"`` of items that were not solved, ``"raise"``, set them to ``"nan"``, or ``"ignore"``.
        compile: Make kernels of the steps that every call repeats: values and derivatives of the problem, a Newton
            step, the linear solve of the gradient with its certificate. The first ten calls take seconds to a minute
            more, later ones a half to a sixth of the time where problems are small. There is one set of kernels for
            each shape of the inputs. Where there is no C++ compiler the operations are only recorded and replayed; what
            cannot be recorded runs as it is, with a :class:`CompileWarning`.

    Raises:
        InvalidInputError: If an option is unknown; on a call, if the inputs do not fit (see :meth:`forward`).

    Note:
        A compiled node must be a function: of its inputs, its parameters and other tensors that require gradients, and
        of the numbers, flags and tensors that its functions name or close over. When one of the latter changes, kernels
        are made anew. What changes inside other objects is not seen.

    Example:
        >>> class SphereProjection(Problem):
        ...     def objective(self, y, x):
        ...         return 0.5 * (y - x).square().sum()
        ...     def equality(self, y, x):
        ...         return y.square().sum() - 1.0
        ...     def initial(self, x):
        ...         return x
        >>> node = DeclarativeNode(SphereProjection())
        >>> node(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    def __init__(
        self,
        problem: Problem,
        *,
        solver: Any = "auto",
        adjoint: Adjoint | None = None,
        on_failure: str = "warn",
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(problem, Problem):
            raise InvalidInputError(
                f"`DeclarativeNode(problem=...)` must be a `torchddn.Problem` object, got {problem!r}. Functions "
                f"become one with `Problem.from_functions`."
            )
        self.problem = problem
        self.solver = _check_solver("DeclarativeNode", solver)
        self.adjoint = _check_adjoint("DeclarativeNode", adjoint)
        check_failure_policy("DeclarativeNode", on_failure)
        self.on_failure = on_failure
        if not isinstance(compile, bool):
            raise InvalidInputError(f"`DeclarativeNode(compile=...)` must be True or False, got {compile!r}.")
        self._kernels = Kernels("DeclarativeNode") if compile else None

    @uncompiled
    def forward(self, *x: Any) -> Any:
        """Returns ``y``, differentiable in ``x`` and in the parameters of the problem.

        Args:
            *x: As the functions of the problem take them, each tensor with one leading batch axis ``(B, ...)``;
                trees of tensors are allowed.

        Returns:
            The decision, structured as ``initial`` is, each tensor ``(B, ...)``.

        Raises:
            InvalidInputError: If a tensor is missing its batch axis, is integer or complex, differs in dtype,
                device or batch size from the others, or if no item of it is finite.
        """
        return self._run(x, everything=False)

    @uncompiled
    def solve(self, *x: Any) -> Solution:
        """Returns everything that is known about the solution; arguments as for :meth:`forward`."""
        return self._run(x, everything=True)

    def _run(self, x: tuple[Any, ...], everything: bool) -> Any:
        call = f"DeclarativeNode({type(self.problem).__name__})"
        return _run(
            call, self.problem, x, self.solver, self.adjoint, self.on_failure, "auto", everything, self._kernels
        )

    def extra_repr(self) -> str:
        """The options, for ``print(node)``."""
        options = f"solver={self.solver!r}, adjoint={self.adjoint!r}, on_failure={self.on_failure!r}"
        return options if self._kernels is None else f"{options}, compile=True"


@uncompiled
def argmin(
    f: Callable[..., Tensor],
    y0: Any,
    *x: Any,
    equality: Callable[..., Tensor] | None = None,
    inequality: Callable[..., Tensor] | None = None,
    bounds: Any = None,
    solver: Any = "auto",
    adjoint: Adjoint | None = None,
    on_failure: str = "warn",
    start: str = "auto",
    solution: bool = False,
) -> Any:
    r"""Returns ``argmin_y f(y, *x)`` subject to constraints, differentiable in ``x``.

    ::

        y(x) = argmin_y f(y, x)   subject to   h(y, x) = 0,   g(y, x) <= 0,   lower(x) <= y <= upper(x)

    The functional twin of :class:`DeclarativeNode`. Differentiable tensors and modules that the functions
    close over receive gradients too.

    Args:
        f: Objective of ONE item: ``f(y, *x)`` is a scalar.
        y0: Start: a tensor or tree of tensors with one item's shape, shared by the batch, or with a leading
            batch axis.
        *x: Inputs, each tensor with a leading batch axis.
        equality: ``h(y, *x)``, a scalar or ``(p,)``.
        inequality: ``g(y, *x)``, a scalar or ``(q,)``, not positive at a feasible point.
        bounds: ``(lower, upper)`` limits of ``y``, or a function of one item's ``*x`` that returns them: each None, a
            number, a tensor, or a tree as ``y`` is. Tensors broadcast to one item's ``y`` or have the batch axis.
        solver: As for :class:`DeclarativeNode`.
        adjoint: As for :class:`DeclarativeNode`.
        on_failure: As for :class:`DeclarativeNode`.
        start: Whether ``y0`` is one ``"item"``'s start or a ``"batch"`` of them. ``"auto"`` decides by shape;
            where its first axis happens to equal the batch size, by which reading the functions accept, and if
            they accept both, a vector is one item's start and anything else a batch.
        solution: Return a :class:`Solution` instead of ``y``.

    Raises:
        InvalidInputError: As :class:`DeclarativeNode`.

    Example:
        >>> x = torch.tensor([[3.0], [4.0]], requires_grad=True)
        >>> y = argmin(lambda y, x: ((y.square() - x).square()).sum(), torch.ones(1), x)
        >>> torch.autograd.grad(y.sum(), x)[0]  # 1 / (2 sqrt(x))
        tensor([[0.2887],
                [0.2500]])
    """
    problem = _function_problem("argmin", f, equality, inequality, bounds, y0)
    return _call("argmin", problem, x, solver, adjoint, on_failure, start, solution)


@uncompiled
def root(
    F: Callable[..., Any],
    y0: Any,
    *x: Any,
    solver: Any = "auto",
    adjoint: Adjoint | None = None,
    on_failure: str = "warn",
    start: str = "auto",
    solution: bool = False,
) -> Any:
    """Returns ``y`` with ``F(y, *x) = 0``, differentiable in ``x``.

    Args:
        F: Equations of ONE item, shaped and structured as ``y``.
        y0: As for :func:`argmin`.
        *x: As for :func:`argmin`.
        solver: As for :func:`argmin`.
        adjoint: As for :func:`argmin`.
        on_failure: As for :func:`argmin`.
        start: As for :func:`argmin`.
        solution: As for :func:`argmin`.

    Raises:
        InvalidInputError: As :class:`DeclarativeNode`.

    Gradients:
        ``dy = -F_y^-1 F_x dx``. Where ``F_y`` is singular, as the adjoint says.

    Example:
        >>> root(lambda y, x: y**3 + y - x, torch.zeros(()), torch.tensor([2.0, 10.0]))
        tensor([1., 2.])
    """
    _check_function("root", "F", F)
    return _call("root", Root(F, y0), x, solver, adjoint, on_failure, start, solution)


@uncompiled
def fixed_point(
    T: Callable[..., Any],
    y0: Any,
    *x: Any,
    solver: Any = "auto",
    adjoint: Adjoint | None = None,
    on_failure: str = "warn",
    start: str = "auto",
    solution: bool = False,
) -> Any:
    """Returns ``y`` with ``y = T(y, *x)``, differentiable in ``x`` and in the parameters of ``T``.

    Args:
        T: Map of ONE item, shaped and structured as ``y``; an ``nn.Module`` or any function.
        y0: As for :func:`argmin`.
        *x: As for :func:`argmin`.
        solver: As for :func:`argmin`.
        adjoint: As for :func:`argmin`.
        on_failure: As for :func:`argmin`.
        start: As for :func:`argmin`.
        solution: As for :func:`argmin`.

    Raises:
        InvalidInputError: As :class:`DeclarativeNode`.

    Gradients:
        ``dy = (I - T_y)^-1 T_x dx``: exact whichever way the point was found.

    Example:
        >>> fixed_point(lambda y, x: torch.cos(y) * x, torch.zeros(()), torch.ones(1))
        tensor([0.7391])

    References:
        Bai, Kolter, Koltun, Deep Equilibrium Models, 2019.
    """
    _check_function("fixed_point", "T", T)
    return _call("fixed_point", FixedPoint(T, y0), x, solver, adjoint, on_failure, start, solution)


def _call(
    call: str,
    problem: Problem,
    x: tuple[Any, ...],
    solver: Any,
    adjoint: Adjoint | None,
    on_failure: str,
    start: str,
    solution: bool,
) -> Any:
    if start not in START_WORDS:
        raise InvalidInputError(f"`{call}(start=...)` must be 'auto', 'item' or 'batch', got {start!r}.")
    if not isinstance(solution, bool):
        raise InvalidInputError(f"`{call}(solution=...)` must be True or False, got {solution!r}.")
    check_failure_policy(call, on_failure)
    solver, adjoint = _check_solver(call, solver), _check_adjoint(call, adjoint)
    return _run(call, problem, x, solver, adjoint, on_failure, start, solution)


def _run(
    call: str,
    problem: Problem,
    inputs: tuple[Any, ...],
    solver: Any,
    adjoint: Adjoint,
    on_failure: str,
    start: str,
    everything: bool,
    kernels: Kernels | None = None,
) -> Any:
    """A :class:`Solution` if ``everything`` is asked for, else ``y``."""
    with _full_precision():
        batched, x, dtype, own_answer = prepare(call, problem, inputs, start, kernels)
        forward = _Forward(call, on_failure, solver, own_answer)
        poison = on_failure == "nan"
        answer = adjoint.answer(batched, forward, x, poison) if batched.size else _empty_answer(batched, x)
        if everything:
            return _solution(batched, answer, x, forward, dtype)
        return batched.layout.unflatten(answer.y.to(dtype))


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Leaves autocast and inference mode: solvers need every digit, and their derivatives need autograd."""
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


class _Forward:
    """The forward pass of one call: checks what is finite, solves, measures, reports."""

    def __init__(self, call: str, on_failure: str, solver: Any, own_answer: Any) -> None:
        self.own_answer = own_answer
        self.call = call
        self.on_failure = on_failure
        self.solver = solver
        self.all_sound = True
        self.name = "none"

    def solve(self, problem: BatchedProblem, x: Sequence[Tensor]) -> Found:
        """Answer, active set, soundness and report; see ``implicit.Forward``."""
        with torch.no_grad(), timed() as file:
            sound = self._check_finite(problem, x)
            mended = x if self.all_sound else problem.mend(x, sound)
            y, dual, active, status, num_steps, notes, measures = self._answer(problem, mended)
            is_proven = measures is not None and self.all_sound
            if measures is None:
                held = None if active is None else active.held(problem)
                measures = optimality.measure(problem, y, dual, mended, held)
                scale = torch.maximum(y.abs().amax(-1), mended[-1].abs().amax(-1))
                irregular = optimality.is_irregular(problem, y, dual, mended, scale) & (status == Status.CONVERGED)
                status = torch.where(irregular, int(Status.STALLED), status)
            if not is_proven:  # of which every item is right
                status = torch.where(sound, status, int(Status.NON_FINITE))
                measures = optimality.Measures(*(torch.where(sound, part, torch.nan) for part in measures))
                sound = sound & y.isfinite().all(-1) & dual.isfinite().all(-1)
                if self.on_failure == "nan":
                    sound = sound & (status == Status.CONVERGED)
                y, dual = (torch.where(sound[:, None], part, torch.nan) for part in (y, dual))
                self.all_sound = self.all_sound and bool(sound.all())
            objective, *errors = measures
            report = Report(objective, status, num_steps, *errors)
            residual = torch.stack(errors).amax(0)
            report_failures(self.call, status, residual, self.on_failure)
            file(partial(forward_record, self.call, self.name, status, num_steps, residual, notes=notes))
        return Found(y, dual, active, sound, report)

    def unroll(
        self, problem: BatchedProblem, x: Sequence[Tensor], y: Tensor | None, num_steps: int | None
    ) -> tuple[Tensor, Tensor]:
        """Differentiable steps; see ``implicit.Forward``."""
        solver = self._chosen(problem)
        if solver is None:
            raise InvalidInputError(
                f"`{self.call}(adjoint=...)`: the problem brings its own `solve`, whose steps are not known. Use "
                f"`Implicit()`, or name a solver."
            )
        return solvers.unroll(solver, problem, x, x[-1] if y is None else y, num_steps)

    def _chosen(self, problem: BatchedProblem) -> Any:
        """The solver, or None for the problem's own."""
        if self.solver == "auto" and problem.template.function("solve") is not None:
            self.name = "solve"
            return None
        solver = solvers.choose(problem) if self.solver == "auto" else self.solver
        self.name = getattr(solver, "name", type(solver).__name__)
        return solver

    def _answer(
        self, problem: BatchedProblem, x: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, ActiveSet | None, Tensor, Tensor, tuple[str, ...], optimality.Measures | None]:
        """Answer, multipliers, active set, status, steps, notes, and measures if they are known already."""
        solver = self._chosen(problem)
        if solver is not None:
            y, dual, status, num_steps, proof = solvers.solve(solver, problem, x, x[-1])
            if proof is not None:
                return y, dual, proof.active, status, num_steps, (), proof.measures
            verified = getattr(solver, "finds_minima", False) and not problem.is_inequality_constrained
        else:
            y, dual = self._own_answer(problem, x)
            status, num_steps = check_answer(problem, y, dual, x), torch.zeros_like(y[:, 0], dtype=torch.int64)
            verified = False
        if verified or problem.kind != "minimize":
            return y, dual, None, status, num_steps, (), None
        found = verify(problem, y, dual, x, status, exact=solver is None)
        notes = self._report_move(found.moved)
        return found.y, found.dual, found.active, found.status, num_steps, notes, None

    def _own_answer(self, problem: BatchedProblem, x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What the problem's own ``solve`` returns, with its multipliers or those that fit best."""
        y, answer = x[-1], self.own_answer  # without `initial`, the door has already solved to see the shape of y
        if answer is None:
            answer = problem.solve(x)
            layout, y = flat_start(problem, answer.y if isinstance(answer, PrimalDual) else answer)
            if layout.shapes != problem.layout.shapes:
                raise InvalidInputError(
                    f"`{self.call}`: `solve` returned items of shapes {[tuple(s) for s in layout.shapes]}, `initial` "
                    f"says {[tuple(s) for s in problem.layout.shapes]}."
                )
        dual = _stack(self.call, problem, answer) if isinstance(answer, PrimalDual) else None
        return y, estimate_multipliers(problem, y, x) if dual is None else dual.to(y)

    def _report_move(self, moved: Tensor) -> tuple[str, ...]:
        """A note, and a warning, if polishing had to move an answer farther than an answer may be wrong."""
        far = moved > torch.finfo(moved.dtype).eps ** 0.2
        if not bool(far.any()):
            return ()
        items = torch.nonzero(far).flatten().tolist()
        note = (
            f"polishing moved {len(items)} of {len(moved)} items by up to {moved[far].max().item():.1e} of their size "
            f"(items {', '.join(map(str, items[:8]))}{', ...' * (len(items) > 8)})"
        )
        if self.on_failure == "warn":
            warnings.warn(
                f"`{self.call}`: {note}: the solver's answer was farther from the solution than its tolerance says. "
                f"What is returned is the polished one. Tighten `rtol`.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return (note,)

    def _limits(self, problem: BatchedProblem, x: Sequence[Tensor]) -> list[bool]:
        """Which inputs only say how far ``y`` may go: an infinite one is no limit, but not an error."""
        if not problem.has_bounds:
            return [False] * len(x)
        data, limits = x[:-3], x[-3:-1]
        if not data or bool(torch.stack([tensor.isfinite().all() for tensor in data]).all()):
            return [*(False for _ in data), *(True for _ in limits), False]
        return [*(not used for used in read_by_functions(problem, x)[: len(data)]), *(True for _ in limits), False]

    def _check_finite(self, problem: BatchedProblem, x: Sequence[Tensor]) -> Tensor:
        """Which items have finite inputs; raises if none has, or if something shared is not finite."""
        sound = torch.ones(problem.size, dtype=torch.bool, device=x[-1].device)
        shared = torch.ones((), dtype=torch.bool, device=x[-1].device)
        given = x if problem.template.function("initial") is not None else x[:-1]  # else it is what `solve` found
        may_be_infinite = self._limits(problem, x)
        for tensor, batched, is_limit in zip(given, problem.batched, may_be_infinite, strict=False):
            finite = ~tensor.isnan() if is_limit else tensor.isfinite()
            if batched:
                sound = sound & finite.reshape(problem.size, -1).all(1)
            else:
                shared = shared & finite.all()
        all_sound, any_sound, shared_sound = torch.stack([sound.all(), sound.any(), shared]).tolist()
        if not shared_sound:
            raise InvalidInputError(
                f"`{self.call}`: a tensor that all items share (a parameter or a captured tensor) is not finite. "
                f"Look for a diverged training step or an uninitialized parameter."
            )
        if not any_sound or (self.on_failure == "raise" and not all_sound):
            items = torch.nonzero(~sound).flatten().tolist()
            raise InvalidInputError(
                f"`{self.call}`: the input or start of item{'s' * (len(items) > 1)} {', '.join(map(str, items[:8]))} "
                f"is not finite (NaN or infinite). Filter such items, or mask their data."
            )
        self.all_sound = self.all_sound and all_sound
        return sound


def _stack(call: str, problem: BatchedProblem, answer: PrimalDual) -> Tensor | None:
    """The multipliers that came with an answer, ``(B, p + q)``; None if some are missing."""
    parts = []
    for name, size in (("equality_multipliers", problem.p), ("inequality_multipliers", problem.q)):
        part = getattr(answer, name)
        if part is None and size:
            return None
        if size:
            if not isinstance(part, Tensor) or part.shape != (problem.size, size):
                raise InvalidInputError(
                    f"`{call}`: `solve` returned `{name}` of shape "
                    f"{tuple(part.shape) if isinstance(part, Tensor) else part!r}, expected {(problem.size, size)}."
                )
            parts.append(part)
    return torch.cat(parts, dim=1) if parts else None


def _empty_answer(batched: BatchedProblem, x: Sequence[Tensor]) -> Answer:
    """No items: empty tensors that still hang on the graph of every input."""
    anchor = sum(tensor.sum() * 0.0 for tensor in x)
    like = x[0]
    y = like.new_zeros(0, batched.m) + anchor
    empty = like.new_zeros(0)
    counts = torch.zeros(0, dtype=torch.int64, device=like.device)
    report = Report(empty, counts, counts, empty, empty, empty)
    active = ActiveSet(*(counts.new_zeros(0, size, dtype=torch.int8) for size in (batched.q, batched.m, batched.m)))
    return Answer(y, like.new_zeros(0, batched.p + batched.q) + anchor, active, counts > 0, report)


def _solution(
    batched: BatchedProblem, answer: Answer, x: Sequence[Tensor], forward: _Forward, dtype: torch.dtype
) -> Solution:
    y, dual, _, _, report = answer
    nu, lam = dual[:, : batched.p].to(dtype), dual[:, batched.p :].to(dtype)
    lower, upper = _bound_multipliers(batched, answer, x, dtype)
    declares = batched.template.function
    return Solution(
        y=batched.layout.unflatten(y.to(dtype)),
        equality_multipliers=nu if declares("equality") is not None else None,
        inequality_multipliers=lam if declares("inequality") is not None else None,
        lower_multipliers=lower,
        upper_multipliers=upper,
        objective=report.objective.to(dtype),
        status=report.status,
        num_steps=report.num_steps,
        stationarity=report.stationarity.to(dtype),
        feasibility=report.feasibility.to(dtype),
        complementarity=report.complementarity.to(dtype),
        solver=forward.name,
    )


def _bound_multipliers(
    batched: BatchedProblem, answer: Answer, x: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    y, dual, active, sound, _ = answer
    if not batched.has_bounds or active is None:
        return None, None
    if not batched.size:
        return y, y
    held = active.held(batched)
    y, dual, x = mend(y, sound), mend(dual, sound), batched.mend(x, sound)
    # They are a gradient, which must not leave a graph behind where nothing asks for one.
    with torch.set_grad_enabled(torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (y, dual, *x))):
        pair = optimality.bound_multipliers(batched, y, dual, x, held)
    lower, upper = (torch.where(sound[:, None], part, torch.nan).to(dtype) for part in pair)
    return lower, upper


def _function_problem(call: str, f: Any, equality: Any, inequality: Any, bounds: Any, y0: Any) -> Problem:
    if f is not None:
        _check_function(call, "f", f)
    for name, function in (("equality", equality), ("inequality", inequality)):
        if function is not None:
            _check_function(call, name, function)
    check_bounds(call, bounds)
    return Problem.from_functions(f, equality, inequality, bounds, y0)


def _check_function(call: str, name: str, function: object) -> None:
    if not callable(function):
        raise InvalidInputError(f"`{call}({name}=...)` must be a function of (y, *x), got {function!r}.")


def _check_solver(call: str, solver: Any) -> Any:
    return solver if isinstance(solver, str) and solver == "auto" else solvers.get(solver)


def _check_adjoint(call: str, adjoint: Any) -> Adjoint:
    if adjoint is None:
        return Implicit()
    if isinstance(adjoint, type) or not hasattr(adjoint, "answer"):
        raise InvalidInputError(
            f"`{call}(adjoint=...)` must be an adjoint such as `torchddn.Implicit()`, `Unrolled()`, `OneStep()` or "
            f"`IgnoreConstraints()`, got {adjoint!r}."
        )
    return adjoint
