"""Entropic transport, forward to a marginal error of 1e-6 and backward, beside what a user would pick instead.

Costs are uniform or normal numbers, marginals uniform; all in float32 on one thread, the gradient in the cost. Peers
(``pip install POT geomloss``): *POT* in its batched form and item by item, both unrolled by autograd; two unrolled
iterations as the papers write them, multiplicative and in the log domain. Unrolling stores every step: peers stop after
300 steps, whether they have converged or not, and their time is then a lower bound (marked by ``>``). geomloss takes
point clouds and stops after a fixed schedule, so it is in the table of clouds only. A peer that is not installed is
left out.

Times are processor time. The allocator must keep its pages, or page faults are measured: set
``MALLOC_TRIM_THRESHOLD_=10000000000 MALLOC_MMAP_THRESHOLD_=10000000000``.
"""

import importlib.util
import resource
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import torchddn as ddn
from benchmarks.timing import cpu_ms, table
from torchddn.functional import optimal_transport, transport_between

MOST_STEPS = 300
ATOL = 1e-6
SHAPES = ((16, 100), (1, 500))
GAMMAS = (1.0, 10.0, 100.0, 1000.0)
KINDS: dict[str, Callable[..., Tensor]] = {"uniform": torch.rand, "normal": torch.randn}


class Answer(NamedTuple):
    P: Tensor
    num_steps: int


def multiplicative(cost: Tensor, gamma: float) -> Answer:
    """The paper's iteration: scalings of ``exp(-gamma M)``."""
    m, n = cost.shape[1:]
    K = torch.exp(-gamma * (cost - cost.detach().amin(dim=(1, 2), keepdim=True)))
    a = cost.new_full((len(cost), m, 1), 1 / m)
    b = cost.new_full((len(cost), 1, n), 1 / n)
    for step in range(1, MOST_STEPS + 1):
        sums = (K * b).sum(dim=2, keepdim=True)
        if step % 5 == 0 and (a * sums - 1 / m).detach().abs().sum(dim=1).max() <= ATOL:
            break
        a = 1 / (m * sums)
        b = 1 / (n * (K * a).sum(dim=1, keepdim=True))
    return Answer(K * a * b, step)


def log_domain(cost: Tensor, gamma: float) -> Answer:
    """The same iteration on potentials."""
    m, n = cost.shape[1:]
    E = -gamma * cost
    v = cost.new_zeros((len(cost), 1, n))
    u = -torch.logsumexp(E, dim=2, keepdim=True)
    log_m, log_n = cost.new_tensor(m).log(), cost.new_tensor(n).log()
    for step in range(1, MOST_STEPS + 1):
        sums = torch.logsumexp(E + v, dim=2, keepdim=True)
        if step > 1 and step % 5 == 0 and ((u + sums).exp() - 1 / m).detach().abs().sum(dim=1).max() <= ATOL:
            break
        u = -log_m - sums
        v = -log_n - torch.logsumexp(E + u, dim=1, keepdim=True)
    return Answer((E + u + v).exp(), step)


def pot_batch(method: str) -> Callable[[Tensor, float], Answer]:
    def call(cost: Tensor, gamma: float) -> Answer:
        from ot.batch import solve_batch

        found = solve_batch(cost, 1 / gamma, max_iter=MOST_STEPS, tol=ATOL, method=method, grad="autodiff")
        return Answer(found.plan, found.log["n_iter"])

    return call


def pot_items(method: str) -> Callable[[Tensor, float], Answer]:
    def call(cost: Tensor, gamma: float) -> Answer:
        import ot

        plans, num_steps = [], 0
        for item in cost.unbind():
            m, n = item.shape
            r, c = item.new_full((m,), 1 / m), item.new_full((n,), 1 / n)
            P, log = ot.bregman.sinkhorn(
                r, c, item, 1 / gamma, method=method, numItermax=MOST_STEPS, stopThr=ATOL, warn=False, log=True
            )
            plans.append(P)
            num_steps = max(num_steps, log["niter"])
        return Answer(torch.stack(plans), num_steps)

    return call


def ours(cost: Tensor, gamma: float) -> Answer:
    with ddn.diagnostics() as seen:
        P = optimal_transport(cost, gamma=gamma, atol=ATOL)
    return Answer(P, int(seen.records[0].num_steps))


PEERS = {
    "multiplicative, unrolled": multiplicative,
    "log domain, unrolled": log_domain,
    "POT batch": pot_batch("sinkhorn"),
    "POT batch, log": pot_batch("log_sinkhorn"),
    "POT items": pot_items("sinkhorn"),
    "POT items, log": pot_items("sinkhorn_log"),
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


def cell(kind: str, size: int, n: int, gamma: float, methods: dict[str, Callable[[Tensor, float], Answer]]) -> list:
    """Rows of the table: the method, its steps, time, errors and memory."""
    generator = torch.Generator().manual_seed(0)
    cost = KINDS[kind](size, n, n, generator=generator).requires_grad_()
    v = torch.randn(size, n, n, generator=generator)
    P_exact, expected = reference(cost.detach(), gamma, v)
    rows = []
    for name, method in methods.items():

        def call(method: Callable[[Tensor, float], Answer] = method) -> Tensor:
            return torch.autograd.grad(method(cost, gamma).P, cost, v)[0]

        P, num_steps = method(cost, gamma)
        error = (P - P_exact).abs().max().item()
        # A plan that is nearly a permutation has a gradient of nearly zero: errors are relative to gamma |P v|.
        scale = (gamma * P_exact * v).abs().max().item()
        slope_error = (call() - expected).abs().max().item() / scale
        num_plans = peak(call) / (4 * cost.numel())
        milliseconds = cpu_ms(call, seconds=0.3, least=2)
        rows.append((name, num_steps, milliseconds, error, slope_error, num_plans))
        del P
    return rows


def available() -> dict[str, Callable[[Tensor, float], Answer]]:
    has_pot = importlib.util.find_spec("ot") is not None
    return {name: method for name, method in PEERS.items() if has_pot or not name.startswith("POT")}


def matrices() -> str:
    rows, ratios = [], []
    for size, n in SHAPES:
        for kind in KINDS:
            for gamma in GAMMAS:
                mine, *others = cell(kind, size, n, gamma, {"torchddn": ours, **available()})
                right = [other for other in others if other[2] == other[2]]
                best = min(right, key=lambda row: row[2])
                ratio = best[2] / mine[2]
                ratios.append(ratio)
                bound = ">" if best[1] >= MOST_STEPS - 1 else ""
                theirs = (*best[:2], f"{bound}{best[2]:.3g}", *best[3:], f"{bound}{ratio:.3g}")
                rows.append((f"{size} x {n} x {n}", kind, gamma, *mine[1:], *theirs))
    mean = torch.tensor(ratios).log().mean().exp().item()
    head = ("costs", "kind", "gamma", "steps", "ms", "plan error", "gradient error", "plans of memory", "fastest peer")
    head += ("its steps", "its ms", "its plan error", "its gradient error", "its plans", "ratio")
    title = f"Transport, float32, forward and backward; ratios in the geometric mean {mean:.1f}"
    return table(title, head, rows)


def clouds() -> str:
    rows = []
    generator = torch.Generator().manual_seed(0)
    for n in (1000, 5000, 20000):
        x = torch.randn(n, 3, generator=generator).requires_grad_()
        y = 1 + torch.randn(n, 3, generator=generator)
        start = time.process_time()
        found = transport_between(x, y)
        (slope,) = torch.autograd.grad(found.value, x)
        seconds = time.process_time() - start
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        # Moving the cloud as a whole changes the cost by twice the distance of the centers.
        slope_error = (slope.sum(dim=0) - 2 * (x.mean(dim=0) - y.mean(dim=0))).abs().max().item()
        rows.append((n, int(found.num_steps), float(found.error), seconds, resident, 4 * n * n / 2**30, slope_error))
    head = ("points", "steps", "error", "s", "GiB of the process", "GiB of the matrix", "error of the sum of gradients")
    return table("Clouds of points in space, gamma = 1, float32", head, rows)


def draw(path: str) -> None:
    """Time and memory against size, figure 3 of the second paper: normal costs, gamma = 10."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    sizes = (50, 100, 200, 500, 1000, 2000)
    methods = {"torchddn": ours, **{name: PEERS[name] for name in available() if "items" not in name}}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for (name, method), color in zip(methods.items(), colors, strict=False):
        times, plans, done = [], [], []
        for n in sizes:
            if method is not ours and n > 1000:
                continue
            cost = torch.rand(1, n, n, generator=torch.Generator().manual_seed(0)).requires_grad_()

            def call(method: Callable[[Tensor, float], Answer] = method, cost: Tensor = cost) -> Tensor:
                return torch.autograd.grad(method(cost, 100.0).P.square().sum(), cost)[0]

            plans.append(peak(call) / 2**20)
            times.append(cpu_ms(call, seconds=0.2, least=1))
            done.append(n)
        left.loglog(done, times, "o-", color=color, label=name)
        right.loglog(done, plans, "o-", color=color, label=name)
    for axes, label in ((left, "processor time, ms"), (right, "peak memory, MiB")):
        axes.set_xlabel("n of an n x n cost, uniform, gamma = 100")
        axes.set_ylabel(label)
        axes.grid(True, which="both", alpha=0.3)
    left.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def run() -> str:
    """The tables."""
    return f"{matrices()}\n{clouds()}"
