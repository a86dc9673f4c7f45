"""Where every node call leaves its record, while somebody is listening.

Reading statuses and residuals waits for the device, so nothing is read, and nothing is kept, unless a
``with diagnostics()`` block is open.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

from torch import Tensor

from torchddn.status import Status

__all__ = ["Diagnostics", "File", "Record", "diagnostics", "forward_record", "is_recording", "timed"]


@dataclasses.dataclass(frozen=True)
class Record:
    """One solve, forward or backward.

    Attributes:
        call: The node's name in messages.
        stage: ``"forward"`` or ``"backward"``.
        method: The solver, or the linear method of the backward pass.
        seconds: Wall time.
        num_items: Size of the batch.
        statuses: Items per status name (forward).
        num_steps: Most steps that an item took (forward).
        residual: Worst optimality residual (forward) or certificate ``|K u - v| / |v|`` (backward).
        degenerate: Items whose gradient is not determined by the problem (backward).
    """

    call: str
    stage: str
    method: str
    seconds: float
    num_items: int
    statuses: dict[str, int]
    num_steps: int
    residual: float
    degenerate: tuple[int, ...]


class Diagnostics:
    """The records of a ``with diagnostics()`` block, in the order in which the calls ended."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def __str__(self) -> str:
        head = f"{'call':24}{'stage':10}{'method':22}{'items':>7}{'steps':>7}{'residual':>11}{'ms':>9}  remarks"
        lines = [head]
        for r in self.records:
            remarks = ", ".join(f"{count} {name}" for name, count in r.statuses.items())
            if r.degenerate:
                remarks = f"{len(r.degenerate)} degenerate"
            lines.append(
                f"{r.call[:23]:24}{r.stage:10}{r.method[:21]:22}{r.num_items:7d}{r.num_steps:7d}"
                f"{r.residual:11.1e}{1e3 * r.seconds:9.2f}  {remarks}"
            )
        return "\n".join(lines)


File = Callable[[Callable[[float], Record]], None]

_listeners: list[Diagnostics] = []
_lock = threading.Lock()


@contextlib.contextmanager
def diagnostics() -> Iterator[Diagnostics]:
    """Records every node call while the block is open.

    The backward passes of ``DeclarativeNode``, ``argmin``, ``root`` and ``fixed_point`` are recorded as well, each with
    its certificate. Calls of all threads are recorded, since autograd may run a backward pass on a thread of its own.

    Example:
        >>> import torch, torchddn as ddn
        >>> with diagnostics() as seen:
        ...     y = ddn.argmin(lambda y, x: (y - x).square().sum(), torch.zeros(2), torch.ones(5, 2))
        >>> seen.records[0].statuses
        {'CONVERGED': 5}
    """
    listener = Diagnostics()
    with _lock:
        _listeners.append(listener)
    try:
        yield listener
    finally:
        with _lock:
            _listeners.remove(listener)


def is_recording() -> bool:
    """Whether somebody listens."""
    return bool(_listeners)


@contextlib.contextmanager
def timed() -> Iterator[File]:
    """Times the block; the function it yields files the record, which is made only if somebody listens."""
    start = time.perf_counter()

    def file(make: Callable[[float], Record]) -> None:
        if not _listeners:
            return
        record = make(time.perf_counter() - start)
        with _lock:
            for listener in _listeners:
                listener.records.append(record)

    yield file


def forward_record(
    call: str, method: str, status: Tensor, num_steps: Tensor, residual: Tensor, seconds: float
) -> Record:
    """The record of a forward pass; ``status``, ``num_steps`` and ``residual`` are ``(B,)`` and are read."""
    codes, counts = status.unique(return_counts=True)
    return Record(
        call=call,
        stage="forward",
        method=method,
        seconds=seconds,
        num_items=len(status),
        statuses={Status(code).name: count for code, count in zip(codes.tolist(), counts.tolist(), strict=True)},
        num_steps=int(num_steps.max()) if len(status) else 0,
        residual=float(residual.max()) if len(status) else 0.0,
        degenerate=(),
    )
