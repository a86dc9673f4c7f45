r"""The other route: the lower problem's optimality conditions as constraints of one problem.

::

    minimize over theta, y, nu, lam   J(theta, y)
    subject to   f_y + nu . h_y + lam . g_y = 0,   h = 0,   g <= 0,   lam >= 0,   -lam g <= tau,   theta in its set

For a convex lower problem the two are the same as ``tau`` goes to zero; otherwise a stationary point of the lower
problem that is no minimum is allowed too. With ``tau = 0`` the products leave no interior, and no multipliers exist; so
``tau`` falls in steps, and at last each pair is decided: the smaller one of ``lam`` and ``-g`` becomes zero as an
equation, which makes the answer exact.

Nothing is shared with the hypergradients but the functions of the problem: the two answers check each other.

References:
    Scholtes, Convergence properties of a regularization scheme for mathematical programs with complementarity
    constraints, 2001. Dempe, Franke, Solution of bilevel optimization problems using the KKT approach, 2019.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchddn import solvers
from torchddn.bilevel.pair import Bilevel, Upper, as_pair, check_theta
from torchddn.bilevel.region import Region
from torchddn.bilevel.sets import Constraint
from torchddn.bounds import evaluate_bounds
from torchddn.derivatives import gradient
from torchddn.errors import InvalidInputError
from torchddn.node import DeclarativeNode
from torchddn.optimality import lagrangian
from torchddn.problem import Problem
from torchddn.status import Solution, Status, check_failure_policy, report_failures

__all__ = ["SingleLevel", "single_level"]

_RELAXATIONS = (1e-1, 1e-2, 1e-4, 1e-6)


@dataclasses.dataclass(frozen=True)
class SingleLevel:
    """What :func:`single_level` returns: plain tensors, no graph.

    Attributes:
        theta: The upper variables.
        y: The lower solution, ``(B, ...)``.
        value: ``J``, a scalar.
        equality_multipliers: Of the lower equalities, ``(B, p)``.
        inequality_multipliers: Of the lower inequalities, ``(B, q)``.
        status: How the last solve ended, a :class:`torchddn.Status`.
        num_steps: Steps of the solver, over all relaxations.
        residual: Largest violation and stationarity of the last solve.
    """

    theta: Any
    y: Any
    value: Tensor
    equality_multipliers: Tensor
    inequality_multipliers: Tensor
    status: Status
    num_steps: int
    residual: float


def single_level(
    upper: Upper | Bilevel,
    lower: Any,
    theta0: Any,
    *,
    data: tuple[Any, ...] = (),
    constraint: Constraint | None = None,
    solver: Any = "InteriorPoint",
    on_failure: str = "warn",
) -> SingleLevel:
    r"""Returns a local solution of the bi-level problem by its single-level reformulation.

    The start is the lower solution at ``theta0``. For small problems: Hessians are dense, and third derivatives of the
    lower objective are taken.

    Args:
        upper: ``J(theta, y)``, a scalar, or a :class:`Bilevel`, and then ``lower`` is None.
        lower: A :class:`torchddn.Problem`, or a node of one; convex, for the answer to be the bi-level one.
        theta0: Start, a tensor or a tree of them.
        data: As for :class:`Bilevel`.
        constraint: As for :class:`Bilevel`.
        solver: For problems with constraints of every kind: ``"InteriorPoint"``, ``"SQP"``, or an object of
            ``torchddn.solvers``.
        on_failure: As for :class:`torchddn.DeclarativeNode`.

    Raises:
        InvalidInputError: If an argument is wrong, or the lower level is a function.

    Status:
        That of the solver in its last solve.

    Example:
        >>> import torchddn as ddn
        >>> follower = ddn.Problem.from_functions(
        ...     lambda q2, q1: -(q2 * (10 - q1 - q2) - q2).sum(), initial=lambda q1: 0 * q1
        ... )
        >>> leader = lambda q1, q2: -(q1 * (10 - q1 - q2) - q1).sum()
        >>> single_level(leader, follower, torch.ones(1)).theta
        tensor([4.5000])
    """
    pair = as_pair("single_level", upper, lower, data, constraint)
    check_theta("single_level", theta0)
    check_failure_policy("single_level", on_failure)
    if pair.problem is None:
        raise InvalidInputError(
            "`single_level(lower=...)` must be a `torchddn.Problem`, whose conditions can be written down, got a "
            "function. A function is substituted: `minimize_bilevel`."
        )
    region = Region("single_level", pair.constraint, theta0)
    theta = region.project(region.flatten(theta0))
    conditions = _Conditions(pair, region, theta)
    chosen = solvers.get(solver)
    z, num_steps = conditions.start(theta), 0
    for tau in _RELAXATIONS if conditions.num_pairs else ():
        solution = _solve(conditions.problem_at(z, tau), z, chosen)
        num_steps += int(solution.num_steps[0])
        z = _unknowns(solution)
    solution = _solve(conditions.problem_at(z, None), z, chosen)
    return conditions.result(_unknowns(solution), solution, num_steps + int(solution.num_steps[0]), on_failure)


def _solve(problem: Problem, z: "_Unknowns", solver: Any) -> Solution:
    # The problem needs no input, but without one nobody would tell its dtype and device.
    return DeclarativeNode(problem, solver=solver, on_failure="ignore").solve(z.theta.new_zeros(1))


def _unknowns(solution: Solution) -> "_Unknowns":
    return _Unknowns(*(part[0].detach() for part in solution.y))


class _Unknowns(NamedTuple):
    """What the reformulated problem decides, flat."""

    theta: Tensor  # (n,)
    y: Tensor  # (B, m)
    nu: Tensor  # (B, p)
    lam: Tensor  # (r,): of the inequalities, then of the lower and upper bounds, without those that are infinite


class _Conditions:
    """The optimality conditions of the lower problems as functions of theta and their unknowns."""

    def __init__(self, pair: Bilevel, region: Region, theta: Tensor) -> None:
        self._pair, self._region = pair, region
        self._problem, self._x = pair.flat(region.unflatten(theta))
        self._num_theta = len(pytree.tree_leaves(region.unflatten(theta)))
        problem = self._problem
        every = torch.ones(problem.size, problem.q, dtype=torch.bool, device=theta.device)
        # Which bounds are finite is taken not to depend on theta.
        self._counts = torch.cat([every, *(bound.isfinite() for bound in problem.bounds(self._x))], dim=1)
        self.num_pairs = int(self._counts.sum())

    def start(self, theta: Tensor) -> _Unknowns:
        """The lower solution at ``theta``."""
        pair, problem = self._pair, self._problem
        assert pair.problem is not None
        with torch.no_grad():
            node = DeclarativeNode(pair.problem, solver=pair.solver, on_failure="ignore")
            found = node.solve(pair.spread(self._region.unflatten(theta)), *pair.data)
        y = problem.layout.flatten(found.y)
        parts = (found.inequality_multipliers, found.lower_multipliers, found.upper_multipliers)
        sizes = (problem.q, problem.m, problem.m)
        dual = [y.new_zeros(problem.size, k) if part is None else part for part, k in zip(parts, sizes, strict=True)]
        nu = found.equality_multipliers
        lam = torch.cat(dual, dim=1)[self._counts].clamp(min=0)
        return _Unknowns(theta, y, y.new_zeros(problem.size, 0) if nu is None else nu, lam)

    def problem_at(self, z: _Unknowns, tau: float | None) -> Problem:
        """The reformulated problem that starts at ``z``: relaxed by ``tau``, or, if that is None, decided there."""
        region = self._region
        binding = z.lam > -self._rows(z)
        if tau is not None:
            binding = torch.zeros_like(binding)
        kept_sums = region.sums @ z.theta
        scale = (z.lam * self._rows(z)).abs().amax().clamp(min=1.0) if self.num_pairs else 1.0

        def objective(z: tuple[Tensor, ...], _: Tensor) -> Tensor:
            point = _first(z)
            y = self._problem.layout.unflatten(point.y)
            return self._pair.judge(region.unflatten(point.theta), y)[None]

        def equality(z: tuple[Tensor, ...], _: Tensor) -> Tensor:
            point = _first(z)
            rows = [*self._equations(point), region.sums @ point.theta - kept_sums, self._rows(point)[binding]]
            return torch.cat([row.reshape(-1) for row in rows])[None]

        def inequality(z: tuple[Tensor, ...], _: Tensor) -> Tensor:
            point = _first(z)
            rows = self._rows(point)
            products = [] if tau is None else [-point.lam * rows - tau * scale]
            return torch.cat([rows[~binding], *products])[None]

        infinite = [torch.full_like(part, torch.inf) for part in (z.y, z.nu)]
        least = (region.lower, *(-part for part in infinite), torch.zeros_like(z.lam))
        free = torch.full_like(z.lam, torch.inf) if tau is not None else torch.where(binding, torch.inf, 0.0).to(z.lam)
        most = (region.upper, *infinite, free)
        problem = Problem.from_functions(
            objective,
            equality,
            inequality if bool((~binding).any()) else None,
            tuple(tuple(part[None] for part in side) for side in (least, most)),
            tuple(part[None] for part in z),
        )
        problem.batched = True
        return problem

    def result(self, z: _Unknowns, solution: Solution, num_steps: int, on_failure: str) -> SingleLevel:
        """The last answer in the letters of the caller."""
        problem, region = self._problem, self._region
        theta, y = region.unflatten(z.theta), problem.layout.unflatten(z.y)
        residual = torch.stack([solution.stationarity, solution.feasibility]).amax(0).detach()
        report_failures("single_level", solution.status, residual, on_failure)
        if on_failure == "nan" and int(solution.status[0]) != Status.CONVERGED:
            theta, y = (pytree.tree_map(lambda leaf: torch.full_like(leaf, torch.nan), part) for part in (theta, y))
        lam = torch.zeros_like(self._counts, dtype=z.y.dtype)
        lam[self._counts] = z.lam
        with torch.no_grad():
            value = self._pair.judge(theta, y)
        return SingleLevel(
            theta, y, value, z.nu, lam[:, : problem.q], Status(int(solution.status[0])), num_steps, float(residual[0])
        )

    def _equations(self, z: _Unknowns) -> tuple[Tensor, ...]:
        """Stationarity and feasibility of the lower problems, ``(B, m)`` and ``(B, p)``."""
        problem, x = self._problem, self._inputs(z.theta)
        if problem.kind != "minimize":
            return (problem.residual(z.y, x),)
        lam = z.y.new_zeros(self._counts.shape).index_put(self._counts.nonzero(as_tuple=True), z.lam)
        q, m = problem.q, problem.m
        dual = torch.cat([z.nu, lam[:, :q]], dim=1)
        L_y = gradient(lambda y: lagrangian(problem, y, dual, x), z.y)
        return L_y - lam[:, q : q + m] + lam[:, q + m :], problem.equality(z.y, x)

    def _rows(self, z: _Unknowns) -> Tensor:
        """``g``, ``lower - y`` and ``y - upper``, as far as they are finite, ``(r,)``."""
        x = self._inputs(z.theta)
        lower, upper = self._problem.bounds(x)
        rows = (self._problem.inequality(z.y, x), lower - z.y, z.y - upper)
        return torch.cat(rows, dim=1)[self._counts]

    def _inputs(self, theta: Tensor) -> tuple[Tensor, ...]:
        """What the functions of the lower problems take, at another ``theta``."""
        leaves = pytree.tree_leaves(self._pair.spread(self._region.unflatten(theta)))
        x = (*leaves, *self._x[self._num_theta :])
        if not self._problem.has_bounds:
            return x
        *given, _, _, start = x
        unbounded = dataclasses.replace(self._problem, batched=self._problem.batched[:-3], has_bounds=False)
        return (*given, *evaluate_bounds(unbounded, tuple(given), start), start)


def _first(z: tuple[Tensor, ...]) -> _Unknowns:
    """The one item of a batch."""
    return _Unknowns(*(part[0] for part in z))
