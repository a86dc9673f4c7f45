"""Four ways to solve a quadratic program, forward and backward, on problems of three kinds.

* Many small dense programs, ``B = 128``, ``n`` variables, ``n`` inequalities and limits.
* One program of each size, the same.
* One chain of states and controls with ``T`` steps, sparse, as in predictive control.

Every way gets the same data, in float64, and one thread. Milliseconds of processor time, for the solution and then for
the gradient of a random linear function of it in ``q``; the error is that of the gradient, relative to the first way.
"""

import importlib.util
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import torchddn as ddn
from benchmarks.timing import cpu_ms, table
from torchddn.functional import quadratic_program

D = torch.float64
HERE = pathlib.Path(__file__).parent.parent / "docs" / "_static" / "qp_backends"

Solve = Callable[[Tensor], Tensor]


def dense_ways(B: int, n: int) -> tuple[Tensor, dict[str, Solve]]:
    """``q``, and the functions of it that return the solutions."""
    generator = torch.Generator().manual_seed(n)
    root = torch.randn(B, n, n, dtype=D, generator=generator)
    q = torch.randn(B, n, dtype=D, generator=generator)
    G = torch.randn(n, n, dtype=D, generator=generator)
    Q = root @ root.mT / n + 1e-2 * torch.eye(n, dtype=D)
    h = torch.rand(n, dtype=D, generator=generator)

    def by(backend: str) -> Solve:
        return lambda q: quadratic_program(Q, q, G=G, h=h, lower=-1.0, upper=1.0, backend=backend)

    ways = {"own": by("torchddn"), "daqp": by("qpsolvers:daqp"), "clarabel": by("qpsolvers:clarabel")}
    if importlib.util.find_spec("cvxpy") is not None:
        layer = convex_layer(n, G, h)
        factor = torch.linalg.cholesky(Q).mT.contiguous()
        ways["ConvexProgram"] = lambda q: layer(factor, q)[0]
    return q, ways


def convex_layer(n: int, G: Tensor, h: Tensor) -> Any:
    """The same in cvxpy; a quadratic form is given by its root there."""
    import cvxpy as cp

    root, q, y = cp.Parameter((n, n)), cp.Parameter(n), cp.Variable(n)
    limits = [G.numpy() @ y <= h.numpy(), y >= -1, y <= 1]
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(root @ y) + q @ y), limits)
    return ddn.nn.ConvexProgram(problem, parameters=[root, q], variables=[y])


def chain_ways(T: int) -> tuple[Tensor, dict[str, Solve]]:
    """A double integrator over T steps: variables (position, velocity, control) of each."""
    n = 3 * T
    dynamics = torch.zeros(2 * T, n, dtype=D)
    for t in range(T):
        dynamics[2 * t : 2 * t + 2, 3 * t : 3 * t + 2] = torch.eye(2, dtype=D)
        if t:
            dynamics[2 * t : 2 * t + 2, 3 * t - 3 : 3 * t - 1] = -torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=D)
        dynamics[2 * t + 1, 3 * t + 2] = -0.1
    start = torch.zeros(2 * T, dtype=D)
    start[:2] = torch.tensor([3.0, 1.0])
    weights = torch.tensor([1.0, 0.1, 0.1], dtype=D).repeat(T)
    free = torch.full((n,), torch.inf, dtype=D)
    free[2::3] = 1.0
    sparse_A, sparse_Q = dynamics.to_sparse_csc(), torch.diag(weights).to_sparse_csc()

    def dense(q: Tensor) -> Tensor:
        return quadratic_program(torch.diag(weights), q, dynamics, start, lower=-free, upper=free)

    def sparse(q: Tensor) -> Tensor:
        return quadratic_program(sparse_Q, q, sparse_A, start, lower=-free, upper=free)

    return 0.1 * torch.randn(n, dtype=D, generator=torch.Generator().manual_seed(0)), {"own": dense, "sparse": sparse}


def rows_of(kind: str, n: int, q: Tensor, ways: dict[str, Solve]) -> list[tuple[object, ...]]:
    """A row of the table for each way."""
    q = q.requires_grad_()
    v = torch.randn(q.shape, dtype=D, generator=torch.Generator().manual_seed(1))
    rows: list[tuple[object, ...]] = []
    exact = None
    for name, solve in ways.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = solve(q)
            (gradient,) = torch.autograd.grad((y * v).sum(), q, retain_graph=True)
            forward = cpu_ms(lambda solve=solve: solve(q), 1.0, 2)
            backward = cpu_ms(lambda y=y: torch.autograd.grad((y * v).sum(), q, retain_graph=True), 0.5, 2)
        exact = gradient if exact is None else exact
        error = ((gradient - exact).norm() / exact.norm()).item()
        rows.append((kind, n, name, forward, backward, error))
    return rows


def run() -> str:
    """The table; also written to docs."""
    rows: list[tuple[object, ...]] = []
    for n in (10, 50):
        rows += rows_of("128 dense", n, *dense_ways(128, n))
    for n in (10, 100):
        rows += rows_of("one dense", n, *dense_ways(1, n))
    for T in (20, 100):
        rows += rows_of("one chain", 3 * T, *chain_ways(T))
    q, ways = chain_ways(1000)
    rows += rows_of("one chain", 3000, q, {"sparse": ways["sparse"]})
    head = ("problem", "variables", "way", "forward", "backward", "difference of gradients")
    text = table("Ways to solve a quadratic program, float64, one thread: milliseconds", head, rows)
    HERE.mkdir(exist_ok=True)
    (HERE / "table.md").write_text("\n".join(text.split("\n")[2:]))
    return text
