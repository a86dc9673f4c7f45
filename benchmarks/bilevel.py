"""Hypergradients: of a lower problem with up to a million variables, by every method, and inexact ones.

* Size: logistic regression on generated sparse features, twenty to a sample, with one penalty for each of 100 groups of
  features; the upper objective is the loss on other samples. Lower solve: L-BFGS from zero to the default tolerance.
  Hypergradient: Hessian-vector products and conjugate gradients at that solution, to a certificate of 1e-6. Difference:
  to a central difference of the upper objective along a direction, relative. Memory: the most that the process held,
  and in brackets what it held with the data before it solved.
* Methods: the same with 200 variables. Lower solves are warm, from the solution itself, so that the difference of the
  two times is the method's. Unrolled and one-step hypergradients differentiate steps of gradient descent of length 1/L.
* Schedule: the penalties chosen by ``minimize_bilevel``, lower solves as exact as they get, and only as exact as the
  upper level needs.

Float64, one thread, processor time.
"""

import pathlib
import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from benchmarks.timing import cpu_ms, table
from torchddn import DeclarativeNode, Problem
from torchddn.bilevel import Bilevel, Box, hypergradient, minimize_bilevel
from torchddn.solvers import LBFGS, GradientDescent, Newton, WarmStart

NUM_GROUPS, NUM_ENTRIES = 100, 20
SIZES = (1000, 10_000, 100_000, 1_000_000)
FOLDER = pathlib.Path(__file__).parent.parent / "docs" / "_static" / "bilevel"


class SparseProduct(torch.autograd.Function):
    """``X y`` for ``y`` of ``(1, m)``; the transpose is kept beside X, since torch would make it in every pass."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, X: Tensor, X_transposed: Tensor) -> Tensor:
        ctx.matrices = X_transposed, X
        return (X @ y[0])[None]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return SparseProduct.apply(grads[0], *ctx.matrices), None, None


class Samples(NamedTuple):
    """Sparse features with labels of -1 and 1."""

    X: Tensor
    X_transposed: Tensor
    labels: Tensor

    def losses(self, y: Tensor) -> Tensor:
        """``(1, N)`` for ``y`` of ``(1, m)``."""
        return torch.nn.functional.softplus(-self.labels * SparseProduct.apply(y, self.X, self.X_transposed))


def samples(num_rows: int, w: Tensor, generator: torch.Generator) -> Samples:
    """Rows whose few features are the more frequent the lower their index, labelled by ``w`` and some noise."""
    size = (num_rows, NUM_ENTRIES)
    columns = (torch.rand(size, generator=generator).square() * len(w)).long().clamp(max=len(w) - 1)
    rows = torch.arange(num_rows).repeat_interleave(NUM_ENTRIES)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    X = torch.sparse_coo_tensor(torch.stack([rows, columns.flatten()]), values.flatten(), (num_rows, len(w)))
    X = X.coalesce()
    scores = X.to_sparse_csr() @ w
    noise = 0.5 * torch.randn(num_rows, generator=generator, dtype=torch.float64)
    return Samples(X.to_sparse_csr(), X.t().coalesce().to_sparse_csr(), torch.sign(scores + noise))


class Logistic(Problem):
    """Penalized logistic regression; ``batched``, since torch cannot map sparse products."""

    batched = True

    def __init__(self, train: Samples, num_variables: int) -> None:
        super().__init__()
        self.train_samples, self.num_variables = train, num_variables
        self.register_buffer("group", torch.arange(num_variables) % NUM_GROUPS)

    def objective(self, y: Tensor, theta: Tensor) -> Tensor:
        penalty = 0.5 * (theta.exp()[:, self.group] * y.square()).sum(-1)
        return self.train_samples.losses(y).sum(-1) + penalty

    def initial(self, theta: Tensor) -> Tensor:
        return theta.new_zeros(1, self.num_variables)


def regression(num_variables: int, solver: Any) -> Bilevel:
    """The pair; 30 groups of features matter."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(num_variables, generator=generator, dtype=torch.float64)
    w *= torch.arange(num_variables) % NUM_GROUPS < 30
    train, test = (samples(max(n, 200), w, generator) for n in (num_variables // 5, num_variables // 20))
    lower = DeclarativeNode(Logistic(train, num_variables), solver=solver)
    return Bilevel(lambda _, y: test.losses(y).mean(), lower, constraint=Box(-8.0, 8.0))


class Measured(NamedTuple):
    """One size."""

    solve: float
    hypergradient: float
    num_steps: int
    certificate: float
    difference: float
    memory: float
    data: float


def measure(num_variables: int) -> Measured:
    """Solves, differentiates, and checks by a difference."""
    pair = regression(num_variables, WarmStart(LBFGS()))
    data = _memory()
    theta = torch.zeros(NUM_GROUPS, dtype=torch.float64)
    with torch.no_grad():
        solve, answer = _timed(lambda: pair.solve(theta))
    backward, found = _timed(lambda: hypergradient(pair, None, theta, answer.y, method="cg", rtol=1e-6))
    memory = _memory()
    d = torch.randn(NUM_GROUPS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        high, low = (float(pair.value(theta + step * d, on_failure="ignore")) for step in (1e-3, -1e-3))
    slope = (high - low) / 2e-3
    difference = abs(float(found.gradient @ d) - slope) / abs(slope)
    return Measured(solve, backward, int(answer.num_steps), found.certificate, difference, memory, data)


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def _memory() -> float:
    """The most that the process held so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def sizes() -> str:
    """Time against size, as a table and a picture."""
    measure(SIZES[0])  # the first call of a process pays for what is loaded then
    found = {num_variables: measure(num_variables) for num_variables in SIZES}
    draw(found)
    rows = [
        (
            f"{size:,}",
            m.num_steps,
            m.solve,
            m.hypergradient,
            m.hypergradient / m.solve,
            f"{m.certificate:.0e}",
            f"{m.difference:.0e}",
            f"{m.memory:.2f} ({m.data:.2f})",
        )
        for size, m in found.items()
    ]
    head = ("variables", "lower steps", "lower solve s", "hypergradient s", "ratio", "certificate", "difference", "GiB")
    return table("Hypergradient with 100 penalties against size", head, rows)


def draw(found: dict[int, Measured]) -> None:
    """Both times over the number of lower variables."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, color in (("solve", "#D55E00"), ("hypergradient", "#0072B2")):
        times = [getattr(m, name) for m in found.values()]
        axes.loglog(list(found), times, "o-", color=color, label={"solve": "lower solve"}.get(name, name))
    axes.set(xlabel="lower variables", ylabel="seconds, one thread", title="100 penalties, matrix-free")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / "cost.svg")
    plt.close(figure)


def methods() -> str:
    """Cost and error of every method with 200 variables."""
    theta = torch.zeros(NUM_GROUPS, dtype=torch.float64)
    sparse = regression(200, LBFGS())
    train = sparse.lower.problem.train_samples
    X, labels, group = train.X.to_dense(), train.labels, sparse.lower.problem.group
    problem = Problem.from_functions(
        lambda y, theta: (
            torch.nn.functional.softplus(-labels * (X @ y)).sum() + 0.5 * (theta.exp()[group] * y.square()).sum()
        ),
        initial=lambda theta: theta.new_zeros(200),
    )
    steepest = 0.25 * float(torch.linalg.matrix_norm(X, 2).square()) + 1.0
    newton = WarmStart(Newton())
    # In units of the gradient, since a warm start begins with a small one; a node polishes the rest.
    descent = WarmStart(GradientDescent(step_size=1 / steepest, rtol=0.0, atol=1e-5, max_steps=20_000))
    kinds: list[tuple[str, Any, dict[str, Any]]] = [
        ("implicit", newton, {"method": "implicit"}),
        ("cg, certificate 1e-8", newton, {"method": "cg"}),
        ("cg, certificate 1e-2", newton, {"method": "cg", "rtol": 1e-2}),
        *((f"unrolled, {k} steps", descent, {"method": "unrolled", "num_steps": k}) for k in (10, 100, 1000)),
        ("one step", descent, {"method": "one_step"}),
        ("one step of Newton", newton, {"method": "one_step"}),
    ]
    truth = hypergradient(sparse.upper, problem, theta).gradient
    rows = []
    for name, solver, options in kinds:
        pair = Bilevel(sparse.upper, DeclarativeNode(problem, solver=solver))
        error = (hypergradient(pair, None, theta, **options).gradient - truth).norm() / truth.norm()
        rows.append((name, *_costs(pair, theta, options), f"{float(error):.0e}"))
    return table("Hypergradients of 200 variables", ("method", "lower solve ms", "with gradient ms", "error"), rows)


def _costs(pair: Bilevel, theta: Tensor, options: dict[str, Any]) -> tuple[float, float]:
    """Milliseconds of a warm lower solve, and of one with its hypergradient."""
    with torch.no_grad():
        solve = cpu_ms(lambda: pair.solve(theta), seconds=1.0)
    return solve, cpu_ms(lambda: hypergradient(pair, None, theta, **options), seconds=1.0)


def schedule() -> str:
    """Exact lower solves and scheduled ones."""
    rows = []
    for name, lower_rtol in (("exact", None), ("scheduled", "auto")):
        pair = regression(1000, LBFGS())
        theta = torch.zeros(NUM_GROUPS, dtype=torch.float64)
        seconds, found = _timed(
            lambda pair=pair, theta=theta, lower_rtol=lower_rtol: minimize_bilevel(
                pair, None, theta, method="cg", lower_rtol=lower_rtol, max_steps=5, on_failure="ignore"
            )
        )
        steps = sum(step.lower_steps for step in found.history)
        rows.append((name, float(found.value), found.num_steps, found.num_lower_solves, steps, seconds))
    head = ("lower level", "upper value", "upper steps", "lower solves", "lower steps", "s")
    return table("Five steps toward the best of 100 penalties, 1,000 variables", head, rows)


def run() -> str:
    """The tables, also written to where the documentation shows them; sizes first, for the memory of the process."""
    torch.sparse.check_sparse_tensor_invariants.disable()
    tables = "\n".join([sizes(), methods(), schedule()])
    (FOLDER / "table.md").write_text(tables)
    return tables
