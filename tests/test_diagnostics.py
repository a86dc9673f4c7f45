"""What a ``diagnostics()`` block has seen, as text, as a table and as plain data."""

import dataclasses
import io
import json
import sys

import pytest
import rich.console
import torch
from torch import Tensor

import torchddn as ddn
from torchddn.diagnostics import Diagnostics, Record

PLAIN = Record("argmin", "forward", "Newton", 0.002, 3, {"CONVERGED": 2, "NON_FINITE": 1}, 7, float("nan"), ())
PECULIAR = dataclasses.replace(
    PLAIN,
    stage="backward",
    statuses={},
    residual=1e-12,
    degenerate=(0, 2),
    weakly_active=(1,),
    redundant=(2,),
    structure="diagonal",
    notes=("`x[0]` is not banded as declared: dense instead",),
)


def recorded(*records: Record) -> Diagnostics:
    seen = Diagnostics()
    seen.records.extend(records)
    return seen


def shown(seen: Diagnostics) -> str:
    console = rich.console.Console(file=io.StringIO(), width=200)
    console.print(seen.table())
    return console.file.getvalue()


def both_passes() -> Diagnostics:
    x = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)

    def f(y: Tensor, x: Tensor) -> Tensor:
        return (y - x).square().sum() + y.pow(4).sum()

    with ddn.diagnostics() as seen:
        ddn.argmin(f, torch.zeros(2, dtype=torch.float64), x, start="item").sum().backward()
    return seen


def test_forward_and_backward_each_leave_a_row():
    seen = both_passes()
    lines = shown(seen).splitlines()
    assert seen.table().row_count == 2
    assert lines[0].split() == ["call", "stage", "method", "items", "steps", "residual", "ms", "remarks"]
    assert "forward" in lines[2] and "4 CONVERGED" in lines[2]
    assert "backward" in lines[3]


@pytest.mark.parametrize("show", [str, shown], ids=["text", "table"])
def test_everything_peculiar_is_shown(show):
    text = show(recorded(PLAIN, PECULIAR))
    assert "2 CONVERGED, 1 NON_FINITE" in text
    remarks = "2 degenerate, 1 weakly active, 1 redundant, diagonal; `x[0]` is not banded as declared: dense instead"
    assert remarks in text  # brackets included, which rich would take for markup


def test_a_block_that_saw_nothing_is_an_empty_table():
    assert recorded().table().row_count == 0
    assert recorded().to_dict() == {"records": []}


def test_a_missing_rich_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.table", None)
    with pytest.raises(ImportError, match=r"needs rich. Install it with `pip install 'torchddn\[experiments\]'`"):
        recorded(PLAIN).table()


def test_plain_data_survive_json():
    given = both_passes().to_dict()
    assert json.loads(json.dumps(given, allow_nan=False)) == given
    assert [record["stage"] for record in given["records"]] == ["forward", "backward"]
    assert given["records"][0]["statuses"] == {"CONVERGED": 4}


def test_plain_data_have_every_field():
    (record,) = recorded(PECULIAR).to_dict()["records"]
    assert set(record) == {field.name for field in dataclasses.fields(Record)}
    assert record["degenerate"] == [0, 2]
    assert record["notes"] == ["`x[0]` is not banded as declared: dense instead"]


def test_a_number_that_is_not_finite_is_none_in_plain_data():
    (record,) = recorded(PLAIN).to_dict()["records"]
    assert record["residual"] is None
