"""What an experiment is: a configuration, jobs that can run beside each other, and tables that show what they found."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torchddn.experiments.session import Session

__all__ = ["Config", "Experiment", "Job", "Row", "Table"]

Job = dict[str, Any]
Row = dict[str, Any]


class Config(Protocol):
    """A frozen dataclass: every field has a default, and is an int, float, bool, str, tuple of those, or dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def seeds(self) -> tuple[int, ...]: ...


C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Table:
    """One table of the results, and the plot of it.

    A cell is the mean, and the sample standard deviation over the seeds, of the numbers ``value`` in the rows that
    have its ``row``, its ``column`` and all of ``where``; others are left out.

    Attributes:
        title: What the numbers say.
        value: Key of the numbers.
        row: Key of what labels the rows of the table, the horizontal axis of the plot.
        column: Key of what labels the columns, the lines of the plot; the first is drawn as the baseline.
        where: Entries that the rows must have.
        scale: ``"percent"``: the numbers are fractions, shown times 100. ``"number"``: as they are.
        row_scale: The same for the labels of the rows.
        better: ``"high"`` or ``"low"``: the best of each row is bold. ``None``: none is.
        log: Both axes of the plot are logarithmic.
        row_title: ``row`` in words, unless it is one.
        value_title: ``value`` in words and units, for the axis; the title unless given.
        paper: The numbers of the publication, ``{"source": where they stand, row: {column: number}}``.
    """

    title: str
    value: str
    row: str
    column: str
    where: Mapping[str, Any] = field(default_factory=dict)
    scale: str = "number"
    row_scale: str = "number"
    better: str | None = None
    log: bool = False
    row_title: str | None = None
    value_title: str | None = None
    paper: Mapping[Any, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data: what the record of a run keeps."""
        plain = dataclasses.asdict(self)
        if self.paper is not None:
            rows = {row: columns for row, columns in self.paper.items() if row != "source"}
            # A list, because a key of JSON is a string, and a row may be a number.
            cells = [[row, column, number] for row, columns in rows.items() for column, number in columns.items()]
            plain["paper"] = {"source": self.paper.get("source", "the paper"), "cells": cells}
        return plain


@dataclass(frozen=True)
class Experiment(Generic[C]):
    """One experiment.

    All functions stand at the top of a module, because jobs run in processes of their own.

    Attributes:
        name: As the command line knows it.
        summary: One sentence.
        presets: Configurations by name. The first is the default: the paper's protocol.
        jobs: What can run by itself, beside the others: a list of flat dicts; ``seed`` is an entry of each.
        run: Does one job, and returns flat dicts: what was measured under which condition. The entries of the job are
            added to each. Must be a deterministic function of the configuration, the job and the data.
        tables: What is shown.
        prepare: Called once before the first job, on every process: makes what is made once, and refuses data that is
            not what it should be.
        serial: One job at a time, as measurements of time and memory need.
    """

    name: str
    summary: str
    presets: Mapping[str, C]
    jobs: Callable[[C], Sequence[Job]]
    run: Callable[[C, Job, Session], Sequence[Row]]
    tables: Callable[[C], Sequence[Table]]
    prepare: Callable[[C, Path | None], None] | None = None
    serial: bool = False
