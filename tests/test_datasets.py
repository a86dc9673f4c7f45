"""Data in memory: labels, parts, loaders, and what the generators make."""

import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import torchddn as ddn
from torchddn import datasets
from torchddn.datasets import (
    Labeled,
    MovingDigits,
    Puzzles,
    Solids,
    hold_out,
    load_digit_images,
    load_digits,
    loader,
    replace_with_outliers,
)
from torchddn.datasets.meshes import sample_surface
from torchddn.datasets.shapes import RECIPES, pose


def numbers(size):
    return Labeled(torch.arange(float(size)), torch.arange(size) % 3)


def read(batches):
    return [inputs.tolist() for inputs, _ in batches]


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


class TestLabeled:
    def test_a_batch_is_the_items(self):
        data = Labeled(torch.randn(5, 2), torch.tensor([0, 2, 1, 0, 1]))
        inputs, labels = data.__getitems__([3, 1])
        assert torch.equal(inputs, torch.stack([data[3][0], data[1][0]]))
        assert labels.tolist() == [0, 2]
        assert data.classes == ("0", "1", "2")

    @pytest.mark.parametrize(
        ("inputs", "labels", "classes", "message"),
        [
            (torch.zeros(3), torch.zeros(2).long(), None, "must have one entry per input, got 2 for 3 inputs"),
            (torch.zeros(2), torch.zeros(2), None, "must be integers from 0 on, got torch.float32"),
            (torch.zeros(2), torch.tensor([0, -1]), None, "must be integers from 0 on"),
            (torch.zeros(2), torch.tensor([0, 1]), ("one",), "must name every label, got 1 names for 2 labels"),
            ([0, 1], torch.tensor([0, 1]), None, "must be tensors of shape (N, ...) and (N,)"),
            (torch.zeros(2), torch.zeros(2, 1).long(), None, "must be tensors of shape (N, ...) and (N,)"),
        ],
    )
    def test_wrong_arguments_are_refused(self, inputs, labels, classes, message):
        with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
            Labeled(inputs, labels, classes)

    def test_every_class_gives_the_same_share_to_what_is_held_out(self):
        data = numbers(30)
        rest, held = hold_out(data, 0.3, seed=1)
        assert held.labels.bincount().tolist() == [3, 3, 3]
        items = sorted(rest.indices.tolist() + held.indices.tolist())
        assert items == list(range(30))
        assert torch.equal(held.labels, held.indices % 3)
        assert [held[i][0] for i in range(len(held))] == held.indices.tolist()
        again, other = hold_out(data, 0.3, seed=1)[1], hold_out(data, 0.3, seed=2)[1]
        assert torch.equal(again.indices, held.indices)
        assert not torch.equal(other.indices, held.indices)

    @pytest.mark.parametrize("share", [0, 1, 20, "half", True])
    def test_a_share_that_is_none_is_refused(self, share):
        with pytest.raises(ddn.InvalidInputError, match=re.escape("`hold_out(share=...)` must be a number between")):
            hold_out(numbers(10), share)

    def test_items_without_a_class_cannot_be_held_out_by_class(self):
        puzzles = Puzzles(load_digit_images().test, (2, 2))
        with pytest.raises(ddn.InvalidInputError, match="must have one class per item, got labels of shape"):
            hold_out(puzzles)


class TestLoader:
    def test_order_is_a_function_of_seed_and_epoch(self):
        def order(seed, epoch):
            batches = loader(numbers(20), 6, shuffle=True, seed=seed)
            batches.sampler.set_epoch(epoch)
            return read(batches)

        assert order(0, 3) == order(0, 3)
        assert len({str(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
        assert sorted(joined(order(0, 3))) == list(range(20))

    def test_a_pass_leaves_the_random_numbers_of_the_training_alone(self):
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        read(loader(numbers(20), 6, shuffle=True))
        assert torch.equal(torch.rand(1), expected)

    @pytest.mark.parametrize("shuffle", [False, True])
    def test_batches_of_all_ranks_together_are_those_of_one_process(self, shuffle):
        data = numbers(24)
        one = read(loader(data, 6, shuffle=shuffle, seed=5))
        ranks = [read(loader(data, 2, shuffle=shuffle, seed=5, rank=rank, num_ranks=3)) for rank in range(3)]
        for batch, *parts in zip(one, *ranks, strict=True):
            assert sorted(batch) == sorted(joined(parts))

    def test_in_training_every_rank_takes_the_same_number_of_steps(self):
        data = numbers(23)
        sizes = [len(loader(data, 1, shuffle=True, rank=rank, num_ranks=4)) for rank in range(4)]
        assert sizes == [5, 5, 5, 5]
        found = [joined(read(loader(data, 2, shuffle=True, rank=rank, num_ranks=4))) for rank in range(4)]
        assert len({*joined(found)}) == 20

    def test_in_testing_no_item_is_left_out_and_none_comes_twice(self):
        found = [joined(read(loader(numbers(23), 2, rank=rank, num_ranks=4))) for rank in range(4)]
        assert [len(items) for items in found] == [6, 6, 6, 5]
        assert sorted(joined(found)) == list(range(23))

    def test_a_small_last_batch_can_be_left_out(self):
        assert [len(batch) for batch in read(loader(numbers(7), 3))] == [3, 3, 1]
        assert [len(batch) for batch in read(loader(numbers(7), 3, drop_last=True))] == [3, 3]

    def test_workers_change_nothing(self):
        whole = load_digit_images().train
        for data in (whole, hold_out(whole)[1], Puzzles(whole, (2, 2), fresh=True)):
            passes = []
            for num_workers in (0, 2):
                batches = loader(data, 50, shuffle=True, num_workers=num_workers)
                batches.sampler.set_epoch(2)
                passes.append(list(batches))
            for (inputs, labels), (others, other_labels) in zip(*passes, strict=True):
                assert torch.equal(inputs, others)
                assert torch.equal(labels, other_labels)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"batch_size": 0}, "`loader(batch_size=...)` must be a positive integer, got 0"),
            ({"rank": 2, "num_ranks": 2}, "`loader(rank=...)` must be below num_ranks = 2, got 2"),
            ({"rank": -1}, "`loader(rank=...)` must be a non-negative integer"),
            ({"num_workers": 0.5}, "`loader(num_workers=...)` must be a non-negative integer"),
            ({"shuffle": "yes"}, "`loader(shuffle=...)` must be True or False"),
        ],
    )
    def test_wrong_arguments_are_refused(self, arguments, message):
        with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
            loader(numbers(5), **{"batch_size": 2, **arguments})


class TestSolids:
    @pytest.fixture(scope="class")
    @staticmethod
    def cache(tmp_path_factory):
        return tmp_path_factory.mktemp("solids")

    def test_points_are_centered_in_the_unit_ball(self, cache):
        data = Solids("test", num_points=300, per_class=2, cache=cache)
        assert len(data.classes) >= 16
        assert data.inputs.shape == (2 * len(data.classes), 300, 3)
        assert data.labels.bincount().tolist() == [2] * len(data.classes)
        torch.testing.assert_close(data.inputs.norm(dim=2).amax(dim=1), torch.ones(len(data)))
        torch.testing.assert_close(data.inputs.mean(dim=1), torch.zeros(len(data), 3), atol=1e-5, rtol=0)

    def test_seed_split_and_pose_decide_and_the_cache_does_not(self, cache, tmp_path):
        first = Solids("test", num_points=20, per_class=2, cache=cache).inputs
        assert torch.equal(Solids("test", num_points=20, per_class=2, cache=tmp_path).inputs, first)
        for other in ({"seed": 1}, {"split": "validation"}, {"pose": "free"}):
            arguments = {"split": "test", "num_points": 20, "per_class": 2, "cache": cache, **other}
            assert not torch.equal(Solids(**arguments).inputs, first)

    def test_more_solids_per_class_change_none_before(self, cache):
        two, three = (Solids("test", num_points=20, per_class=size, cache=cache).inputs for size in (2, 3))
        assert torch.equal(three.unflatten(0, (-1, 3))[:, :2].flatten(0, 1), two)

    @pytest.mark.parametrize("name", RECIPES)
    def test_every_solid_is_closed_and_in_one_piece(self, name):
        for seed in range(5):
            generator = np.random.default_rng(seed)
            mesh = pose(RECIPES[name](generator), generator, free=True)
            mesh.merge_vertices()
            assert mesh.is_watertight
            assert mesh.body_count == 1
            assert mesh.volume > 0
            assert np.isfinite(sample_surface(mesh, 10, seed)).all()

    def test_upright_solids_are_tilted_by_15_degrees_at_most(self):
        for seed in range(20):
            generator = np.random.default_rng(seed)
            bar = RECIPES["cylinder"](generator)
            lengths = np.linalg.svd(pose(bar, generator, free=False).vertices, full_matrices=False)[2]
            # The axis of a long cylinder is not its thinnest direction; its height above the floor is |axis . z|.
            assert np.abs(lengths[:, 2]).max() > np.cos(np.radians(15.01)) - 0.05

    def test_another_process_makes_the_same_solids(self, cache, tmp_path):
        expected = Solids("test", num_points=5, per_class=1, cache=cache).inputs
        code = (
            "import sys; from torchddn.datasets import Solids; "
            "print(Solids('test', num_points=5, per_class=1, cache=sys.argv[1]).inputs.double().sum().item())"
        )
        printed = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
        )
        assert float(printed.stdout) == expected.double().sum().item()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"split": "all"}, "`Solids(split=...)` must be one of 'train', 'validation', 'test', got 'all'"),
            ({"pose": "lying"}, "`Solids(pose=...)` must be one of 'upright', 'free'"),
            ({"num_points": 0}, "`Solids(num_points=...)` must be a positive integer"),
            ({"per_class": 1.5}, "`Solids(per_class=...)` must be a positive integer"),
            ({"seed": None}, "`Solids(seed=...)` must be a non-negative integer"),
        ],
    )
    def test_wrong_arguments_are_refused(self, arguments, message):
        with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
            Solids(**arguments)

    def test_cache_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ddn.InvalidInputError, match=r"file.*cannot be written .*Set `cache=` or TORCHDDN_CACHE"):
            Solids("test", num_points=2, per_class=1, cache=tmp_path / "file")

    def test_cache_lies_where_the_environment_says(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCHDDN_CACHE", str(tmp_path / "here"))
        Solids("test", num_points=2, per_class=1)
        assert len(list((tmp_path / "here").iterdir())) == 1


class TestMovingDigits:
    def test_each_video_comes_forward_and_backward(self):
        data = MovingDigits("validation", per_class=3)
        assert data.inputs.shape == (30, 12, 1, 24, 24)
        assert data.labels.bincount().tolist() == [3] * 10
        assert torch.equal(data.inputs[0::2], data.inputs[1::2].flip(1))
        assert torch.equal(data.labels[0::2] + 1, data.labels[1::2])

    def test_the_names_say_what_moves(self):
        data = MovingDigits("train", per_class=20, num_frames=6)
        ink = data.inputs.clamp(min=0.2).sub(0.2).squeeze(2)  # without the noise
        total = ink.sum(dim=(2, 3))
        place = torch.arange(24.0)
        down = (ink.sum(dim=3) * place).sum(dim=2) / total
        right = (ink.sum(dim=2) * place).sum(dim=2) / total
        change = {
            "down": down[:, -1] - down[:, 0],
            "right": right[:, -1] - right[:, 0],
            "ink": total[:, -1] / total[:, 0],
        }

        def of(name, what):
            return change[what][data.labels == data.classes.index(name)]

        assert of("sinks", "down").min() > 3 > -3 > of("rises", "down").max()
        assert of("slides right", "right").min() > 3 > -3 > of("slides left", "right").max()
        assert of("grows", "ink").min() > 1 > of("shrinks", "ink").max()
        assert of("brightens", "ink").min() > 1 > of("fades", "ink").max()
        assert of("turns clockwise", "down").abs().max() < 3

    def test_clockwise_is_as_a_clock_runs(self):
        data = MovingDigits("train", per_class=20, num_frames=25)
        videos = data.inputs[data.labels == data.classes.index("turns clockwise"), :, 0]
        y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")

        def axis(frames):
            """Twice the angle of the longest axis, clockwise because y points down."""
            ink = frames.clamp(min=0.2) - 0.2
            ink = ink / ink.sum(dim=(1, 2), keepdim=True)
            dx, dy = (c - (ink * c).sum(dim=(1, 2), keepdim=True) for c in (x, y))
            return torch.atan2(2 * (ink * dx * dy).sum(dim=(1, 2)), (ink * (dx * dx - dy * dy)).sum(dim=(1, 2)))

        steps = torch.stack([axis(videos[:, t + 1]) - axis(videos[:, t]) for t in range(24)])
        turned = torch.remainder(steps + torch.pi, 2 * torch.pi) - torch.pi
        assert (turned.sum(dim=0) > 0).float().mean() > 0.85

    def test_seed_and_split_decide(self):
        first = MovingDigits("test", per_class=1).inputs
        assert torch.equal(MovingDigits("test", per_class=1).inputs, first)
        assert not torch.equal(MovingDigits("test", per_class=1, seed=1).inputs, first)
        assert not torch.equal(MovingDigits("train", per_class=1).inputs, first)

    @pytest.mark.parametrize(("name", "value", "least"), [("num_frames", 1, 2), ("size", 8, 12), ("per_class", 0, 1)])
    def test_wrong_arguments_are_refused(self, name, value, least):
        message = (
            re.escape(f"`MovingDigits({name}=...)` must be ") + f"(at least {least}|a positive integer), got {value}"
        )
        with pytest.raises(ddn.InvalidInputError, match=message):
            MovingDigits(**{name: value})


class TestPuzzles:
    def images(self, size=4):
        return Labeled(torch.randn(size, 2, 6, 9), torch.zeros(size, dtype=torch.long))

    def test_patches_in_their_places_are_the_image(self):
        images = self.images()
        puzzles = Puzzles(images, (2, 3))
        patches, places = puzzles[1]
        assert patches.shape == (6, 2, 3, 3)
        assert sorted(places.tolist()) == list(range(6))
        image = torch.zeros(2, 6, 9)
        for patch, place in zip(patches, places, strict=True):
            row, column = divmod(int(place), 3)
            image[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3] = patch
        assert torch.equal(image, images[1][0])
        assert puzzles.classes[4] == "row 1, column 1"

    def test_a_batch_is_the_items(self):
        images = self.images()
        for whole in (images, hold_out(Labeled(images.inputs, torch.arange(4) % 2), 0.5)[0]):
            puzzles = Puzzles(whole, (2, 3))
            indices = list(range(len(whole)))[::-1]
            batch = next(iter(loader(puzzles, len(whole))))
            for i in indices:
                assert torch.equal(batch[0][i], puzzles[i][0])
                assert torch.equal(batch[1][i], puzzles[i][1])

    def test_orders_are_new_each_epoch_if_they_are_to_be_fresh(self):
        fixed, fresh = Puzzles(self.images(50)), Puzzles(self.images(50), fresh=True)
        before = fixed.labels.clone()
        assert torch.equal(fresh.labels, before)
        for puzzles in (fixed, fresh):
            puzzles.set_epoch(1)
        assert torch.equal(fixed.labels, before)
        assert (fresh.labels != before).any(dim=1).float().mean() > 0.9
        fresh.set_epoch(0)
        assert torch.equal(fresh.labels, before)

    @pytest.mark.parametrize(
        ("grid", "message"),
        [
            ((4, 3), "H a multiple of 4 and W of 3, got (2, 6, 9)"),
            ((2, 0), "`Puzzles(grid=...)` must be a positive integer, got 0"),
            (3, "`Puzzles(grid=...)` must be two integers, rows and columns, got 3"),
        ],
    )
    def test_wrong_grids_are_refused(self, grid, message):
        with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
            Puzzles(self.images(), grid)[0]


def test_images_and_point_sets_of_digits_are_split_alike():
    for images, points in zip(load_digit_images(), load_digits(), strict=True):
        assert torch.equal(images.labels, points.labels)
        inked = [set(item[:, 2].tolist()) for item in points.points]
        assert all(set(image[image > 0].tolist()) == ink for image, ink in zip(images.inputs, inked, strict=True))


def test_outliers_are_uniform_in_the_ball():
    points = replace_with_outliers(torch.zeros(200, 100, 3), 1.0, torch.Generator().manual_seed(0), within="ball")
    radius = points.norm(dim=2)
    assert radius.max() <= 1
    # Uniform in the ball: E r^2 = 3/5, covariance a fifth of the identity, half of the volume below r = 2^(-1/3).
    assert abs(radius.square().mean() - 0.6) < 0.01
    assert abs((radius < 0.5 ** (1 / 3)).float().mean() - 0.5) < 0.01
    torch.testing.assert_close(points.flatten(0, 1).T.cov(), torch.eye(3) / 5, atol=0.01, rtol=0)
    with pytest.raises(ddn.InvalidInputError, match=re.escape("`replace_with_outliers(within=...)` must be one of")):
        replace_with_outliers(points, 0.5, torch.Generator(), within="cube")


def test_every_public_name_is_there_and_others_are_not():
    assert all(hasattr(datasets, name) for name in datasets.__all__)
    assert sorted(sum(datasets._HOMES.values(), ())) == sorted(datasets.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'load_faces'"):
        datasets.load_faces  # noqa: B018


def test_what_is_not_asked_for_is_not_imported():
    code = (
        "import sys; from torchddn.datasets import Labeled, loader, load_digits; "
        "assert not {'trimesh', 'h5py', 'PIL.Image'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
