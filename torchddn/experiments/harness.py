"""Runs an experiment: every variant with every seed, each in a process with one thread, and writes the record.

The networks are small, so two processes of one thread are faster than one of two; and with one thread each, the
numbers do not depend on how many run beside each other.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import queue
import time
import warnings
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from torchddn.experiments.experiment import Experiment, Settings
from torchddn.experiments.record import machine, versions, write_record
from torchddn.experiments.report import draw, markdown, terminal_table

__all__ = ["run"]


def run(
    experiment: Experiment, settings: Settings, output: Path, *, command: str, workers: int, console: Console
) -> dict[str, Any]:
    """Runs ``experiment`` and returns its record.

    Args:
        experiment: What to run.
        settings: Seeds, epochs, device.
        output: Folder for ``results.json``, ``table.md``, the picture and ``weights/``; made if it is not there, and
            files of the same name are replaced.
        command: What the record says its numbers come from.
        workers: Processes beside each other.
        console: Where progress and tables appear.
    """
    start = time.perf_counter()
    (output / "weights").mkdir(parents=True, exist_ok=True)
    runs = _run_all(experiment, settings, output / "weights", workers, console)
    record = {
        "experiment": experiment.name,
        "command": command,
        "settings": dataclasses.asdict(settings),
        "variants": list(experiment.variants),
        "condition": experiment.condition,
        "metrics": experiment.metrics,
        "machine": machine(settings.device),
        "versions": versions(),
        "seconds": round(time.perf_counter() - start, 1),
        "runs": runs,
    }
    write_record(output, record)
    (output / "table.md").write_text(markdown(record), encoding="utf-8")
    draw(record, output / f"{experiment.name}.png")
    for metric in experiment.metrics:
        console.print(terminal_table(record, metric))
    for message in sorted({message for run in runs for message in run["warnings"]}):
        console.print(f"[yellow]warning[/] {message}", highlight=False)
    console.print(f"{record['seconds']:.0f} s; everything is in {output}", highlight=False)
    return record


def _run_all(
    experiment: Experiment, settings: Settings, folder: Path, workers: int, console: Console
) -> list[dict[str, Any]]:
    """The entries of the record's "runs", in order; while they come, a bar per variant."""
    jobs = [(variant, seed) for seed in range(settings.seeds) for variant in experiment.variants]
    # A fork would copy the state of PyTorch's threads (and of CUDA), which does not survive it.
    context = multiprocessing.get_context("spawn")
    epochs_done: Queue[str] = context.Queue()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    with (
        Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress,
        concurrent.futures.ProcessPoolExecutor(
            min(workers, len(jobs)), context, initializer=_start_worker, initargs=(epochs_done,)
        ) as executor,
    ):
        bars = {
            variant: progress.add_task(variant.replace("_", " "), total=settings.seeds * settings.epochs)
            for variant in experiment.variants
        }
        futures = [executor.submit(_run_job, experiment, variant, seed, settings, folder) for variant, seed in jobs]
        pending = set(futures)
        try:
            while pending:
                done, pending = concurrent.futures.wait(pending, timeout=0.2)
                for future in done:
                    future.result()  # raises here what was raised there
                _advance(progress, bars, epochs_done)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
        for bar in bars.values():
            progress.update(bar, completed=settings.seeds * settings.epochs)
    return [future.result() for future in futures]


def _advance(progress: Progress, bars: dict[str, Any], epochs_done: "Queue[str]") -> None:
    while True:
        try:
            progress.advance(bars[epochs_done.get_nowait()])
        except queue.Empty:
            return


_epochs_done: "Queue[str]"


def _start_worker(epochs_done: "Queue[str]") -> None:
    global _epochs_done
    _epochs_done = epochs_done
    torch.set_num_threads(1)


def _run_job(experiment: Experiment, variant: str, seed: int, settings: Settings, folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        outcome = experiment.run(variant, seed, settings, lambda: _epochs_done.put(variant))
    torch.save(outcome.weights, folder / f"{variant}-{seed}.pt")
    return {
        "variant": variant,
        "seed": seed,
        "seconds": round(time.perf_counter() - start, 1),
        "warnings": sorted({str(warning.message) for warning in caught}),
        "validation": outcome.validation,
        "test": outcome.test,
    }
