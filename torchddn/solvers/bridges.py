"""Solvers of other libraries, one call per item, with exact derivatives."""

import concurrent.futures
import dataclasses
import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchddn.derivatives import hessian, jacobian, value_and_gradient, vjp
from torchddn.errors import InvalidInputError
from torchddn.multipliers import estimate_multipliers
from torchddn.problem import BatchedProblem
from torchddn.solvers.base import Inputs, Result, Run, solve
from torchddn.solvers.options import check_choice, check_count, check_number, check_suits, far
from torchddn.solvers.vectors import largest
from torchddn.status import Status

__all__ = ["Ipopt", "SciPy"]

_USE_HESSIAN = ("Newton-CG", "trust-exact", "trust-ncg", "trust-constr")
_CONSTRAINED = ("SLSQP", "trust-constr")
_BOUNDED = ("L-BFGS-B", "TNC", *_CONSTRAINED)
_MINIMIZE = ("BFGS", "CG", *_BOUNDED, *_USE_HESSIAN[:-1])
_USE_JACOBIAN = ("hybr", "lm")
_ROOT = (*_USE_JACOBIAN, "anderson", "broyden1", "df-sane", "krylov")


@dataclasses.dataclass(frozen=True)
class SciPy:
    """``scipy.optimize.minimize`` or ``scipy.optimize.root``, item by item.

    For methods that this library lacks and as an independent check of those that it has: it is slow, since every item
    is solved by itself on the CPU. Gradients, Jacobians and, where the method takes them, Hessians are exact.
    Multipliers are the method's own where it returns them, else estimated from the answer by least squares.

    Args:
        method: ``"BFGS"``, ``"CG"``, ``"Newton-CG"``, ``"trust-exact"``, ``"trust-ncg"`` for minimization;
            ``"L-BFGS-B"``, ``"TNC"`` also with bounds; ``"SLSQP"``, ``"trust-constr"`` with constraints of every
            kind; ``"hybr"``, ``"lm"``, ``"anderson"``, ``"broyden1"``, ``"df-sane"``, ``"krylov"`` for roots and
            fixed points.
        rtol: SciPy's ``tol``; None for a value fitting the dtype.
        max_steps: SciPy's limit of iterations or, for ``"hybr"``, ``"lm"`` and ``"df-sane"``, of evaluations; None
            for the method's own.
        options: Further options of the method, as SciPy names them.
        num_workers: How many items are solved at a time, each in a thread; the answers are the same. Of use where an
            evaluation is long: short ones wait for Python, which runs one thread at a time.

    Raises:
        ImportError: If SciPy is not installed: ``pip install torchddn[convex]``.

    Status:
        CONVERGED: SciPy says so, or it gave up at a point whose gradient (residual) is rounding.
        INFEASIBLE: The answer violates the constraints, or the bounds leave nothing between them.
        UNBOUNDED: ``y`` went eps^-0.7 times the scale of the start away, or ``f`` is -infinity.
        MAX_STEPS, STALLED: SciPy gave up at its limit, or for another reason.

    References:
        https://docs.scipy.org/doc/scipy/reference/optimize.html
    """

    method: str = "L-BFGS-B"
    rtol: float | None = None
    max_steps: int | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_workers: int = 1

    def __post_init__(self) -> None:
        check_choice(self, "method", self.method, (*_MINIMIZE, *_ROOT))
        _check_options(self)
        check_count(self, "num_workers", self.num_workers)
        _scipy()

    def check(self, problem: BatchedProblem) -> None:
        kinds = ("minimize",) if self.method in _MINIMIZE else ("root", "fixed_point")
        constrained = self.method in _CONSTRAINED
        bounded = self.method in _BOUNDED
        check_suits(self, problem, kinds=kinds, equality=constrained, inequality=constrained, bounds=bounded)

    def run(self, problem: BatchedProblem, x: Inputs, y: Tensor, solve_again: Run) -> Result:
        _refuse_unrolling(self, problem, solve_again)
        call = _minimize if problem.kind == "minimize" else _root
        return _solve_items(functools.partial(call, self), problem, x, y, self.num_workers)


@dataclasses.dataclass(frozen=True)
class Ipopt:
    """Ipopt, an interior-point method for nonlinear programs, through ``cyipopt``, item by item.

    The reference among solvers with constraints of every kind, as an independent check of ``InteriorPoint``. Gradients,
    Jacobians and the Lagrangian's Hessian are exact (and dense); multipliers are Ipopt's. The items are solved one
    after the other, since the linear solvers that Ipopt uses cannot run in several threads.

    Args:
        rtol: Ipopt's ``tol``; None for a value fitting the dtype.
        max_steps: Ipopt's ``max_iter``; None for its own, 3000.
        options: Further options, as Ipopt names them.

    Raises:
        ImportError: If cyipopt is not installed: ``pip install cyipopt``.

    Status:
        CONVERGED: Ipopt says so, or it gave up at a point whose gradient is rounding.
        INFEASIBLE, UNBOUNDED, MAX_STEPS: Ipopt says so; also INFEASIBLE where the answer violates the constraints.
        STALLED: Ipopt gave up for another reason.

    References:
        Waechter, Biegler, On the implementation of an interior-point filter line-search algorithm for large-scale
        nonlinear programming, 2006. https://coin-or.github.io/Ipopt
    """

    rtol: float | None = None
    max_steps: int | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_options(self)
        _cyipopt()

    def check(self, problem: BatchedProblem) -> None:
        check_suits(self, problem, kinds=("minimize",), equality=True, inequality=True, bounds=True)

    def run(self, problem: BatchedProblem, x: Inputs, y: Tensor, solve_again: Run) -> Result:
        _refuse_unrolling(self, problem, solve_again)
        return _solve_items(functools.partial(_ipopt, self), problem, x, y, num_workers=1)


class _Answer(NamedTuple):
    """What a library found for one item."""

    y: np.ndarray
    claim: int  # a Status
    num_steps: int
    dual: np.ndarray | None = None  # None: to be estimated


@dataclasses.dataclass(frozen=True)
class _Item:
    """A batch of one as functions of NumPy vectors, float64 whatever the dtype of the problem."""

    problem: BatchedProblem
    x: Inputs
    y_0: Tensor  # (1, m), inside the bounds

    @property
    def start(self) -> np.ndarray:
        return _array(self.y_0[0])

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        lower, upper = self.problem.bounds(self.x)
        return _array(lower[0]), _array(upper[0])

    def objective(self, at: np.ndarray) -> tuple[float, np.ndarray]:
        """``f`` and ``f_y``."""
        value, f_y = value_and_gradient(lambda y: self.problem.objective(y, self.x), self._tensor(at))
        return float(value), _array(f_y[0])

    def objective_hessian(self, at: np.ndarray) -> np.ndarray:
        return self.lagrangian_hessian(at, np.zeros(self.problem.p + self.problem.q))

    def constraints(self, at: np.ndarray) -> np.ndarray:
        """``h``, then ``g``."""
        return _array(self.problem.constraints(self._tensor(at), self.x)[0])

    def constraints_jacobian(self, at: np.ndarray) -> np.ndarray:
        return self._jacobian(lambda y: self.problem.constraints(y, self.x), at)

    def constraints_hessian(self, at: np.ndarray, dual: np.ndarray) -> np.ndarray:
        return self.lagrangian_hessian(at, dual, weight=0.0)

    def lagrangian_hessian(self, at: np.ndarray, dual: np.ndarray, weight: float = 1.0) -> np.ndarray:
        """Of ``weight f + dual.c``."""
        y = self._tensor(at)
        dual_row = torch.as_tensor(dual).to(y)

        def L(y: Tensor) -> Tensor:
            value = weight * self.problem.objective(y, self.x) if weight else torch.zeros_like(y[:, 0])
            return value + (dual_row * self.problem.constraints(y, self.x)).sum(-1) if dual.any() else value

        return _array(hessian(L, y, self.problem.work(self.x))[0])

    def residual(self, at: np.ndarray) -> np.ndarray:
        return _array(self.problem.residual(self._tensor(at), self.x)[0])

    def residual_jacobian(self, at: np.ndarray) -> np.ndarray:
        return self._jacobian(lambda y: self.problem.residual(y, self.x), at)

    def errors(self, at: np.ndarray) -> "_Errors":
        """How far from a solution a point is."""
        problem, x, y = self.problem, self.x, self._tensor(at)
        if problem.kind != "minimize":
            return _Errors(float(largest(problem.residual(y, x))), 0.0, 0.0, 0.0)
        f, f_y = value_and_gradient(lambda y: problem.objective(y, x), y)
        dual = estimate_multipliers(problem, y, x).detach()
        (pull,) = vjp(lambda y: problem.constraints(y, x), (y,), dual)
        c = problem.constraints(y, x)
        c = torch.cat([c[:, : problem.p].abs(), c[:, problem.p :]], dim=1)
        lower, upper = problem.bounds(x)
        # A slope that pushes against a bound is none; a step along it would end there.
        slope = torch.minimum(torch.maximum(f_y + pull, y - upper), y - lower)
        outside = torch.cat([c, lower - y, y - upper], dim=1).clamp(min=0.0)
        return _Errors(float(largest(slope)), float(largest(outside)), float(largest(f_y)), float(f))

    def _jacobian(self, function: Callable[[Tensor], Tensor], at: np.ndarray) -> np.ndarray:
        return _array(jacobian(function, self._tensor(at), self.problem.work(self.x))[0])

    def _tensor(self, at: np.ndarray) -> Tensor:
        return torch.as_tensor(at).to(self.y_0)[None]


class _Errors(NamedTuple):
    """Measures of a point: largest entries, and the objective."""

    slope: float  # of the Lagrangian's gradient along the bounds, or of the residual of a root
    violation: float
    steepness: float  # of the objective's gradient
    objective: float


def _solve_items(
    call: Callable[[_Item], _Answer], problem: BatchedProblem, x: Inputs, y: Tensor, num_workers: int
) -> Result:
    """One call for each item, ``num_workers`` at a time."""
    lower, upper = problem.bounds(x)
    crossed = (lower > upper).any(-1)
    y_0 = torch.where(crossed[:, None], y, torch.minimum(torch.maximum(y, lower), upper)).detach()
    # Grad mode and default device belong to a thread, and threads begin with torch's defaults.
    grad, device = torch.is_grad_enabled(), torch.get_default_device()

    def solve_item(i: int) -> _Answer:
        index = torch.tensor([i], device=y.device)
        item = _Item(*problem.select(x, index), y_0[i : i + 1])
        if crossed[i]:
            return _Answer(item.start, int(Status.INFEASIBLE), 0)
        with np.errstate(all="ignore"):
            return _judged(call, item)

    def work(i: int) -> _Answer:
        with torch.set_grad_enabled(grad), device:
            return solve_item(i)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a library says of an item's last digits; the status says what matters
        if min(num_workers, len(y)) <= 1:
            answers = [solve_item(i) for i in range(len(y))]
        else:
            with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
                answers = list(pool.map(work, range(len(y))))
    found = torch.as_tensor(np.stack([answer.y for answer in answers])).to(y)
    dual = estimate_multipliers(problem, found, x).detach()
    given = torch.tensor([answer.dual is not None for answer in answers], device=y.device)
    rows = [np.zeros(dual.shape[1]) if answer.dual is None else answer.dual for answer in answers]
    dual = torch.where(given[:, None], torch.as_tensor(np.stack(rows)).to(dual), dual)
    counts = [[answer.claim, answer.num_steps] for answer in answers]
    status, num_steps = torch.tensor(counts, dtype=torch.int64, device=y.device).unbind(1)
    return Result(found, dual, status, num_steps)


def _judged(call: Callable[[_Item], _Answer], item: _Item) -> _Answer:
    """The answer of a call, with a status that does not take the library's word for it."""
    first = item.errors(item.start)
    if not np.isfinite(first).all():
        return _Answer(item.start, int(Status.NON_FINITE), 0)
    try:
        answer = call(item)
    except np.linalg.LinAlgError:
        return _Answer(item.start, int(Status.STALLED), 0)
    return answer._replace(claim=int(_judge(item, answer, first)))


def _judge(item: _Item, answer: _Answer, first: _Errors) -> int:
    last = item.errors(answer.y)
    eps, claim = torch.finfo(item.y_0.dtype).eps, answer.claim
    if last.objective == -np.inf:
        return Status.UNBOUNDED
    if not np.isfinite([last.slope, last.violation]).all():
        return Status.NON_FINITE
    size, away = np.abs(answer.y).max(), far(item.y_0.dtype) * max(np.abs(item.start).max(), 1.0)
    if last.violation > eps**0.4 * max(first.violation, 1.0, size if size > away else 0.0):
        return Status.INFEASIBLE
    if claim in (Status.INFEASIBLE, Status.UNBOUNDED):
        return claim
    if item.problem.kind != "minimize":
        if last.slope > eps**0.4 * first.slope:
            return Status.STALLED  # a minimum of |F|, perhaps, and no root
    elif size > away:
        return Status.UNBOUNDED
    if last.slope <= eps**0.5 * max(first.slope, last.steepness):
        return Status.CONVERGED
    return claim


def _minimize(solver: SciPy, item: _Item) -> _Answer:
    optimize, problem, method = _scipy(), item.problem, solver.method
    more: dict[str, Any] = {}
    if problem.has_bounds:
        more["bounds"] = optimize.Bounds(*item.bounds)
    if method in _USE_HESSIAN:
        more["hess"] = item.objective_hessian
    if method == "SLSQP":
        more["constraints"] = _rows(item)
    elif method == "trust-constr" and problem.p + problem.q:
        below = np.r_[np.zeros(problem.p), np.full(problem.q, -np.inf)]
        more["constraints"] = optimize.NonlinearConstraint(
            item.constraints, below, 0.0, jac=item.constraints_jacobian, hess=item.constraints_hessian
        )
    options = _options(solver, "maxfun" if method == "TNC" else "maxiter")
    if method == "trust-constr" and problem.is_inequality_constrained:
        # It would stop at a small gradient of the Lagrangian, long before complementarity holds.
        options = {"gtol": 0.0, **options}
    tol = _tolerance(solver, item)
    found = optimize.minimize(item.objective, item.start, jac=True, method=method, tol=tol, options=options, **more)
    return _read(found, _multipliers(item, found))


def _rows(item: _Item) -> list[dict[str, Any]]:
    """The constraints as SLSQP wants them: ``h = 0`` and ``-g >= 0``."""
    p, q = item.problem.p, item.problem.q
    equalities = {
        "type": "eq",
        "fun": lambda at: item.constraints(at)[:p],
        "jac": lambda at: item.constraints_jacobian(at)[:p],
    }
    inequalities = {
        "type": "ineq",
        "fun": lambda at: -item.constraints(at)[p:],
        "jac": lambda at: -item.constraints_jacobian(at)[p:],
    }
    return [equalities] * bool(p) + [inequalities] * bool(q)


def _multipliers(item: _Item, found: Any) -> np.ndarray | None:
    """The multipliers that SciPy returns, in our sign; None if it returns none."""
    p, q = item.problem.p, item.problem.q
    if not p + q:
        return None
    if "v" in found:
        dual = np.array(found.v[0])
    elif "multipliers" in found:
        dual = np.r_[-found.multipliers[:p], found.multipliers[p : p + q]]  # L = f - nu.h - lam.(-g) is SciPy's
    else:
        return None
    dual[p:] = dual[p:].clip(min=0.0)
    return dual if np.isfinite(dual).all() else None


def _root(solver: SciPy, item: _Item) -> _Answer:
    more: dict[str, Any] = {"jac": item.residual_jacobian} if solver.method in _USE_JACOBIAN else {}
    options = _options(solver, {"hybr": "maxfev", "df-sane": "maxfev"}.get(solver.method, "maxiter"))
    tol = _tolerance(solver, item)
    found = _scipy().root(item.residual, item.start, method=solver.method, tol=tol, options=options, **more)
    return _read(found)


def _read(found: Any, dual: np.ndarray | None = None) -> _Answer:
    message = str(found.message).lower()
    claim = Status.MAX_STEPS if "maximum" in message or "limit" in message else Status.STALLED
    claim = Status.CONVERGED if found.success else claim
    return _Answer(np.asarray(found.x), int(claim), int(found.get("nit", found.get("nfev", 0))), dual)


def _ipopt(solver: Ipopt, item: _Item) -> _Answer:
    problem = item.problem
    lower, upper = item.bounds
    callbacks = _Callbacks(item)
    program = _cyipopt().Problem(
        n=problem.m,
        m=problem.p + problem.q,
        problem_obj=callbacks,
        lb=lower,
        ub=upper,
        cl=np.r_[np.zeros(problem.p), np.full(problem.q, -np.inf)],
        cu=np.zeros(problem.p + problem.q),
    )
    quiet = {"print_level": 0, "sb": "yes", "tol": _tolerance(solver, item)}
    for name, value in {**quiet, **_options(solver, "max_iter")}.items():
        program.add_option(name, value)
    y, info = program.solve(item.start)
    dual = np.array(info["mult_g"])
    dual[problem.p :] = dual[problem.p :].clip(min=0.0)
    return _Answer(np.asarray(y), int(_IPOPT.get(info["status"], Status.STALLED)), callbacks.num_steps, dual)


# Ipopt's return codes, where they mean something else than giving up.
_IPOPT = {0: Status.CONVERGED, 2: Status.INFEASIBLE, 4: Status.UNBOUNDED, -1: Status.MAX_STEPS}


class _Callbacks:
    """An item under the names that cyipopt calls."""

    def __init__(self, item: _Item) -> None:
        self.num_steps = 0
        self.constraints = item.constraints
        self.jacobian = item.constraints_jacobian
        self._item = item

    def objective(self, at: np.ndarray) -> float:
        return self._item.objective(at)[0]

    def gradient(self, at: np.ndarray) -> np.ndarray:
        return self._item.objective(at)[1]

    def hessianstructure(self) -> tuple[np.ndarray, np.ndarray]:
        return np.tril_indices(self._item.problem.m)

    def hessian(self, at: np.ndarray, dual: np.ndarray, weight: float) -> np.ndarray:
        return self._item.lagrangian_hessian(at, dual, weight)[self.hessianstructure()]

    def intermediate(self, mode: int, num_steps: int, *_: float) -> bool:
        self.num_steps = num_steps
        return True


def _check_options(solver: SciPy | Ipopt) -> None:
    name = type(solver).__name__
    if solver.rtol is not None:
        check_number(solver, "rtol", solver.rtol, strict=isinstance(solver, Ipopt))
    if solver.max_steps is not None:
        check_count(solver, "max_steps", solver.max_steps)
    if not isinstance(solver.options, Mapping):
        raise InvalidInputError(f"`{name}(options=...)` must be a dict of {name}'s options, got {solver.options!r}.")


def _refuse_unrolling(solver: SciPy | Ipopt, problem: BatchedProblem, solve_again: Run) -> None:
    if solve_again is not solve:
        raise InvalidInputError(
            f"`{problem.call}(adjoint=...)`: the steps of `{type(solver).__name__}` cannot be differentiated. Use "
            f"`Implicit()`."
        )


def _options(solver: SciPy | Ipopt, limit: str) -> dict[str, Any]:
    given = {} if solver.max_steps is None else {limit: solver.max_steps}
    return {**given, **solver.options}


def _tolerance(solver: SciPy | Ipopt, item: _Item) -> float:
    # The libraries compare it with changes of f, of which fewer digits can be had than of y.
    return torch.finfo(item.y_0.dtype).eps ** 0.6 if solver.rtol is None else solver.rtol


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


# Imported on use: they are extras, and take longer to import than this package.


def _scipy() -> Any:
    try:
        return importlib.import_module("scipy.optimize")
    except ImportError as error:
        raise ImportError("`SciPy` needs SciPy: pip install torchddn[convex].") from error


def _cyipopt() -> Any:
    try:
        return importlib.import_module("cyipopt")
    except ImportError as error:
        raise ImportError("`Ipopt` needs cyipopt: pip install cyipopt.") from error
