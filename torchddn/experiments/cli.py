"""The command ``torchddn``: list, run and compare experiments."""

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from torchddn.errors import InvalidInputError
from torchddn.experiments import harness
from torchddn.experiments.record import read_record
from torchddn.experiments.report import comparison_table
from torchddn.experiments.robust_pooling import ROBUST_POOLING

__all__ = ["EXPERIMENTS", "app", "main"]

EXPERIMENTS = {experiment.name: experiment for experiment in (ROBUST_POOLING,)}

app = typer.Typer(
    help="Experiments with declarative layers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command("list")
def list_experiments() -> None:
    """List the experiments."""
    console = Console()
    for experiment in EXPERIMENTS.values():
        console.print(f"[bold]{experiment.name}[/]  {experiment.summary}", highlight=False)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="Which experiment; see `torchddn list`.")],
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training data.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Folder for the results; runs/NAME unless given.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per core, on CUDA one in all.")] = None,
    quick: Annotated[bool, typer.Option(help="One seed, one epoch, little data: does it run at all?")] = False,
) -> None:
    """Run an experiment; write numbers, table, picture and weights."""
    if name not in EXPERIMENTS:
        raise typer.BadParameter(f"There is no experiment {name!r}. There are: {', '.join(EXPERIMENTS)}.")
    experiment = EXPERIMENTS[name]
    _check_device(device)
    settings = dataclasses.replace(experiment.settings, device=device, quick=quick)
    if quick:
        settings = dataclasses.replace(settings, seeds=1, epochs=1)
    chosen = {key: value for key, value in {"seeds": seeds, "epochs": epochs}.items() if value is not None}
    folder = output if output is not None else Path("runs") / name
    if folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not a folder. Name another one with --output.")
    harness.run(
        experiment,
        dataclasses.replace(settings, **chosen),
        folder,
        command=shlex.join(["torchddn", *sys.argv[1:]]),
        workers=workers or (_num_cores() if torch.device(device).type == "cpu" else 1),
        console=Console(),
    )


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    b: Annotated[Path, typer.Argument(help="Folder of another one.")],
) -> None:
    """Show how the means of B differ from those of A."""
    try:
        first, second = read_record(a), read_record(b)
        tables = [comparison_table(first, second, metric) for metric in first["metrics"]]
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from error
    console = Console()
    for table in tables:
        console.print(table)


def main() -> None:
    """Runs the command line."""
    app()


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise typer.BadParameter(f"Device {device!r} cannot be used: {reason}. Try --device cpu.") from error


def _num_cores() -> int:
    # The cores this process may use, where the system tells; a container often has fewer than the machine.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
