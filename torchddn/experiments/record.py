"""The record of a finished experiment: plain JSON, written once, read by the table, the picture and ``compare``.

A record is a dict::

    {"experiment", "command", "settings", "variants", "condition", "metrics", "machine", "versions", "seconds",
     "runs": [{"variant", "seed", "seconds", "warnings", "validation": {what: number},
               "test": [{condition: number, metric: number, ...}, ...]}, ...]}
"""

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

__all__ = ["Spread", "machine", "read_record", "spreads", "versions", "write_record"]

_FILE = "results.json"


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds (NaN for a single seed)."""

    mean: float
    deviation: float


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes ``results.json`` into ``folder``."""
    (folder / _FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Returns the record in ``folder``.

    Raises:
        InvalidInputError: If there is none, or the file is not a record.
    """
    path = folder / _FILE
    if not path.is_file():
        raise InvalidInputError(f"{path} does not exist. Name a folder that `torchddn run` has written.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        spreads(record, next(iter(record["metrics"])))
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise InvalidInputError(f"{path} is not a record ({error!r}). Run the experiment again.") from error
    return record


def spreads(record: dict[str, Any], metric: str) -> dict[str, dict[float, Spread]]:
    """Returns, for each variant and each value of the condition, the spread of ``metric`` over the seeds."""
    scores: dict[str, dict[float, list[float]]] = {variant: {} for variant in record["variants"]}
    for run in record["runs"]:
        for score in run["test"]:
            scores[run["variant"]].setdefault(score[record["condition"]], []).append(score[metric])
    return {
        variant: {condition: _spread(values) for condition, values in by_condition.items()}
        for variant, by_condition in scores.items()
    }


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan)


def machine(device: str) -> dict[str, Any]:
    """Returns what a reader of timings needs to know of this machine, without its name."""
    description = {"system": platform.system(), "architecture": platform.machine(), "cores": os.cpu_count()}
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        models = [line for line in cpu_info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        if models:
            description["processor"] = models[0].partition(":")[2].strip()
    if torch.device(device).type == "cuda":
        description["accelerator"] = torch.cuda.get_device_name(device)
    return description


def versions() -> dict[str, str]:
    """Returns the versions on which the numbers of a record can depend."""
    return {
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "scikit-learn": sklearn.__version__,
        "torch": str(torch.__version__),
        "torchddn": torchddn.__version__,
    }
