"""The experiment on point sets: its data, its outliers, its network, its numbers."""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest
import sklearn.datasets
import torch

import torchddn as ddn
from torchddn.datasets import Labeled, load_digits, replace_with_outliers
from torchddn.experiments.options import Options
from torchddn.experiments.pointcloud import POINTCLOUD, PointCloud, released_average_precision
from torchddn.experiments.recipe import Recipe
from torchddn.experiments.record import read_record
from torchddn.experiments.session import Session
from torchddn.experiments.tables import markdown
from torchddn.models import POOLINGS, PointNet

OUTLIERS = (0.0, 0.1, 0.2, 0.3, 0.5)


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
        loaded = PointNet("welsch").load_state_dict(PointNet("max").state_dict())
        assert not loaded.missing_keys and not loaded.unexpected_keys

    def test_unknown_pooling_is_refused(self):
        with pytest.raises(ddn.InvalidInputError, match=re.escape("`PointNet(pooling=...)` must be one of max, ")):
            PointNet("median")

    def test_wrong_input_is_refused(self):
        with pytest.raises(ddn.InvalidInputError, match=re.escape("must have shape (B, n, 3), got (4, 20, 2)")):
            PointNet()(torch.zeros(4, 20, 2))


def make_session(folder, data=None):
    options = Options(accelerator="cpu", checkpoint_seconds=1000)
    fabric = options.fabric()
    fabric.launch()
    return Session(fabric, folder, data, options, lambda done, total: None)


def tiny(**changes):
    """One epoch on digits of few points."""
    recipe = Recipe(epochs=1, batch_size=98, optimizer="adamw")
    settings = {"dataset": "digits", "num_points": 16, "published": False, "test_outliers": (0.0, 0.3), **changes}
    return PointCloud(training=recipe, **settings)


def run(folder, config, **job):
    return POINTCLOUD.run(config, {"pooling": "huber", "trained_with": 0.0, "seed": 0, **job}, make_session(folder))


class TestPointCloud:
    def test_a_network_trained_without_outliers_is_in_both_tables(self, tmp_path):
        # Five epochs are enough to learn from points what outliers then hide.
        recipe = Recipe(epochs=5, batch_size=98, optimizer="adamw")
        rows = run(tmp_path, dataclasses.replace(tiny(), training=recipe), pooling="max")
        assert [(row["protocol"], row["outliers"]) for row in rows] == [
            ("same", 0.0),
            ("clean", 0.0),
            ("clean", 0.3),
            ("explained", 0.3),
        ]
        for score in ("top1", "map", "map_released"):
            same, clean, corrupted = (row[score] for row in rows[:3])
            assert 0 <= corrupted < clean <= 1 and same == clean
        # A tenth is chance.
        assert rows[1]["top1"] > 0.3
        assert 0 <= rows[3]["outlier_auc"] <= 1

    def test_a_network_trained_with_outliers_is_tested_with_as_many(self, tmp_path):
        (row,) = run(tmp_path, tiny(), trained_with=0.2)
        assert (row["protocol"], row["outliers"]) == ("same", 0.2)

    def test_outliers_are_new_in_each_step_and_in_the_released_protocol_are_not(self, tmp_path, monkeypatch):
        drawn = []

        def record(points, fraction, generator, **options):
            drawn.append(len(points))
            return replace_with_outliers(points, fraction, generator, **options)

        monkeypatch.setattr("torchddn.experiments.pointcloud.replace_with_outliers", record)
        run(tmp_path / "fresh", tiny(), trained_with=0.2)
        assert drawn == [98] * 11 + [360]
        drawn.clear()
        run(tmp_path / "released", tiny(released=True), trained_with=0.2)
        assert drawn == [1078, 360]

    @pytest.mark.parametrize("change", [{"alpha": 0.1}, {"num_points": 8}, {"training": Recipe(epochs=1)}])
    def test_every_choice_is_used(self, tmp_path, change):
        config = dataclasses.replace(tiny(), **change)
        job = {"pooling": "pseudo_huber"}
        assert run(tmp_path / "a", config, **job) != run(tmp_path / "b", tiny(), **job)

    def test_the_published_network_is_taken_where_it_is_asked_for(self, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(
            PointNet,
            "published",
            lambda *arguments, **options: asked.append(options) or PointNet(*arguments, **options),
        )
        run(tmp_path, tiny(published=True))
        assert asked == [{"num_classes": 10}]

    def test_same_outliers_for_every_pooling_and_others_for_every_seed(self, tmp_path, monkeypatch):
        seen = []

        def record(points, fraction, generator, **options):
            changed = replace_with_outliers(points, fraction, generator, **options)
            seen.append(changed)
            return changed

        monkeypatch.setattr("torchddn.experiments.pointcloud.replace_with_outliers", record)
        for job in ({"pooling": "max"}, {"pooling": "huber"}, {"seed": 1}):
            run(tmp_path / str(job), tiny(), **job)
        a, b, c = seen[2::4]
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    def test_both_forms_of_modelnet_can_be_trained_on(self, tmp_path, monkeypatch):
        # What is read from the disk is tested where it is read; here, that it gets into the network.
        shapes = Labeled(torch.rand(48, 32, 3), torch.arange(48) % 40, tuple(map(str, range(40))))
        monkeypatch.setattr("torchddn.experiments.pointcloud.ModelNet40", lambda data, split, num_points: shapes)
        config = tiny(dataset="modelnet40", num_points=32)
        job = {"pooling": "max", "trained_with": 0.0, "seed": 0}
        rows = POINTCLOUD.run(config, job, make_session(tmp_path, tmp_path))
        assert [row["protocol"] for row in rows] == ["same", "clean", "clean"]

    def test_weights_load_and_give_the_recorded_accuracy(self, tmp_path):
        rows = run(tmp_path, tiny())
        model = PointNet("huber")
        model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        points, labels = load_digits(16).test
        assert (model.eval()(points).argmax(dim=1) == labels).double().mean().item() == rows[0]["top1"]

    def test_the_defaults_are_the_papers(self):
        config = POINTCLOUD.presets["paper"]
        assert config == PointCloud()
        assert (config.num_points, config.alpha, len(config.poolings)) == (2048, 1.0, 6)
        recipe = config.training
        assert (recipe.epochs, recipe.batch_size, recipe.optimizer) == (60, 24, "sgd")
        assert (recipe.learning_rate, recipe.momentum, recipe.decay_every, recipe.decay_factor) == (0.01, 0.9, 20, 0.5)
        titles = [table.title for table in POINTCLOUD.tables(config)]
        assert "Top-1 accuracy, trained with as many outliers" in titles
        assert not any("six classes" in title for title in titles)

    def test_numbers_of_the_paper_are_in_their_places(self):
        clean, _, same, _, _ = POINTCLOUD.tables(PointCloud())
        assert clean.paper[0.4]["truncated_quadratic"] == pytest.approx(0.756)
        assert clean.paper[0.01]["max"] == pytest.approx(0.326)
        assert same.paper[0.9]["welsch"] == pytest.approx(0.653)
        assert set(clean.paper) - {"source"} == set(PointCloud().test_outliers)
        assert set(same.paper) - {"source"} == set(PointCloud().train_outliers)


class TestReleasedAveragePrecision:
    def test_by_hand(self):
        # One class among the first six has items: hits at ranks 1 and 3, whose precisions 1 and 2/3 never increase.
        logits = torch.tensor([[4.0, 0.0], [3.0, 0.0], [2.0, 0.0]])
        labels = torch.tensor([0, 1, 0])
        # Class 1 has its only item in the middle, and every other score is larger or smaller: rank 2 of 3.
        assert released_average_precision(logits, labels) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)

    def test_precision_is_made_not_to_increase_with_recall(self):
        # Hits at ranks 2 and 3: precisions 1/2 and 2/3, of which the first becomes 2/3.
        logits = torch.tensor([[3.0], [2.0], [1.0]]).expand(3, 1) * torch.tensor([[1.0, 0.0]])
        labels = torch.tensor([1, 0, 0])
        first = 2 / 3
        second = 1 / 3  # class 1: the only item has the smallest score
        assert released_average_precision(logits, labels) == pytest.approx((first + second) / 2)

    def test_only_six_classes_count(self):
        logits = torch.eye(8) * 5
        good = released_average_precision(logits, torch.arange(8))
        wrong = torch.tensor([0, 1, 2, 3, 4, 5, 7, 6])
        assert good == released_average_precision(logits, wrong) == pytest.approx(1.0)


def test_documented_table_is_that_of_the_documented_record():
    documented = Path(__file__).parent.parent / "docs" / "_static" / "pointcloud-digits"
    assert (documented / "table.md").read_text(encoding="utf-8") == markdown(read_record(documented))
