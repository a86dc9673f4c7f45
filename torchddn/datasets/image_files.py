"""Where a folder of images has which classes: the published layouts of ImageNet 2012 and Mini-ImageNet, and the plain.

* ImageNet 2012: ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``, or ``val/*.JPEG`` with ``LOC_val_solution.csv``;
  also under ``ILSVRC/Data/CLS-LOC``. A wnid is a letter n and eight digits; there are 1000.
* Mini-ImageNet: 100 classes of 600 images, ``images/*`` with ``train.csv``, ``val.csv``, ``test.csv`` (filename,label),
  or ``{train,val,test}/<class>/*``. Its published parts have different classes, for learning from few examples. To
  classify all 100, the parts are joined, and of each class every sixth image in the order of the names is held out.
* Plain: ``{train,val}/<class>/*``, any names; ``validation`` for ``val`` will do.
"""

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from torchddn.errors import InvalidInputError

__all__ = ["LAYOUTS", "ImageFiles", "find_layout", "list_images"]

LAYOUTS = ("imagenet", "mini-imagenet", "folder")

_SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
_WNID = re.compile(r"n\d{8}")
_NUM_CLASSES = {"imagenet": 1000, "mini-imagenet": 100}
_MINI_PARTS = ("train", "val", "test")
# 600 images per class: 500 to learn from, 100 to test.
_HELD_OUT_EVERY = 6


class ImageFiles(NamedTuple):
    """The images of a split: names below ``base``, labels, and the classes' names."""

    base: Path
    # One array of bytes, not a million strings: worker processes share it without copying.
    names: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


def find_layout(root: Path) -> str | None:
    """Returns which of the layouts a folder has; none if it has none."""
    if (root / "train.csv").is_file() and (root / "images").is_dir():
        return "mini-imagenet"
    base = _imagenet_base(root)
    parts = {part: _subfolders(base / part) for part in (*_MINI_PARTS, "validation")}
    if not parts["train"]:
        return None
    disjoint = parts["train"].isdisjoint(parts["val"])
    if disjoint and len(set().union(*parts.values())) == _NUM_CLASSES["mini-imagenet"] and parts["val"]:
        return "mini-imagenet"
    wnids = all(_WNID.fullmatch(name) for name in parts["train"])
    if wnids and (len(parts["train"]) == _NUM_CLASSES["imagenet"] or base != root):
        return "imagenet"
    return "folder" if parts["val"] or parts["validation"] else None


def list_images(root: Path, split: str, layout: str) -> ImageFiles:
    """Returns the images of a split.

    Raises:
        InvalidInputError: If a folder or list is missing, has no images, or names what is not there.
    """
    if layout == "mini-imagenet":
        return _mini_imagenet(root, split)
    base = _imagenet_base(root) if layout == "imagenet" else root
    classes = tuple(sorted(_subfolders(base / "train")))
    _check_classes(base / "train", classes, layout)
    if split == "train":
        return _of_folders(base, "train", classes)
    part = "val" if (base / "val").is_dir() else "validation"
    solution = next(
        (path for path in (root / "LOC_val_solution.csv", base / "LOC_val_solution.csv") if path.is_file()), None
    )
    if layout == "imagenet" and not _subfolders(base / part):
        if solution is None:
            raise InvalidInputError(
                f"{base / part} has no folders of classes, and {root / 'LOC_val_solution.csv'}, which would say the "
                "class of each image, is missing. Sort the images into one folder per class, or add the list."
            )
        return _of_solution(base, part, solution, classes)
    foreign = sorted(_subfolders(base / part) - set(classes))
    if foreign:
        raise InvalidInputError(f"{base / part / foreign[0]} is a class of which {base / 'train'} has no images.")
    return _of_folders(base, part, classes)


def _imagenet_base(root: Path) -> Path:
    nested = root / "ILSVRC" / "Data" / "CLS-LOC"
    return nested if nested.is_dir() else root


def _subfolders(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir() if entry.is_dir()} if path.is_dir() else set()


def _check_classes(path: Path, classes: Iterable[str], layout: str) -> None:
    classes = list(classes)
    if not classes:
        raise InvalidInputError(f"{path} has no folders of classes. Name the folder that holds train/ and val/.")
    wanted = _NUM_CLASSES.get(layout)
    if wanted is not None and len(classes) != wanted:
        raise InvalidInputError(
            f"{path} has {len(classes)} classes, and {layout} has {wanted}. Unpack all of it, or pass "
            '`layout="folder"` for a part of it.'
        )
    if layout == "imagenet":
        wrong = [name for name in classes if not _WNID.fullmatch(name)]
        if wrong:
            raise InvalidInputError(
                f"{path / wrong[0]} is no class of ImageNet, which are called n and eight digits. "
                'Pass `layout="folder"` for other data.'
            )


def _images(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in _SUFFIXES)


def _of_folders(base: Path, part: str, classes: tuple[str, ...]) -> ImageFiles:
    if not (base / part).is_dir():
        raise InvalidInputError(f"{base / part} is missing. Name the folder that holds train/ and val/.")
    names, labels = [], []
    for label, name in enumerate(classes):
        path = base / part / name
        found = _images(path) if path.is_dir() else []
        if not found:
            raise InvalidInputError(f"{path} has no images. Unpack the data set again, all of it.")
        names += [f"{part}/{name}/{file}" for file in found]
        labels += [label] * len(found)
    return _files(base, names, labels, classes)


def _of_solution(base: Path, part: str, solution: Path, classes: tuple[str, ...]) -> ImageFiles:
    """Labels of a flat folder from the published list: image, then class and boxes."""
    number = {name: label for label, name in enumerate(classes)}
    names, labels = [], []
    for line, row in _rows(solution, ("ImageId", "PredictionString")):
        wnid = row[1].split()[0] if row[1].split() else ""
        if wnid not in number:
            raise InvalidInputError(f"{solution}, line {line}: {wnid!r} is no class in {base / 'train'}.")
        names.append(f"{part}/{row[0]}.JPEG")
        labels.append(number[wnid])
    _check_present(base, names, set(_prefixed(part, _images(base / part))), solution)
    return _files(base, names, labels, classes)


def _mini_imagenet(root: Path, split: str) -> ImageFiles:
    by_class: dict[str, list[str]] = {}
    lists = [root / f"{part}.csv" for part in _MINI_PARTS]
    if lists[0].is_file():
        flat = set(_prefixed("images", _images(root / "images")))
        for path in lists:
            found = [(row[0], row[1]) for _, row in _rows(path, ("filename", "label"))]
            names = [
                f"images/{name}" if f"images/{name}" in flat else f"images/{label}/{name}" for name, label in found
            ]
            nested = {name for name in names if name not in flat and (root / name).is_file()}
            _check_present(root, names, flat | nested, path)
            for name, (_, label) in zip(names, found, strict=True):
                by_class.setdefault(label, []).append(name)
    else:
        for part in _MINI_PARTS:
            for name in _subfolders(root / part):
                by_class.setdefault(name, []).extend(_prefixed(f"{part}/{name}", _images(root / part / name)))
    classes = tuple(sorted(by_class))
    _check_classes(root, classes, "mini-imagenet")
    names, labels = [], []
    for label, name in enumerate(classes):
        for place, file in enumerate(sorted(by_class[name])):
            if (place % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1) == (split == "validation"):
                names.append(file)
                labels.append(label)
    if not names:
        raise InvalidInputError(f"{root} has no images of the split {split!r}. Unpack the data set again, all of it.")
    return _files(root, names, labels, classes)


def _rows(path: Path, header: tuple[str, str]) -> list[tuple[int, list[str]]]:
    """The rows of a list of two columns, with their line numbers."""
    if not path.is_file():
        raise InvalidInputError(f"{path} is missing. Unpack the data set again, all of it.")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(enumerate(csv.reader(file), start=1))
    if not rows or tuple(rows[0][1]) != header:
        raise InvalidInputError(f"{path} must begin with the line {','.join(header)!r}.")
    for line, row in rows[1:]:
        if len(row) != 2:
            raise InvalidInputError(f"{path}, line {line}: two columns expected, got {row!r}.")
    return rows[1:]


def _check_present(base: Path, names: list[str], present: set[str], source: Path) -> None:
    missing = [name for name in names if name not in present]
    if missing:
        raise InvalidInputError(
            f"{base / missing[0]} is missing; {source} names it, and {len(missing) - 1} more that are not there."
        )


def _prefixed(part: str, names: list[str]) -> list[str]:
    return [f"{part}/{name}" for name in names]


def _files(base: Path, names: list[str], labels: list[int], classes: tuple[str, ...]) -> ImageFiles:
    return ImageFiles(base, np.array([name.encode() for name in names]), np.array(labels), classes)
