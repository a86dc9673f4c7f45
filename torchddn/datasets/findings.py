"""What a folder of data holds, and what is wrong with it, before an experiment finds out."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from torchddn.datasets.arguments import folder
from torchddn.datasets.crops import decode
from torchddn.datasets.image_files import ImageFiles, find_layout, list_images
from torchddn.datasets.meshes import read_off
from torchddn.datasets.modelnet import CLASSES
from torchddn.datasets.modelnet_hdf5 import has_hdf5, list_files, read_classes, read_file
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_flag

__all__ = ["Check", "check"]

_TITLES = {"imagenet": "ImageNet", "mini-imagenet": "Mini-ImageNet", "folder": "folder of images"}


class Check(NamedTuple):
    """What was found.

    Attributes:
        kind: ``"ModelNet40 (OFF)"``, ``"ModelNet40 (HDF5)"``, ``"ImageNet"``, ``"Mini-ImageNet"``, ``"folder of
            images"``; none if it is no data set that is known.
        facts: What is there, a sentence each.
        problems: What is wrong, a sentence each with the name of the file.
    """

    kind: str | None
    facts: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """A known kind of data, and nothing wrong with it."""
        return self.kind is not None and not self.problems


def check(path: str | Path, *, thorough: bool = False) -> Check:
    """Returns what a folder of data holds and what is wrong with it.

    The size of every file is looked at. One file of each class and split is read, which takes a minute for the largest;
    with ``thorough``, all of them, which takes hours for ImageNet.

    Args:
        path: The folder that an experiment would get as ``--data``.
        thorough: Whether to read every file.

    Raises:
        InvalidInputError: If ``path`` is no folder.
    """
    check_flag("check", "thorough", thorough)
    base = folder("check", "path", path)
    if has_hdf5(base):
        return _check_hdf5(base)
    if any((base / name).is_dir() and not {"train", "test"}.isdisjoint(_names(base / name)) for name in CLASSES):
        return _check_off(base, thorough)
    layout = find_layout(base)
    if layout is not None:
        return _check_images(base, layout, thorough)
    return Check(
        None,
        (),
        (
            f"{base} is no data set that is known. ModelNet40 has a folder per class (airplane/train/*.off) or "
            "shape_names.txt and HDF5 files; images lie in train/<class>/* and val/<class>/*.",
        ),
    )


def _check_off(base: Path, thorough: bool) -> Check:
    facts, problems = [], []
    for split in ("train", "test"):
        total = 0
        for name in CLASSES:
            paths = sorted((base / name / split).glob("*.off"))
            total += len(paths)
            if not paths:
                problems.append(f"{base / name / split} has no OFF files.")
            problems += [
                f"{path} is in the folder of the class {name!r} but has the name of another."
                for path in paths
                if not re.fullmatch(rf"{name}_\d+\.off", path.name)
            ]
            problems += _unreadable(paths, read_off, thorough)
        facts.append(f"{split}: {total} meshes.")
    foreign = sorted({entry for entry in _names(base) if (base / entry).is_dir()} - set(CLASSES))
    problems += [f"{base / name} is no class of ModelNet40." for name in foreign]
    return Check("ModelNet40 (OFF)", tuple(facts), tuple(problems))


def _check_hdf5(base: Path) -> Check:
    facts, problems = [], _messages(lambda: read_classes(base, CLASSES))
    for split in ("train", "test"):
        found = _messages(lambda split=split: list_files(base, split))
        problems += found
        if found:
            continue
        total = 0
        for path in list_files(base, split):
            try:
                total += len(read_file(path, 1, False, len(CLASSES))[1])
            except InvalidInputError as error:
                problems.append(str(error))
        facts.append(f"{split}: {total} models.")
    return Check("ModelNet40 (HDF5)", tuple(facts), tuple(problems))


def _check_images(base: Path, layout: str, thorough: bool) -> Check:
    facts, problems = [], []
    for split in ("train", "validation"):
        try:
            files = list_images(base, split, layout)
        except InvalidInputError as error:
            problems.append(str(error))
            continue
        facts.append(f"{split}: {len(files.names)} images of {len(files.classes)} classes.")
        for paths in _by_class(files):
            problems += _unreadable(paths, decode, thorough)
    return Check(_TITLES[layout], tuple(facts), tuple(problems))


def _by_class(files: ImageFiles) -> Iterator[list[Path]]:
    for label in range(len(files.classes)):
        yield [files.base / name.decode() for name in files.names[files.labels == label]]


def _unreadable(paths: list[Path], read: Callable[[Path], object], thorough: bool) -> Iterator[str]:
    """What is wrong with the files of one class and split."""
    whole = [path for path in paths if path.stat().st_size > 0]
    yield from (f"{path} is empty." for path in paths if path.stat().st_size == 0)
    for path in whole if thorough else whole[:1]:
        yield from _messages(lambda path=path: read(path))


def _messages(read: Callable[[], object]) -> list[str]:
    try:
        read()
    except InvalidInputError as error:
        return [str(error)]
    return []


def _names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}
