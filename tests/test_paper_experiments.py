"""The experiments beside point clouds, at their smallest: rows, scores, tables, and what they refuse."""

import dataclasses
import itertools
import os
import re
import sys

import numpy as np
import PIL.Image
import pytest
import scipy.stats
import torch
from torch import nn

import torchddn as ddn
from torchddn.datasets import Labeled
from torchddn.experiments import imagenet_projection, permutation, profile_pooling, profile_transport, video_ranking
from torchddn.experiments.catalog import EXPERIMENTS
from torchddn.experiments.imagenet_projection import ImageNetProjection
from torchddn.experiments.measurement import both_passes, peak_bytes
from torchddn.experiments.options import Options
from torchddn.experiments.permutation import Permutation, assignments, kendall_tau
from torchddn.experiments.profile_pooling import ProfilePooling
from torchddn.experiments.profile_transport import METHODS, ProfileTransport
from torchddn.experiments.recipe import Recipe
from torchddn.experiments.session import Session
from torchddn.experiments.video_ranking import VideoRanking
from torchddn.functional import robust_vector_pool
from torchddn.models import RADII

MINE = ("imagenet-projection", "video-ranking", "permutation", "profile-pooling", "profile-transport")
CPU = torch.device("cpu")


@pytest.fixture
def session(tmp_path):
    return make_session(tmp_path)


def make_session(folder, data=None):
    options = Options(accelerator="cpu", checkpoint_seconds=1000)
    fabric = options.fabric()
    fabric.launch()
    return Session(fabric, folder, data, options, lambda done, total: None)


def recipe(batch_size=30):
    return Recipe(epochs=1, batch_size=batch_size, optimizer="adamw", learning_rate=0.01, schedule="constant")


@pytest.fixture
def folder(tmp_path):
    """Two classes of pictures of different colors."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 50), ("val", 3)):
        for name, color in (("blue", 2), ("red", 0)):
            for i in range(count):
                pixels = generator.integers(0, 60, (16, 16, 3), dtype=np.uint8)
                pixels[..., color] += 150
                path = tmp_path / "data" / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                PIL.Image.fromarray(pixels).save(path)
    return tmp_path / "data"


class TestCatalog:
    @pytest.mark.parametrize("name", MINE)
    def test_there_is_a_small_preset_and_every_job_has_a_seed(self, name):
        experiment = EXPERIMENTS[name]
        assert "small" in experiment.presets
        for config in experiment.presets.values():
            jobs = experiment.jobs(config)
            assert {job["seed"] for job in jobs} == set(config.seeds)
            assert len({str(job) for job in jobs}) == len(jobs)
            titles = [table.title for table in experiment.tables(config)]
            assert len(set(titles)) == len(titles)

    @pytest.mark.parametrize("name", ["video-ranking", "profile-pooling", "profile-transport"])
    def test_data_that_would_not_be_used_is_refused(self, name, tmp_path):
        experiment = EXPERIMENTS[name]
        with pytest.raises(ddn.InvalidInputError, match="Leave out --data"):
            experiment.prepare(experiment.presets["small"], tmp_path)

    @pytest.mark.parametrize("name", ["imagenet-projection", "permutation"])
    def test_missing_and_wrong_data_is_refused_before_the_first_job(self, name, tmp_path):
        experiment = EXPERIMENTS[name]
        first = next(iter(experiment.presets.values()))
        with pytest.raises(ddn.InvalidInputError, match="name it with --data; --preset small has digits"):
            experiment.prepare(first, None)
        with pytest.raises(ddn.InvalidInputError, match="has no layout of images that is known"):
            experiment.prepare(first, tmp_path)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: VideoRanking(poolings=("median",)), "`VideoRanking(poolings=...)`"),
            (lambda: Permutation(relaxations=("hard",)), "`Permutation(relaxations=...)`"),
            (lambda: Permutation(grids=(5,)), "must be at least 2 and divide size = 192, got 5"),
            (lambda: Permutation(dataset="faces"), "`Permutation(dataset=...)`"),
            (lambda: ImageNetProjection(projections=("L3 ball",)), "`ImageNetProjection(projections=...)`"),
            (lambda: ImageNetProjection(dataset="faces"), "`ImageNetProjection(dataset=...)`"),
            (lambda: ImageNetProjection(held_out=2), "`ImageNetProjection(held_out=...)` must be in [0, 1), got 2"),
            (lambda: ProfilePooling(penalties=("cubic",)), "`ProfilePooling(penalties=...)`"),
            (lambda: ProfilePooling(methods=("Newton",)), "`ProfilePooling(methods=...)`"),
            (lambda: ProfileTransport(methods=("magic",)), "`ProfileTransport(methods=...)`"),
        ],
    )
    def test_wrong_settings_are_refused(self, make, message):
        with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
            make()


class TestVideoRanking:
    CONFIG = VideoRanking(num_frames=4, size=12, per_class=4, widths=(4,), num_features=8, training=recipe())

    @pytest.mark.parametrize("pooling", ["max", "mean"])
    def test_without_order_the_direction_is_a_coin(self, session, pooling):
        rows = video_ranking._run(self.CONFIG, {"pooling": pooling, "seed": 0}, session)
        scores = {row["question"]: row["top1"] for row in rows}
        assert len(scores) == 7
        assert all(score == 0.5 for question, score in scores.items() if " or " in question)
        assert scores["motion and direction"] == scores["motion alone"] / 2

    def test_every_choice_is_used(self, tmp_path):
        def run(config, seed=0):
            session = make_session(tmp_path / str(next(count)))
            rows = video_ranking._run(config, {"pooling": "rank", "seed": seed}, session)
            return [row["top1"] for row in rows]

        count, config = itertools.count(), dataclasses.replace(self.CONFIG, per_class=20)
        first = run(config)
        assert run(config) == first
        changes = {"C": 1e-4, "num_frames": 3, "size": 14, "per_class": 8, "widths": (6,), "num_features": 9}
        changed = {name: run(dataclasses.replace(config, **{name: value})) for name, value in changes.items()}
        assert [name for name, scores in changed.items() if scores == first] == []
        assert run(config, seed=1) != first


class TestPermutation:
    CONFIG = Permutation(dataset="digits", size=12, grids=(2,), widths=(4,), num_features=8, training=recipe(100))

    @pytest.mark.parametrize("relaxation", ["sinkhorn", "birkhoff", "softmax"])
    def test_scores_are_in_their_ranges(self, session, relaxation):
        job = {"relaxation": relaxation, "grid": 2, "seed": 0}
        (row,) = permutation._run(self.CONFIG, job, session)
        assert row["patch"] > 0.3  # one in four by chance
        assert row["patch"] >= row["image"] >= 0
        assert row["patch"] >= row["largest"] >= 0
        assert -1 <= row["tau"] <= 1

    def test_a_folder_of_images_can_be_put_in_order(self, tmp_path, folder):
        config = dataclasses.replace(self.CONFIG, dataset="images", size=8, training=recipe(20))
        job = {"relaxation": "sinkhorn", "grid": 2, "seed": 0}
        (row,) = permutation._run(config, job, make_session(tmp_path / "run", folder))
        assert 0 <= row["image"] <= row["patch"] <= 1

    def test_orders_of_the_test_are_the_same_for_all_and_those_of_training_are_not(self):
        first, other = (permutation._puzzles(self.CONFIG, 2, seed, None) for seed in (0, 1))
        assert not torch.equal(first[0].labels, other[0].labels)
        for part in (1, 2):
            assert torch.equal(first[part].labels, other[part].labels)
        assert not torch.equal(first[1].labels[:300], first[2].labels[:300])

    def test_tau_is_that_of_scipy(self):
        a = torch.stack([torch.randperm(7) for _ in range(5)])
        b = torch.stack([torch.randperm(7) for _ in range(5)])
        expected = [scipy.stats.kendalltau(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
        torch.testing.assert_close(kendall_tau(a, b), torch.tensor(expected, dtype=torch.float64))
        assert kendall_tau(a, a).tolist() == [1.0] * 5
        assert kendall_tau(torch.arange(4)[None], torch.arange(3, -1, -1)[None]).tolist() == [-1.0]

    def test_assignment_is_the_best_of_all(self):
        Y = torch.rand(4, 4, 4)
        every = list(itertools.permutations(range(4)))
        sums = torch.stack([Y[:, torch.arange(4), torch.tensor(order)].sum(dim=1) for order in every])
        assert assignments(Y).tolist() == [list(every[i]) for i in sums.argmax(dim=0)]


class TestImageNetProjection:
    CONFIG = ImageNetProjection(
        dataset="digits", measured_radii=True, width=2, num_train=60, projections=("L2 sphere",), training=recipe()
    )

    def test_every_network_is_scored_and_the_radii_are_shown(self, session):
        rows = imagenet_projection._run(self.CONFIG, {"seed": 0}, session)
        scores = [(row["projection"], row["score"]) for row in rows if "score" in row]
        names = ("top-1", "top-5", "mAP", "calibration error", "negative log-likelihood")
        assert scores == [(projection, name) for projection in ("none", "L2 sphere") for name in names]
        radii = {(row["norm"], row["which"]): row["radius"] for row in rows if "norm" in row}
        assert len(radii) == 6
        # 16 normalized features have mean square one: the median of their norm is near 4, or below.
        assert 2 < radii["L2", "measured"] < 2 / 3 * 4.5
        assert radii["L2", "used"] == radii["L2", "measured"]
        assert radii["Linf", "measured"] < radii["L2", "measured"] < radii["L1", "measured"]

    def test_the_radii_of_the_paper_are_used_unless_they_are_to_be_measured(self, session):
        config = dataclasses.replace(self.CONFIG, measured_radii=False, projections=())
        rows = imagenet_projection._run(config, {"seed": 0}, session)
        used = {row["norm"]: row["radius"] for row in rows if row.get("which") == "used"}
        assert used == {"L1": 250.0, "L2": 15.0, "Linf": 3.0}
        assert list(used.values()) == list(RADII.values())

    def test_rule_is_two_thirds_of_the_median_norm_of_normalized_features(self, session, monkeypatch):
        class Given(nn.Module):
            def features(self, x):
                return x

        x = torch.randn(21, 3) * torch.tensor([1.0, 5.0, 0.1]) + 7
        data = Labeled(x, torch.zeros(21, dtype=torch.long))
        monkeypatch.setattr(imagenet_projection, "ResNet18", Given)
        found = imagenet_projection._measured(Given(), data, session)
        z = ((x - x.mean(dim=0)) / (x.var(dim=0, unbiased=False) + 1e-5).sqrt()).double()
        expected = {1: z.abs().sum(dim=1), 2: z.square().sum(dim=1).sqrt(), float("inf"): z.abs().amax(dim=1)}
        for p, norms in expected.items():
            assert found[p] == pytest.approx(2 / 3 * norms.sort().values[10].item(), rel=1e-5)

    def test_networks_of_a_seed_begin_with_the_same_weights(self, session, monkeypatch):
        begun = []
        monkeypatch.setattr(session, "fit", lambda model, *_, **__: begun.append(model.state_dict()) or model)
        parts = imagenet_projection._parts(self.CONFIG, None)
        for projection in ("none", "L1 ball"):
            imagenet_projection._trained(self.CONFIG, parts, session, 0, projection, 1.0)
        assert all(torch.equal(value, begun[1][name]) for name, value in begun[0].items())

    def test_a_folder_of_images_is_held_out_from_itself_and_tested_on_its_validation_part(self, tmp_path, folder):
        config = dataclasses.replace(
            self.CONFIG, dataset="images", crop=32, training=recipe(49), projections=(), held_out=0.02
        )
        parts = imagenet_projection._parts(config, folder)
        assert [len(part) for part in parts] == [98, 98, 2, 6]
        assert torch.equal(parts.train.indices, parts.plain.indices)
        assert not set(parts.validation.indices.tolist()) & set(parts.train.indices.tolist())
        rows = imagenet_projection._run(config, {"seed": 0}, make_session(tmp_path / "run", folder))
        assert {row["projection"] for row in rows if "score" in row} == {"none"}
        whole = imagenet_projection._parts(dataclasses.replace(config, held_out=0.0), folder)
        assert whole.validation is None
        assert len(whole.train) == len(whole.plain) == 100


class TestProfiles:
    @pytest.mark.parametrize("method", ["unrolled", "full inverse", "block inverse"])
    def test_ways_through_a_plan_agree_where_it_has_converged(self, method):
        M = torch.rand(2, 6, 8, dtype=torch.float64, requires_grad=True)
        v = torch.randn(2, 6, 8, dtype=torch.float64)
        plans = [METHODS[name](M, 2.0, 200) for name in (method, "torchddn")]
        torch.testing.assert_close(*plans)
        torch.testing.assert_close(*(torch.autograd.grad(P, M, v)[0] for P in plans))

    def test_the_approximate_way_ignores_the_constraints(self):
        M = torch.rand(2, 5, 4, dtype=torch.float64, requires_grad=True)
        v = torch.randn(2, 5, 4, dtype=torch.float64)
        P = METHODS["approximate"](M, 2.0, 100)
        torch.testing.assert_close(torch.autograd.grad(P, M, v)[0], -2.0 * P.detach() * v)

    @pytest.mark.parametrize("penalty", ["quadratic", "pseudo_huber", "huber", "welsch", "truncated_quadratic"])
    def test_published_way_of_pooling_agrees_with_ours(self, penalty):
        # Far from the kinks: inliers well within alpha = 1, outliers well outside.
        x = 0.2 * torch.randn(2, 40, 5, dtype=torch.float64)
        x[:, :4] += 10
        x.requires_grad_()
        v = torch.randn(2, 5, dtype=torch.float64)
        pooled = profile_pooling._Published.apply(x, penalty), robust_vector_pool(x, penalty)
        torch.testing.assert_close(*pooled, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(*(torch.autograd.grad(y, x, v)[0] for y in pooled), atol=1e-5, rtol=1e-4)

    def test_pooling_is_measured_at_every_size(self, session):
        config = ProfilePooling(sides=(2, 4), channels=3, seconds=0.0)
        for method in config.methods:
            rows = profile_pooling._run(config, {"method": method, "penalty": "welsch", "seed": 0}, session)
            assert [(row["points"], row["pass"]) for row in rows] == [
                (points, name) for points in (4, 16) for name in ("forward", "backward", "both")
            ]
            assert all(row["milliseconds"] > 0 and row["mebibytes"] > 0 for row in rows)

    def test_transport_is_measured_against_size_and_iterations(self, session):
        config = ProfileTransport(sizes=(4, 8), steps=(1, 30), size=6, seconds=0.0)
        errors = {}
        for method in config.methods:
            rows = profile_transport._run(config, {"method": method, "seed": 0}, session)
            places = [(row["varied"], row["n"], row["iterations"]) for row in rows if row["pass"] == "both"]
            assert places == [("size", 4, 10), ("size", 8, 10), ("steps", 6, 1), ("steps", 6, 30)]
            errors[method] = [row["error"] for row in rows if row["pass"] == "accuracy" and row["varied"] == "steps"]
        assert errors["unrolled"][0] > 1e-3 > 1e-4 > errors["unrolled"][1]
        assert max(errors["torchddn"]) < 1e-5

    def test_peak_counts_what_is_alive_at_once(self):
        def call():
            a = torch.ones(2**18)  # one MiB
            b = a + 1
            del a
            return b * 2 + torch.ones(())

        assert 2 <= peak_bytes(call, CPU) / 2**20 < 3.1

    def test_the_profiler_is_quiet_and_nothing_else_is(self, capfd):
        peak_bytes(lambda: os.write(2, b"said by the call\n"), CPU)
        print("said afterwards", file=sys.stderr)
        assert capfd.readouterr().err == "said by the call\nsaid afterwards\n"

    def test_what_unrolling_keeps_is_counted_and_what_ran_before_is_not(self):
        x = torch.ones(2**16)

        def steps(count):
            def function(x):
                for _ in range(count):
                    x = x.sin()
                return x

            return both_passes(function, x, CPU, 0.0)["both"].mebibytes

        assert steps(40) - steps(20) == pytest.approx(20 * 0.25, rel=0.1)
