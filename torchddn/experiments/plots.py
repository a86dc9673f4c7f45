"""The plots of a record: each table as lines or bars, and the curves of the trainings."""

import csv
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from torchddn.experiments.record import Spread, cells
from torchddn.experiments.tables import words

__all__ = ["draw_curves", "draw_tables", "read_curves"]

# Okabe and Ito's palette, told apart by the color-blind too; the black dashed line is for the baseline.
_COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#8C8C8C")
# Small letters that have room beside each other below one plot.
_CHARACTERS = 80
_MARKERS = ("s", "o", "^", "v", "D", "P", "X", "*")


def draw_tables(record: dict[str, Any], tables: Sequence[dict[str, Any]]) -> Figure:
    """Draws tables, two beside each other, with bands of one standard deviation."""
    num_columns = min(2, len(tables))
    num_rows = math.ceil(len(tables) / num_columns)
    figure = Figure(figsize=(5.2 * num_columns, 4 * num_rows), layout="constrained")
    places = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for empty in places[len(tables) :]:
        empty.remove()
    for axes, table in zip(places, tables, strict=False):
        found = cells(record, table)
        numeric = all(isinstance(row, int | float) and not isinstance(row, bool) for row in found)
        (_draw_lines if numeric and len(found) > 1 else _draw_bars)(axes, table, found)
        per_cent = ", %" if table["scale"] == "percent" else ""
        # A long title would run into that of the neighbor.
        axes.set_title(table["title"], fontsize=9, wrap=True)
        axes.set_ylabel((table["value_title"] or words(table["value"])) + per_cent)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    _explain(figure, 3 * num_columns)
    return figure


def read_curves(folder: Path) -> list[dict[str, float]]:
    """Returns the points of the curves in a CSV file."""
    with folder.open(newline="", encoding="utf-8") as file:
        return [{name: float(text) for name, text in point.items() if text} for point in csv.DictReader(file)]


def draw_curves(curves: dict[tuple[str, str], list[dict[str, float]]]) -> Figure | None:
    """Draws each number over the epochs, a line per training, trainings that differ in their seed in one color.

    ``None`` if there is nothing to draw.

    Args:
        curves: Points of each training, by the job, at the end of whose name its seed stands, and a name in the job.
    """
    seen_names = dict.fromkeys(name for points in curves.values() for point in points for name in point)
    names = [name for name in seen_names if name not in ("epoch", "learning_rate")]
    if not names:
        return None
    figure = Figure(figsize=(5.2 * len(names), 4), layout="constrained")
    drawn: dict[str, int] = {}
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        drawn = {}
        for (job, name_in_job), points in curves.items():
            kind = f"{job.rpartition('-')[0]} {words(name_in_job)}".strip()
            known, number = kind in drawn, drawn.setdefault(kind, len(drawn))
            seen = [point for point in points if name in point]
            axes.plot(
                [point["epoch"] for point in seen],
                [point[name] for point in seen],
                color=_COLORS[number % len(_COLORS)],
                linestyle=("-", "--", ":", "-.")[number // len(_COLORS) % 4],
                linewidth=1.0,
                label="_" if known else kind,  # matplotlib leaves out what begins so
            )
        axes.set(xlabel="epoch", ylabel=words(name))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if any(drawn):
        figure.axes[-1].legend(frameon=False, fontsize=7, ncols=1 + len(drawn) // 12)
    return figure


def _explain(figure: Figure, num_columns: int) -> None:
    """Legends beside the axes, since bars and curves may be anywhere in them: one for all if that says the same."""
    legends = [axes.get_legend_handles_labels() for axes in figure.axes]
    words_of = [labels for _, labels in legends if len(labels) > 1]
    if words_of and all(labels == words_of[0] for labels in words_of):
        handles, labels = next(legend for legend in legends if len(legend[1]) > 1)
        figure.legend(handles, labels, loc="outside lower center", ncols=num_columns, frameon=False, fontsize=8)
        return
    for axes, (_, labels) in zip(figure.axes, legends, strict=True):
        if len(labels) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=4, frameon=False, fontsize=7)


def _draw_lines(axes: Axes, table: dict[str, Any], found: dict[Any, dict[Any, Spread]]) -> None:
    factor, row_factor = (100 if table[key] == "percent" else 1 for key in ("scale", "row_scale"))
    columns = dict.fromkeys(column for spreads in found.values() for column in spreads)
    for number, column in enumerate(columns):
        rows = [row for row in sorted(found) if column in found[row]]
        means = [factor * found[row][column].mean for row in rows]
        deviations = [factor * found[row][column].deviation for row in rows]
        deviations = [0.0 if math.isnan(deviation) else deviation for deviation in deviations]
        places = [row_factor * row for row in rows]
        color = _COLORS[number % len(_COLORS)]
        style = "--" if number == 0 else "-"
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(places, means, style, color=color, marker=marker, markersize=4, label=words(column))
        low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
        high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
        axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
    if table["log"]:
        axes.set(xscale="log", yscale="log")
        _mark_decades(axes.xaxis, axes.yaxis)
    elif row_factor == 1 and all(isinstance(row, int) for row in found):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel((table["row_title"] or words(table["row"])) + (", %" if row_factor == 100 else ""))


def _draw_bars(axes: Axes, table: dict[str, Any], found: dict[Any, dict[Any, Spread]]) -> None:
    factor = 100 if table["scale"] == "percent" else 1
    columns = list(dict.fromkeys(column for spreads in found.values() for column in spreads))
    width = 0.8 / len(columns)
    for number, column in enumerate(columns):
        here = [(place, spreads[column]) for place, spreads in enumerate(found.values()) if column in spreads]
        axes.bar(
            [place + (number - (len(columns) - 1) / 2) * width for place, _ in here],
            [factor * spread.mean for _, spread in here],
            width,
            ecolor="#8C8C8C",
            zorder=2,
            yerr=[0.0 if math.isnan(spread.deviation) else factor * spread.deviation for _, spread in here],
            color=_COLORS[number % len(_COLORS)],
            label=words(column),
        )
    if table["log"]:
        axes.set_yscale("log")
        _mark_decades(axes.yaxis)
    width = max(8, _CHARACTERS // len(found))
    axes.set_xticks(
        range(len(found)), [textwrap.fill(words(row), width, break_long_words=False) for row in found], fontsize=7
    )


def _mark_decades(*axes: Axis) -> None:
    """Ticks at 1, 2 and 5 of each: the nine of Matplotlib's make half of a file."""
    for axis in axes:
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
