"""How a benchmark measures and prints."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def median_ms(function: Callable[[], object], seconds: float = 0.5, least: int = 7) -> float:
    """Median wall time of a call in milliseconds, over about ``seconds`` of calls after two to warm up."""
    on_cuda = torch.cuda.is_available() and torch.cuda.current_device() is not None and _used_cuda()
    for _ in range(2):
        function()
    times: list[float] = []
    while sum(times) < seconds or len(times) < least:
        start = time.perf_counter()
        function()
        if on_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def cpu_ms(function: Callable[[], object], seconds: float = 0.5, least: int = 3) -> float:
    """Mean processor time of a call in milliseconds, over about ``seconds`` of calls after two to warm up.

    For ratios of short calls to long ones: on a shared machine only the long ones are interrupted.
    """
    for _ in range(2):
        function()
    num_calls, start = 0, time.process_time()
    while num_calls < least or time.process_time() - start < seconds:
        function()
        num_calls += 1
    return 1e3 * (time.process_time() - start) / num_calls


def interleaved(
    calls: Mapping[str, Callable[[], object]], num_rounds: int = 9, milliseconds: float = 0.0
) -> dict[str, tuple[float, float]]:
    """Least and median processor time of each in milliseconds, over rounds in which every call has its turn.

    Whatever else the machine does meets all of them. Those that take a second have three turns.

    Args:
        calls: The calls by name.
        num_rounds: How many rounds.
        milliseconds: Length of a turn; a short call is made as often as it takes, once at least.
    """
    counts = dict.fromkeys(calls, 1)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-1, num_rounds):
        for name, call in calls.items():
            if number < 3 or min(times[name]) < 1e3:
                start = time.process_time()
                for _ in range(counts[name]):
                    call()
                each = 1e3 * (time.process_time() - start) / counts[name]
                if number < 0:  # a round to warm up
                    counts[name] = max(1, round(milliseconds / each))
                else:
                    times[name].append(each)
    return {name: (min(taken), statistics.median(taken)) for name, taken in times.items()}


def _used_cuda() -> bool:
    return torch.cuda.is_initialized()


def machine() -> str:
    """The machine in words."""
    device = torch.cuda.get_device_name() if _used_cuda() else platform.processor() or platform.machine()
    return (
        f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"### {title}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join([*lines, ""])


def _cell(cell: object) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)
