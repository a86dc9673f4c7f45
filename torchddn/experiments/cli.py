"""The command ``torchddn``: list, run, resume, compare and report experiments; check data."""

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from lightning_fabric import Fabric
from rich.console import Console
from rich.table import Table

from torchddn import datasets
from torchddn.errors import DDNError, InvalidInputError
from torchddn.experiments import configuration, harness, record, tables
from torchddn.experiments.catalog import EXPERIMENTS
from torchddn.experiments.experiment import Experiment
from torchddn.experiments.options import Options
from torchddn.experiments.report import phases, report_path, write_report

__all__ = ["app", "main"]

app = typer.Typer(
    help="Experiments with declarative layers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Data sets on your disk.", no_args_is_help=True)
app.add_typer(data_app, name="data")

_DEFAULTS = Options()


@app.command("list")
def list_experiments() -> None:
    """List the experiments."""
    console = Console()
    for experiment in EXPERIMENTS.values():
        console.print(f"[bold]{experiment.name}[/]  {experiment.summary}", highlight=False)
        console.print(f"    presets: {', '.join(experiment.presets)}", highlight=False)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="Which experiment; see `torchddn list`.")],
    preset: Annotated[str | None, typer.Option(help="Configuration to start from.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the configuration; repeatable.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds instead of the configuration's; repeatable.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set, or the name of one that ships.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results; runs/NAME-NUMBER.")] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = _DEFAULTS.accelerator,
    devices: Annotated[int, typer.Option(help="Devices on each machine that train together.")] = _DEFAULTS.devices,
    nodes: Annotated[int, typer.Option(help="Machines.")] = _DEFAULTS.nodes,
    strategy: Annotated[str, typer.Option(help="auto, ddp or fsdp.")] = _DEFAULTS.strategy,
    precision: Annotated[str, typer.Option(help="32-true, 64-true, bf16-mixed, 16-mixed, bf16-true.")] = (
        _DEFAULTS.precision
    ),
    jobs: Annotated[int, typer.Option(help="Jobs beside each other; 0: one per core, on an accelerator one.")] = (
        _DEFAULTS.jobs
    ),
    threads: Annotated[int, typer.Option(help="Threads of each job on the CPU.")] = _DEFAULTS.threads,
    workers: Annotated[int, typer.Option(help="Processes that load data, for each job.")] = _DEFAULTS.workers,
    checkpoint_seconds: Annotated[float, typer.Option(help="Least time between two checkpoints.")] = (
        _DEFAULTS.checkpoint_seconds
    ),
) -> None:
    """Run an experiment; write numbers, tables, plots, weights and a report."""
    with _refusals():
        if name not in EXPERIMENTS:
            raise typer.BadParameter(f"There is no experiment {name!r}. There are: {', '.join(EXPERIMENTS)}.")
        experiment = EXPERIMENTS[name]
        preset = preset or next(iter(experiment.presets))
        if preset not in experiment.presets:
            raise typer.BadParameter(f"There is no preset {preset!r}. There are: {', '.join(experiment.presets)}.")
        config = configuration.changed(experiment.presets[preset], settings or [])
        if data is not None and hasattr(config, "data"):
            config, data = configuration.changed(config, [f"data={data}"]), None
        if seed:
            config = dataclasses.replace(config, seeds=tuple(seed))
        options = Options(accelerator, devices, nodes, strategy, precision, jobs, threads, workers, checkpoint_seconds)
        plan = harness.Plan(
            experiment, preset, config, options, _checked(data), shlex.join(["torchddn", *sys.argv[1:]])
        )
        harness.prepare(plan)
        fabric = _launched(options)
        folder = fabric.broadcast(output or _free_folder(name))
        if fabric.is_global_zero:
            harness.lay_out(plan, folder)
        _execute(plan, folder, fabric)


@app.command()
def resume(folder: Annotated[Path, typer.Argument(help="Folder of a run that was stopped.")]) -> None:
    """Take a run up again from its last checkpoints."""
    with _refusals():
        plan = _plan(folder)
        harness.prepare(plan)
        _execute(plan, folder, _launched(plan.options))


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of two or more finished runs.", metavar="RUN RUN...")],
) -> None:
    """Show how configuration and means of runs differ from those of the first."""
    if len(folders) < 2:
        raise typer.BadParameter("Name two runs or more.")
    with _refusals():
        first, *others = [record.read_record(folder) for folder in folders]
        found = [list(tables.comparisons(first, other)) for other in others]
    console = Console()
    for folder, other, grids in zip(folders[1:], others, found, strict=True):
        console.print(f"[bold]{folder}[/] against [bold]{folders[0]}[/]", highlight=False)
        changed = configuration.differences(first["config"], other["config"])
        for key, (before, after) in changed.items():
            console.print(f"    {key}: {before} -> {after}", highlight=False)
        for grid in grids:
            console.print(grid)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write the report of a run anew: one HTML page, with everything in it."""
    with _refusals():
        write_report(folder, record.read_record(folder))
    Console().print(str(report_path(folder)), highlight=False, soft_wrap=True)


@app.command()
def profile(folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Show where the time of a run went."""
    with _refusals():
        found = phases(record.read_record(folder))
    whole = sum(seconds for _, seconds in found) or 1.0
    grid = Table(box=None)
    for title in ("phase", "seconds", "share"):
        grid.add_column(title, justify="left" if title == "phase" else "right")
    for phase, seconds in found:
        grid.add_row(phase, f"{seconds:.1f}", f"{seconds / whole:.1%}")
    Console().print(grid)


@data_app.command("check")
def check(folder: Annotated[Path, typer.Argument(help="Folder of a data set.")]) -> None:
    """Say which data set is in a folder, and what is wrong with it."""
    with _refusals():
        found = datasets.check(folder)
    console = Console()
    console.print(f"[bold]{found.kind or 'no known data set'}[/]", highlight=False)
    for fact in found.facts:
        console.print(f"    {fact}", highlight=False, markup=False)
    for problem in found.problems:
        console.print(f"problem: {problem}", style="red", highlight=False, markup=False)
    if not found.ok:
        raise typer.Exit(1)


def main() -> None:
    """Runs the command line."""
    app()


def _plan(folder: Path) -> harness.Plan:
    """What a run was asked for."""
    request = record.read_request(folder)
    name = request["experiment"]
    if name not in EXPERIMENTS:
        raise typer.BadParameter(f"{folder} is a run of {name!r}, which this version of torchddn does not have.")
    experiment: Experiment[Any] = EXPERIMENTS[name]
    config = configuration.from_json(type(next(iter(experiment.presets.values()))), request["config"])
    options = configuration.from_json(Options, request["options"])
    data = None if request["data"] is None else _checked(Path(request["data"]))
    return harness.Plan(experiment, request["preset"], config, options, data, request["command"])


def _checked(data: Path | None) -> Path | None:
    if data is None:
        return None
    found = datasets.check(data)
    if not found.ok:
        problems = "; ".join(found.problems[:3]) or "it is no known data set"
        reason = problems.rstrip(".")
        raise typer.BadParameter(f"{data} cannot be used: {reason}. `torchddn data check {data}` says more.")
    return data


def _launched(options: Options) -> Fabric:
    fabric = options.fabric()
    fabric.launch()
    return fabric


def _free_folder(name: str) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, ... that is not there: a run never replaces another."""
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


def _execute(plan: harness.Plan, folder: Path, fabric: Fabric) -> None:
    try:
        harness.execute(plan, folder, fabric, Console(quiet=not fabric.is_global_zero))
    except KeyboardInterrupt:
        Console(stderr=True).print(f"Stopped. `torchddn resume {folder}` takes it up again.", soft_wrap=True)
        raise typer.Exit(130) from None


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Mistakes and failures that explain themselves are shown without a traceback."""
    try:
        yield
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from error
    except DDNError as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
