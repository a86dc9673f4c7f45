r"""A general constrained node, forward and backward, beside the tools that a user would take instead.

Items of m variables with a strictly convex objective that is not quadratic, in float64, started at zero::

    min_y  1/2 |y - x|^2 + 0.1 sum y^4 + 0.3 log sum exp y    subject to    h(y) = 0,  g(y) <= 0,  lower <= y <= upper

Cut y into k blocks of equal length; then ``h`` is the sum of each block less a number, ``g`` its square length less
another. Four families: *twin* has one block and h alone, *reference* one block, h and g, *blocks* m / 5 blocks, h, g
and bounds. Their Hessian is a diagonal plus rank one, which torchddn finds from 32 unknowns on. *mixed* is *reference*
with ``log sum exp W y``, of a fixed W: a Hessian without structure. Who solves them (``pip install -e '.[bench]'``; who
is not installed is left out):

* torchddn: ``DeclarativeNode(problem)`` with nothing chosen; and with ``compile=True``, warmed up by ten calls.
* optimistix, jaxopt: compiled by ``jit`` and ``vmap``. Neither has a solver for constraints, so they are given the
  optimality conditions as equations, written out by hand, and what solves all items: Newton with ``min(lam, -g) = 0``,
  or where that fails Dogleg with the function of Fischer and Burmeister; in jaxopt Levenberg-Marquardt.
* pounce, an Ipopt in Rust with a torch layer: ``TorchProblem.batched_solve``, all items as one sparse problem, and
  ``vmap_solve``, one by one.
* SciPy's SLSQP in a loop, with functions and derivatives by hand in NumPy; the gradient by the dense formula.

Set ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_MMAP_THRESHOLD_`` to 10000000000, as for a long training run, or else memory
goes back to the system after every call.

What is right is known without any of them: the problem is convex, so a point that satisfies the conditions, which are
evaluated here in closed form, is the solution, and the dense formula in closed form is its gradient.
"""

import functools
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import torchddn as ddn
from benchmarks.timing import machine, table

BATCHES, SIZES = (1, 64, 1024), (5, 50, 200)
FOLDER = pathlib.Path(__file__).parent.parent / "docs" / "_static" / "constrained"

# Calls of a compiled node after which all of its kernels are compiled.
NUM_CALLS = 10

# Seconds that a call may be expected to take, going by smaller ones; more is not tried.
LIMIT = 10.0
# Seconds of a turn, and how many turns a fast call has.
TURN, NUM_ROUNDS = 0.05, 15
# Of an answer, relative: what is farther away has not been solved. Only so many items are looked at.
WRONG, NUM_JUDGED = 1e-4, 64

# The gradient of what is asked for: a function of v, the incoming gradient.
Pull = Callable[[np.ndarray], np.ndarray]
Solve = Callable[[np.ndarray], tuple[np.ndarray, Pull]]


class Family(NamedTuple):
    """``h = sum of a block - total``, ``g = its square length - radius``, for ``k`` blocks."""

    name: str
    k: int
    m: int
    total: float
    radius: float | None  # None: no inequality
    bounds: tuple[float, float] | None
    is_mixed: bool = False

    def objective(self, y: Any, x: Any, library: Any) -> Any:
        mixed = library.asarray(self.mixing) @ y if self.is_mixed else y
        return 0.5 * ((y - x) ** 2).sum() + 0.1 * (y**4).sum() + 0.3 * library.log(library.exp(mixed).sum())

    @property
    def mixing(self) -> np.ndarray:
        """W, ``(m, m)``."""
        return _mixing(self.m) if self.is_mixed else np.eye(self.m)

    def equality(self, y: Any) -> Any:
        return y.reshape(self.k, -1).sum(1) - self.total

    def inequality(self, y: Any) -> Any:
        return (y**2).reshape(self.k, -1).sum(1) - self.radius

    @property
    def num_rows(self) -> int:
        return self.k * (1 if self.radius is None else 2)


def twin(m: int) -> Family:
    return Family("twin", 1, m, 1.0, None, None)


def reference(m: int) -> Family:
    return Family("reference", 1, m, 1.0, 0.3 * m, None)


def blocks(m: int) -> Family:
    return Family("blocks", m // 5, m, 0.5, 0.4, (-0.3, 0.5))


def mixed(m: int) -> Family:
    return reference(m)._replace(name="mixed", is_mixed=True)


@functools.cache
def _mixing(m: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(m, m)) / m**0.5


FAMILIES = {
    "reference": (reference, BATCHES),
    "mixed": (mixed, (64,)),
    "blocks": (blocks, (64,)),
    "twin": (twin, (64,)),
}


# What is right, in closed form, for a batch.


class Expansion(NamedTuple):
    """Gradient and Hessian of the objective, rows and their Jacobian, at ``(B, m)`` points."""

    f_y: np.ndarray
    f_yy: np.ndarray
    c: np.ndarray
    c_y: np.ndarray


def expand(family: Family, y: np.ndarray, x: np.ndarray) -> Expansion:
    E = np.kron(np.eye(family.k), np.ones(family.m // family.k))
    W = family.mixing
    z = y @ W.T
    s = np.exp(z - z.max(1, keepdims=True))
    s /= s.sum(1, keepdims=True)
    W_s = s @ W
    f_y = y - x + 0.4 * y**3 + 0.3 * W_s
    f_yy = np.eye(family.m) * (1 + 1.2 * y**2)[:, None] - 0.3 * W_s[:, None] * W_s[:, :, None]
    f_yy += 0.3 * (W.T * s[:, None]) @ W
    c, c_y = [y @ E.T - family.total], [np.broadcast_to(E, (len(y), *E.shape))]
    if family.radius is not None:
        c.append(y**2 @ E.T - family.radius)
        c_y.append(2 * y[:, None] * E)
    return Expansion(f_y, f_yy, np.concatenate(c, 1), np.concatenate(c_y, 1))


def kkt_step(
    family: Family, y: np.ndarray, dual: np.ndarray, at: Expansion, active: np.ndarray, held: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """``u`` with ``K u = v``: K of the active rows and of the variables that are not held at a bound."""
    m, free = family.m, ~held
    E = np.kron(np.eye(family.k), np.ones(m // family.k))
    curved = 2 * dual[:, family.k :] @ E if family.radius is not None else np.zeros_like(y)
    A = at.c_y * active[..., None] * free[:, None]
    K = np.zeros((len(y), m + A.shape[1], m + A.shape[1]))
    K[:, :m, :m] = (at.f_yy + np.eye(m) * curved[:, None]) * free[:, None] * free[..., None] + np.eye(m) * held[:, None]
    K[:, m:, :m], K[:, :m, m:] = A, A.transpose(0, 2, 1)
    K[:, m:, m:] -= np.eye(A.shape[1]) * ~active[:, None]
    return np.linalg.solve(K, (v * np.concatenate([free, active], 1))[..., None])[..., 0]


def at_limits(family: Family, y: np.ndarray, at: Expansion) -> tuple[np.ndarray, np.ndarray]:
    """Which rows hold as equations and which variables are at a bound, of a point good to 1e-6."""
    active = (np.arange(family.num_rows) < family.k) | (at.c > -1e-6)
    lower, upper = family.bounds or (-np.inf, np.inf)
    return active, (y < lower + 1e-6) | (y > upper - 1e-6)


def fit_multipliers(at: Expansion, active: np.ndarray, held: np.ndarray) -> np.ndarray:
    A = at.c_y * active[..., None] * ~held[:, None]
    gram = A @ A.transpose(0, 2, 1) + np.eye(A.shape[1]) * ~active[:, None]
    return -np.linalg.solve(gram, A @ at.f_y[..., None])[..., 0]


def implicit_gradient(family: Family, y: np.ndarray, x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The dense formula at a solution; L_xy is minus the identity."""
    at = expand(family, y, x)
    active, held = at_limits(family, y, at)
    dual = fit_multipliers(at, active, held)
    right = np.concatenate([v, np.zeros((len(y), family.num_rows))], 1)
    return kkt_step(family, y, dual, at, active, held, right)[:, : family.m] * ~held


def refine(family: Family, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The solution near ``y`` to rounding: Newton's method on the conditions, which must hold in the end."""
    lower, upper = family.bounds or (-np.inf, np.inf)
    at = expand(family, y, x)
    active, held = at_limits(family, y, at)
    y = np.where(held, np.clip(y, lower, upper), y)
    y = np.where(held, np.where(y - lower < upper - y, lower, upper), y)
    dual = fit_multipliers(at, active, held)
    for _ in range(5):
        at = expand(family, y, x)
        L_y = at.f_y + (dual[:, None] @ at.c_y)[:, 0]
        step = kkt_step(family, y, dual, at, active, held, -np.concatenate([L_y, at.c], 1))
        y, dual = y + step[:, : family.m], dual + step[:, family.m :]
    at = expand(family, y, x)
    L_y = at.f_y + (dual[:, None] @ at.c_y)[:, 0]
    errors = [y - np.clip(y - L_y, lower, upper), at.c[:, : family.k]]
    errors += [np.minimum(dual[:, family.k :], -at.c[:, family.k :])]
    worst = max(np.abs(error).max(initial=0.0) for error in errors)
    if not worst < 1e-11:
        raise RuntimeError(f"{family.name}, m = {family.m}: the reference violates the conditions by {worst:.1e}")
    return y


# Who solves it.


def torchddn(family: Family, compile: bool = False) -> Solve:
    node = ddn.DeclarativeNode(
        ddn.Problem.from_functions(
            lambda y, x: family.objective(y, x, torch),
            lambda y, x: family.equality(y),
            None if family.radius is None else lambda y, x: family.inequality(y),
            family.bounds,
            torch.zeros_like,
        ),
        compile=compile,
    )
    return _with_autograd(node, NUM_CALLS if compile else 0)


def _with_autograd(node: Callable[[Tensor], Tensor], num_calls: int = 0) -> Solve:
    """A node between arrays; before the first of its calls there are ``num_calls`` more."""
    is_new = True

    def solve(x: np.ndarray) -> tuple[np.ndarray, Pull]:
        nonlocal is_new
        leaf = torch.tensor(x, requires_grad=True)
        for _ in range(num_calls if is_new else 0):
            torch.autograd.grad(node(leaf).sum(), leaf)
        is_new = False
        y = node(leaf)
        return y.detach().numpy(), lambda v: torch.autograd.grad(y, leaf, torch.from_numpy(v))[0].numpy()

    return solve


def pounce(family: Family, one_by_one: bool = False) -> Solve:
    import pounce.torch

    def rows(y: Tensor, x: Tensor) -> Tensor:
        return torch.cat([family.equality(y), *([] if family.radius is None else [family.inequality(y)])])

    def f(y: Tensor, x: Tensor) -> Tensor:
        return family.objective(y, x, torch)

    start = torch.zeros(family.m, dtype=torch.float64)
    # From 2e19 on a limit is none.
    num_inequalities = family.num_rows - family.k
    limits = {"cl": [0.0] * family.k + [-2e19] * num_inequalities, "cu": [0.0] * family.num_rows}
    if family.bounds is not None:
        limits |= {side: [bound] * family.m for side, bound in zip(("lb", "ub"), family.bounds, strict=True)}
    options = {"tol": 1e-10, "print_level": 0}
    problem = {"f": f, "g": rows, "n": family.m, "m": family.num_rows, "options": options, **limits}
    if one_by_one:
        return _with_autograd(lambda x: pounce.torch.vmap_solve(x, x0=start, **problem))
    layer = pounce.torch.TorchProblem(p_example=start, **problem)
    return _with_autograd(lambda x: layer.batched_solve(x, start))


def slsqp(family: Family) -> Solve:
    from scipy.optimize import minimize

    def value(y: np.ndarray, x: np.ndarray) -> tuple[float, np.ndarray]:
        e = np.exp(W @ y if family.is_mixed else y)
        e /= e.sum()
        return family.objective(y, x, np), y - x + 0.4 * y**3 + 0.3 * (e @ W if family.is_mixed else e)

    W, E = family.mixing, np.kron(np.eye(family.k), np.ones(family.m // family.k))
    constraints = [{"type": "eq", "fun": family.equality, "jac": lambda y: E}]
    if family.radius is not None:
        inside = {"fun": lambda y: -family.inequality(y), "jac": lambda y: -2 * y * E}
        constraints.append({"type": "ineq", **inside})
    bounds = None if family.bounds is None else [family.bounds] * family.m
    options = {"ftol": 1e-15, "maxiter": 300}

    def solve(x: np.ndarray) -> tuple[np.ndarray, Pull]:
        find = functools.partial(
            minimize, value, jac=True, method="SLSQP", bounds=bounds, constraints=constraints, options=options
        )
        y = np.stack([find(np.zeros(family.m), args=(item,)).x for item in x])
        return y, lambda v: implicit_gradient(family, y, x, v)

    return solve


def conditions(family: Family, smooth: bool) -> tuple[Callable[..., Any], int]:
    """The optimality conditions as JAX equations ``F(z, x)``, and how many."""
    import jax
    import jax.numpy as jnp

    k, m = family.k, family.m

    def both(a: Any, b: Any) -> Any:
        """Zero where a and b are not negative and one of them is zero."""
        if not smooth:
            return jnp.minimum(a, b)
        square = a**2 + b**2  # Fischer and Burmeister
        return a + b - jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)

    def F(z: Any, x: Any) -> Any:
        y, nu, lam = z[:m], z[m : m + k], z[m + k :]

        def L(y: Any) -> Any:
            value = family.objective(y, x, jnp) + nu @ family.equality(y)
            return value if family.radius is None else value + lam @ family.inequality(y)

        L_y = jax.grad(L)(y)
        if family.bounds is not None:
            lower, upper = family.bounds
            L_y = both(y - lower, -both(upper - y, -L_y))
        rest = [] if family.radius is None else [both(lam, -family.inequality(y))]
        return jnp.concatenate([L_y, family.equality(y), *rest])

    return F, m + family.num_rows


def _with_jax(root: Callable[..., Any], family: Family, smooth: bool) -> Solve:
    import jax
    import jax.numpy as jnp

    F, size = conditions(family, smooth)

    def solution(x: Any) -> Any:
        return jax.vmap(lambda x: root(F, jnp.zeros(size), x)[: family.m])(x)

    forward = jax.jit(lambda x: jax.vjp(solution, x))
    backward = jax.jit(lambda pull, v: pull(v)[0])

    def solve(x: np.ndarray) -> tuple[np.ndarray, Pull]:
        y, pull = forward(jnp.asarray(x))
        return np.asarray(y), lambda v: np.asarray(backward(pull, jnp.asarray(v)))

    return solve


def optimistix(family: Family, method: str) -> Solve:
    import optimistix

    solver = getattr(optimistix, method)(rtol=1e-10, atol=1e-10)

    def root(F: Callable[..., Any], z: Any, x: Any) -> Any:
        return optimistix.root_find(F, solver, z, args=x, max_steps=100, throw=False).value

    return _with_jax(root, family, smooth=method == "Dogleg")


def jaxopt(family: Family) -> Solve:
    from jaxopt import LevenbergMarquardt
    from jaxopt.linear_solve import solve_lu

    stops = {"maxiter": 100, "tol": 1e-12, "gtol": 1e-12, "xtol": 1e-14}

    def root(F: Callable[..., Any], z: Any, x: Any) -> Any:
        solver = LevenbergMarquardt(F, materialize_jac=True, solver="inv", implicit_diff_solve=solve_lu, **stops)
        return solver.run(z, x).params

    return _with_jax(root, family, smooth=family.bounds is not None)


class Rival(NamedTuple):
    """Who, by which packages, in which batches, and whether a batch costs what its items cost one by one.

    Of several ways the first that solves all items counts.
    """

    ways: tuple[Callable[[Family], Solve], ...]
    packages: tuple[str, ...]
    batches: tuple[int, ...] = BATCHES
    is_loop: bool = False
    like: str = ""  # who says how long it may take
    num_calls: int = 1  # of the first time


NEWTON, DOGLEG = (functools.partial(optimistix, method=method) for method in ("Newton", "Dogleg"))
RIVALS = {
    "torchddn": Rival((torchddn,), ()),
    "torchddn, compiled": Rival((functools.partial(torchddn, compile=True),), (), like="torchddn", num_calls=NUM_CALLS),
    "optimistix": Rival((NEWTON, DOGLEG), ("jax", "optimistix")),
    "jaxopt": Rival((jaxopt,), ("jax", "jaxopt"), (64,)),  # compiling takes longer than all else
    "pounce": Rival((pounce,), ("pounce",)),
    "pounce, one by one": Rival((functools.partial(pounce, one_by_one=True),), ("pounce",), is_loop=True),
    "SLSQP": Rival((slsqp,), ("scipy",), is_loop=True),
}


# What is measured.


class Cell(NamedTuple):
    """What one rival made of one batch, or why it was not asked or is not shown."""

    family: str
    B: int
    m: int
    rival: str
    forward: float = float("nan")  # milliseconds
    backward: float = float("nan")
    first: float = float("nan")  # seconds of the first call, which compiles
    error: float = float("nan")  # of y, relative
    error_gradient: float = float("nan")
    reason: str = ""

    @property
    def both(self) -> float:
        return self.forward + self.backward


# One call, forward and backward, in seconds each.
Call = Callable[[], tuple[float, float]]


def in_turns(contenders: list[tuple[Cell, Call]]) -> list[Cell]:
    """The cells, which know the time of one call, with medians of rounds in which each has its turn.

    So whatever else the machine does meets all of them. A turn is as many calls as ``TURN`` takes, one at least, and
    slow ones have fewer turns.
    """
    pairs: list[list[tuple[float, float]]] = [[] for _ in contenders]
    for number in range(NUM_ROUNDS):
        for (cell, call), own in zip(contenders, pairs, strict=True):
            seconds = 1e-3 * cell.both
            if number * max(seconds, TURN) < NUM_ROUNDS * TURN * 2:
                calls = [call() for _ in range(max(1, round(TURN / seconds)))]
                forward, backward = (statistics.fmean(times) for times in zip(*calls, strict=True))
                own.append((forward, backward))
    medians = [[1e3 * statistics.median(times) for times in zip(*own, strict=True)] for own in pairs]
    return [
        cell._replace(forward=forward, backward=backward)
        for (cell, _), (forward, backward) in zip(contenders, medians, strict=True)
    ]


class Data(NamedTuple):
    """Inputs and incoming gradients, of which there may be more than right answers."""

    x: np.ndarray
    v: np.ndarray
    y: np.ndarray
    gradient: np.ndarray

    @staticmethod
    def of(family: Family, B: int) -> "Data":
        x, v = np.random.default_rng(0).normal(size=(2, B, family.m))
        judged = x[:NUM_JUDGED]
        y = refine(family, torchddn(family)(judged)[0], judged)
        return Data(x, v, y, implicit_gradient(family, y, judged, v[:NUM_JUDGED]))

    def first(self, B: int) -> "Data":
        return Data(*(rows[:B] for rows in self))


def prepare(family: Family, name: str, data: Data) -> tuple[Cell, Call]:
    """The first way of this rival that solves all items, or what is wrong with the last, and one call."""
    prepared: list[tuple[Cell, Call]] = []
    for way in RIVALS[name].ways:
        prepared.append(prepare_way(family, name, way, data))
        if not prepared[-1][0].reason:
            break
    return prepared[-1]


def prepare_way(family: Family, name: str, way: Callable[[Family], Solve], data: Data) -> tuple[Cell, Call]:
    x, v, y, gradient = data

    def call() -> tuple[float, float]:
        start = time.perf_counter()
        _, pull = solve(x)
        middle = time.perf_counter()
        pull(v)
        return middle - start, time.perf_counter() - middle

    start = time.perf_counter()
    solve = way(family)
    found, pull = solve(x)
    slope = pull(v)
    first = time.perf_counter() - start
    n = len(y)
    distance = np.abs(found[:n] - y).max(1) / np.abs(y).max()
    cell = Cell(family.name, len(x), family.m, name, first=first)
    unsolved = int((~(distance < WRONG)).sum())
    if unsolved:
        return cell._replace(reason=f"{unsolved} of {n} not solved"), call
    forward, backward = (1e3 * seconds for seconds in call())
    error_gradient = float(np.abs(slope[:n] - gradient).max() / np.abs(gradient).max())
    cell = cell._replace(error=float(distance.max()), error_gradient=error_gradient)
    return cell._replace(forward=forward, backward=backward), call


def survey() -> list[Cell]:
    """All cells."""
    cells: list[Cell] = []
    for make, batches in FAMILIES.values():
        for m in SIZES:
            family = make(m)
            data = Data.of(family, max(batches))
            for B in batches:
                cells += batch(family, data.first(B), cells)
    return cells


def batch(family: Family, data: Data, before: list[Cell]) -> list[Cell]:
    """The cells of one batch, measured in turns."""
    cells: list[Cell] = []
    contenders: list[tuple[Cell, Call]] = []
    for name, rival in RIVALS.items():
        if len(data.x) not in rival.batches or not all(map(importlib.util.find_spec, rival.packages)):
            continue
        known = [c for c in (*before, *cells) if c.family == family.name and c.rival in (name, rival.like)]
        if is_too_long(family, name, len(data.x), known):
            cells.append(Cell(family.name, len(data.x), family.m, name, reason=f"over {LIMIT:.0f} s"))
            continue
        cell, call = prepare(family, name, data)
        cells.append(cell)
        if not cell.reason:
            contenders.append((cell, call))
    measured = {cell.rival: cell for cell in in_turns(contenders)}
    cells = [measured.get(cell.rival, cell) for cell in cells]
    print(*cells, sep="\n", file=sys.stderr)
    return cells


def is_too_long(family: Family, name: str, B: int, before: list[Cell]) -> bool:
    """Whether a cell must be expected to take too long."""
    rival = RIVALS[name]
    first = [1e-3 * rival.num_calls * c.both for c in before if (c.rival, c.B, c.m) == (rival.like, B, family.m)]
    own = [c for c in before if (c.B, c.m) != (B, family.m)]
    return expected_seconds(B, family.m, rival.is_loop, own) > LIMIT or any(seconds > 2 * LIMIT for seconds in first)


def expected_seconds(B: int, m: int, is_loop: bool, before: list[Cell]) -> float:
    """Going by the next smaller batch and by as large a batch of fewer variables."""
    expected = [0.0]
    for cell in before:
        seconds = float("inf") if "over" in cell.reason else 1e-3 * cell.both
        if (cell.m < m or "over" in cell.reason) and cell.B == B:
            expected.append(seconds)
        if cell.m == m and cell.B < B:
            times = B / cell.B
            expected.append(seconds * (times if is_loop or cell.B > 1 else times**0.5))
    return max(seconds for seconds in expected if seconds >= 0)  # of a cell that was not solved nothing is known


# How it is shown.


def tables(cells: list[Cell]) -> str:
    """Times, as multiples of ours but for our own, and errors."""
    names = [name for name in RIVALS if any(cell.rival == name for cell in cells)]
    found = {(cell.family, cell.B, cell.m, cell.rival): cell for cell in cells}
    rows = []
    for family, B, m in dict.fromkeys(key[:3] for key in found):
        ours = found[family, B, m, "torchddn"]
        both = f"- ({ours.reason})" if ours.reason else _number(ours.both)
        times = (_number(ours.forward), _number(ours.backward), both)
        others = [_beside(found.get((family, B, m, name)), ours) for name in names[1:]]
        rows.append((family, B, m, *times, *others))
    head = ("family", "B", "m", "torchddn forward", "backward", "both", *names[1:])
    parts = [table("Forward and backward, milliseconds (median of rounds), and as a multiple of ours", head, rows)]
    errors = []
    for family in FAMILIES:
        for name in names:
            own = [cell for cell in cells if (cell.family, cell.rival) == (family, name) and cell.both > 0]
            if own:
                worst = [max(getattr(cell, field) for cell in own) for field in ("error", "error_gradient", "first")]
                errors.append((family, name, *worst))
    head = ("family", "library", "relative error of y", "of the gradient", "seconds of the first call, at most")
    return "\n".join(
        [*parts, table("Accuracy, and what the first call costs: the worst over all B and m", head, errors)]
    )


def _number(time: float) -> str:
    return f"{time:.3g}" if time > 0 else "-"


def _beside(cell: Cell | None, ours: Cell) -> str:
    if cell is None:
        return ""
    if cell.reason:
        return f"- ({cell.reason})"
    ratio = f" ({cell.both / ours.both:.2g}x)" if ours.both > 0 else ""
    return f"{_number(cell.both)}{ratio}"


def draw(cells: list[Cell], path: pathlib.Path) -> None:
    """Time against m, a panel for each batch size of a family."""
    from matplotlib.figure import Figure

    # Okabe and Ito's palette, told apart by the color-blind too.
    colors = ("#000000", "#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7")
    panels = [(family, B) for family in ("reference", "mixed", "blocks") for B in FAMILIES[family][1]]
    figure = Figure(figsize=(3 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for ax, (family, B) in zip(axes, panels, strict=True):
        for name, color, marker in zip(RIVALS, colors, "so^vDPX", strict=True):
            own = [c for c in cells if (c.family, c.B, c.rival) == (family, B, name) and c.both > 0]
            if own:
                style = {"color": color, "marker": marker, "linewidth": 2.2 if color == "#000000" else 1.2}
                style["linestyle"] = "--" if name == "torchddn" else "-"
                ax.plot([c.m for c in own], [c.both for c in own], label=name, markersize=5, **style)
        ax.set(xscale="log", yscale="log", title=f"{family}, B = {B}", xlabel="variables m")
        ax.set_xticks(SIZES, [str(m) for m in SIZES])
        ax.set_xlim(0.8 * min(SIZES), 1.25 * max(SIZES))
        ax.tick_params(axis="x", which="minor", bottom=False)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("forward and backward, ms")
    lines = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    names = [name for name in RIVALS if name in lines]
    handles = [lines[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=150)


def run() -> str:
    """The tables, which are also left in the documentation with the numbers behind them and a picture."""
    # One thread for everybody; and where a JAX solver meets a number that is not finite, NaN and not an exception.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    if importlib.util.find_spec("jax"):
        import jax

        jax.config.update("jax_enable_x64", True)
    cells = survey()
    shown = tables(cells)
    FOLDER.mkdir(parents=True, exist_ok=True)
    # NaN is no JSON.
    rows = [{field: None if value != value else value for field, value in cell._asdict().items()} for cell in cells]
    record = {"machine": machine(), "cells": rows}
    (FOLDER / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (FOLDER / "table.md").write_text(shown)
    if importlib.util.find_spec("matplotlib"):
        draw(cells, FOLDER / "constrained.png")
    return shown
