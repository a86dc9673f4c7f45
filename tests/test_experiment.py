"""The experiment: its data, its outliers, its files, its command line."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import sklearn.datasets
import torch
from typer.testing import CliRunner

import torchddn as ddn
from torchddn.datasets import load_digits, replace_with_outliers
from torchddn.experiments.cli import app
from torchddn.experiments.record import read_record, spreads
from torchddn.experiments.report import markdown
from torchddn.experiments.robust_pooling import OUTLIERS
from torchddn.models import POOLINGS, PointNet


def invoke(*arguments):
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "robust-pooling"
    result = invoke("run", "robust-pooling", "--quick", "--output", folder)
    assert result.exit_code == 0, result.output
    assert "Top-1 accuracy" in result.output
    assert "warning" not in result.output
    return folder


def change(record, **entries):
    return {**json.loads(json.dumps(record)), **entries}


class TestDigits:
    def test_every_image_is_in_one_part_with_all_its_pixels(self):
        digits = load_digits()
        assert [len(part.labels) for part in digits] == [1078, 359, 360]
        assert all(torch.bincount(part.labels).min() >= 0.09 * len(part.labels) for part in digits)
        images = sklearn.datasets.load_digits().images
        expected = Counter(tuple(sorted(image[image > 0].astype(int))) for image in images)
        sets = (torch.unique(item, dim=0)[:, 2] for part in digits for item in part.points)
        assert Counter(tuple(sorted((16 * intensity).int().tolist())) for intensity in sets) == expected

    def test_points_fill_the_unit_disc_and_are_centered(self):
        points = load_digits().train.points
        radius = points[..., :2].norm(dim=2)
        torch.testing.assert_close(radius.amax(dim=1), torch.ones(len(points)))
        assert points[..., 2].min() > 0
        assert points[..., 2].max() == 1
        distinct = [torch.unique(item, dim=0)[:, :2].mean(dim=0) for item in points[:20]]
        torch.testing.assert_close(torch.stack(distinct), torch.zeros(20, 2), atol=1e-5, rtol=0)

    def test_split_does_not_depend_on_the_seed_but_the_points_do(self):
        a, b, again = load_digits(num_points=10), load_digits(num_points=10, seed=1), load_digits(num_points=10)
        assert torch.equal(a.test.labels, b.test.labels)
        assert not torch.equal(a.test.points, b.test.points)
        assert torch.equal(a.test.points, again.test.points)

    def test_wrong_number_of_points_is_refused(self):
        message = re.escape("`load_digits(num_points=...)` must be a positive integer")
        with pytest.raises(ddn.InvalidInputError, match=message):
            load_digits(num_points=0)


class TestOutliers:
    @pytest.mark.parametrize("fraction", OUTLIERS)
    def test_the_asked_share_of_points_is_replaced(self, fraction):
        points = torch.full((5, 64, 3), 7.0)
        changed = replace_with_outliers(points, fraction, torch.Generator().manual_seed(0))
        replaced = (changed != points).any(dim=2)
        assert replaced.sum(dim=1).tolist() == [round(64 * fraction)] * 5
        assert torch.equal(changed[~replaced], points[~replaced])

    def test_outliers_are_uniform_in_the_disc(self):
        changed = replace_with_outliers(torch.zeros(200, 100, 3), 1.0, torch.Generator().manual_seed(0)).flatten(0, 1)
        radius = changed[:, :2].norm(dim=1)
        assert radius.max() <= 1
        # Uniform in the disc: E r^2 = 1/2 and mean position 0; intensity has mean 1/2.
        assert abs(radius.square().mean() - 0.5) < 0.01
        torch.testing.assert_close(changed.mean(dim=0), torch.tensor([0, 0, 0.5]), atol=0.01, rtol=0)
        assert changed[:, 2].min() >= 0
        assert changed[:, 2].max() <= 1

    def test_the_generator_decides(self):
        points = torch.zeros(3, 10, 3)
        first, again, other = (
            replace_with_outliers(points, 0.5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_input_is_not_changed_and_dtype_and_device_are_kept(self, randn):
        points = randn(2, 8, 3)
        before = points.clone()
        changed = replace_with_outliers(points, 0.5, torch.Generator())
        assert torch.equal(points, before)
        assert (changed.dtype, changed.device) == (points.dtype, points.device)

    @pytest.mark.parametrize("fraction", [-0.1, 30, float("nan")])
    def test_wrong_fraction_is_refused(self, fraction):
        with pytest.raises(ddn.InvalidInputError, match=re.escape(f"must be in [0, 1], got {fraction}")):
            replace_with_outliers(torch.zeros(1, 4, 3), fraction, torch.Generator())

    @pytest.mark.parametrize("shape", [(4, 3), (1, 4, 2)])
    def test_wrong_shape_is_refused(self, shape):
        with pytest.raises(ddn.InvalidInputError, match=re.escape(f"must have shape (B, n, 3), got {shape}")):
            replace_with_outliers(torch.zeros(shape), 0.5, torch.Generator())


class TestPointNet:
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_order_of_points_does_not_matter(self, pooling, device):
        model = PointNet(pooling).to(device).double().eval()
        points = torch.rand(3, 20, 3, dtype=torch.float64, device=device)
        torch.testing.assert_close(model(points), model(points.flip(1)), atol=1e-8, rtol=1e-6)

    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_every_weight_gets_a_gradient(self, pooling, device):
        model = PointNet(pooling).to(device)
        model(torch.rand(8, 20, 3, device=device)).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        assert model.shared[0].weight.grad.abs().sum() > 0

    def test_alpha_is_used(self):
        points = torch.rand(4, 20, 3)
        model = PointNet("huber", alpha=1.0).eval()
        before = model(points)
        model.alpha = 0.01
        assert not torch.allclose(before, model(points))

    def test_poolings_share_weights(self):
        PointNet("welsch").load_state_dict(PointNet("max").state_dict())

    def test_unknown_pooling_is_refused(self):
        with pytest.raises(ddn.InvalidInputError, match=re.escape("`PointNet(pooling=...)` must be one of max, ")):
            PointNet("median")

    def test_wrong_input_is_refused(self):
        with pytest.raises(ddn.InvalidInputError, match=re.escape("must have shape (B, n, 3), got (4, 20, 2)")):
            PointNet()(torch.zeros(4, 20, 2))


class TestRun:
    def test_record_holds_every_run_and_says_how_it_was_made(self, folder):
        record = read_record(folder)
        assert record["experiment"] == "robust-pooling"
        assert record["settings"] == {"seeds": 1, "epochs": 1, "device": "cpu", "quick": True}
        assert [run["variant"] for run in record["runs"]] == list(POOLINGS)
        for run in record["runs"]:
            assert [score["outliers"] for score in run["test"]] == list(OUTLIERS)
            for score in [run["validation"], *run["test"]]:
                assert all(0 <= score[metric] <= 1 for metric in record["metrics"])
            assert 0 <= run["validation"]["outlier_auc"] <= 1
        assert {"torch", "torchddn"} <= record["versions"].keys()
        assert {"cores", "system"} <= record["machine"].keys()

    def test_table_is_that_of_the_record(self, folder):
        record = read_record(folder)
        table = (folder / "table.md").read_text(encoding="utf-8")
        assert table == markdown(record)
        value = spreads(record, "top1")["huber"][0.3].mean
        row = next(line for line in table.splitlines() if line.startswith("| 30%"))
        assert f"{100 * value:.1f}" in row.split("|")[2 + POOLINGS.index("huber")]

    def test_weights_load_and_give_the_recorded_accuracy(self, folder):
        torch.set_num_threads(1)
        model = PointNet("huber")
        model.load_state_dict(torch.load(folder / "weights" / "huber-0.pt", weights_only=True))
        validation = load_digits().validation
        points, labels = validation.points[:96], validation.labels[:96]
        accuracy = (model.eval()(points).argmax(dim=1) == labels).double().mean().item()
        recorded = next(run for run in read_record(folder)["runs"] if run["variant"] == "huber")
        assert accuracy == recorded["validation"]["top1"]

    def test_picture_is_a_png(self, folder):
        assert (folder / "robust-pooling.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.slow
    def test_numbers_do_not_depend_on_the_number_of_workers(self, folder, tmp_path):
        assert invoke("run", "robust-pooling", "--quick", "--workers", 1, "--output", tmp_path).exit_code == 0
        scores = [[run["test"] for run in read_record(path)["runs"]] for path in (folder, tmp_path)]
        assert scores[0] == scores[1]

    def test_documented_table_is_that_of_the_documented_record(self):
        documented = Path(__file__).parent.parent / "docs" / "_static" / "robust-pooling"
        assert (documented / "table.md").read_text(encoding="utf-8") == markdown(read_record(documented))

    def test_list_names_the_experiment(self):
        result = invoke("list")
        assert result.exit_code == 0
        assert "robust-pooling" in result.output

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["robust-poling"], "There is no experiment 'robust-poling'. There are: robust-pooling."),
            (["robust-pooling", "--device", "tpu"], "Device 'tpu' cannot be used"),
            (
                ["robust-pooling", "--seeds", "0"],
                "'--seeds': Input should be greater than or equal to 1",
            ),
            (
                ["robust-pooling", "--epochs", "-1"],
                "'--epochs': Input should be greater than or equal to 1",
            ),
            (["robust-pooling", "--output", __file__], "is not a folder. Name another one with --output."),
        ],
    )
    def test_wrong_arguments_are_refused(self, arguments, message):
        result = invoke("run", *arguments)
        assert result.exit_code == 2
        assert message in " ".join(re.sub(r"[│\n]", " ", result.output).split())


class TestCompare:
    def test_difference_is_second_minus_first(self, folder, tmp_path):
        record = read_record(folder)
        better = change(record)
        for run in better["runs"]:
            for score in run["test"]:
                score["top1"] += 0.125
        (tmp_path / "results.json").write_text(json.dumps(better))
        result = invoke("compare", folder, tmp_path)
        assert result.exit_code == 0
        assert result.output.count("+12.5") == len(POOLINGS) * len(OUTLIERS)
        assert result.output.count("+0.0") == len(POOLINGS) * len(OUTLIERS)  # mean average precision

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, "does not exist"),
            ("{", "is not a record"),
            ("[]", "is not a record"),
            ('{"runs": []}', "is not a record"),
        ],
    )
    def test_folder_without_record_is_refused(self, folder, tmp_path, text, message):
        if text is not None:
            (tmp_path / "results.json").write_text(text)
        result = invoke("compare", folder, tmp_path)
        assert result.exit_code == 2
        assert message in result.output

    def test_records_of_different_experiments_are_refused(self, folder, tmp_path):
        (tmp_path / "results.json").write_text(json.dumps(change(read_record(folder), experiment="other")))
        result = invoke("compare", folder, tmp_path)
        assert result.exit_code == 2
        assert "different experiments, robust-pooling and other" in result.output
