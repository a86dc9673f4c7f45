"""The training loop, its checkpoints, and runs that are stopped."""

import csv
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import torchddn as ddn
from torchddn.datasets import Labeled
from torchddn.experiments import storage
from torchddn.experiments.checkpoints import Checkpoints, CheckpointWarning
from torchddn.experiments.cli import app
from torchddn.experiments.options import Options
from torchddn.experiments.recipe import Recipe
from torchddn.experiments.record import read_record
from torchddn.experiments.session import Session

ROOT = Path(__file__).parent.parent
RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.05)


class Stop(Exception):
    """The moment at which a training is stopped."""


def make_session(folder, *, checkpoint_seconds=0.0, report=None, **options):
    options = Options(accelerator="cpu", checkpoint_seconds=checkpoint_seconds, **options)
    fabric = options.fabric()
    fabric.launch()
    return Session(fabric, folder, None, options, report or (lambda done, total: None))


def data():
    generator = torch.Generator().manual_seed(0)
    return Labeled(torch.randn(30, 5, generator=generator), torch.arange(30) % 3)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def loss(model, batch):
    # Noise as an experiment draws it: from the global generator.
    return F.cross_entropy(model(batch[0] + 0.1 * torch.randn_like(batch[0])), batch[1])


def train(folder, recipe=RECIPE, *, stop_at=None, seed=1, loss=loss, model=None, **options):
    """Trains; stops in the middle of step ``stop_at``, counted from 0."""
    steps = itertools.count()

    def stopping(model, batch):
        if next(steps) == stop_at:
            raise Stop
        return loss(model, batch)

    session = make_session(folder, **options)
    return session.fit(model or network(), data(), recipe, stopping, seed=seed)


def weights(model):
    return torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])


def curve(folder, name="model"):
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


class TestResume:
    @pytest.mark.parametrize("stop_at", [0, 1, 3, 4, 5, 11])
    def test_a_training_stopped_anywhere_ends_as_if_it_had_not_been(self, tmp_path, stop_at):
        whole = train(tmp_path / "whole")
        with pytest.raises(Stop):
            train(tmp_path / "stopped", stop_at=stop_at)
        resumed = train(tmp_path / "stopped")
        assert torch.equal(weights(resumed), weights(whole))
        assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")

    @pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
    @pytest.mark.parametrize("schedule", ["step", "cosine", "one-cycle", "constant"])
    def test_every_optimizer_and_schedule_goes_on_where_it_was(self, tmp_path, optimizer, schedule):
        recipe = Recipe(
            epochs=3, batch_size=8, optimizer=optimizer, schedule=schedule, learning_rate=0.05, decay_every=1, clip=0.5
        )
        whole = train(tmp_path / "whole", recipe)
        with pytest.raises(Stop):
            train(tmp_path / "stopped", recipe, stop_at=6)
        assert torch.equal(weights(train(tmp_path / "stopped", recipe)), weights(whole))

    def test_an_optimizer_that_remembers_nothing_but_its_rate_goes_on(self, tmp_path):
        recipe = Recipe(epochs=3, batch_size=8, momentum=0.0, learning_rate=0.05, decay_every=1)
        whole = train(tmp_path / "whole", recipe)
        with pytest.raises(Stop):
            train(tmp_path / "stopped", recipe, stop_at=6)
        assert torch.equal(weights(train(tmp_path / "stopped", recipe)), weights(whole))

    def test_a_training_is_taken_up_again_and_not_made_anew(self, tmp_path):
        with pytest.raises(Stop):
            train(tmp_path, stop_at=9)
        seen = itertools.count()
        train(tmp_path, loss=lambda model, batch: (next(seen), loss(model, batch))[1])
        assert next(seen) == 12 - 9

    def test_what_was_seen_of_an_epoch_is_not_read_again(self, tmp_path):
        class Counted(Labeled):
            def __getitems__(self, indices):
                read.extend(indices)
                return super().__getitems__(indices)

        read = []
        with pytest.raises(Stop):
            train(tmp_path, stop_at=6)
        make_session(tmp_path).fit(network(), Counted(data().inputs, data().labels), RECIPE, loss, seed=1)
        # Two batches of eight of the second epoch are left out.
        assert len(read) == 2 * 30 - 2 * 8

    def test_between_two_checkpoints_passes_the_time_that_was_asked_for(self, tmp_path):
        with pytest.raises(Stop):
            train(tmp_path, stop_at=9, checkpoint_seconds=1000)
        assert [path.name[:10] for path in (tmp_path / "checkpoints" / "model").iterdir()] == ["0000000000"]
        assert torch.equal(weights(train(tmp_path)), weights(train(tmp_path / "whole")))

    def test_two_trainings_of_one_job_do_not_meet(self, tmp_path):
        session = make_session(tmp_path)
        first = session.fit(network(), data(), RECIPE, loss, seed=1, name="first")
        second = session.fit(network(), data(), RECIPE, loss, seed=2, name="second")
        assert not torch.equal(weights(first), weights(second))
        assert {path.name for path in tmp_path.glob("*.pt")} == {"first.pt", "second.pt"}

    def test_what_draws_after_a_training_draws_the_same(self, tmp_path):
        train(tmp_path)
        first = torch.rand(3)
        train(tmp_path)  # done already
        assert torch.equal(torch.rand(3), first)


class TestRandomness:
    def test_seed_decides(self, tmp_path):
        a, again, b = (train(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("again", 1), ("b", 2)))
        assert torch.equal(weights(a), weights(again))
        assert not torch.equal(weights(a), weights(b))

    def test_workers_change_nothing(self, tmp_path):
        alone, helped = (train(tmp_path / str(workers), workers=workers) for workers in (0, 1))
        assert torch.equal(weights(alone), weights(helped))

    def test_noise_differs_from_step_to_step(self, tmp_path):
        drawn = []
        train(tmp_path, loss=lambda model, batch: (drawn.append(torch.rand(()).item()), loss(model, batch))[1])
        assert len(set(drawn)) == 12


class TestRecipe:
    def last(self, tmp_path, **changes):
        name = "-".join(map(str, changes.values()))
        return weights(
            train(tmp_path / name, Recipe(**{"epochs": 2, "batch_size": 8, "learning_rate": 0.05, **changes}))
        )

    @pytest.mark.parametrize(
        "change",
        [
            {"momentum": 0.0},
            {"weight_decay": 0.5},
            {"optimizer": "adam"},
            {"schedule": "cosine"},
            {"schedule": "one-cycle"},
            {"decay_every": 1},
            {"clip": 0.01},
            {"batch_size": 15},
            {"learning_rate": 0.01},
        ],
    )
    def test_every_field_is_used(self, tmp_path, change):
        assert not torch.equal(self.last(tmp_path, **change), self.last(tmp_path, epochs=2))

    def test_adam_and_adamw_differ_where_weights_decay(self, tmp_path):
        adam, adamw = (self.last(tmp_path, optimizer=name, weight_decay=0.5) for name in ("adam", "adamw"))
        assert not torch.equal(adam, adamw)

    def test_the_step_schedule_is_the_papers(self, tmp_path):
        train(tmp_path, Recipe(epochs=5, batch_size=8, learning_rate=0.01, decay_every=2, decay_factor=0.5))
        # The rate after each epoch.
        assert [float(point["learning_rate"]) for point in curve(tmp_path)] == [0.01, 0.005, 0.005, 0.0025, 0.0025]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"epochs": 0}, "epochs=...\\)` must be positive, got 0"),
            ({"batch_size": -1}, "batch_size"),
            ({"learning_rate": 0.0}, "learning_rate"),
            ({"learning_rate": float("nan")}, "learning_rate"),
            ({"clip": 0.0}, "clip"),
            ({"optimizer": "lbfgs"}, "must be one of sgd, adam, adamw, got 'lbfgs'"),
            ({"schedule": "linear"}, "must be one of step, cosine"),
        ],
    )
    def test_wrong_values_are_refused(self, change, message):
        with pytest.raises(ddn.InvalidInputError, match=message):
            Recipe(**change)

    def test_validation_comes_when_it_should(self, tmp_path):
        session = make_session(tmp_path)
        recipe = Recipe(epochs=5, batch_size=8, validate_every=2)
        session.fit(network(), data(), recipe, loss, seed=0, validate=lambda model: {"training": float(model.training)})
        assert [point["training"] for point in curve(tmp_path)] == ["", "0.0", "", "0.0", "0.0"]

    def test_a_loss_that_is_not_finite_is_told(self, tmp_path):
        with pytest.warns(UserWarning, match="The loss of epoch 1 is nan"):
            train(tmp_path, Recipe(epochs=1, batch_size=8), loss=lambda model, batch: loss(model, batch) * float("nan"))

    @pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
    def test_precision_is_used(self, tmp_path, precision):
        session = make_session(tmp_path, precision=precision)
        seen = []

        def look(model, batch):
            output = model(batch[0])
            seen.append(model.module[0](batch[0].to(model.module[0].weight.dtype)).dtype)
            return F.cross_entropy(output, batch[1])

        model = session.fit(network(), data(), Recipe(epochs=1, batch_size=10), look, seed=0)
        assert seen[0] == (torch.float64 if precision == "64-true" else torch.float32)
        logits, _ = session.predict(model, data())
        assert logits.shape == (30, 3)
        assert not torch.equal(weights(model), weights(train(tmp_path / "plain", Recipe(epochs=1, batch_size=10))))


class TestPredict:
    def test_order_and_batches_are_those_of_the_data(self, tmp_path):
        session, model = make_session(tmp_path), network().eval()
        logits, labels = session.predict(model, data(), batch_size=7)
        torch.testing.assert_close(logits, model(data().inputs))
        assert torch.equal(labels, data().labels)
        assert not logits.requires_grad

    def test_forward_replaces_the_call(self, tmp_path):
        logits, _ = make_session(tmp_path).predict(network(), data(), forward=lambda model, inputs: 2 * inputs)
        assert torch.equal(logits, 2 * data().inputs)


class TestProgress:
    def test_the_last_report_is_that_of_the_end(self, tmp_path):
        reports = []
        session = make_session(tmp_path, report=lambda done, total: reports.append((done, total)))
        session.fit(network(), data(), RECIPE, loss, seed=0)
        assert reports[-1] == (96, 96)
        assert [done for done, _ in reports] == sorted(done for done, _ in reports)

    def test_time_goes_to_phases(self, tmp_path):
        session = make_session(tmp_path)
        session.fit(network(), data(), RECIPE, loss, seed=0)
        assert {"loading", "forward", "backward", "optimizer", "checkpoint"} == session.clock.seconds.keys()
        assert sum(session.clock.seconds.values()) <= session.clock.total()


class TestCheckpoints:
    def states(self, tmp_path, num=3):
        checkpoints = Checkpoints(tmp_path)
        for step in range(num):
            checkpoints.save(step, {"step": step, "weights": torch.full((100,), float(step))})
        return checkpoints, sorted(tmp_path.iterdir())

    def test_the_last_two_are_kept(self, tmp_path):
        checkpoints, paths = self.states(tmp_path)
        assert [path.name[:10] for path in paths] == ["0000000001", "0000000002"]
        assert checkpoints.load()["step"] == 2
        assert Checkpoints(tmp_path / "none").load() is None

    @pytest.mark.parametrize("damage", ["bit", "half", "empty", "unreadable"])
    def test_a_damaged_one_is_told_and_the_one_before_it_used(self, tmp_path, damage):
        checkpoints, paths = self.states(tmp_path)
        content = bytearray(paths[-1].read_bytes())
        content[len(content) // 2] ^= 1
        if damage == "unreadable":
            paths[-1].unlink()
            paths[-1].mkdir()
        else:
            paths[-1].write_bytes({"bit": content, "half": content[:500], "empty": b""}[damage])
        with pytest.warns(CheckpointWarning, match=f"{paths[-1].name}.*The one before it is used"):
            assert checkpoints.load()["step"] == 1

    def test_all_damaged_is_a_new_start(self, tmp_path):
        checkpoints, paths = self.states(tmp_path)
        for path in paths:
            path.write_bytes(b"")
        with pytest.warns(CheckpointWarning):
            assert checkpoints.load() is None

    def test_nothing_but_plain_data_is_read(self, tmp_path):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(0, {"path": Path("a")})  # an object: only unpickling could make it
        with pytest.raises(Exception, match="weights_only"):
            checkpoints.load()

    def test_a_training_goes_on_from_the_one_before(self, tmp_path):
        whole = train(tmp_path / "whole")
        with pytest.raises(Stop):
            train(tmp_path / "stopped", stop_at=7)
        newest = max((tmp_path / "stopped" / "checkpoints" / "model").iterdir())
        newest.write_bytes(newest.read_bytes()[:-1])
        with pytest.warns(CheckpointWarning, match="is damaged"):
            resumed = train(tmp_path / "stopped")
        assert torch.equal(weights(resumed), weights(whole))


class TestStorage:
    def test_a_full_disk_is_told_and_leaves_the_old_file(self, tmp_path, monkeypatch):
        storage.write(tmp_path / "file", b"old")

        def fail(handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(storage.StorageError, match=r"the disk is full. Make room, then `torchddn resume`"):
            storage.write(tmp_path / "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_place_that_takes_no_file_is_told(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(storage.StorageError, match="cannot be written"):
            storage.write(tmp_path / "file" / "inside", b"")

    def test_too_little_room_is_told_before_the_first_step(self, tmp_path, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
        steps = itertools.count()
        with pytest.raises(storage.StorageError, match="MiB for checkpoints and has"):
            train(tmp_path, loss=lambda model, batch: (next(steps), loss(model, batch))[1])
        assert next(steps) == 0


def arguments(folder, *more):
    """Of a run that writes a checkpoint after every step."""
    return [
        "run", "pointcloud", "--preset", "digits", "--seed", "0", "--set", "training.epochs=2", "--accelerator", "cpu",
        "--set", "poolings=huber,max", "--checkpoint-seconds", "0", "--output", str(folder), *more,
    ]  # fmt: skip


def killed(folder, step, *more):
    """Starts a run, and kills it when a checkpoint of ``step`` or later is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "torchddn.experiments", *arguments(folder, *more)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        names = [path.name for path in folder.glob("jobs/*/checkpoints/model/[0-9]*.pt")]
        if any(int(name[:10]) >= step for name in names):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"


def here(*arguments):
    """The same command in this process."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output


def scores(folder):
    return [job["rows"] for job in read_record(folder)["jobs"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    here(*arguments(folder, "--jobs", "1"))
    return folder


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_run_that_was_killed_ends_with_the_numbers_of_one_that_was_not(whole, tmp_path, jobs):
    folder = tmp_path / "run"
    killed(folder, 40, "--jobs", jobs)
    # What a process leaves that is killed while it writes, as it may have been or not.
    (folder / "jobs" / ".model.csv-1234.part").write_bytes(b"half")
    here("resume", str(folder))
    assert scores(folder) == scores(whole)
    for path in folder.glob("jobs/*/model.pt"):
        weights = [torch.load(file, weights_only=True) for file in (path, whole / path.relative_to(folder))]
        assert all(map(torch.equal, *(state.values() for state in weights)))
    assert not list(folder.rglob("*.part"))
    assert not list(folder.rglob("checkpoints"))


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_too(whole, tmp_path):
    folder = tmp_path / "run"
    killed(folder, 1, "--jobs", "1")
    command = [sys.executable, "-m", "torchddn.experiments", "resume", str(folder)]
    for seconds in (4, 6, 8):
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
        time.sleep(seconds)
        process.kill()
        process.wait()
    here("resume", str(folder))
    assert scores(folder) == scores(whole)
