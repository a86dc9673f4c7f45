"""Progress in the terminal: all jobs, and each that runs, with what it has done a second and the time that is left."""

import re
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from torchddn.experiments.experiment import Job

__all__ = ["Board", "label"]


def label(job: Job) -> str:
    """Returns a job in words that also make a file name: its values, the seed last."""
    values = [job[key] for key in job if key != "seed"] + [job[key] for key in job if key == "seed"]
    text = "-".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    return re.sub(r"[^\w.+-]+", "_", text)


class Board:
    """Bars for ``jobs``; a context manager."""

    def __init__(self, console: Console, num_jobs: int, num_done: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Throughput(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._all = self._progress.add_task("[bold]jobs[/]", total=num_jobs, completed=num_done, unit="")
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> "Board":
        self._progress.start()
        return self

    def __exit__(self, *details: Any) -> None:
        self._progress.stop()

    def advance(self, job: str, done: int, total: int) -> None:
        """Shows that ``done`` of the ``total`` items of a job have been seen."""
        if job not in self._bars:
            # What was done before the run was taken up again does not count for its speed.
            self._bars[job] = self._progress.add_task(job, total=total, completed=done, unit="items/s")
        self._progress.update(self._bars[job], completed=done, total=total)

    def finish(self, job: str) -> None:
        """Takes away the bar of a job that is done."""
        if job in self._bars:
            self._progress.remove_task(self._bars.pop(job))
        self._progress.advance(self._all)


class _Throughput(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.0f} {task.fields['unit']}" if speed and task.fields["unit"] else "")
