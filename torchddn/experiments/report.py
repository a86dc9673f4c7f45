"""How a record is shown: tables in Markdown and in the terminal, a picture, the difference of two records."""

import math
from pathlib import Path
from typing import Any

import rich.box
import rich.table
from matplotlib.figure import Figure

from torchddn.errors import InvalidInputError
from torchddn.experiments.record import Spread, spreads

__all__ = ["comparison_table", "draw", "markdown", "terminal_table"]

# Okabe and Ito's palette, told apart by the color-blind too; the black dashed line is for the baseline.
_COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7")
_MARKERS = ("s", "o", "^", "v", "D", "P")


def markdown(record: dict[str, Any]) -> str:
    """Returns one table per metric, in per cent; the best of each row is bold."""
    parts = []
    for metric, title in record["metrics"].items():
        table = spreads(record, metric)
        variants = record["variants"]
        lines = [
            f"**{title}** (%, mean ± standard deviation; seeds: {record['settings']['seeds']})",
            "",
            f"| {record['condition']} | " + " | ".join(map(_words, variants)) + " |",
            "|---:|" + "---:|" * len(variants),
        ]
        for condition in table[variants[0]]:
            row = [table[variant][condition] for variant in variants]
            best = max(row).mean
            cells = [f"**{_cell(spread)}**" if spread.mean == best else _cell(spread) for spread in row]
            lines.append(f"| {condition:.0%} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def terminal_table(record: dict[str, Any], metric: str) -> rich.table.Table:
    """Returns the table of one metric for the terminal."""
    rows = spreads(record, metric)
    table = _empty_table(f"{record['metrics'][metric]}, %", record["condition"], record["variants"])
    for condition in rows[record["variants"][0]]:
        row = [rows[variant][condition] for variant in record["variants"]]
        best = max(row).mean
        cells = [f"[bold green]{_cell(spread)}[/]" if spread.mean == best else _cell(spread) for spread in row]
        table.add_row(f"{condition:.0%}", *cells)
    return table


def comparison_table(a: dict[str, Any], b: dict[str, Any], metric: str) -> rich.table.Table:
    """Returns the table of the differences ``b - a`` of the means of one metric, in per cent points.

    Raises:
        InvalidInputError: If the records are of different experiments or have nothing in common.
    """
    if a["experiment"] != b["experiment"]:
        raise InvalidInputError(f"The records are of different experiments, {a['experiment']} and {b['experiment']}.")
    rows_a, rows_b = spreads(a, metric), spreads(b, metric)
    variants = [variant for variant in rows_a if variant in rows_b]
    conditions = [c for c in rows_a[variants[0]] if c in rows_b[variants[0]]] if variants else []
    if not conditions:
        raise InvalidInputError("The records have no variant and condition in common. Run both with the same version.")
    table = _empty_table(f"{a['metrics'][metric]}, second minus first, % points", a["condition"], variants)
    for condition in conditions:
        differences = [rows_b[variant][condition].mean - rows_a[variant][condition].mean for variant in variants]
        table.add_row(f"{condition:.0%}", *(f"{100 * difference:+.1f}" for difference in differences))
    return table


def draw(record: dict[str, Any], path: Path) -> None:
    """Draws each metric against the condition, with bands of one standard deviation, into a PNG file."""
    metrics = record["metrics"]
    figure = Figure(figsize=(5 * len(metrics), 4), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics.items(), strict=True):
        table = spreads(record, metric)
        for variant, color, marker in zip(record["variants"], _COLORS, _MARKERS, strict=False):
            conditions = [100 * condition for condition in table[variant]]
            means = [100 * spread.mean for spread in table[variant].values()]
            deviations = [0.0 if math.isnan(s.deviation) else 100 * s.deviation for s in table[variant].values()]
            style = "--" if variant == record["variants"][0] else "-"
            axes.plot(conditions, means, style, color=color, marker=marker, markersize=5, label=_words(variant))
            low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
            high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
            axes.fill_between(conditions, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set(xlabel=f"{record['condition']}, %", ylabel=f"{title}, %")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(10 * math.floor(axes.get_ylim()[0] / 10), 101)
    figure.axes[0].legend(loc="lower left", frameon=False)
    figure.savefig(path, dpi=150)


def _empty_table(title: str, condition: str, variants: list[str]) -> rich.table.Table:
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in (condition, *map(_words, variants)):
        table.add_column(header, justify="right")
    return table


def _cell(spread: Spread) -> str:
    mean = f"{100 * spread.mean:.1f}"
    return mean if math.isnan(spread.deviation) else f"{mean}±{100 * spread.deviation:.1f}"


def _words(variant: str) -> str:
    return variant.replace("_", " ")
