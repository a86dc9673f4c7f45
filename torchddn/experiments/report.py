"""The report of a run: tables in Markdown, plots, and one HTML page that needs no other file and no network."""

import base64
import importlib.resources
import io
import urllib.parse
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from torchddn.experiments import storage, tables
from torchddn.experiments.configuration import flat
from torchddn.experiments.plots import draw_curves, draw_tables, read_curves
from torchddn.experiments.record import cells

__all__ = ["phases", "report_path", "write_report"]

# Plots have few colors, and blends of them at the edges of lines; a byte for each point instead of four.
_NUM_COLORS = 64


def report_path(folder: Path) -> Path:
    """Where the page is."""
    return folder / "report.html"


def write_report(folder: Path, record: dict[str, Any]) -> None:
    """Writes ``table.md``, ``EXPERIMENT.png`` and ``report.html`` into the folder of a run."""
    shown = [table for table in record["tables"] if tables.has_cells(record, table)]
    storage.write(folder / "table.md", tables.markdown(record).encode())
    drawn = _drawn(record, shown)
    if drawn:
        storage.write(folder / f"{record['experiment']}.png", _png(draw_tables(record, drawn)))
    storage.write(report_path(folder), _page(folder, record, shown).encode())


def phases(record: dict[str, Any]) -> list[tuple[str, float]]:
    """Returns the seconds of each phase over all jobs, the longest first, and what is left as ``"other"``."""
    sums: dict[str, float] = {}
    for job in record["jobs"]:
        for phase, seconds in job["phases"].items():
            sums[phase] = sums.get(phase, 0.0) + seconds
    other = sum(job["seconds"] for job in record["jobs"]) - sum(sums.values())
    return [*sorted(sums.items(), key=lambda item: -item[1]), ("other", max(0.0, other))]


def _page(folder: Path, record: dict[str, Any], shown: list[dict[str, Any]]) -> str:
    template = importlib.resources.files("torchddn.experiments").joinpath("report.html").read_text(encoding="utf-8")
    drawn = _drawn(record, shown)
    found = phases(record)
    whole = sum(seconds for _, seconds in found) or 1.0
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(
        record=record,
        data=record["data"] or "made by the library, or shipped with it",
        tables=[
            {
                "title": table["title"],
                "note": tables.note(record, table),
                "titles": tables.column_titles(record, table),
                "lines": list(tables.lines(record, table)),
                "plot": _svg_source(draw_tables(record, [table])) if table in drawn else None,
            }
            for table in shown
        ],
        curves=_curves(folder),
        pictures=[
            {"name": f"{path.parent.parent.name}: {path.stem}", "source": _png_source(path.read_bytes())}
            for path in sorted(folder.glob("jobs/*/pictures/*.png"))
        ],
        config=list(flat(record["config"]).items()),
        phases=[(phase, f"{seconds:.1f}", f"{seconds / whole:.1%}") for phase, seconds in found],
        machine=[*record["machine"].items(), *record["versions"].items(), *flat(record["options"]).items()],
        warnings=sorted({message for job in record["jobs"] for message in job["warnings"]}),
    )


def _drawn(record: dict[str, Any], shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tables with something to draw: one row is said better by its numbers."""
    return [table for table in shown if len(cells(record, table)) > 1]


def _curves(folder: Path) -> str | None:
    """The plot of all trainings, named after the job; where that has several, after each too. ``None`` if no curves."""
    paths = sorted(folder.glob("jobs/*/*.csv"))
    several = len({path.stem for path in paths}) > 1
    curves = {(path.parent.name, path.stem if several else ""): read_curves(path) for path in paths}
    figure = draw_curves(curves)
    return None if figure is None else _svg_source(figure)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return _with_few_colors(content.getvalue())


def _with_few_colors(png: bytes) -> bytes:
    content = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(_NUM_COLORS, dither=Image.Dither.NONE).save(content, format="png", optimize=True)
    return content.getvalue()


def _png_source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(_with_few_colors(png)).decode()}"


def _svg_source(figure: Figure) -> str:
    content = io.StringIO()
    # Without the date, and with names that are not random, the same record gives the same file. Letters stay text,
    # which takes a third of the room of their outlines, and do not name fourteen fonts each.
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "torchddn", "font.sans-serif": ["DejaVu Sans"]}
    ):
        figure.savefig(content, format="svg", metadata={"Date": None})
    # Base64 would take a third more room, and the indentation a tenth.
    return f"data:image/svg+xml,{urllib.parse.quote(' '.join(content.getvalue().split()), safe=' ,.:;=()/-')}"
