"""ModelNet40 on tiny files in the exact layout of both published forms, sound and broken."""

import re

import h5py
import numpy as np
import pytest
import torch

import torchddn as ddn
from torchddn.datasets import ModelNet40, check
from torchddn.datasets.meshes import read_off
from torchddn.datasets.modelnet import CLASSES

# A triangle of area 1/2 and a square of area 1 beside it, in the plane z = 2; the square is one face with four corners.
OFF = "{}7 2 0\n0 0 2\n1 0 2\n0 1 2\n5 0 2\n6 0 2\n6 1 2\n5 1 2\n3 0 1 2\n4 3 4 5 6\n"
PLAIN, FUSED = OFF.format("OFF\n"), OFF.format("OFF")


def write_off(root):
    for name in CLASSES:
        for split, number in (("train", 1), ("train", 2), ("test", 107)):
            path = root / name / split / f"{name}_{number:04}.off"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(FUSED if number == 2 else PLAIN)
    return root


def write_hdf5(root, num_points=2048, sizes=(3, 2, 2, 2, 1), optional=True):
    """The published names and dtypes; the lists hold paths of another machine, as the published ones do."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    generator = np.random.default_rng(0)
    for split, counts in (("train", sizes), ("test", (3, 1))):
        names = [f"data/modelnet40_ply_hdf5_2048/ply_data_{split}{i}.h5" for i in range(len(counts))]
        (root / f"{split}_files.txt").write_text("\n".join(names) + "\n")
        for i, size in enumerate(counts):
            with h5py.File(root / f"ply_data_{split}{i}.h5", "w") as file:
                points = generator.standard_normal((size, num_points, 3)).astype(np.float32)
                file.create_dataset("data", data=points, compression="gzip")
                file.create_dataset("label", data=((np.arange(size)[:, None] + 7 * i) % 40).astype(np.uint8))
                if optional:
                    file.create_dataset("normal", data=-points)
                    file.create_dataset("faceId", data=np.zeros((size, num_points), dtype=np.int32))
    return root


@pytest.fixture(scope="module")
def off(tmp_path_factory):
    return write_off(tmp_path_factory.mktemp("off"))


@pytest.fixture
def broken(tmp_path):
    return write_off(tmp_path / "off")


class TestOff:
    def test_every_class_is_read_in_the_order_of_the_labels(self, off, tmp_path):
        train = ModelNet40(off, num_points=8, cache=tmp_path)
        assert train.classes == CLASSES
        assert train.labels.tolist() == [label for label in range(40) for _ in range(2)]
        assert train.inputs.shape == (80, 8, 3)
        assert train.inputs.dtype == torch.float32
        points, label = ModelNet40(off, "test", num_points=8, cache=tmp_path)[39]
        assert points.shape == (8, 3)
        assert label == 39

    def test_header_without_line_break_is_read(self, tmp_path):
        meshes = []
        for number, text in enumerate((PLAIN, FUSED, f"# made by hand\n\n{PLAIN}", PLAIN.replace("\n", "\r\n"))):
            (tmp_path / f"{number}.off").write_text(text, newline="")
            meshes.append(read_off(tmp_path / f"{number}.off"))
        assert all(np.array_equal(mesh.vertices, meshes[0].vertices) for mesh in meshes)
        assert all(np.array_equal(mesh.faces, meshes[0].faces) for mesh in meshes)
        assert meshes[0].area == pytest.approx(1.5)

    def test_points_are_drawn_by_area_and_fill_the_unit_ball(self, off, tmp_path):
        points = ModelNet40(off, num_points=20_000, classes=("bed",), cache=tmp_path).inputs
        radius = points.norm(dim=2)
        torch.testing.assert_close(radius.amax(dim=1), torch.ones(2))
        torch.testing.assert_close(points.mean(dim=1), torch.zeros(2, 3), atol=1e-5, rtol=0)
        assert torch.equal(points[..., 2], torch.zeros_like(points[..., 2]))
        # The triangle is a third of the surface.
        share = (points[..., 0] < -0.5).float().mean(dim=1)
        torch.testing.assert_close(share, torch.full((2,), 1 / 3), atol=0.015, rtol=0)

    def test_normals_are_those_of_the_faces(self, off, tmp_path):
        points = ModelNet40(off, num_points=5, features=("normal",), classes=("bed",), cache=tmp_path).inputs
        assert points.shape == (2, 5, 6)
        torch.testing.assert_close(points[..., 3:], torch.tensor([0.0, 0.0, 1.0]).expand(2, 5, 3))

    def test_points_come_from_the_cache_and_depend_on_seed_and_file_only(self, off, tmp_path):
        first = ModelNet40(off, num_points=8, cache=tmp_path / "a")
        (file,) = (tmp_path / "a").iterdir()
        made = file.stat().st_mtime_ns
        assert torch.equal(ModelNet40(off, num_points=8, cache=tmp_path / "a").inputs, first.inputs)
        assert file.stat().st_mtime_ns == made
        few = ModelNet40(off, num_points=8, classes=("car", "bed"), cache=tmp_path / "a")
        assert torch.equal(few.inputs[:2], first.inputs[first.labels == CLASSES.index("car")])
        assert few.labels.tolist() == [0, 0, 1, 1]
        assert not torch.equal(ModelNet40(off, num_points=8, seed=1, cache=tmp_path / "a").inputs, first.inputs)

    def test_damaged_cache_is_made_anew(self, off, tmp_path):
        first = ModelNet40(off, num_points=8, cache=tmp_path).inputs.clone()
        (file,) = tmp_path.iterdir()
        file.write_bytes(file.read_bytes()[:100])
        assert torch.equal(ModelNet40(off, num_points=8, cache=tmp_path).inputs, first)

    def test_a_changed_file_is_read_again(self, broken, tmp_path):
        first = ModelNet40(broken, num_points=8, cache=tmp_path / "cache").inputs
        (broken / "bed" / "train" / "bed_0001.off").write_text(PLAIN.replace("5 0 2", "4 0 2"))
        assert not torch.equal(ModelNet40(broken, num_points=8, cache=tmp_path / "cache").inputs, first)

    @pytest.mark.slow
    def test_worker_processes_draw_the_same_points(self, off, tmp_path):
        alone = ModelNet40(off, num_points=8, cache=tmp_path / "a").inputs
        assert torch.equal(ModelNet40(off, num_points=8, num_workers=2, cache=tmp_path / "b").inputs, alone)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is empty"),
            (PLAIN[:20], "is cut short: it announces 7 vertices and 2 faces"),
            (PLAIN[:60], "is cut short"),
            ("hello", "is no OFF file: it begins with 'hello'"),
            (PLAIN.replace("4 3 4 5 6", "4 3 4 5 9"), "is damaged"),
            (PLAIN.replace("5 0 2", "5 x 2"), "is damaged"),
            (PLAIN.replace("5 0 2", "nan 0 2"), "is damaged"),
            ("OFF\n3 1 0\n0 0 0\n1 1 1\n2 2 2\n3 0 1 2\n", "is damaged"),
            ("OFF\n0 0 0\n", "is damaged"),
        ],
    )
    def test_broken_file_is_named(self, broken, tmp_path, text, message):
        path = broken / "chair" / "train" / "chair_0002.off"
        path.write_text(text)
        with pytest.raises(ddn.InvalidInputError, match=f"{re.escape(str(path))} {re.escape(message)}"):
            ModelNet40(broken, num_points=8, cache=tmp_path / "cache")
        found = check(broken, thorough=True)
        assert not found.ok
        assert len(found.problems) == 1
        assert found.problems[0].startswith(f"{path} ")

    def test_mislabelled_file_is_named(self, broken, tmp_path):
        path = broken / "chair" / "test" / "table_0107.off"
        path.write_text(PLAIN)
        with pytest.raises(
            ddn.InvalidInputError, match=f"{re.escape(str(path))} is in the folder of the class 'chair'"
        ):
            ModelNet40(broken, "test", num_points=8, cache=tmp_path / "cache")
        assert [problem.split()[0] for problem in check(broken).problems] == [str(path)]

    def test_missing_class_is_named(self, broken, tmp_path):
        (broken / "sink" / "test" / "sink_0107.off").unlink()
        with pytest.raises(ddn.InvalidInputError, match=f"{re.escape(str(broken / 'sink' / 'test'))} has no OFF files"):
            ModelNet40(broken, "test", num_points=8, cache=tmp_path / "cache")
        assert check(broken).problems == (f"{broken / 'sink' / 'test'} has no OFF files.",)

    def test_check_says_what_is_there(self, off):
        found = check(off, thorough=True)
        assert found == ("ModelNet40 (OFF)", ("train: 80 meshes.", "test: 40 meshes."), ())
        assert found.ok


class TestHdf5:
    def test_files_are_joined_in_the_order_of_the_list(self, tmp_path):
        root = write_hdf5(tmp_path)
        train = ModelNet40(root)
        assert train.inputs.shape == (10, 2048, 3)
        assert train.inputs.dtype == torch.float32
        assert train.labels.tolist() == [0, 1, 2, 7, 8, 14, 15, 21, 22, 28]
        assert train.labels.dtype == torch.int64
        with h5py.File(root / "ply_data_train1.h5") as file:
            expected = torch.from_numpy(file["data"][1])
        assert torch.equal(train[4][0], expected)
        assert torch.equal(ModelNet40(root, num_points=100)[4][0], expected[:100])
        assert len(ModelNet40(root, "test")) == 4

    def test_normals_follow_the_positions(self, tmp_path):
        points = ModelNet40(write_hdf5(tmp_path), features=("normal",), num_points=4).inputs
        assert torch.equal(points[..., 3:], -points[..., :3])

    def test_fewer_classes_are_counted_in_their_order(self, tmp_path):
        few = ModelNet40(write_hdf5(tmp_path), classes=(CLASSES[8], CLASSES[1]))
        assert few.labels.tolist() == [1, 0]
        assert len(few.inputs) == 2

    def test_optional_keys_may_be_missing(self, tmp_path):
        root = write_hdf5(tmp_path, optional=False)
        assert len(ModelNet40(root)) == 10
        with pytest.raises(
            ddn.InvalidInputError, match=re.escape("ply_data_train0.h5 has no 'normal'; it has ['data'")
        ):
            ModelNet40(root, features=("normal",))

    def test_check_says_what_is_there(self, tmp_path):
        found = check(write_hdf5(tmp_path))
        assert found == ("ModelNet40 (HDF5)", ("train: 10 models.", "test: 4 models."), ())

    @pytest.mark.parametrize(
        ("name", "spoil", "message"),
        [
            ("ply_data_train1.h5", lambda path: path.unlink(), "is missing; train_files.txt names it"),
            ("ply_data_train1.h5", lambda path: path.write_bytes(b""), "is empty"),
            (
                "ply_data_train1.h5",
                lambda path: path.write_bytes(path.read_bytes()[:3000]),
                "is cut short or no HDF5 file",
            ),
            ("train_files.txt", lambda path: path.unlink(), "is missing"),
            ("shape_names.txt", lambda path: path.write_text(""), "is empty"),
            (
                "shape_names.txt",
                lambda path: path.write_text("airplane\nrabbit\n"),
                "names 'rabbit', which is no class",
            ),
        ],
    )
    def test_broken_file_is_named(self, tmp_path, name, spoil, message):
        path = write_hdf5(tmp_path) / name
        spoil(path)
        with pytest.raises(ddn.InvalidInputError, match=f"{re.escape(str(path))} {re.escape(message)}"):
            ModelNet40(tmp_path)
        found = check(tmp_path)
        assert found.kind == "ModelNet40 (HDF5)"
        assert any(problem.startswith(f"{path} {message}") for problem in found.problems)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("label", np.full((2, 1), 40, dtype=np.uint8), "has the label 40, but shape_names.txt names 40 classes"),
            ("label", np.zeros((2, 1), dtype=np.float32), "'label' must be integers of shape (2, 1)"),
            ("label", np.zeros((3, 1), dtype=np.uint8), "'label' must be integers of shape (2, 1)"),
            ("data", np.zeros((2, 2048, 2), dtype=np.float32), "'data' must have shape (N, 2048, 3)"),
            ("data", np.full((2, 2048, 3), np.nan, dtype=np.float32), "is damaged: a point is not finite"),
            ("faceId", np.zeros((2, 5), dtype=np.int32), "'faceId' must have shape (2, 2048)"),
        ],
    )
    def test_wrong_contents_are_named(self, tmp_path, key, value, message):
        path = write_hdf5(tmp_path) / "ply_data_train1.h5"
        with h5py.File(path, "r+") as file:
            del file[key]
            file.create_dataset(key, data=value)
        with pytest.raises(ddn.InvalidInputError, match=f"{re.escape(str(path))}:? {re.escape(message)}"):
            ModelNet40(tmp_path)
        assert not check(tmp_path).ok

    def test_more_points_than_there_are_is_refused(self, tmp_path):
        with pytest.raises(ddn.InvalidInputError, match="has 2048 points per model, and `num_points` = 2049"):
            ModelNet40(write_hdf5(tmp_path), num_points=2049)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "`ModelNet40(split=...)` must be one of 'train', 'test'"),
        ({"num_points": 0}, "`ModelNet40(num_points=...)` must be a positive integer"),
        ({"num_points": True}, "`ModelNet40(num_points=...)` must be a positive integer"),
        ({"features": ("color",)}, "`ModelNet40(features=...)` must be () or ('normal',)"),
        ({"classes": ("rabbit",)}, "`ModelNet40(classes=...)` must be classes of ModelNet40, got ['rabbit']"),
        ({"seed": -1}, "`ModelNet40(seed=...)` must be a non-negative integer"),
        ({"root": "/no/such/folder"}, "`ModelNet40(root=...)` must be a folder, but /no/such/folder does not exist"),
        ({"root": 3}, "`ModelNet40(root=...)` must be a path, got int"),
    ],
)
def test_wrong_arguments_are_refused(off, arguments, message):
    with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
        ModelNet40(**{"root": off, **arguments})


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ddn.InvalidInputError, match="is not ModelNet40, or not all of it"):
        ModelNet40(tmp_path)
    found = check(tmp_path)
    assert found.kind is None
    assert not found.ok
    assert "is no data set that is known" in found.problems[0]
