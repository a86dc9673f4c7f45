"""Solvers of other libraries, one call per item, with exact derivatives."""

import dataclasses
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchddn.derivatives import gradient, hessian, jacobian, value_and_gradient, vjp
from torchddn.errors import InvalidInputError
from torchddn.problem import BatchedProblem
from torchddn.solvers.base import Inputs, Result, Run, solve
from torchddn.solvers.newton import estimate_multipliers
from torchddn.solvers.options import check_choice, check_count, check_number, check_suits
from torchddn.solvers.vectors import largest
from torchddn.status import Status

__all__ = ["SciPy"]

_USE_HESSIAN = ("Newton-CG", "trust-exact", "trust-ncg", "trust-constr")
_CONSTRAINED = ("SLSQP", "trust-constr")
_MINIMIZE = ("BFGS", "CG", "L-BFGS-B", "TNC", *_CONSTRAINED, *_USE_HESSIAN[:-1])
_USE_JACOBIAN = ("hybr", "lm")
_ROOT = (*_USE_JACOBIAN, "anderson", "broyden1", "df-sane", "krylov")


@dataclasses.dataclass(frozen=True)
class SciPy:
    """``scipy.optimize.minimize`` or ``scipy.optimize.root``, item by item.

    For methods that this library lacks and as an independent check of those that it has: it is slow, since the items
    are solved one after the other on the CPU. Gradients, Jacobians and, where the method takes them, Hessians are
    exact. Multipliers are estimated from the answer by least squares.

    Args:
        method: ``"BFGS"``, ``"CG"``, ``"L-BFGS-B"``, ``"TNC"``, ``"Newton-CG"``, ``"trust-exact"``, ``"trust-ncg"``
            for minimization; ``"SLSQP"``, ``"trust-constr"`` also with equalities; ``"hybr"``, ``"lm"``,
            ``"anderson"``, ``"broyden1"``, ``"df-sane"``, ``"krylov"`` for roots and fixed points.
        rtol: SciPy's ``tol``; None for a value fitting the dtype.
        max_steps: SciPy's limit of iterations or, for ``"hybr"``, ``"lm"`` and ``"df-sane"``, of evaluations; None
            for the method's own.
        options: Further options of the method, as SciPy names them.

    Raises:
        ImportError: If SciPy is not installed: ``pip install torchddn[convex]``.

    Status:
        CONVERGED: SciPy says so, or it gave up at a point whose gradient (residual) is rounding.
        INFEASIBLE: The answer violates the constraints.
        MAX_STEPS, STALLED: SciPy gave up at its limit, or for another reason.

    References:
        https://docs.scipy.org/doc/scipy/reference/optimize.html
    """

    method: str = "L-BFGS-B"
    rtol: float | None = None
    max_steps: int | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice(self, "method", self.method, (*_MINIMIZE, *_ROOT))
        if self.rtol is not None:
            check_number(self, "rtol", self.rtol)
        if self.max_steps is not None:
            check_count(self, "max_steps", self.max_steps)
        if not isinstance(self.options, Mapping):
            raise InvalidInputError(f"`SciPy(options=...)` must be a dict of SciPy's options, got {self.options!r}.")
        _scipy()

    def check(self, problem: BatchedProblem) -> None:
        kinds = ("minimize",) if self.method in _MINIMIZE else ("root", "fixed_point")
        check_suits(self, problem, kinds=kinds, constrained=self.method in _CONSTRAINED)

    def run(self, problem: BatchedProblem, x: Inputs, y: Tensor, solve_again: Run) -> Result:
        if solve_again is not solve:
            raise InvalidInputError(
                f"`{problem.call}(adjoint=...)`: the steps of `SciPy` cannot be differentiated. Use `Implicit()`."
            )
        answers = [self._solve_item(problem, x, y, i) for i in range(len(y))]
        y_next = torch.stack([answer[0] for answer in answers]) if answers else y
        status, num_steps = (torch.tensor([a[k] for a in answers], dtype=torch.int64, device=y.device) for k in (1, 2))
        return Result(y_next, estimate_multipliers(problem, x, y_next).detach(), status, num_steps)

    def _solve_item(self, problem: BatchedProblem, x: Inputs, y: Tensor, i: int) -> tuple[Tensor, int, int]:
        problem, x = problem.select(x, torch.tensor([i], device=y.device))
        y_0 = y[i].detach()
        first = _violation(problem, x, y_0)
        if not np.isfinite(first).all():
            return y_0, int(Status.NON_FINITE), 0
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter(
                    "ignore"
                )  # what SciPy says of an item's last digits; the status says what matters
                answer = (_minimize if problem.kind == "minimize" else _root)(self, problem, x, y_0)
        except np.linalg.LinAlgError:
            return y_0, int(Status.STALLED), 0
        y_next = torch.as_tensor(answer.x).to(y_0)
        return y_next, self._judge(problem, x, y_next, answer, first), int(answer.get("nit", answer.get("nfev", 0)))

    def _judge(self, problem: BatchedProblem, x: Inputs, y: Tensor, answer: Any, first: np.ndarray) -> int:
        slope, violation, steepness = _violation(problem, x, y)
        if not np.isfinite(slope + violation):
            return int(Status.NON_FINITE)
        eps = torch.finfo(y.dtype).eps
        if violation > eps**0.4 * max(first[1], 1.0):
            return int(Status.INFEASIBLE)
        if problem.kind != "minimize" and slope > eps**0.4 * first[0]:
            return int(Status.STALLED)  # a minimum of |F|, perhaps, and no root
        if answer.success or slope <= eps**0.5 * max(first[0], steepness):
            return int(Status.CONVERGED)
        limited = "maximum" in str(answer.message).lower() or "limit" in str(answer.message).lower()
        return int(Status.MAX_STEPS if limited else Status.STALLED)


def _minimize(solver: SciPy, problem: BatchedProblem, x: Inputs, y: Tensor) -> Any:
    work = problem.work(x)
    constraints = []
    if problem.p:
        h = _wrap(lambda y: problem.equality(y, x)[0], y)
        h_y = _wrap(lambda y: jacobian(lambda y: problem.equality(y, x), y, work)[0], y)
        constraints = [{"type": "eq", "fun": h, "jac": h_y}]
        if solver.method == "trust-constr":

            def curvature(y: Tensor, nu: np.ndarray) -> Tensor:
                weights = torch.as_tensor(nu).to(y)
                return hessian(lambda y: (problem.equality(y, x) * weights).sum(-1), y, work)[0]

            constraints = [_scipy().NonlinearConstraint(h, 0.0, 0.0, jac=h_y, hess=_wrap(curvature, y))]
    more: dict[str, Any] = {"constraints": constraints} if solver.method in _CONSTRAINED else {}
    if solver.method in _USE_HESSIAN:
        more["hess"] = _wrap(lambda y: hessian(lambda y: problem.objective(y, x), y, work)[0], y)
    limit = "maxfun" if solver.method == "TNC" else "maxiter"

    def f(at: np.ndarray) -> tuple[float, np.ndarray]:
        value, f_y = value_and_gradient(lambda y: problem.objective(y, x), _tensor(at, y))
        return float(value), f_y[0].cpu().double().numpy()

    return _scipy().minimize(
        f, _array(y), jac=True, method=solver.method, tol=_tolerance(solver, y), options=_options(solver, limit), **more
    )


def _root(solver: SciPy, problem: BatchedProblem, x: Inputs, y: Tensor) -> Any:
    def F(y: Tensor) -> Tensor:
        return problem.residual(y, x)

    more: dict[str, Any] = {}
    if solver.method in _USE_JACOBIAN:
        more["jac"] = _wrap(lambda y: jacobian(F, y, problem.work(x))[0], y)
    limit = {"hybr": "maxfev", "lm": "maxiter", "df-sane": "maxfev"}.get(solver.method, "maxiter")
    tolerance = _tolerance(solver, y)
    return _scipy().root(
        _wrap(lambda y: F(y)[0], y),
        _array(y),
        method=solver.method,
        tol=tolerance,
        options=_options(solver, limit),
        **more,
    )


def _violation(problem: BatchedProblem, x: Inputs, y: Tensor) -> np.ndarray:
    """Largest entries of the Lagrangian's gradient (or the residual), of the equalities, and of the gradient."""
    y = y[None]
    if problem.kind != "minimize":
        return np.array([float(problem.residual(y, x).detach().abs().max()), 0.0, 0.0])
    nu = estimate_multipliers(problem, x, y)
    f_y = gradient(lambda y: problem.objective(y, x), y)
    (pull,) = vjp(lambda y: problem.equality(y, x), (y,), nu)
    h = problem.equality(y, x)
    return np.array([float(largest(part)) for part in (f_y + pull, h, f_y)])


def _options(solver: SciPy, limit: str) -> dict[str, Any]:
    given = {} if solver.max_steps is None else {limit: solver.max_steps}
    return {**given, **solver.options}


def _tolerance(solver: SciPy, y: Tensor) -> float:
    # SciPy's methods compare it with changes of f, of which fewer digits can be had than of y.
    return torch.finfo(y.dtype).eps ** 0.6 if solver.rtol is None else solver.rtol


def _wrap(function: Callable[..., Tensor], like: Tensor) -> Callable[..., np.ndarray]:
    """The function of a NumPy vector."""

    def call(at: np.ndarray, *more: Any) -> np.ndarray:
        return _array(function(_tensor(at, like), *more))

    return call


def _tensor(at: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(at).to(like)[None]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def _scipy() -> Any:
    # Imported on use: it is an extra, and takes longer to import than this package.
    try:
        return importlib.import_module("scipy.optimize")
    except ImportError as error:
        raise ImportError("`SciPy` needs SciPy: pip install torchddn[convex].") from error
