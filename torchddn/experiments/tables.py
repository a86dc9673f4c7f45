"""The tables of a record: in Markdown, in the terminal, and as the difference of two records."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import rich.box
import rich.table
from rich.console import Group
from rich.text import Text

from torchddn.errors import InvalidInputError
from torchddn.experiments.record import Spread, cells

__all__ = ["Line", "column_titles", "comparisons", "has_cells", "lines", "markdown", "note", "terminal", "words"]


class Line(NamedTuple):
    """One line of a table in words.

    Attributes:
        label: Of the row.
        ours: A text per column.
        best: Whether a text is the best of its line.
        paper: The number of the publication per column, empty where it has none; empty if it has none at all.
    """

    label: str
    ours: list[str]
    best: list[bool]
    paper: list[str]


def lines(record: dict[str, Any], table: dict[str, Any]) -> Iterator[Line]:
    """Yields the lines of a table."""
    found = cells(record, table)
    columns = _columns(found)
    paper = {(row, column): number for row, column, number in (table["paper"] or {"cells": ()})["cells"]}
    for row, spreads in found.items():
        means = [spreads[column].mean for column in columns if column in spreads]
        best = _best(table, means)
        printed = [_number(paper[row, column], table["scale"]) if (row, column) in paper else "" for column in columns]
        yield Line(
            _label(row, table["row_scale"]),
            [_cell(spreads[column], table["scale"]) if column in spreads else "" for column in columns],
            [column in spreads and spreads[column].mean == best for column in columns],
            printed if any(printed) else [],
        )


def column_titles(record: dict[str, Any], table: dict[str, Any]) -> list[str]:
    """Returns the title of each column, that of the labels first."""
    return [table["row_title"] or words(table["row"]), *map(words, _columns(cells(record, table)))]


def has_cells(record: dict[str, Any], table: dict[str, Any]) -> bool:
    """Returns whether there is anything in a table: a configuration may leave its rows out."""
    return bool(cells(record, table))


def note(record: dict[str, Any], table: dict[str, Any]) -> str:
    """Returns what the numbers of a table are, in a few words."""
    seeds = len(record["config"]["seeds"])
    parts = ["%"] if table["scale"] == "percent" else []
    parts += [f"mean ± standard deviation of {seeds} seeds"] if seeds > 1 else ["one seed"]
    if table["paper"]:
        parts.append(f"in italics: {table['paper']['source']}")
    return ", ".join(parts)


def markdown(record: dict[str, Any]) -> str:
    """Returns all tables, the best of each row in bold, the numbers of the paper in italics below ours."""
    parts = []
    for table in filter(lambda table: has_cells(record, table), record["tables"]):
        titles = column_titles(record, table)
        text = [
            f"**{table['title']}** ({note(record, table)})",
            "",
            f"| {' | '.join(titles)} |",
            "|---:" * len(titles) + "|",
        ]
        for line in lines(record, table):
            ours = [f"**{text}**" if best else text for text, best in zip(line.ours, line.best, strict=True)]
            text.append(f"| {' | '.join([line.label, *ours])} |")
            if line.paper:
                text.append(f"| {' | '.join(['', *(f'*{number}*' if number else '' for number in line.paper)])} |")
        parts.append("\n".join(text))
    return "\n\n".join(parts) + "\n"


def terminal(record: dict[str, Any], table: dict[str, Any]) -> Group:
    """Returns a table for the terminal."""
    grid = _empty(column_titles(record, table))
    for line in lines(record, table):
        ours = [f"[bold green]{text}[/]" if best else text for text, best in zip(line.ours, line.best, strict=True)]
        grid.add_row(line.label, *ours)
        if line.paper:
            grid.add_row("", *(f"[italic dim]{number}[/]" for number in line.paper))
    return _titled(f"{table['title']} ({note(record, table)})", grid)


def comparisons(a: dict[str, Any], b: dict[str, Any]) -> Iterator[Group]:
    """Yields the differences ``b - a`` of the means, for each table that both records have.

    Raises:
        InvalidInputError: If the records are of different experiments or have nothing in common.
    """
    if a["experiment"] != b["experiment"]:
        raise InvalidInputError(f"The records are of different experiments, {a['experiment']} and {b['experiment']}.")
    tables_b = {table["title"]: table for table in b["tables"]}
    found = False
    for table in a["tables"]:
        cells_a = cells(a, table)
        cells_b = cells(b, tables_b[table["title"]]) if table["title"] in tables_b else {}
        rows = [row for row in cells_a if row in cells_b]
        columns = [c for c in _columns(cells_a) if any(c in cells_a[row] and c in cells_b[row] for row in rows)]
        if not columns:
            continue
        found = True
        unit = "% points" if table["scale"] == "percent" else "difference"
        grid = _empty([table["row_title"] or words(table["row"]), *map(words, columns)])
        for row in rows:
            grid.add_row(
                _label(row, table["row_scale"]),
                *(_difference(cells_a[row].get(c), cells_b[row].get(c), table["scale"]) for c in columns),
            )
        yield _titled(f"{table['title']}, {unit}", grid)
    if not found:
        raise InvalidInputError("The records have no row and column in common. Run both with the same settings.")


def words(key: Any) -> str:
    """Returns a key or a label as a reader sees it."""
    return key.replace("_", " ") if isinstance(key, str) else f"{key:g}" if isinstance(key, float) else str(key)


def _columns(found: dict[Any, dict[Any, Spread]]) -> list[Any]:
    return list(dict.fromkeys(column for columns in found.values() for column in columns))


def _best(table: dict[str, Any], means: list[float]) -> float | None:
    if table["better"] is None or len(means) < 2:
        return None
    return max(means) if table["better"] == "high" else min(means)


def _empty(titles: list[str]) -> rich.table.Table:
    grid = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for text in titles:
        grid.add_column(text, justify="right")
    return grid


def _titled(title: str, grid: rich.table.Table) -> Group:
    # A title of the table itself is broken at the table's width.
    return Group("", Text(title, style="bold"), grid)


def _label(row: Any, scale: str) -> str:
    return f"{100 * row:.3g}%" if scale == "percent" and isinstance(row, int | float) else words(row)


def _number(value: float, scale: str) -> str:
    return f"{100 * value:.1f}" if scale == "percent" else f"{value:.3g}"


def _cell(spread: Spread, scale: str) -> str:
    mean = _number(spread.mean, scale)
    if math.isnan(spread.deviation):
        return mean
    # Two digits: of a deviation over a few seeds no more are known.
    return f"{mean}±" + (_number(spread.deviation, scale) if scale == "percent" else f"{spread.deviation:.2g}")


def _difference(a: Spread | None, b: Spread | None, scale: str) -> str:
    if a is None or b is None:
        return ""
    change = b.mean - a.mean
    return f"{100 * change:+.1f}" if scale == "percent" else f"{change:+.3g}"
