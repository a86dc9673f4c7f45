"""What projections cost, forward and backward, beside the operations of torch that they replace, and beside peers.

* *torch*: the nearest operation of torch: ``x / x.norm()``, ``clamp``, ``sort``, ``softmax``;
* *entmax*: the package of the authors of sparsemax and entmax;
* *autograd*: the same answer by a sort and ordinary operations, differentiated by autograd;
* *engine*: ``ddn.DeclarativeNode`` with the answer handed over, so that only its derivative is general.

Processor time, one thread, of a call and its backward pass, side by side in one process. Run it with
``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_MMAP_THRESHOLD_`` set to 10000000000, else half of the time goes to asking the
system for memory.
"""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import torchddn as ddn
from benchmarks.timing import cpu_ms, table
from torchddn.functional import entmax15, project_ball, project_monotone, project_simplex, project_sphere, sparsemax

try:
    entmax: Any = importlib.import_module("entmax")
except ImportError:
    entmax = None

BATCH = 256
SIZES = (512, 10_000)
CURVE = (100, 1000, 10_000, 100_000, 1_000_000)
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def by_sort(x: Tensor) -> Tensor:
    """The simplex, as it is usually written."""
    descending = x.sort(dim=1, descending=True).values
    k = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
    level = (descending.cumsum(dim=1) - 1) / k
    last = (descending > level).sum(dim=1, keepdim=True) - 1
    return (x - level.gather(1, last)).clamp(min=0)


class OnSphere(ddn.Problem):
    """The L2 sphere, stated."""

    def objective(self, y: Tensor, x: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def equality(self, y: Tensor, x: Tensor) -> Tensor:
        return y.square().sum() - 1

    def solve(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True)


class Row(NamedTuple):
    """A node and what it is compared with."""

    name: str
    ours: Callable[[Tensor], Tensor]
    peers: dict[str, Callable[[Tensor], Tensor]]


def normalize(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def rows() -> list[Row]:
    """What is compared with what."""
    simplex_peers: dict[str, Callable[[Tensor], Tensor]] = {"sort": lambda x: x.sort(dim=1).values, "autograd": by_sort}
    softmax: dict[str, Callable[[Tensor], Tensor]] = {"softmax": lambda x: x.softmax(dim=1)}
    sparse, smooth = dict(softmax), dict(softmax)
    if entmax is not None:
        sparse["entmax"] = lambda x: entmax.sparsemax(x, dim=1)
        smooth["entmax"] = lambda x: entmax.entmax15(x, dim=1)
    sort = simplex_peers["sort"]
    clamp: dict[str, Callable[[Tensor], Tensor]] = {"clamp": lambda x: x.clamp(-1, 1)}
    engine = ddn.DeclarativeNode(OnSphere(), on_failure="ignore")
    return [
        Row("sphere, p = 2", project_sphere, {"x / x.norm()": normalize, "engine": engine}),
        Row("ball, p = 2", project_ball, {"x / x.norm()": normalize}),
        Row("sphere, p = inf", lambda x: project_sphere(x, math.inf), clamp),
        Row("ball, p = inf", lambda x: project_ball(x, math.inf), clamp),
        Row("sphere, p = 1", lambda x: project_sphere(x, 1), {"sort": sort}),
        Row("ball, p = 1", lambda x: project_ball(x, 1), {"sort": sort}),
        Row("simplex", project_simplex, simplex_peers),
        Row("simplex, radius n", lambda x: project_simplex(x, x.shape[1]), {"sort": sort}),
        Row("sparsemax", sparsemax, sparse),
        Row("entmax, 1.5", entmax15, smooth),
        Row("monotone cone", project_monotone, {"sort": sort}),
    ]


def forward_and_backward(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Callable[[], Tensor]:
    x = x.detach().requires_grad_()
    return lambda: torch.autograd.grad(function(x), x, v)[0]


def compare(batch: int, n: int, seconds: float) -> list[tuple[object, ...]]:
    """Lines of the table for one size."""
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, batch, n, generator=generator)
    lines: list[tuple[object, ...]] = []
    for row in rows():
        step = forward_and_backward(row.ours, x, v)
        error = (step().double() - forward_and_backward(row.ours, x.double(), v.double())()).abs().max().item()
        for name, peer in row.peers.items():
            if name == "engine" and n > 1000:
                continue
            theirs = cpu_ms(forward_and_backward(peer, x, v), seconds)
            ours = cpu_ms(step, seconds)
            lines.append((row.name, f"{batch} x {n}", ours, name, theirs, ours / theirs, error))
    return lines


def run() -> str:
    """The tables."""
    torch.set_num_threads(1)
    head = ("node", "size", "ours, ms", "beside", "its ms", "ratio", "error of our gradient in float32")
    return "\n".join(
        table(f"Projections of {BATCH} vectors of {n}, float32, forward and backward", head, compare(BATCH, n, 0.5))
        for n in SIZES
    )


def draw(path: Path) -> None:
    """Time against size, for one vector of up to a million numbers."""
    plt = importlib.import_module("matplotlib.pyplot")
    torch.set_num_threads(1)
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True)
    softmax = lambda x: x.softmax(dim=1)  # noqa: E731
    panels: list[tuple[str, dict[str, Callable[[Tensor], Tensor]]]] = [
        ("L2 and Linf", {
            "sphere, p = 2": project_sphere, "x / x.norm()": normalize,
            "ball, p = inf": lambda x: project_ball(x, math.inf), "x.clamp(-1, 1)": lambda x: x.clamp(-1, 1),
        }),
        ("L1 and simplex", {
            "ball, p = 1": lambda x: project_ball(x, 1), "simplex": project_simplex,
            "x.sort()": lambda x: x.sort(dim=1).values, "simplex by sort, autograd": by_sort,
        }),
        ("probabilities", {
            "sparsemax": sparsemax, "entmax15": entmax15, "x.softmax()": softmax,
            **({"entmax.sparsemax": lambda x: entmax.sparsemax(x, dim=1),
                "entmax.entmax15": lambda x: entmax.entmax15(x, dim=1)} if entmax is not None else {}),
        }),
    ]  # fmt: skip
    for axis, (title, curves) in zip(axes, panels, strict=True):
        for color, (name, function) in zip(COLORS, curves.items(), strict=False):
            times = []
            for n in CURVE:
                x, v = torch.randn(2, 16, n, generator=torch.Generator().manual_seed(0))
                times.append(cpu_ms(forward_and_backward(function, x, v), 0.1))
            axis.loglog(CURVE, times, marker="o", markersize=3, color=color, label=name)
        axis.set_title(title)
        axis.set_xlabel("n (16 vectors, float32)")
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("forward and backward, ms")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
