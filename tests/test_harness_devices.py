"""Trainings on several processes."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_processes import main

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


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    main(one, 1)
    done = program(ROOT / "tests" / "two_processes.py", two, 2)
    assert done.returncode == 0, done.stderr
    return one, two


class TestTwoProcesses:
    def test_ten_steps_give_the_parameters_of_one_process_with_the_joined_batch(self, folders):
        one, two = (torch.load(folder / "model.pt", weights_only=True) for folder in folders)
        assert one.keys() == two.keys()
        for name, parameter in one.items():
            torch.testing.assert_close(two[name], parameter, atol=1e-6, rtol=0)

    def test_curves_are_those_of_one_process(self, folders):
        one, two = (points_of_curve(folder / "model.csv") for folder in folders)
        assert one == pytest.approx(two, abs=1e-6)
        assert len(one) == 2

    def test_predictions_are_in_the_order_of_the_data(self, folders):
        one, two = (torch.load(folder / "predicted.pt", weights_only=True) for folder in folders)
        assert torch.equal(two["targets"], two["truth"])
        torch.testing.assert_close(one["logits"], two["logits"], atol=1e-5, rtol=0)

    def test_all_processes_predict_with_the_statistics_that_are_saved(self, folders):
        predicted = torch.load(folders[1] / "predicted.pt", weights_only=True)
        torch.testing.assert_close(predicted["by_all"], predicted["by_first"])
        with (folders[1] / "normalized.csv").open() as file:
            last = [float(point["mean"]) for point in csv.DictReader(file)][-1]
        assert last == pytest.approx(predicted["by_first"].mean().item(), abs=1e-5)


@pytest.mark.slow
def test_an_experiment_runs_on_two_processes(tmp_path):
    settings = ("--set", "poolings=huber", "--set", "training.epochs=1", "--seed", 0)
    done = program(
        "-m", "torchddn.experiments", "run", "pointcloud", "--preset", "digits", *settings,
        "--accelerator", "cpu", "--devices", 2, "--output", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Top-1 accuracy") == 1, "only the first process speaks"
    assert len(read_record(tmp_path / "run")["jobs"]) == 1
