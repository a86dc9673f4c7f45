r"""The backward pass of problems with structure: found by the library, made by hand, and dense.

Each problem is written as anybody would, a few lines of objective and constraints. Measured is the backward pass
alone, so the solution is handed to the problem as an input. *By hand* is a bare formula for that one problem: one
order, one mode, nothing checked, the gradient of the first input alone. The *ready node* of this library, where there
is one, keeps the whole contract of a node. *Dense* is ``Implicit(structure="dense", linear="lu")``, which forms K.

* transport:  ``min <P, M> + sum P (log P - 1)``, row sums r, column sums c.  K has a diagonal block and 2 n rows.
* soft top-k: ``min -x.y + sum y log y + (1 - y) log (1 - y)``, ``sum y = k``.  A diagonal block and one row.
* total variation, its dual:  ``min 1/2 |x - D'u|^2, |u| <= 1``.  Tridiagonal; most variables at no bound.
* robust center: ``min sum_i sqrt(1 + |y - x_i|^2)``.  H is dense, but a product with it is cheap.

A second table shows what a wrong declaration costs, a third what structure brings to the forward pass. Set
``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_MMAP_THRESHOLD_`` to a large number, as for a long training run: or else the C
library returns memory to the system after every pass, and getting it back is half of the time that is measured.
"""

import importlib.util
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

import torchddn as ddn
from benchmarks.timing import cpu_ms, interleaved, table
from torchddn.linear import Banded, BlockDiagonal, Diagonal, LowRank
from torchddn.structure import forget

D = torch.float64

# Calls after which the kernels of a compiled node are compiled.
NUM_CALLS = 12

# Milliseconds for which one way is measured before the next has its turn.
TURN = 20.0


class Given(ddn.Problem):
    """A problem whose last input is its solution."""

    def initial(self, *x: Tensor) -> Tensor:
        return torch.zeros_like(x[-1])

    def solve(self, *x: Tensor) -> Tensor:
        return x[-1]


class Transport(Given):
    def objective(self, P: Tensor, M: Tensor, *_: Tensor) -> Tensor:
        return (P * M).sum() + (P * (P.log() - 1)).sum()

    def equality(self, P: Tensor, M: Tensor, r: Tensor, c: Tensor, _: Tensor) -> Tensor:
        return torch.cat([P.sum(1) - r, P.sum(0) - c])

    def initial(self, M: Tensor, *_: Tensor) -> Tensor:
        return torch.full_like(M, 1 / M.numel())


class SoftTopK(Given):
    def objective(self, y: Tensor, x: Tensor, _: Tensor) -> Tensor:
        return -(x * y).sum() + (y * y.log() + (1 - y) * (1 - y).log()).sum()

    def equality(self, y: Tensor, x: Tensor, _: Tensor) -> Tensor:
        return y.sum() - 3

    def initial(self, x: Tensor, _: Tensor) -> Tensor:
        return torch.full_like(x, 3 / x.numel())


class TotalVariation(Given):
    def objective(self, u: Tensor, x: Tensor, _: Tensor) -> Tensor:
        return 0.5 * (x + pad(u, (0, 1)) - pad(u, (1, 0))).square().sum()

    def bounds(self, x: Tensor, _: Tensor) -> tuple[float, float]:
        return -1.0, 1.0


class RobustCenter(Given):
    def objective(self, y: Tensor, x: Tensor, _: Tensor) -> Tensor:
        return ((1 + (y - x).square().sum(-1)).sqrt() - 1).sum()


class ByHand(torch.autograd.Function):
    """A node for one problem: its solution, and how to pull a gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, pull: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.pull = pull
        return y.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        return ctx.pull(v), None, None


class Case(NamedTuple):
    """A problem with its inputs, the last of them its solution, and the backward pass by hand.

    ``read`` makes of what the node returns that of which the gradient is taken; ``ready`` is the ready node.
    """

    name: str
    problem: ddn.Problem
    inputs: tuple[Tensor, ...]
    by_hand: Callable[[Tensor], Tensor] | None
    read: Callable[..., Tensor] = lambda y, x: y
    ready: Callable[..., Tensor] | None = None

    def node(self, compile: bool = False, **options: Any) -> Callable[[], Tensor]:
        """The backward pass of the node with these options of the adjoint: the gradient in the first input."""
        x, *others = (tensor.detach().requires_grad_() for tensor in self.inputs[:-1])
        node = ddn.DeclarativeNode(self.problem, adjoint=ddn.Implicit(**options), compile=compile)
        y = self.read(node(x, *others, self.inputs[-1]), x)
        v = torch.randn(y.shape, dtype=D, generator=torch.Generator().manual_seed(1))
        return lambda: torch.autograd.grad(y, (x, *others), v, retain_graph=True)[0]

    def ready_made(self) -> Callable[[], Tensor]:
        """The same of the ready node."""
        assert self.ready is not None
        x = tuple(tensor.detach().requires_grad_() for tensor in self.inputs[:-1])
        y = self.ready(*x)
        v = torch.randn(y.shape, dtype=D, generator=torch.Generator().manual_seed(1))
        return lambda: torch.autograd.grad(y, x, v, retain_graph=True)[0]

    def hand_made(self) -> Callable[[], Tensor]:
        """The same by hand; for want of a formula the ready node."""
        if self.by_hand is None:
            return self.ready_made()
        x = self.inputs[0].detach().requires_grad_()
        y = ByHand.apply(x, self.read(self.inputs[-1], x.detach()), self.by_hand)
        v = torch.randn(y.shape, dtype=D, generator=torch.Generator().manual_seed(1))
        return lambda: torch.autograd.grad(y, x, v, retain_graph=True)[0]

    def compare(self, dense: bool = True) -> tuple[object, ...]:
        """A row of the table."""
        forget()
        with ddn.diagnostics() as seen:
            g = self.node()()
        record, expected = seen.records[-1], self.hand_made()()
        compiled = self.node(compile=True)
        for _ in range(NUM_CALLS - 1):
            compiled()
        error = max(((each - expected).norm() / expected.norm()).item() for each in (g, compiled()))
        calls = {"hand": self.hand_made(), "found": self.node(), "compiled": compiled}
        calls |= {"ready": self.ready_made()} if self.ready is not None else {}
        taken = {name: median for name, (_, median) in interleaved(calls, 25, TURN).items()}
        hand, found, fused, ready = (taken.get(name, "") for name in ("hand", "found", "compiled", "ready"))
        full = cpu_ms(self.node(structure="dense", linear="lu")) if dense else ""
        B, *shape = self.inputs[-1].shape
        return (
            *(self.name, B, "x".join(map(str, shape)), record.structure, record.method),
            *(hand, ready, found, fused, full),
            *(found / hand, fused / hand, fused / ready if isinstance(ready, float) else ""),
            *(full / found if isinstance(full, float) else "", 1e3 * record.seconds, error),
        )


def transport(B: int, n: int) -> Case:
    M = torch.rand(B, n, n, dtype=D)
    r, c = (torch.softmax(torch.randn(B, n, dtype=D), 1) for _ in range(2))
    P = torch.exp(-M)
    for _ in range(1000):
        P = P * (r / P.sum(2)).unsqueeze(2)
        P = P * (c / P.sum(1)).unsqueeze(1)

    def by_hand(v: Tensor) -> Tensor:
        # Sums over H^-1 = diag(P); the last column constraint follows from the others.
        w = P * v
        a, b, Q = w.sum(2), w.sum(1)[:, :-1], P[:, :, :-1]
        Q_r = Q / r.unsqueeze(2)
        S = torch.diag_embed(c[:, :-1]) - Q_r.mT @ Q
        rest = (b - (Q_r.mT @ a.unsqueeze(2)).squeeze(2)).unsqueeze(2)
        mu_c = torch.cholesky_solve(rest, torch.linalg.cholesky(S))
        mu_r = a / r - (Q_r @ mu_c).squeeze(2)
        return P * (mu_r.unsqueeze(2) + pad(mu_c.mT, (0, 1))) - w

    return Case("transport", Transport(), (M, r, c, P), by_hand, ready=ddn.functional.optimal_transport)


def soft_top_k(B: int, m: int) -> Case:
    x = torch.randn(B, m, dtype=D)
    shift = torch.zeros(B, 1, dtype=D)
    for _ in range(100):
        y = torch.sigmoid(x + shift)
        shift -= (y.sum(1, keepdim=True) - 3) / (y * (1 - y)).sum(1, keepdim=True).clamp(min=0.5)
    y = torch.sigmoid(x + shift)

    def by_hand(v: Tensor) -> Tensor:
        w = y * (1 - y)
        return w * (v - (w * v).sum(1, keepdim=True) / w.sum(1, keepdim=True))

    def ready(x: Tensor) -> Tensor:
        return ddn.functional.soft_top_k(x, 3.0)

    return Case("soft top-k", SoftTopK(), (x, y), by_hand, ready=ready)


def total_variation(B: int, n: int) -> Case:
    """Made from its solution: where the signal jumps, u is at the bound that the jump has the sign of."""
    jump = torch.where(torch.rand(B, n - 1, dtype=D) < 0.1, torch.randn(B, n - 1, dtype=D), 0)
    u = torch.where(jump != 0, jump.sign(), 1.6 * torch.rand(B, n - 1, dtype=D) - 0.8)
    signal = pad(jump, (1, 0)).cumsum(1)
    x = signal + pad(u, (1, 0)) - pad(u, (0, 1))
    segment = pad((jump != 0).long(), (1, 0)).cumsum(1)

    def by_hand(v: Tensor) -> Tensor:
        # The answer is the mean of x over each segment, up to a constant.
        total = torch.zeros_like(v).scatter_add_(1, segment, v)
        count = torch.zeros_like(v).scatter_add_(1, segment, torch.ones_like(v))
        return (total / count.clamp(min=1)).gather(1, segment)

    def read(u: Tensor, x: Tensor) -> Tensor:
        return x + pad(u, (0, 1)) - pad(u, (1, 0))

    return Case("total variation", TotalVariation(), (x, u), by_hand, read, ready=ddn.functional.total_variation)


def robust_center(B: int, n: int, m: int) -> Case:
    x = torch.randn(B, n, m, dtype=D)

    def ready(x: Tensor) -> Tensor:
        return ddn.functional.robust_vector_pool(x, "pseudo_huber")

    return Case("robust center", RobustCenter(), (x, ready(x)), None, ready=ready)


CASES = (  # and whether a dense pass takes less than half a minute
    (transport, (8, 20), True),
    (transport, (8, 30), True),
    (transport, (64, 60), False),
    (transport, (8, 120), False),
    (transport, (4, 200), False),
    (transport, (1, 500), False),
    (soft_top_k, (16, 200), True),
    (soft_top_k, (16, 1000), True),
    (total_variation, (16, 200), True),
    (total_variation, (16, 1000), True),
    (robust_center, (8, 512, 128), True),
    (robust_center, (4, 512, 256), True),
)

WRONG = (Diagonal(), Banded(2), BlockDiagonal(4), LowRank(2))

PICTURE = pathlib.Path(__file__).parent.parent / "docs" / "_static" / "structure.svg"


def wrong(B: int, m: int) -> list[tuple[object, ...]]:
    """Rows of the second table: the pass that finds a declaration to be wrong, and those after it."""

    def objective(y: Tensor, x: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum() + 0.3 * y.cumsum(0).square().mean()

    x, v = torch.randn(B, m, dtype=D, requires_grad=True), torch.randn(B, m, dtype=D)

    def pull(declared: Any) -> Callable[[], Tensor]:
        y = ddn.argmin(objective, torch.zeros(m, dtype=D), x, adjoint=ddn.Implicit(structure=declared))
        return lambda: torch.autograd.grad(y, x, v, retain_graph=True)[0]

    dense = cpu_ms(pull("dense"))
    expected = pull("dense")()
    rows = []
    for declared in WRONG:
        again = pull(declared)

        def first(again: Callable[[], Tensor] = again) -> Tensor:
            forget()
            return again()

        error = ((again() - expected).norm() / expected.norm()).item()
        times = cpu_ms(first), cpu_ms(again)
        rows.append((B, m, declared.name, dense, *times, times[0] / dense, times[1] / dense, error))
    return rows


class Separable(ddn.Problem):
    def objective(self, y: Tensor, x: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum() + 0.3 * torch.logsumexp(y, 0)

    def equality(self, y: Tensor, x: Tensor) -> Tensor:
        return y.sum() - 1

    def inequality(self, y: Tensor, x: Tensor) -> Tensor:
        return y.square().sum() - 0.3 * y.numel()

    def initial(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Denoising(ddn.Problem):
    def objective(self, u: Tensor, x: Tensor) -> Tensor:
        return 0.5 * (x + pad(u, (0, 1)) - pad(u, (1, 0))).square().sum()

    def bounds(self, x: Tensor) -> tuple[float, float]:
        return -1.0, 1.0

    def initial(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[1:])


class Plan(ddn.Problem):
    def objective(self, P: Tensor, M: Tensor, r: Tensor, c: Tensor) -> Tensor:
        return (P * M).sum() + (P * (P.log() - 1)).sum()

    def equality(self, P: Tensor, M: Tensor, r: Tensor, c: Tensor) -> Tensor:
        return torch.cat([P.sum(1) - r, (P.sum(0) - c)[:-1]])

    def initial(self, M: Tensor, r: Tensor, c: Tensor) -> Tensor:
        return r[:, None] * c


def forward(name: str, problem: ddn.Problem, *x: Tensor) -> tuple[object, ...]:
    """A row of the third table: the forward pass of a large problem, and of the solver that does without structure."""
    own, other = (ddn.DeclarativeNode(problem, solver=solver) for solver in ("auto", "AugmentedLagrangian"))
    forget()
    start = time.process_time()
    own.solve(*x)
    first = 1e3 * (time.process_time() - start)
    found, again = own.solve(*x), cpu_ms(lambda: own.solve(*x))
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it does not solve is counted
        unstructured = other.solve(*x)
    rest = 1e3 * (time.process_time() - start)
    shape = "x".join(map(str, found.y.shape[1:]))
    solved = [int((solution.status == ddn.Status.CONVERGED).sum()) for solution in (found, unstructured)]
    steps = [int(solution.num_steps.max()) for solution in (found, unstructured)]
    return (name, len(found.y), shape, first, again, steps[0], solved[0], rest, steps[1], solved[1], rest / again)


def forwards() -> list[tuple[object, ...]]:
    """Rows of the third table."""

    def normal(*size: int) -> Tensor:
        return torch.randn(size, dtype=D)

    torch.manual_seed(0)
    rows = [forward("separable", Separable(), normal(4, m)) for m in (500, 3000)]
    rows += [forward("total variation", Denoising(), 0.3 * normal(4, n).cumsum(1)) for n in (500, 2000)]
    for n in (20, 50):
        rows.append(
            forward("transport", Plan(), torch.rand(4, n, n, dtype=D), normal(4, n).softmax(1), normal(4, n).softmax(1))
        )
    return rows


def draw(path: pathlib.Path) -> None:
    """Backward time over the number of variables, soft top-k, B = 16."""
    import matplotlib.pyplot as plt

    sizes = (50, 100, 200, 500, 1000, 2000, 5000)
    times: dict[str, list[float]] = {"dense": [], "torchddn": [], "by hand": []}
    for m in sizes:
        torch.manual_seed(0)
        case = soft_top_k(16, m)
        times["torchddn"].append(cpu_ms(case.node()))
        times["by hand"].append(cpu_ms(case.hand_made()))
        if m <= 1000:
            times["dense"].append(cpu_ms(case.node(structure="dense", linear="lu"), least=1))
    figure, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for (name, values), color in zip(times.items(), ("#D55E00", "#0072B2", "#009E73"), strict=True):
        ax.loglog(sizes[: len(values)], values, "o-", color=color, label=name)
    ax.set(xlabel="variables", ylabel="ms per backward pass", title="Soft top-k, B = 16")
    ax.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def run() -> str:
    """The tables; the picture too, where matplotlib is installed."""
    rows = []
    for make, size, dense in CASES:
        torch.manual_seed(0)
        rows.append(make(*size).compare(dense))
    torch.manual_seed(0)
    found = table(
        "Backward pass on the CPU, float64, milliseconds of processor time (median; dense: mean)",
        (
            *("problem", "B", "y", "found", "method", "by hand", "ready node", "torchddn", "compiled", "dense"),
            *("torchddn / by hand", "compiled / by hand", "compiled / ready node"),
            *("dense / torchddn", "first pass", "relative error"),
        ),
        rows,
    )
    mistaken = table(
        "A declaration that is wrong, milliseconds of processor time (mean)",
        ("B", "m", "declared", "dense", "first pass", "later", "first / dense", "later / dense", "relative error"),
        [row for size in ((16, 64), (16, 100), (4, 300)) for row in wrong(*size)],
    )
    solved = table(
        "Forward pass of the node as it is, and with AugmentedLagrangian: milliseconds, most steps, items solved",
        (
            *("problem", "B", "y", "first call", "later", "steps", "solved"),
            *("AugmentedLagrangian", "steps", "solved", "AugmentedLagrangian / later"),
        ),
        forwards(),
    )
    if importlib.util.find_spec("matplotlib") is not None:
        draw(PICTURE)
    return f"{found}\n{mistaken}\n{solved}"
