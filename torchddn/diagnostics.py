"""Where every node call leaves its record, while somebody is listening.

Reading statuses and residuals waits for the device, so nothing is read, and nothing is kept, unless a
``with diagnostics()`` block is open.
"""

import contextlib
import dataclasses
import importlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
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
        seconds: Wall time; NaN for a ready node in a graph of ``torch.compile``.
        num_items: Size of the batch.
        statuses: Items per status name (forward).
        num_steps: Most steps that an item took (forward).
        residual: Worst optimality residual (forward) or certificate ``|K u - v| / |v|`` (backward).
        degenerate: Items whose gradient is not determined by the problem (backward).
        weakly_active: Items with a constraint that is active and has multiplier zero: a one-sided gradient.
        redundant: Items whose active constraints are linearly dependent.
        structure: What the derivatives of the problem look like, if that was used.
        notes: What else a person should know, a line each.
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
    weakly_active: tuple[int, ...] = ()
    redundant: tuple[int, ...] = ()
    structure: str = ""
    notes: tuple[str, ...] = ()

    @property
    def remarks(self) -> str:
        """Statuses, peculiar items, structure and notes in one line."""
        parts = [f"{count} {name}" for name, count in self.statuses.items()]
        peculiar = {"degenerate": self.degenerate, "weakly active": self.weakly_active, "redundant": self.redundant}
        parts += [f"{len(items)} {word}" for word, items in peculiar.items() if items]
        parts += [self.structure] if self.structure else []
        return ", ".join(parts) + "".join(f"; {note}" for note in self.notes)


class Diagnostics:
    """The records of a ``with diagnostics()`` block, in the order in which the calls ended.

    ``print`` shows them as plain text, :meth:`table` as a table of rich, :meth:`to_dict` gives them to a program.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []

    def __str__(self) -> str:
        head = f"{'call':24}{'stage':10}{'method':22}{'items':>7}{'steps':>7}{'residual':>11}{'ms':>9}  remarks"
        lines = [head]
        lines += [
            f"{r.call[:23]:24}{r.stage:10}{r.method[:21]:22}{r.num_items:7d}{r.num_steps:7d}"
            f"{r.residual:11.1e}{1e3 * r.seconds:9.2f}  {r.remarks}"
            for r in self.records
        ]
        return "\n".join(lines)

    def table(self) -> Any:
        """Returns the records as a ``rich.table.Table``, a row each; ``rich.print`` shows it.

        Raises:
            ImportError: If rich is not installed: ``pip install 'torchddn[experiments]'``.

        Example:
            >>> import torch, torchddn as ddn
            >>> with diagnostics() as seen:
            ...     y = ddn.root(lambda y, x: y**3 - x, torch.ones(()), torch.tensor([8.0]))
            >>> seen.table().row_count
            1
        """
        try:
            rich_table, rich_text = importlib.import_module("rich.table"), importlib.import_module("rich.text")
        except ImportError as error:
            raise ImportError(
                "`Diagnostics.table` needs rich. Install it with `pip install 'torchddn[experiments]'`."
            ) from error
        table = rich_table.Table(box=importlib.import_module("rich.box").SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for header in ("call", "stage", "method", "items", "steps", "residual", "ms", "remarks"):
            table.add_column(header, justify="right" if header in ("items", "steps", "residual", "ms") else "left")
        for r in self.records:
            cells = (r.call, r.stage, r.method, r.num_items, r.num_steps, f"{r.residual:.1e}", f"{1e3 * r.seconds:.2f}")
            # Text, since a name such as `x[0]` would be read as markup.
            table.add_row(*(rich_text.Text(str(cell)) for cell in (*cells, r.remarks)))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Returns ``{"records": [...]}``, every record a dict of plain values that ``json`` writes.

        A number that is not finite, for which JSON has no word, becomes None.

        Example:
            >>> import torch, torchddn as ddn
            >>> with diagnostics() as seen:
            ...     y = ddn.root(lambda y, x: y**3 - x, torch.ones(()), torch.tensor([8.0]))
            >>> seen.to_dict()["records"][0]["statuses"]
            {'CONVERGED': 1}
        """
        return {"records": [_plain(dataclasses.asdict(record)) for record in self.records]}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    """Times the block; the function it yields files the record, which is made only if somebody listens.

    In a graph of ``torch.compile`` the block is no stretch of time, and the record says NaN.
    """
    if torch.compiler.is_compiling():
        yield _file_untimed
        return
    start = time.perf_counter()

    def file(make: Callable[[float], Record]) -> None:
        if _listeners:
            _file(make(time.perf_counter() - start))

    yield file


def _file_untimed(make: Callable[[float], Record]) -> None:
    if _listeners:
        _file(make(math.nan))


def _file(record: Record) -> None:
    with _lock:
        for listener in _listeners:
            listener.records.append(record)


def forward_record(
    call: str,
    method: str,
    status: Tensor,
    num_steps: Tensor,
    residual: Tensor,
    seconds: float,
    notes: tuple[str, ...] = (),
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
        notes=notes,
    )
