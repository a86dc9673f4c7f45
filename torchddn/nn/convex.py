r"""Convex programs that are written in cvxpy, as a module.

cvxpy turns a problem once into a cone program whose data are affine in the parameters (:mod:`torchddn.cones`). From
there on everything is ours: each batch of parameters gives a batch of programs, and the derivative of their solutions
is one certified linear system per item.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchddn.cones import Canonical, ConeData, Leaf, Settings, canonicalize, check_settings, dense, errors
from torchddn.diagnostics import timed
from torchddn.errors import InvalidInputError
from torchddn.functional import quadratic_program
from torchddn.functional.nodes.arguments import check_flag
from torchddn.functional.nodes.outcome import conclude, solution_of
from torchddn.functional.programs.cone import cone_program, slack
from torchddn.nn._declared import CALL, declare, prepare
from torchddn.status import Solution, Status, check_failure_policy

__all__ = ["ConvexProgram"]


class ConvexProgram(nn.Module):
    r"""The solution of a convex problem that is written in cvxpy, as a function of its parameters.

    The problem must be DPP: convex, and in its parameters such that cvxpy can turn it into a cone program once and for
    all. Programs whose objective is quadratic and whose constraints are linear are solved by
    :func:`torchddn.functional.quadratic_program`, the whole batch at once. All others (second-order, semidefinite,
    exponential and power cones) are solved by Clarabel, items in parallel threads, and brought from its tolerance to
    rounding by Newton's method on the optimality conditions. Both compute in float64.

    Args:
        problem: ``cvxpy.Problem``, DPP.
        parameters: All ``cvxpy.Parameter`` of the problem, in the order in which ``forward`` takes their values.
        variables: Those ``cvxpy.Variable`` whose values ``forward`` returns, in their order.
        gp: Whether the problem is a geometric program, DGP in place of DCP.
        solver_args: Options of Clarabel, as it names them. If there are any here or in a call, Clarabel solves
            quadratic programs too, and an item is not solved again with tighter tolerances where Newton's method does
            not end on a solution.
        num_workers: Threads for Clarabel; as many as torch uses unless given.
        check: Whether to check that parameters have the sign, symmetry, ... that they are declared with, without which
            the problem may not be convex.
        on_failure: What to do about items that fail: ``"warn"``, ``"raise"``, ``"nan"`` or ``"ignore"``.

    Shape:
        A value for each parameter, ``(*B, *shape)`` with the shape that the parameter has in cvxpy. Those without batch
        axes belong to all items, and their gradient is the sum over them. ``forward`` returns a tuple of tensors
        ``(*B, *shape)``, one for each variable.

    Raises:
        ImportError: If cvxpy or Clarabel is not installed: ``pip install 'torchddn[convex]'``.
        InvalidInputError: If the problem is not convex, not DPP, not continuous or not real; if a parameter is missing;
            on a call, if a value does not fit.
        SolveError: On a call, if an item fails and ``on_failure="raise"``.

    Status:
        INFEASIBLE, UNBOUNDED: There is a proof that the problem has no solution. The answer is NaN, its gradient zero.
        MAX_STEPS, STALLED: The solver ended at a point that does not satisfy the optimality conditions. Scale the data.
        NON_FINITE: A value is NaN or infinite. The answer is NaN, its gradient zero.

    Gradients:
        Exact in every parameter, of every order and in every mode, in symmetric parameters symmetric. Where the
        solution is not unique the one of minimum norm, with a DegenerateGradientWarning. Where a cone's projection has
        a kink at the solution (a constraint that is active with multiplier zero, or an apex) one-sided: what is active
        stays so. One linear system per item, dense up to 400 rows and variables and sparse beyond.

    Example:
        >>> import cvxpy as cp
        >>> x, a = cp.Variable(2), cp.Parameter(2)
        >>> layer = ConvexProgram(cp.Problem(cp.Minimize(cp.norm(x - a)), [cp.norm(x) <= 1]), [a], [x])
        >>> layer(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))[0]
        tensor([[0.6000, 0.8000],
                [0.0000, 1.0000]])

    References:
        Agrawal, Amos, Barratt, Boyd, Diamond, Kolter, Differentiable convex optimization layers, 2019, for the form of
        the call. Agrawal, Barratt, Boyd, Busseti, Moursi, Differentiating through a cone program, 2019; we
        differentiate the optimality conditions without the homogeneous embedding, and certify the system's solution.
    """

    def __init__(
        self,
        problem: Any,
        parameters: Sequence[Any],
        variables: Sequence[Any],
        gp: bool = False,
        *,
        solver_args: Mapping[str, Any] | None = None,
        num_workers: int | None = None,
        check: bool = True,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        check_flag(CALL, "gp", gp)
        check_flag(CALL, "check", check)
        check_failure_policy(CALL, on_failure)
        if num_workers is not None and (
            isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 1
        ):
            raise InvalidInputError(f"`{CALL}(num_workers=...)` must be a positive integer, got {num_workers!r}.")
        _check_problem(problem, gp)
        _check_leaves(problem, parameters, variables)
        self._settings = _settings(solver_args)
        self._canonical: Canonical = canonicalize(problem, parameters, variables, gp)
        self._declared = tuple(declare(parameter, gp) for parameter in parameters)
        self._num_workers, self._check, self.on_failure = num_workers, check, on_failure

    def forward(self, *values: Tensor, solver_args: Mapping[str, Any] | None = None) -> tuple[Tensor, ...]:
        return self._solve(values, solver_args).y

    def solve(self, *values: Tensor, solver_args: Mapping[str, Any] | None = None) -> Solution:
        """What ``forward`` returns as ``y``, with everything that is known about it.

        ``equality_multipliers`` and ``inequality_multipliers`` are those of cvxpy's cone program: of its zero cone, and
        of the other cones one after the other. ``objective`` is that of the problem as it is written.
        """
        return self._solve(values, solver_args)

    def _solve(self, values: tuple[Tensor, ...], solver_args: Mapping[str, Any] | None) -> Solution:
        canonical = self._canonical
        theta, batch, dtype = prepare(self._declared, values, canonical, self._check)
        settings = self._settings if solver_args is None else _settings(solver_args)
        data = canonical.data(theta)
        with timed() as file:
            if canonical.cone.is_polyhedral and not settings:
                answer = _solve_quadratic(canonical, data)
            else:
                answer = _solve_conic(canonical, data, settings, self._num_workers)
            n = answer.x.shape[1]
            both = conclude(
                CALL,
                torch.cat([answer.x, answer.z], dim=1),
                answer.status,
                torch.maximum(answer.stationarity, answer.feasibility),
                self.on_failure,
                num_steps=answer.num_steps,
                solver=answer.solver,
                file=file,
            )
        x, z = both[:, :n], both[:, n:].reshape((*batch, both.shape[1] - n)).to(dtype)
        y = tuple(_variable(leaf, x).reshape((*batch, *leaf.shape)).to(dtype) for leaf in canonical.variables)
        P_x = torch.zeros_like(x).scatter_add(1, data.P_rows, data.P * x.gather(1, data.P_columns))
        objective = canonical.sign * (((0.5 * P_x + data.q) * x).sum(1) + canonical.d(theta).squeeze(1))
        objective = objective.exp() if canonical.in_logs else objective
        numbers = (objective, answer.status, answer.num_steps, answer.stationarity)
        zero = canonical.cone.zero
        return solution_of(
            y,  # pyright: ignore[reportArgumentType]
            *(number.reshape(batch) for number in numbers),
            solver=answer.solver,
            feasibility=answer.feasibility.reshape(batch),
            complementarity=answer.complementarity.reshape(batch),
            equality_multipliers=z[..., :zero] if zero else None,
            inequality_multipliers=z[..., zero:] if z.shape[-1] > zero else None,
        )

    def extra_repr(self) -> str:
        """What comes in, what goes out, and what cvxpy made of it, for ``print``."""
        canonical = self._canonical
        return f"parameters={len(self._declared)}, variables={len(canonical.variables)}, cone={canonical.cone}"


class _Answer(NamedTuple):
    """The solutions of a batch of programs, ``(R, ...)``: x and multipliers z are differentiable."""

    x: Tensor
    z: Tensor
    status: Tensor
    num_steps: Tensor
    stationarity: Tensor
    feasibility: Tensor
    complementarity: Tensor
    solver: str


def _solve_quadratic(canonical: Canonical, data: ConeData) -> _Answer:
    n, m, zero = data.q.shape[1], data.b.shape[1], canonical.cone.zero
    P = dense(data.P, data.P_rows, data.P_columns, (n, n))
    A = dense(data.A, data.A_rows, data.A_columns, (m, n))
    equalities = (A[:, :zero], data.b[:, :zero]) if zero else (None, None)
    inequalities = (A[:, zero:], data.b[:, zero:]) if m > zero else (None, None)
    found = quadratic_program(
        P, data.q, *equalities, *inequalities, check=False, infeasible="nan", on_failure="ignore", solution=True
    )
    parts = [part for part in (found.equality_multipliers, found.inequality_multipliers) if part is not None]
    z = torch.cat(parts, dim=1) if parts else data.b
    # Numbers, since a graph of torch.compile does not compare with an enumeration.
    unbounded, infeasible = int(Status.UNBOUNDED), int(Status.INFEASIBLE)
    lost = ((found.status == unbounded) | (found.status == infeasible)).unsqueeze(1)
    return _Answer(
        torch.where(lost, torch.nan, found.y),
        torch.where(lost, torch.nan, z),
        found.status,
        found.num_steps,
        found.stationarity,
        found.feasibility,
        found.complementarity,
        found.solver,
    )


def _solve_conic(canonical: Canonical, data: ConeData, settings: Settings, num_workers: int | None) -> _Answer:
    cone = canonical.cone
    found = cone_program(CALL, cone, data, settings, num_workers)
    s = slack(cone, found.w)
    z = s - found.w
    with torch.no_grad():
        stationarity, feasibility = errors(data, found.x, found.w, s)
        complementarity = (s * z).sum(1).abs()
    return _Answer(found.x, z, found.status, found.num_steps, stationarity, feasibility, complementarity, "Clarabel")


def _variable(leaf: Leaf, x: Tensor) -> Tensor:
    """The entries of a variable, ``(R, size)``."""
    places = leaf.places.to(x.device)
    entries = torch.where(places >= 0, x[:, places.clamp(min=0)], 0)
    return entries.exp() if leaf.is_log else entries


def _check_problem(problem: Any, gp: bool) -> None:
    cvxpy = _cvxpy()
    if not isinstance(problem, cvxpy.Problem):
        raise InvalidInputError(f"`{CALL}(problem=...)` must be a `cvxpy.Problem`, got {type(problem).__name__}.")
    if problem.is_mixed_integer():
        raise InvalidInputError(f"`{CALL}(problem=...)` has boolean or integer variables, which have no gradient.")
    if any(leaf.is_complex() for leaf in (*problem.variables(), *problem.parameters())):
        raise InvalidInputError(f"`{CALL}(problem=...)` has complex leaves. Split them into real and imaginary parts.")
    rule = "is_dgp" if gp else "is_dcp"
    words = ("geometric, by the rules of DGP", "DGP") if gp else ("convex, by the rules of DCP", "DCP")
    if not getattr(problem, rule)():
        where = _where(problem, lambda part: getattr(part, rule)())
        hint = "" if gp or not problem.is_dgp() else " As a geometric program it is: pass `gp=True`."
        raise InvalidInputError(f"`{CALL}(problem=...)` must be {words[0]}, but {where} is not.{hint}")
    if not getattr(problem, rule)(dpp=True):
        where = _where(problem, lambda part: getattr(part, rule)(dpp=True))
        raise InvalidInputError(
            f"`{CALL}(problem=...)` must be DPP, which is {words[1]} also in the parameters, but {where} is not. "
            f"Products of parameters, and functions of them, become parameters of their own."
        )


def _where(problem: Any, obeys: Callable[[Any], bool]) -> str:
    if not obeys(problem.objective):
        return f"the objective, {problem.objective},"
    index = next(i for i, constraint in enumerate(problem.constraints) if not obeys(constraint))
    return f"constraint {index}, {problem.constraints[index]},"


def _check_leaves(problem: Any, parameters: Sequence[Any], variables: Sequence[Any]) -> None:
    cvxpy = _cvxpy()
    for name, given, kind, known in (
        ("parameters", parameters, cvxpy.Parameter, problem.parameters()),
        ("variables", variables, cvxpy.Variable, problem.variables()),
    ):
        strange = (
            [leaf for leaf in given if not isinstance(leaf, kind)] if isinstance(given, (list, tuple)) else [given]
        )
        if strange:
            raise InvalidInputError(
                f"`{CALL}({name}=...)` must be a list of `cvxpy.{kind.__name__}`, got {type(strange[0]).__name__}."
            )
        ids = [leaf.id for leaf in given]
        if len(set(ids)) < len(ids):
            raise InvalidInputError(f"`{CALL}({name}=...)` must name each one once.")
        unknown = [leaf.name() for leaf in given if leaf.id not in {other.id for other in known}]
        if unknown:
            raise InvalidInputError(f"`{CALL}({name}=...)` must be of the problem, which has no {unknown[0]!r}.")
    missing = [leaf.name() for leaf in problem.parameters() if leaf.id not in {p.id for p in parameters}]
    if missing:
        raise InvalidInputError(f"`{CALL}(parameters=...)` must be all of the problem, but {missing[0]!r} is missing.")
    if not variables:
        raise InvalidInputError(f"`{CALL}(variables=...)` must name at least one variable.")


def _settings(solver_args: Mapping[str, Any] | None) -> Settings:
    if solver_args is None:
        return ()
    if not isinstance(solver_args, Mapping):
        raise InvalidInputError(f"`{CALL}(solver_args=...)` must be a dict, got {type(solver_args).__name__}.")
    settings = tuple(sorted(solver_args.items()))
    wrong = check_settings(settings)
    if wrong is not None:
        raise InvalidInputError(f"`{CALL}(solver_args=...)`: {wrong}.")
    return settings


def _cvxpy() -> Any:
    """cvxpy, imported on use: it is an extra, and takes longer to import than this package."""
    try:
        importlib.import_module("clarabel")
        return importlib.import_module("cvxpy")
    except ImportError as error:
        raise ImportError(
            f"`{CALL}` needs cvxpy and Clarabel. Install them with `pip install 'torchddn[convex]'`."
        ) from error
