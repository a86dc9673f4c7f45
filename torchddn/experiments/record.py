"""The record of a run: plain JSON, read by the tables, the plots, the report and ``compare``.

``run.json`` is written first and says what was asked for; ``jobs/JOB/result.json`` when a job is done; and
``results.json``, the record, when all are::

    {"experiment", "summary", "preset", "command", "config", "options", "data", "machine", "versions", "seconds",
     "tables": [see Table.to_json], "jobs": [{"job", "rows", "seconds", "phases", "warnings"}, ...]}
"""

import importlib.metadata
import json
import math
import os
import platform
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import sklearn
import torch

import torchddn
from torchddn.errors import InvalidInputError
from torchddn.experiments import storage

__all__ = [
    "Spread",
    "cells",
    "machine",
    "read_record",
    "read_request",
    "record_path",
    "request_path",
    "versions",
    "write_record",
]


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds (NaN for a single seed)."""

    mean: float
    deviation: float


def request_path(folder: Path) -> Path:
    """Where a run says what was asked for."""
    return folder / "run.json"


def record_path(folder: Path) -> Path:
    """Where the record of a finished run is."""
    return folder / "results.json"


def read_request(folder: Path) -> dict[str, Any]:
    """Returns what a run was asked for.

    Raises:
        InvalidInputError: If ``folder`` is not a run's, or its file is damaged.
    """
    request = _read(request_path(folder), "Name a folder that `torchddn run` has made.")
    if not isinstance(request, dict) or not {"experiment", "config", "options", "data"} <= request.keys():
        raise InvalidInputError(f"{request_path(folder)} does not say what was run. Run the experiment again.")
    return request


def read_record(folder: Path) -> dict[str, Any]:
    """Returns the record in ``folder``.

    Raises:
        InvalidInputError: If there is none, or the file is not a record.
    """
    path = record_path(folder)
    advice = "Name a folder with a finished run"
    if request_path(folder).is_file():
        advice += f"; this one is not: `torchddn resume {folder}`"
    record = _read(path, f"{advice}.")
    try:
        for table in record["tables"]:
            cells(record, table)
        if not isinstance(record["config"], dict) or not isinstance(record["experiment"], str):
            raise TypeError("config or experiment")
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{path} is not a record ({error!r}). Run the experiment again.") from error
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes the record into ``folder``."""
    storage.write_json(record_path(folder), record)


def cells(record: dict[str, Any], table: dict[str, Any]) -> dict[Any, dict[Any, Spread]]:
    """Returns the spread over the seeds in each row and column of a table of the record."""
    found: dict[Any, dict[Any, list[float]]] = {}
    for job in record["jobs"]:
        for row in job["rows"]:
            if table["value"] in row and all(row.get(key) == value for key, value in table["where"].items()):
                cell = found.setdefault(row[table["row"]], {}).setdefault(row[table["column"]], [])
                cell.append(row[table["value"]])
    return {row: {column: _spread(values) for column, values in columns.items()} for row, columns in found.items()}


def machine(device: torch.device) -> dict[str, Any]:
    """Returns what a reader of timings needs to know of this machine, without its name."""
    description = {"system": platform.system(), "architecture": platform.machine(), "cores": os.cpu_count()}
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        models = [line for line in cpu_info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        if models:
            description["processor"] = models[0].partition(":")[2].strip()
    if device.type == "cuda":
        description["accelerator"] = torch.cuda.get_device_name(device)
    return description


def versions() -> dict[str, str]:
    """Returns the versions on which the numbers of a record can depend."""
    return {
        "python": platform.python_version(),
        "lightning-fabric": importlib.metadata.version("lightning-fabric"),
        "numpy": numpy.__version__,
        "scikit-learn": sklearn.__version__,
        "torch": str(torch.__version__),
        "torchddn": torchddn.__version__,
    }


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan)


def _read(path: Path, advice: str) -> Any:
    if not path.is_file():
        raise InvalidInputError(f"{path} does not exist. {advice}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InvalidInputError(f"{path} cannot be read ({error}). Run the experiment again.") from error
