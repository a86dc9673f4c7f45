"""Entropic transport, forward to a marginal error of 1e-6 and backward, beside what a user would pick instead.

Costs are uniform or normal numbers, marginals uniform; all in float32 on one thread, the gradient in the cost. Peers
(``pip install POT geomloss``): *POT* in its batched form, and for a single problem its log-domain solver, all unrolled
by autograd; two unrolled iterations as the papers write them, multiplicative and in the log domain. Unrolling stores
every step: peers stop after 300 steps. A peer whose marginals are then not met, or are NaN, is listed as such. It has
no part in the ratio, which is over the fastest of those that arrived. Where none did, the quickest one goes on without
a graph, up to 4000 steps: its time is that of the 300 steps, forward and backward, in proportion, marked by ``~``, or
by ``>`` if it has still not arrived. geomloss takes clouds of points, and is in their table.

The picture shows time and peak memory against size, as figure 3 of the second paper: uniform costs, gamma = 10, forward
and backward, peers up to the size at which they need 0.4 s.

Times are processor time; those of the table are the least of rounds in which all methods have a turn. The allocator
must keep its pages, or page faults are measured: set
``MALLOC_TRIM_THRESHOLD_=10000000000 MALLOC_MMAP_THRESHOLD_=10000000000``.
"""

import importlib.util
import math
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import torchddn as ddn
from benchmarks.timing import cpu_ms, interleaved, table
from torchddn.functional import optimal_transport, transport_between

MOST_STEPS = 300
# Without a graph, to see how many a peer would need that has not arrived.
PATIENCE = 4000
ATOL = 1e-6
SHAPES = ((16, 100), (1, 500))
GAMMAS = (1.0, 10.0, 100.0, 1000.0)
KINDS: dict[str, Callable[..., Tensor]] = {"uniform": torch.rand, "normal": torch.randn}


class Answer(NamedTuple):
    P: Tensor
    num_steps: int


def multiplicative(cost: Tensor, gamma: float, most: int = MOST_STEPS) -> Answer:
    """The paper's iteration: scalings of ``exp(-gamma M)``."""
    m, n = cost.shape[1:]
    K = torch.exp(-gamma * (cost - cost.detach().amin(dim=(1, 2), keepdim=True)))
    a = cost.new_full((len(cost), m, 1), 1 / m)
    b = cost.new_full((len(cost), 1, n), 1 / n)
    for step in range(1, most + 1):
        sums = (K * b).sum(dim=2, keepdim=True)
        if step % 5 == 0 and (a * sums - 1 / m).detach().abs().sum(dim=1).max() <= ATOL:
            break
        a = 1 / (m * sums)
        b = 1 / (n * (K * a).sum(dim=1, keepdim=True))
    return Answer(K * a * b, step)


def log_domain(cost: Tensor, gamma: float, most: int = MOST_STEPS) -> Answer:
    """The same iteration on potentials."""
    m, n = cost.shape[1:]
    E = -gamma * cost
    v = cost.new_zeros((len(cost), 1, n))
    u = -torch.logsumexp(E, dim=2, keepdim=True)
    log_m, log_n = cost.new_tensor(m).log(), cost.new_tensor(n).log()
    for step in range(1, most + 1):
        sums = torch.logsumexp(E + v, dim=2, keepdim=True)
        if step > 1 and step % 5 == 0 and ((u + sums).exp() - 1 / m).detach().abs().sum(dim=1).max() <= ATOL:
            break
        u = -log_m - sums
        v = -log_n - torch.logsumexp(E + u, dim=1, keepdim=True)
    return Answer((E + u + v).exp(), step)


def pot_batch(method: str) -> Callable[[Tensor, float], Answer]:
    def call(cost: Tensor, gamma: float, most: int = MOST_STEPS) -> Answer:
        from ot.batch import solve_batch

        found = solve_batch(cost, 1 / gamma, max_iter=most, tol=ATOL, method=method, grad="autodiff")
        return Answer(found.plan, found.log["n_iter"])

    return call


def pot_items(method: str) -> Callable[[Tensor, float], Answer]:
    def call(cost: Tensor, gamma: float, most: int = MOST_STEPS) -> Answer:
        import ot

        plans, num_steps = [], 0
        for item in cost.unbind():
            m, n = item.shape
            r, c = item.new_full((m,), 1 / m), item.new_full((n,), 1 / n)
            P, log = ot.bregman.sinkhorn(
                r, c, item, 1 / gamma, method=method, numItermax=most, stopThr=ATOL, warn=False, log=True
            )
            plans.append(P)
            num_steps = max(num_steps, log["niter"])
        return Answer(torch.stack(plans), num_steps)

    return call


def ours(cost: Tensor, gamma: float) -> Answer:
    return Answer(optimal_transport(cost, gamma=gamma, atol=ATOL), 0)


def steps_of_ours(cost: Tensor, gamma: float) -> int:
    with ddn.diagnostics() as seen:
        optimal_transport(cost, gamma=gamma, atol=ATOL)
    return seen.records[0].num_steps


PEERS = {
    "multiplicative, unrolled": multiplicative,
    "log domain, unrolled": log_domain,
    "POT batch": pot_batch("sinkhorn"),
    "POT batch, log": pot_batch("log_sinkhorn"),
    "POT single, log": pot_items("sinkhorn_log"),
}


def reference(cost: Tensor, gamma: float, v: Tensor) -> tuple[Tensor, Tensor]:
    """Plan and gradient in float64, by equation 3 of the paper with dense matrices on the plan's marginals."""
    P = optimal_transport(cost.double(), gamma=gamma, atol=1e-13)
    return P, dense_gradient(P, gamma, v.double())


def dense_gradient(P: Tensor, gamma: float, v: Tensor) -> Tensor:
    """The gradient of ``v . P`` in the cost, from the pseudo-inverse of ``A H^-1 A^T``, in float64."""
    p, q = P.sum(dim=2), P.sum(dim=1)
    K = torch.cat([torch.cat([torch.diag_embed(p), P], 2), torch.cat([P.mT, torch.diag_embed(q)], 2)], 1)
    G = P * v
    z = torch.linalg.lstsq(K, torch.cat([G.sum(dim=2), G.sum(dim=1)], 1).unsqueeze(2), driver="gelsd").solution
    return -gamma * P * (v - z[:, : P.shape[1]] - z[:, P.shape[1] :].mT)


def peak(function: Callable[[], object]) -> int:
    """Most bytes alive at once among those that the call allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    live = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


class Measured(NamedTuple):
    """Of one method. One that has not arrived has the time of its forward pass; the others are timed in rounds."""

    name: str
    num_steps: int
    milliseconds: float
    error: float
    arrived: bool
    plan_error: float
    slope_error: float
    num_plans: float


def measure(
    name: str,
    method: Callable[[Tensor, float], Answer],
    cost: Tensor,
    gamma: float,
    v: Tensor,
    right: tuple[Tensor, Tensor],
) -> Measured:
    start = time.process_time()
    P, num_steps = method(cost, gamma)
    forward = 1e3 * (time.process_time() - start)
    plain = P.detach()
    error = marginal_error(plain)
    plan_error = (plain - right[0]).abs().max().item()
    if not error <= 4 * ATOL:  # tests of convergence differ a little
        return Measured(name, num_steps, forward, error, False, plan_error, math.nan, math.nan)
    del P, plain
    call = partial(slope, method, cost, gamma, v)
    # A plan that is nearly a permutation has a gradient of nearly zero: errors are relative to gamma |P v|.
    slope_error = ((call() - right[1]).abs().max() / (gamma * right[0] * v).abs().max()).item()
    num_plans = peak(call) / (4 * cost.numel())
    return Measured(name, num_steps, math.nan, error, True, plan_error, slope_error, num_plans)


def slope(method: Callable[[Tensor, float], Answer], cost: Tensor, gamma: float, v: Tensor) -> Tensor:
    """What is timed: forward and backward."""
    return torch.autograd.grad(method(cost, gamma).P, cost, v)[0]


def cell(kind: str, size: int, n: int, gamma: float) -> tuple[tuple, tuple[float, bool]]:
    """A row of the table, its ratio, and whether that was measured, because a peer arrived."""
    generator = torch.Generator().manual_seed(0)
    cost = KINDS[kind](size, n, n, generator=generator).requires_grad_()
    v = torch.randn(size, n, n, generator=generator)
    right = reference(cost.detach(), gamma, v)
    mine = measure("torchddn", ours, cost, gamma, v, right)
    others = [
        measure(name, method, cost, gamma, v, right)
        for name, method in available().items()
        if size == 1 or "single" not in name
    ]
    arrived = [other for other in others if other.arrived]
    methods = {"torchddn": ours, **{other.name: PEERS[other.name] for other in arrived}}
    calls = {name: partial(slope, method, cost, gamma, v) for name, method in methods.items()}
    for call in calls.values():
        call()
    times = {name: least for name, (least, _) in interleaved(calls, num_rounds=15, milliseconds=20).items()}
    ms = times["torchddn"]
    row = (f"{size} x {n} x {n}", kind, gamma, steps_of_ours(cost, gamma), f"{ms:.3g}", mine.error, *mine[5:])
    late = "; ".join(f"{o.name}: {o.error:.0e} after {o.num_steps}" for o in others if not o.arrived)
    if not arrived:
        quickest = min((o for o in others if o.error == o.error), key=lambda other: other.milliseconds)
        mark, needed, taken = go_on(quickest.name, cost, gamma, v)
        steps = f"{mark}{needed}"
        theirs = (f"none; {quickest.name}", steps, f"{mark}{taken:.3g}", "", "", f"{mark}{taken / ms:.3g}")
        return (*row, *theirs, late), (taken / ms, False)
    best = min(arrived, key=lambda other: times[other.name])
    ratio = times[best.name] / ms
    theirs = (best.name, best.num_steps, f"{times[best.name]:.3g}", best.plan_error, best.num_plans)
    return (*row, *theirs, f"{ratio:.3g}", late), (ratio, True)


def go_on(name: str, cost: Tensor, gamma: float, v: Tensor) -> tuple[str, int, float]:
    """Steps that a peer would need, and their time: that of the first ones, which are unrolled, in proportion.

    With a mark, "~", or ">" if it does not arrive in ``PATIENCE`` steps.
    """
    with torch.no_grad():
        P, num_steps = PEERS[name](cost, gamma, PATIENCE)
    start = time.process_time()
    slope(PEERS[name], cost, gamma, v)
    milliseconds = 1e3 * (time.process_time() - start) * num_steps / MOST_STEPS
    return "~" if marginal_error(P) <= 4 * ATOL and num_steps < PATIENCE - 1 else ">", num_steps, milliseconds


def marginal_error(P: Tensor) -> float:
    """Of the worst item, rows and columns together."""
    rows, columns = ((P.sum(dim=dim) - 1 / P.shape[1]).abs().sum(dim=1) for dim in (2, 1))
    return (rows + columns).max().item()


def available() -> dict[str, Callable[[Tensor, float], Answer]]:
    has_pot = importlib.util.find_spec("ot") is not None
    return {name: method for name, method in PEERS.items() if has_pot or not name.startswith("POT")}


def matrices() -> str:
    cells = [cell(kind, size, n, gamma) for size, n in SHAPES for kind in KINDS for gamma in GAMMAS]
    measured = torch.tensor([ratio for _, (ratio, is_measured) in cells if is_measured]).log().mean().exp().item()
    mean = torch.tensor([ratio for _, (ratio, _) in cells]).log().mean().exp().item()
    head = (
        "costs",
        "kind",
        "gamma",
        "steps",
        "ms",
        "marginal error",
        "plan error",
        "gradient error",
        "plans of memory",
    )
    head += ("fastest that arrived", "its steps", "its ms", "its plan error", "its plans", "ratio", "not arrived")
    means = f"geometric mean of the ratios {mean:.1f}, of those without a mark {measured:.1f}"
    title = f"Transport, float32, forward and backward; {means}"
    return table(title, head, [row for row, _ in cells])


def geomloss_seconds(x: Tensor, y: Tensor) -> float:
    """Value and gradient, not debiased, with the same sharpness: its cost is half of ours."""
    from geomloss import SamplesLoss

    loss = SamplesLoss("sinkhorn", p=2, blur=0.5**0.5, scaling=0.9, debias=False, backend="tensorized")
    start = time.process_time()
    torch.autograd.grad(loss(x, y), x)
    return time.process_time() - start


def clouds() -> str:
    rows, theirs = [], []
    generator = torch.Generator().manual_seed(0)
    has_geomloss = importlib.util.find_spec("geomloss") is not None
    for n, atol in ((1000, 1e-4), (4000, 1e-4), (20000, 1e-2)):
        x = torch.randn(n, 3, generator=generator).requires_grad_()
        y = 1 + torch.randn(n, 3, generator=generator)
        start = time.process_time()
        found = transport_between(x, y, atol=atol)
        (slope,) = torch.autograd.grad(found.value, x)
        seconds = time.process_time() - start
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        # Moving the cloud as a whole changes the cost by twice the distance of the centers.
        slope_error = (slope.sum(dim=0) - 2 * (x.mean(dim=0) - y.mean(dim=0))).abs().max().item()
        error = float(found.error)
        rows.append((n, atol, int(found.num_steps), error, seconds, resident, 4 * n * n / 2**30, slope_error))
        if has_geomloss and n <= 4000:
            theirs.append((x, y))
    # After all of ours, since it holds matrices, and the memory of a process is the most it ever had.
    shown = [f"{geomloss_seconds(x, y):.3g}" for x, y in theirs] + [""] * (len(rows) - len(theirs))
    rows = [(*row, other) for row, other in zip(rows, shown, strict=True)]
    head = ("points", "atol", "steps", "error", "s", "GiB of the process so far", "GiB of the matrix")
    return table(
        "Clouds of points in space, gamma = 1, float32",
        (*head, "error of the sum of gradients", "geomloss, tensorized, s"),
        rows,
    )


def draw(path: str) -> None:
    """Time and peak memory against size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    methods = {"torchddn": ours, **available()}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for (name, method), color in zip(methods.items(), colors, strict=False):
        times, megabytes, done = [], [], []
        for n in (50, 100, 200, 500, 1000, 2000):
            cost = torch.rand(1, n, n, generator=torch.Generator().manual_seed(0)).requires_grad_()

            def call(method: Callable[[Tensor, float], Answer] = method, cost: Tensor = cost) -> Tensor:
                return torch.autograd.grad(method(cost, 10.0).P.square().sum(), cost)[0]

            megabytes.append(peak(call) / 2**20)
            times.append(cpu_ms(call, seconds=0.1, least=1))
            done.append(n)
            if method is not ours and times[-1] > 400:  # the next size is four times as slow, or more
                break
        left.loglog(done, times, "o-", color=color, label=name)
        right.loglog(done, megabytes, "o-", color=color, label=name)
    for axes, label in ((left, "processor time, ms"), (right, "peak memory, MiB")):
        axes.set_xlabel("n of an n x n cost, uniform, gamma = 10")
        axes.set_ylabel(label)
        axes.grid(True, which="both", alpha=0.3)
    left.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def run() -> str:
    """The tables; that of clouds first, whose memory is that of the process."""
    return f"{clouds()}\n{matrices()}"
