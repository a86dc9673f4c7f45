"""ModelNet40: 12,311 CAD models of 40 classes, as points on their surfaces, in both forms in which it is published.

* OFF: meshes, ``<class>/{train,test}/<class>_0001.off``. Points are drawn on the surfaces, once.
* HDF5: 2048 points per model, already drawn, ``ply_data_train{0..4}.h5``, ``ply_data_test{0,1}.h5``, named in
  ``train_files.txt`` and ``test_files.txt``, the classes in ``shape_names.txt``.
"""

import hashlib
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchddn.datasets.arguments import check_count, check_integer, check_path, folder
from torchddn.datasets.cache import cached
from torchddn.datasets.labeled import InMemory
from torchddn.datasets.meshes import read_off, sample_surface, unit_ball
from torchddn.datasets.modelnet_hdf5 import has_hdf5, read_classes, read_hdf5
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_choice

__all__ = ["CLASSES", "MeshFiles", "ModelNet40", "list_meshes"]

# fmt: off
CLASSES = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain",
    "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel", "monitor",
    "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool", "table",
    "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox",
)
# fmt: on

_SPLITS = ("train", "test")


class MeshFiles:
    """The files of one split of the OFF form and their labels, in the order of the names."""

    def __init__(self, paths: list[Path], labels: Tensor) -> None:
        self.paths, self.labels = paths, labels


class ModelNet40(InMemory):
    r"""Point sets ``(num_points, 3)`` in the unit ball, centered at their mean, and the class of each.

    Which of the two forms ``root`` has is found from its files. Of the OFF form, points are drawn on every surface
    with probability proportional to area when the split is first used (half an hour for all on one core), and
    mapped from the cache afterwards. Of the HDF5 form, the first ``num_points`` of the published points are taken,
    which are in random order; 300 megabytes of memory with all of them.

    Args:
        root: Folder with the 40 folders of classes, or with the HDF5 files.
        split: ``"train"`` or ``"test"``, as published.
        num_points: Per model; at most 2048 of the HDF5 form.
        features: Nothing, or ``("normal",)``: three more numbers per point, the normal of the surface there.
        classes: Which ones, in the order of the labels. All 40 must be there unless fewer are asked for.
        seed: Of the points on the surfaces (OFF form).
        num_workers: Processes that draw the points (OFF form).
        cache: Folder for the points drawn; see :func:`torchddn.datasets.cache.cached`.

    Raises:
        InvalidInputError: If the folder has neither form, a class or a file is missing, empty, damaged or in the folder
            of another class; the message names the file. ``torchddn data check`` lists everything that is wrong.

    References:
        Wu and others, 3D ShapeNets, 2015. The protocol of 2048 points in the unit ball: Qi, Su, Mo, Guibas,
        PointNet, 2017.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        num_points: int = 2048,
        features: Sequence[str] = (),
        classes: Sequence[str] = CLASSES,
        seed: int = 0,
        num_workers: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        check_choice("ModelNet40", "split", split, _SPLITS)
        check_count("ModelNet40", "num_points", num_points)
        check_integer("ModelNet40", "seed", seed)
        check_integer("ModelNet40", "num_workers", num_workers)
        if tuple(features) not in ((), ("normal",)):
            raise InvalidInputError(f"`ModelNet40(features=...)` must be () or ('normal',), got {features!r}.")
        unknown = sorted(set(classes) - set(CLASSES))
        if unknown or not classes:
            raise InvalidInputError(
                f"`ModelNet40(classes=...)` must be classes of ModelNet40, got {unknown or classes!r}. "
                "See `torchddn.datasets.modelnet.CLASSES`."
            )
        check_path("ModelNet40", "cache", cache)
        base = folder("ModelNet40", "root", root)
        self.classes = tuple(classes)
        if has_hdf5(base):
            self.inputs, self.labels = _chosen(base, split, num_points, bool(features), self.classes)
            return
        files = list_meshes(base, split, self.classes)
        self.labels = files.labels
        meshes = _Meshes(files.paths, num_points, seed, bool(features))
        shape = (len(files.paths), num_points, 6 if features else 3)
        self.inputs = cached(meshes.name(base), shape, lambda: meshes.sample(num_workers), cache)


def list_meshes(base: Path, split: str, classes: Sequence[str]) -> MeshFiles:
    """Returns the files of a split.

    Raises:
        InvalidInputError: If a class has none, or a file is empty or has the name of another class.
    """
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted((base / name / split).glob("*.off"))
        if not found:
            raise InvalidInputError(
                f"{base / name / split} has no OFF files, so {base} is not ModelNet40, or not all of it. "
                "Name the folder that holds the 40 folders of classes, or pass the `classes=` that are there."
            )
        for path in found:
            if not re.fullmatch(rf"{name}_\d+\.off", path.name):
                raise InvalidInputError(f"{path} is in the folder of the class {name!r} but has the name of another.")
            if path.stat().st_size == 0:
                raise InvalidInputError(f"{path} is empty. Unpack the data set again.")
        paths += found
        labels += [label] * len(found)
    return MeshFiles(paths, torch.tensor(labels))


def _chosen(base: Path, split: str, num_points: int, normals: bool, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Points and labels of the HDF5 form, of the classes that are asked for, counted in their order."""
    published = read_classes(base, CLASSES)
    points, labels = read_hdf5(base, split, num_points, normals, len(published))
    places = [published.index(name) for name in classes if name in published]
    if len(places) < len(classes):
        raise InvalidInputError(f"{base / 'shape_names.txt'} lacks {sorted(set(classes) - set(published))}.")
    number = torch.full((len(published),), -1)
    number[torch.tensor(places)] = torch.arange(len(classes))
    kept = number[labels] >= 0
    return (points, number[labels]) if bool(kept.all()) else (points[kept], number[labels][kept])


class _Meshes(Dataset[Tensor]):
    """Points on the meshes of a list of files, drawn when asked for."""

    def __init__(self, paths: list[Path], num_points: int, seed: int, normals: bool) -> None:
        self._paths, self._num_points, self._seed, self._normals = paths, num_points, seed, normals

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        # Seeded by the file's own name, so that a model has the same points whichever classes are asked for.
        path = self._paths[index]
        seed = int(np.random.SeedSequence((self._seed, zlib.crc32(path.stem.encode()))).generate_state(1)[0])
        points = sample_surface(read_off(path), self._num_points, seed, self._normals)
        return torch.from_numpy(unit_ball(points)).float()

    def name(self, base: Path) -> str:
        """A name for the cache that changes when a file does."""
        state = hashlib.sha256()
        for path in self._paths:
            stat = path.stat()
            state.update(f"{path.relative_to(base)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        kind = "-normals" if self._normals else ""
        return f"modelnet-{self._num_points}{kind}-{self._seed}-{state.hexdigest()[:16]}"

    def sample(self, num_workers: int) -> np.ndarray:
        """All of them, ``(N, num_points, 3 or 6)``."""
        return torch.stack(list(DataLoader(self, batch_size=None, num_workers=num_workers))).numpy()
