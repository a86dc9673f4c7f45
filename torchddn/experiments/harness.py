"""Runs an experiment: each job once, what was stopped from where it was; then the record, tables, plots and report.

On the CPU jobs run beside each other, each in a process with one thread: the networks are small, so two processes of
one thread are faster than one of two, and the numbers do not depend on how many run beside each other. With several
devices or machines, all processes work on one job after the other.
"""

import concurrent.futures
import concurrent.futures.process
import dataclasses
import multiprocessing
import os
import queue
import shutil
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import torch
from lightning_fabric import Fabric
from rich.console import Console

from torchddn.errors import DDNError, InvalidInputError
from torchddn.experiments import configuration, storage
from torchddn.experiments.clock import Clock
from torchddn.experiments.experiment import Config, Experiment, Job
from torchddn.experiments.options import Options
from torchddn.experiments.progress import Board, label
from torchddn.experiments.record import machine, read_request, request_path, versions, write_record
from torchddn.experiments.report import write_report
from torchddn.experiments.session import Session
from torchddn.experiments.tables import has_cells, terminal

__all__ = ["JobError", "Plan", "execute", "job_folder", "lay_out", "prepare"]


class JobError(DDNError):
    """A job of an experiment has failed; the others that are done are kept."""


class Plan(NamedTuple):
    """All that decides what a run does; the file ``run.json`` of its folder holds it."""

    experiment: Experiment[Any]
    preset: str
    config: Config
    options: Options
    data: Path | None
    command: str


def prepare(plan: Plan) -> None:
    """Makes what is made once for all jobs, and finds mistakes before there is a folder.

    Raises:
        InvalidInputError: If the configuration leaves nothing to do, or the data is not what it should be.
    """
    _jobs(plan)
    if plan.experiment.prepare is not None:
        plan.experiment.prepare(plan.config, plan.data)


def lay_out(plan: Plan, folder: Path) -> None:
    """Makes the folder of a run.

    Raises:
        InvalidInputError: If there is a run in it already, or it is a file.
        StorageError: If it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{folder} is not a folder. Name another one with --output.")
    if request_path(folder).exists():
        raise InvalidInputError(
            f"{folder} has a run already. `torchddn resume {folder}` takes it up again; "
            "for a new one, name another folder with --output."
        )
    storage.write_json(
        request_path(folder),
        {
            "experiment": plan.experiment.name,
            "summary": plan.experiment.summary,
            "preset": plan.preset,
            "config": configuration.to_json(plan.config),
            "options": dataclasses.asdict(plan.options),
            "data": None if plan.data is None else str(plan.data.resolve()),
            "command": plan.command,
        },
    )


def execute(plan: Plan, folder: Path, fabric: Fabric, console: Console) -> dict[str, Any]:
    """Does all jobs of a run that are not done, and returns the record; to be called after :func:`prepare`.

    Args:
        plan: What to run.
        folder: Where; see :func:`lay_out`.
        fabric: The processes and devices, launched.
        console: Where progress and tables appear.

    Raises:
        InvalidInputError: If the run is in progress elsewhere.
        JobError: If a job fails.
    """
    clock = Clock()
    with _lock(folder) if fabric.is_global_zero else nullcontext():
        jobs = _jobs(plan)
        # The first process decides, lest the others see its disk a moment later.
        waiting = fabric.broadcast([job for job in jobs if not _result_path(folder, job).is_file()])
        if waiting:
            _do_all(plan, folder, jobs, waiting, fabric, console)
        fabric.barrier()
        if not fabric.is_global_zero:
            return {}
        record = _record(plan, folder, jobs, fabric.device)
        write_record(folder, record)
        write_report(folder, record)
    for table in record["tables"]:
        if has_cells(record, table):
            console.print(terminal(record, table))
    for message in sorted({message for job in record["jobs"] for message in job["warnings"]}):
        console.print(f"[yellow]warning[/] {message}", highlight=False)
    console.print(f"{clock.total():.0f} s; everything is in {folder}", highlight=False, soft_wrap=True)
    return record


def job_folder(folder: Path, job: Job) -> Path:
    """Where a job of a run leaves its files."""
    return folder / "jobs" / label(job)


def _jobs(plan: Plan) -> list[Job]:
    jobs = list(plan.experiment.jobs(plan.config))
    if not jobs:
        raise InvalidInputError("The configuration leaves nothing to run: no seeds, or nothing to compare.")
    names = [label(job) for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInputError(f"The configuration names a job twice: {', '.join(twice)}. Take out one of each.")
    return jobs


def _do_all(
    plan: Plan, folder: Path, jobs: Sequence[Job], waiting: Sequence[Job], fabric: Fabric, console: Console
) -> None:
    num_beside = 1 if plan.experiment.serial else plan.options.num_jobs(len(waiting))
    if not fabric.is_global_zero:
        for job in waiting:
            _do(plan, folder, job, fabric, lambda done, total: None)
        return
    with Board(console, len(jobs), len(jobs) - len(waiting)) as board:
        if num_beside > 1:
            _do_beside(plan, folder, waiting, num_beside, board)
            return
        _limit_threads(plan.options, fabric)
        for job in waiting:
            name = label(job)
            _do(plan, folder, job, fabric, lambda done, total, name=name: board.advance(name, done, total))
            board.finish(name)


def _do_beside(plan: Plan, folder: Path, waiting: Sequence[Job], num_beside: int, board: Board) -> None:
    # A fork would copy the state of PyTorch's threads (and of CUDA), which does not survive it.
    context = multiprocessing.get_context("spawn")
    reports: Queue[tuple[str, int, int]] = context.Queue()
    with concurrent.futures.ProcessPoolExecutor(
        num_beside, context, initializer=_start_worker, initargs=(reports,)
    ) as executor:
        futures = {executor.submit(_do_in_worker, plan, folder, job): label(job) for job in waiting}
        pending = set(futures)
        try:
            while pending:
                done, pending = concurrent.futures.wait(pending, timeout=0.2)
                for name, seen, total in _received(reports):
                    board.advance(name, seen, total)
                for future in done:
                    future.result()  # raises here what was raised there
                    board.finish(futures[future])
        except concurrent.futures.process.BrokenProcessPool as error:
            raise JobError(
                "A job was ended from outside; did it need more memory than there is? Fewer beside each other, "
                f"with --jobs, need less. `torchddn resume {folder}` goes on."
            ) from error
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            # Those that run have their checkpoints, and nobody waits for their ends.
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _received(reports: "Queue[tuple[str, int, int]]") -> Iterator[tuple[str, int, int]]:
    while True:
        try:
            yield reports.get_nowait()
        except queue.Empty:
            return


_reports: "Queue[tuple[str, int, int]]"
_parent: int


def _start_worker(reports: "Queue[tuple[str, int, int]]") -> None:
    global _reports, _parent
    _reports, _parent = reports, os.getppid()


def _do_in_worker(plan: Plan, folder: Path, job: Job) -> None:
    name = label(job)

    def report(done: int, total: int) -> None:
        # The parent was killed. Whoever takes the run up again must not meet us.
        if os.getppid() != _parent:
            os._exit(1)
        _reports.put((name, done, total))

    fabric = plan.options.alone().fabric()
    fabric.launch()
    _limit_threads(plan.options, fabric)
    _do(plan, folder, job, fabric, report)


def _do(plan: Plan, folder: Path, job: Job, fabric: Fabric, report: Callable[[int, int], None]) -> None:
    """One job, to the file with its result."""
    here = job_folder(folder, job)
    session = Session(fabric, here, plan.data, plan.options, report)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            rows = plan.experiment.run(plan.config, job, session)
        except DDNError:
            raise
        except Exception as error:
            path = here / "error.txt"
            storage.write(path, traceback.format_exc().encode())
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise JobError(f"The job {label(job)} has failed: {reason}. {path} says where.") from error
    if not fabric.is_global_zero:
        return
    result = {
        "job": job,
        "rows": [{**job, **row} for row in rows],
        "seconds": round(session.clock.total(), 2),
        "phases": {phase: round(seconds, 3) for phase, seconds in session.clock.seconds.items()},
        "warnings": list(_told(caught)),
    }
    storage.write_json(_result_path(folder, job), result)
    shutil.rmtree(here / "checkpoints", ignore_errors=True)


def _told(caught: Sequence[warnings.WarningMessage]) -> Iterator[str]:
    """The first warning of each kind and place; those that differ in their numbers only are counted."""
    places = Counter((warning.category, warning.filename, warning.lineno) for warning in caught)
    for warning in caught:
        others = places.pop((warning.category, warning.filename, warning.lineno), 0) - 1
        if others >= 0:
            yield f"{warning.message}" + (f" (and {others} more like this)" if others else "")


def _result_path(folder: Path, job: Job) -> Path:
    return job_folder(folder, job) / "result.json"


def _record(plan: Plan, folder: Path, jobs: Sequence[Job], device: torch.device) -> dict[str, Any]:
    results = [storage.read_json(_result_path(folder, job)) for job in jobs]
    return {
        **read_request(folder),
        "machine": machine(device),
        "versions": versions(),
        "seconds": round(sum(result["seconds"] for result in results), 1),
        "tables": [table.to_json() for table in plan.experiment.tables(plan.config)],
        "jobs": results,
    }


def _limit_threads(options: Options, fabric: Fabric) -> None:
    if fabric.device.type == "cpu":
        torch.set_num_threads(options.threads)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the folder of a run; the system lets go of it when the process ends, however it ends."""
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InvalidInputError(f"{folder} is in progress in another process. Wait for it, or stop it.") from error
    try:
        storage.sweep(folder)
        yield
    finally:
        lock.release()
