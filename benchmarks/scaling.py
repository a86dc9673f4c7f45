"""Weak scaling: a step of training on one process and on two, and what that says of many.

The network is the paper's PointNet with Huber pooling. Each process has a batch of its own, so twice the processes do
twice the work. The parts of a step are measured: the computation, with the all-reduce of the gradients left out, and
the all-reduce, of which a short and a long one give latency and bandwidth. For N processes in a ring,

    t(N) = computation + 2 (N - 1) latency + 2 (N - 1) / N * bytes / bandwidth,

which is pessimistic: PyTorch sends the gradients of the last layers while it computes those of the first, and a
library that sends along trees waits 2 log2(N) times instead of 2 (N - 1).

All processes are on this machine and share its memory bus. Where each has a device of its own, put the latency and the
bandwidth of the network between them into the formula.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed
from lightning_fabric import Fabric
from torch.nn import functional as F

from benchmarks.timing import table
from torchddn.models import PointNet

BATCH, POINTS, ROUNDS = 8, 256, 7
# A cable of 200 Gbit/s between machines, as clusters have it: 20 GB/s in practice, 10 us a message.
NETWORK_LATENCY, NETWORK_BANDWIDTH = 1e-5, 20e9


class Parts(NamedTuple):
    """Seconds of a step and of its parts; bytes of the gradients."""

    step: float
    computation: float
    short: float
    long: float
    size: int


def least(function: Callable[[], object], fabric: Fabric) -> float:
    """Least wall time of a call that all processes begin together."""
    times = []
    for _ in range(ROUNDS):
        fabric.barrier()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure(fabric: Fabric) -> Parts:
    """The parts of a step on the processes of ``fabric``."""
    torch.set_num_threads(1)
    torch.manual_seed(fabric.global_rank)
    network = PointNet.published("huber")
    network, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.01))
    points, labels = torch.randn(BATCH, POINTS, 3), torch.randint(40, (BATCH,))

    def compute() -> None:
        fabric.backward(F.cross_entropy(network(points), labels))

    def step() -> None:
        compute()
        optimizer.step()
        optimizer.zero_grad()

    def compute_alone() -> None:
        with fabric.no_backward_sync(network, enabled=fabric.world_size > 1):
            compute()
        optimizer.zero_grad()

    size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    short, long = torch.zeros(1), torch.zeros(size // 4)

    def reduce(tensor: torch.Tensor) -> None:
        if fabric.world_size > 1:
            torch.distributed.all_reduce(tensor)

    return Parts(
        least(step, fabric),
        least(compute_alone, fabric),
        least(lambda: reduce(short), fabric),
        least(lambda: reduce(long), fabric),
        size,
    )


def on_processes(number: int) -> Parts:
    """The parts of a step on ``number`` processes of this machine."""
    fabric = Fabric(accelerator="cpu", devices=number, strategy="ddp_spawn" if number > 1 else "auto")
    return fabric.launch(measure)


def ring(num_processes: int, size: int, latency: float, bandwidth: float) -> float:
    """Seconds of an all-reduce of ``size`` bytes along a ring."""
    return 2 * (num_processes - 1) * latency + 2 * (num_processes - 1) / num_processes * size / bandwidth


def tree(num_processes: int, size: int, latency: float, bandwidth: float) -> float:
    """The same along two trees, as NCCL does where there are many processes."""
    return 2 * math.log2(num_processes) * latency + 2 * size / bandwidth


def run() -> str:
    """The tables."""
    one, two = on_processes(1), on_processes(2)
    latency = two.short / 2
    bandwidth = two.size / max(two.long - two.short, 1e-9)
    measured = [
        (number, 1e3 * parts.step, 1e3 * parts.computation, 1e3 * parts.long, number * BATCH / parts.step, share)
        for number, parts, share in ((1, one, "100 %"), (2, two, f"{one.step / two.step:.0%}"))
    ]
    head = ("processes", "step, ms", "computation alone, ms", "all-reduce alone, ms", "items/s", "efficiency")
    estimated = []
    for number in (2, 64, 1024):
        here, tied, branched = (
            two.computation + seconds
            for seconds in (
                ring(number, two.size, latency, bandwidth),
                ring(number, two.size, NETWORK_LATENCY, NETWORK_BANDWIDTH),
                tree(number, two.size, NETWORK_LATENCY, NETWORK_BANDWIDTH),
            )
        )
        estimated.append((number, *(f"{1e3 * t:.3g} ms, {two.computation / t:.0%}" for t in (here, tied, branched))))
    measured_table = table(
        f"Weak scaling, measured: PointNet of 0.8 million parameters, {BATCH} sets of {POINTS} points a process",
        head,
        measured,
    )
    estimated_table = table(
        f"Weak scaling, estimated: a step, and the share of it that computes. Measured here: {1e6 * latency:.0f} us a "
        f"message, {bandwidth / 1e9:.2g} GB/s, {two.size / 2**20:.1f} MiB of gradients",
        ("processes", "ring, as measured here", "ring, 10 us and 20 GB/s", "trees, 10 us and 20 GB/s"),
        estimated,
    )
    return "\n".join([measured_table, estimated_table])
