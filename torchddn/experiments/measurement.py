"""How long a call takes and how much memory it needs, on any device."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

__all__ = ["Cost", "both_passes", "milliseconds", "peak_bytes"]


class Cost(NamedTuple):
    """Of one pass."""

    milliseconds: float
    mebibytes: float


def both_passes(
    function: Callable[[Tensor], Tensor], x: Tensor, device: torch.device, seconds: float
) -> dict[str, Cost]:
    """Returns what ``function(x)`` costs, and then its gradient in ``x``: ``"forward"``, ``"backward"``, ``"both"``.

    Args:
        function: Of one tensor, on ``device``.
        x: Where.
        device: A CPU is measured in processor time and by the profiler, CUDA in wall time and by its allocator.
        seconds: Of calls for each of both times.
    """
    x = x.detach().requires_grad_()
    y = function(x)
    v = torch.ones_like(y)

    def backward() -> Tensor:
        return torch.autograd.grad(y, x, v, retain_graph=True)[0]

    forward_ms = milliseconds(lambda: function(x), device, seconds)
    backward_ms = milliseconds(backward, device, seconds)
    forward_bytes, backward_bytes = peak_bytes(lambda: function(x), device), peak_bytes(backward, device)
    # What the first pass keeps for the second counts while that runs.
    whole = peak_bytes(lambda: torch.autograd.grad(function(x), x, v), device)
    return {
        "forward": Cost(forward_ms, forward_bytes / 2**20),
        "backward": Cost(backward_ms, backward_bytes / 2**20),
        "both": Cost(forward_ms + backward_ms, whole / 2**20),
    }


def milliseconds(function: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Returns the mean time of a call, over about ``seconds`` of calls after one to warm up, and two at least."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    function()
    _wait(device)
    num_calls, start = 0, clock()
    while num_calls < 2 or clock() - start < seconds:
        function()
        _wait(device)
        num_calls += 1
    return 1e3 * (clock() - start) / num_calls


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Returns the most bytes alive at once among those that a call allocates."""
    if device.type == "cuda":
        _wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with _without_remarks(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    live = most = 0
    for event in seen.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            live += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            most = max(most, live)
    return most


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Holds back the two lines that the profiler of torch 2.13 writes to the standard error, whatever its settings.

    They come from C++, past ``sys.stderr``; whatever else is written there is passed on.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            os.write(2, b"".join(line for line in file if not line.startswith(b"USDT:")))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
