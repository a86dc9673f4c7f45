"""Trainings on several processes."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_processes import main

import torchddn as ddn
from torchddn.experiments.options import Options
from torchddn.experiments.record import read_record

ROOT = Path(__file__).parent.parent


def program(*arguments, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300
    )


def points_of_curve(path):
    with path.open() as file:
        return [float(point["loss"]) for point in csv.DictReader(file)]


def two(folder, strategy, *kill_at):
    return program(ROOT / "tests" / "two_processes.py", folder, 2, strategy, *kill_at)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Of one process; its batches are those of two joined."""
    folder = tmp_path_factory.mktemp("one")
    main(folder, 1)
    return folder


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def both(request, tmp_path_factory):
    """Of two processes."""
    folder = tmp_path_factory.mktemp(request.param)
    done = two(folder, request.param)
    assert done.returncode == 0, done.stderr
    return folder


def load(folder, name):
    return torch.load(folder / name, weights_only=True)


def assert_same_weights(folder, other, name, **tolerance):
    state, expected = load(folder, name), load(other, name)
    assert state.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(state[key], tensor, **tolerance)


class TestTwoProcesses:
    @pytest.mark.parametrize("name", ["model.pt", "plain.pt", "adam.pt"])
    def test_ten_steps_give_the_parameters_of_one_process_with_the_joined_batch(self, one, both, name):
        assert_same_weights(both, one, name, atol=1e-6, rtol=0)

    def test_curves_are_those_of_one_process(self, one, both):
        for name in ("model.csv", "adam.csv"):
            expected = points_of_curve(one / name)
            assert points_of_curve(both / name) == pytest.approx(expected, abs=1e-6)
            assert len(expected) == 2

    def test_predictions_are_in_the_order_of_the_data(self, one, both):
        expected, found = (load(folder, "predicted.pt") for folder in (one, both))
        assert torch.equal(found["targets"], found["truth"])
        for name in ("logits", "features"):
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)

    def test_fewer_items_than_processes_are_predicted(self, one, both):
        expected, found = (load(folder, "predicted.pt")["few"] for folder in (one, both))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    def test_a_process_holds_a_share_of_the_network_where_that_is_asked_for(self, one, both):
        whole, held = (load(folder, "predicted.pt")["num_held"] for folder in (one, both))
        assert held == whole if "ddp" in both.name else held == whole / 2

    def test_all_processes_predict_with_the_statistics_that_are_saved(self, both):
        predicted = load(both, "predicted.pt")
        torch.testing.assert_close(predicted["by_all"], predicted["by_first"])
        with (both / "normalized.csv").open() as file:
            last = [float(point["mean"]) for point in csv.DictReader(file)][-1]
        assert last == pytest.approx(predicted["by_first"].mean().item(), abs=1e-5)


@pytest.mark.parametrize("num_after", [2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_two_processes_that_were_killed_end_as_if_they_had_not_been(one, tmp_path, strategy, num_after):
    # In the second epoch of the third training; its checkpoint is that of the first epoch.
    assert two(tmp_path, strategy, 27).returncode != 0
    assert [path.name[:10] for path in sorted(tmp_path.glob("checkpoints/adam/*.pt"))] == ["0000000000", "0000000005"]
    if num_after == 2:
        done = two(tmp_path, strategy)
        assert done.returncode == 0, done.stderr
    else:
        main(tmp_path, 1)
    for name in ("model", "plain", "adam"):
        assert_same_weights(tmp_path, one, f"{name}.pt", atol=1e-6, rtol=0)
        expected = points_of_curve(one / f"{name}.csv")
        assert points_of_curve(tmp_path / f"{name}.csv") == pytest.approx(expected, abs=1e-6)


def test_sharing_out_a_network_takes_processes_and_a_precision_that_it_has():
    with pytest.raises(ddn.InvalidInputError, match=r"several processes, and there is one\. Give it more"):
        Options(strategy="fsdp")
    with pytest.raises(ddn.InvalidInputError, match="must be one of 32-true, bf16-mixed, bf16-true, got '64-true'"):
        Options(strategy="fsdp", devices=2, precision="64-true")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "precision"), [("ddp", "32-true"), ("fsdp", "32-true"), ("fsdp", "bf16-mixed"), ("fsdp", "bf16-true")]
)
def test_an_experiment_runs_on_two_processes(tmp_path, strategy, precision):
    settings = ("--set", "poolings=huber", "--set", "training.epochs=1", "--seed", 0)
    done = program(
        "-m", "torchddn.experiments", "run", "pointcloud", "--preset", "digits", *settings,
        "--accelerator", "cpu", "--devices", 2, "--strategy", strategy, "--precision", precision,
        "--output", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Top-1 accuracy") == 1, "only the first process speaks"
    assert len(read_record(tmp_path / "run")["jobs"]) == 1
