"""How a benchmark measures and prints."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence

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
