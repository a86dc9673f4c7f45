"""Where the time of a run goes."""

import contextlib
import time
from collections.abc import Iterator

__all__ = ["Clock"]


class Clock:
    """Adds up the wall time of named phases, in ``seconds``.

    The phase inside another is charged to itself only. An accelerator works on by itself: there, a phase is charged
    for the time in which it waits.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()
        self._inner = 0.0

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start, outer, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + elapsed - self._inner
            self._inner = outer + elapsed

    def total(self) -> float:
        """Returns the time since the clock was made."""
        return time.perf_counter() - self._start
