"""Robust pooling beside the poolings of torch, and beside ways in which one would do it by hand.

* Scalar: 16 images of 256 channels of 32 x 32 numbers, float32, forward and backward, one thread. *implicit L-BFGS* is
  ``torch.optim.LBFGS`` on the sum of the objectives of all channels, with the gradient of the implicit function theorem
  by hand; *unrolled* differentiates 20 gradient steps.
* Vector: 16 sets of 1024 points in 128 coordinates. *two products* is ``r @ w`` and the rank-one write of the backward
  pass as two batched products, and nothing else. L-BFGS solves the convex ones only.
* Least and median of rounds in which every row has its turn.
* Error: of y, relative to a float64 solution, the largest; of the objective where there may be several minima.

Processor time; set ``MALLOC_TRIM_THRESHOLD_=10000000000 MALLOC_MMAP_THRESHOLD_=10000000000``, or most of the time of
every one of them is spent on handing pages back to the system and asking for them again.
"""

import warnings
from collections.abc import Callable

import numpy as np
import scipy.optimize
import sklearn.exceptions
import sklearn.linear_model
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from benchmarks.timing import cpu_ms, interleaved, table
from torchddn import penalties
from torchddn.functional import robust_pool, robust_vector_pool

PENALTIES = ("quadratic", "pseudo_huber", "huber", "welsch", "truncated_quadratic")
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
NUM_CALLS = 10  # after which all kernels are compiled
SHAPE, POINTS = (16, 256, 1024), (16, 1024, 128)


def lbfgs(x: Tensor, penalty: str, max_steps: int = 100) -> Tensor:
    """The robust mean over axis -2 of ``(*B, n, m)``, all items in one problem; no graph."""
    kind = penalties.get(penalty)
    with torch.enable_grad():
        x = x.detach()
        y = x.mean(dim=-2).requires_grad_()
        solver = torch.optim.LBFGS([y], max_iter=max_steps, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            solver.zero_grad()
            f = kind.phi(length(y.unsqueeze(-2) - x), 1.0).sum()
            f.backward()
            return f

        solver.step(closure)
    return y.detach()


def length(r: Tensor) -> Tensor:
    """Over the last axis, unless it has one coordinate."""
    return r.squeeze(-1) if r.shape[-1] == 1 else r.square().sum(dim=-1).add(1e-12).sqrt()


class ImplicitLBFGS(torch.autograd.Function):
    """L-BFGS forward, and one linear system of order m backward, made by hand."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, penalty: str) -> Tensor:
        y = lbfgs(x, penalty)
        ctx.save_for_backward(x, y)
        ctx.penalty = penalties.get(penalty)  # pyright: ignore[reportAttributeAccessIssue]
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        kind = ctx.penalty  # pyright: ignore[reportAttributeAccessIssue]
        (v,) = grads
        r = y.unsqueeze(-2) - x
        if x.shape[-1] == 1:
            curvature = kind.ddphi(r, 1.0)
            return v.unsqueeze(-2) * curvature / curvature.sum(dim=-2, keepdim=True), None
        z = r.norm(dim=-1, keepdim=True)
        kappa1, kappa2 = kind.kappa1(z, 1.0), kind.kappa2(z, 1.0)
        H = torch.diag_embed(kappa1.sum(dim=-2).expand_as(y)) + r.mT @ (kappa2 * r)
        w = torch.linalg.solve(H, v.unsqueeze(-1))
        return kappa1 * w.mT + kappa2 * (r @ w) * r, None


def unrolled(x: Tensor, penalty: str, num_steps: int = 20) -> Tensor:
    """Reweighted steps from the mean, differentiated step by step; over the last axis."""
    kind = penalties.get(penalty)
    y = x.mean(dim=-1, keepdim=True)
    for _ in range(num_steps):
        weights = kind.kappa1(y - x, 1.0)
        y = (weights * x).sum(dim=-1, keepdim=True) / weights.sum(dim=-1, keepdim=True)
    return y.squeeze(-1)


def both(pool: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """Forward and backward."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(pool(x), x, v)[0]


def scalar() -> str:
    """The table of numbers."""
    x = torch.randn(SHAPE)
    x[..., ::10] *= 10
    v = torch.randn(SHAPE[:-1])
    pools: dict[str, tuple[Callable[[Tensor], Tensor], str | None]] = {
        "torch mean": (lambda x: x.mean(dim=-1), "quadratic"),
        "torch median": (lambda x: x.median(dim=-1).values, None),
    }
    pools |= {f"robust_pool, {name}": (lambda x, name=name: robust_pool(x, name), name) for name in PENALTIES}
    pools |= {
        f"robust_pool, compiled, {name}": (lambda x, name=name: robust_pool(x, name, compile=True), name)
        for name in PENALTIES[1:]
    }
    for name in PENALTIES[1:]:
        for _ in range(NUM_CALLS):
            both(pools[f"robust_pool, compiled, {name}"][0], x, v)
    pools |= {
        f"implicit L-BFGS, {name}": (
            lambda x, name=name: ImplicitLBFGS.apply(x.unsqueeze(-1), name).squeeze(-1),
            name,
        )
        for name in PENALTIES[1:3]
    }
    pools["unrolled, pseudo_huber"] = (lambda x: unrolled(x, "pseudo_huber"), "pseudo_huber")
    calls: dict[str, Callable[[], object]] = {
        name: lambda pool=pool: both(pool, x, v) for name, (pool, _) in pools.items()
    }
    times = interleaved(calls | {"torch sort (forward only)": lambda: x.sort(dim=-1)})
    mean_least, mean_median = times["torch mean"]
    rows = []
    for name, (least, median) in times.items():
        pool, penalty = pools.get(name, (None, None))
        error = ""
        if pool is not None and penalty is not None:
            error = f"{error_of(pool(x).double().unsqueeze(-1), x.double().unsqueeze(-1), penalty):.0e}"
        rows.append((name, least, median, least / mean_least, median / mean_median, error))
    head = (
        "16 x 256 x 1024, forward + backward",
        "least, ms",
        "median, ms",
        "/ mean, least",
        "/ mean, median",
        "error",
    )
    return table("Robust pooling of numbers, float32", head, rows)


def vector() -> str:
    """The table of points."""
    x, v = torch.randn(POINTS), torch.randn(POINTS[0], POINTS[2])
    w, q = torch.randn(POINTS[0], POINTS[2], 1), torch.randn(*POINTS[:2], 1)
    pools: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
        f"robust_vector_pool, {name}": (lambda x, name=name: robust_vector_pool(x, name), name) for name in PENALTIES
    }
    pools |= {
        f"robust_vector_pool, compiled, {name}": (lambda x, name=name: robust_vector_pool(x, name, compile=True), name)
        for name in PENALTIES[1:3]
    }
    for name in PENALTIES[1:3]:
        for _ in range(NUM_CALLS):
            both(pools[f"robust_vector_pool, compiled, {name}"][0], x, v)
    pools |= {
        f"implicit L-BFGS, {name}": (lambda x, name=name: ImplicitLBFGS.apply(x, name), name) for name in PENALTIES[1:3]
    }
    leaf = x.detach().requires_grad_()
    answers = {name: pool(leaf) for name, (pool, _) in pools.items()}
    back: dict[str, Callable[[], object]] = {
        name: lambda y=y: torch.autograd.grad(y, leaf, v, retain_graph=True) for name, y in answers.items()
    }
    back["two products"] = lambda: (x @ w, q @ w.mT)
    whole: dict[str, Callable[[], object]] = {
        name: lambda pool=pool: both(pool, x, v) for name, (pool, _) in pools.items()
    }
    backward, total = interleaved(back, 25), interleaved(whole, 15)
    products = backward["two products"]
    rows: list[tuple[object, ...]] = [("two products", *products, 1.0, "", "", "", "")]
    for name, (pool, penalty) in pools.items():
        y = answers[name].detach()
        error = f"{error_of(y.double(), x.double(), penalty):.0e}"
        share = backward[name][0] / products[0]
        used = memory(lambda pool=pool: both(pool, x, v), x)
        rows.append((name, *backward[name], share, *total[name], used, error))
    head = (
        "16 x 1024 x 128",
        "backward, least, ms",
        "median, ms",
        "/ two products, least",
        "forward + backward, least, ms",
        "median, ms",
        "peak memory / size of x",
        "error",
    )
    return table("Robust pooling of points, float32", head, rows)


def error_of(y: Tensor, x: Tensor, penalty: str) -> float:
    """Of y, relative to the largest, for a convex penalty; else of the objective, since there may be several minima."""
    kind = penalties.get(penalty)
    exact = robust_vector_pool(x, penalty)
    if kind.convex:
        return ((y - exact).abs().max() / exact.abs().max()).item()
    mine, best = (kind.phi((u.unsqueeze(-2) - x).norm(dim=-1), 1.0).sum(dim=-1) for u in (y, exact))
    return ((mine - best) / best).max().item()


def memory(function: Callable[[], object], x: Tensor) -> float:
    """The largest sum of allocations at any time, as a multiple of ``x``, by the profiler of torch."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        function()
    used = peak = 0
    for event in seen.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            used += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            peak = max(peak, used)
    return peak / (x.numel() * x.element_size())


def others() -> str:
    """One set of numbers by solvers that know no batch."""
    x = torch.randn(1024, dtype=torch.float64)
    x[::10] *= 10
    numbers = x.numpy()
    huber = penalties.get("huber")
    exact = robust_pool(x, "huber").item()

    def by_scipy() -> float:
        found = scipy.optimize.minimize(
            lambda y: (
                huber.phi(torch.from_numpy(y) - x, 1.0).sum().item(),
                huber.dphi(torch.from_numpy(y) - x, 1.0).sum(dim=0, keepdim=True).numpy(),
            ),
            np.array([numbers.mean()]),
            jac=True,
            method="BFGS",
        )
        return float(found.x[0])

    def by_sklearn() -> float:
        # With sigma = 1 fixed it would be the same estimator; it fits sigma too, so that only its time compares.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
            model = sklearn.linear_model.HuberRegressor(alpha=0.0).fit(np.zeros((len(numbers), 1)), numbers)
        return float(model.intercept_)

    rows = [
        ("robust_pool", cpu_ms(lambda: robust_pool(x, "huber")), 0.0),
        ("SciPy BFGS", cpu_ms(by_scipy), abs(by_scipy() - exact)),
        ("scikit-learn HuberRegressor (fits the scale too)", cpu_ms(by_sklearn), ""),
    ]
    return table("The Huber mean of 1024 numbers, forward only", ("by", "ms", "distance of y"), rows)


def draw(path: str) -> None:
    """Forward and backward over n, 100 to 1,000,000, for about two million numbers each time."""
    sizes = [100, 1000, 10_000, 100_000, 1_000_000]
    _, axes = plt.subplots(figsize=(6, 4))
    for name, color in zip(("mean", *PENALTIES[1:]), COLORS, strict=False):
        times = []
        for n in sizes:
            rows = max(1, 2_000_000 // n)
            x, v = torch.randn(rows, n), torch.randn(rows)
            pool = (lambda x: x.mean(dim=-1)) if name == "mean" else (lambda x, name=name: robust_pool(x, name))
            times.append(1e6 * cpu_ms(lambda pool=pool, x=x, v=v: both(pool, x, v), 0.2, 1) / (rows * n))
        axes.loglog(sizes, times, "o-", color=color, label=name)
    axes.set_xlabel("numbers in a set, n")
    axes.set_ylabel("forward + backward, ns per number")
    axes.legend(fontsize=8, ncols=2, loc="center", bbox_to_anchor=(0.5, 0.3))
    axes.grid(alpha=0.3)
    plt.tight_layout()
    plt.savefig(path)
    plt.close()


def run() -> str:
    """The tables."""
    torch.manual_seed(0)
    return "\n".join([scalar(), vector(), others()])
