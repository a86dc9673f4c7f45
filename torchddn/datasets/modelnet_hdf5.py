"""The HDF5 form of ModelNet40: a few files, each with the points and labels of up to 2048 models."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchddn.errors import InvalidInputError

try:
    import h5py
except ImportError as error:
    raise ImportError(
        f"`torchddn.datasets` needs {error.name} for HDF5. Install it with `pip install 'torchddn[data]'`."
    ) from error

__all__ = ["has_hdf5", "list_files", "read_classes", "read_file", "read_hdf5"]

# What a file may hold besides "data" and "label": key, axes after the models and the points.
_OPTIONAL = {"normal": (3,), "faceId": ()}


def has_hdf5(base: Path) -> bool:
    """Whether the folder has, or should have, the HDF5 form."""
    return any((base / name).exists() for name in ("train_files.txt", "test_files.txt", "shape_names.txt")) or any(
        base.glob("ply_data_*.h5")
    )


def read_classes(base: Path, known: Sequence[str]) -> list[str]:
    """Returns the names in ``shape_names.txt``, in the order of the labels.

    Raises:
        InvalidInputError: If the file is missing or names a class that is not ``known``.
    """
    names = _words(base / "shape_names.txt")
    foreign = [name for name in names if name not in known]
    if foreign:
        raise InvalidInputError(f"{base / 'shape_names.txt'} names {foreign[0]!r}, which is no class of ModelNet40.")
    return names


def list_files(base: Path, split: str) -> list[Path]:
    """Returns the files of a split.

    The lists were published with paths of the machine on which they were made; only the names count.

    Raises:
        InvalidInputError: If the list or a file is missing.
    """
    paths = [base / Path(line).name for line in _words(base / f"{split}_files.txt")]
    for path in paths:
        if not path.is_file():
            raise InvalidInputError(
                f"{path} is missing; {split}_files.txt names it. Unpack the data set again, all of it."
            )
    return paths


def read_hdf5(base: Path, split: str, num_points: int, normals: bool, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns the points of a split, ``(N, num_points, 3 or 6)`` float32, and the labels ``(N,)``.

    The files are read whole: a chunk of the published compression holds many models, so one alone costs as much to
    unpack as all that share its chunk.

    Raises:
        InvalidInputError: If a file is missing or damaged, or has fewer points, no normals, or unknown labels.
    """
    parts = [read_file(path, num_points, normals, num_classes) for path in list_files(base, split)]
    return torch.cat([points for points, _ in parts]), torch.cat([labels for _, labels in parts])


def read_file(path: Path, num_points: int, normals: bool, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns points and labels of one file; raises as :func:`read_hdf5` does."""
    try:
        with h5py.File(path, "r") as file:
            _check_keys(path, file, normals)
            size, available, _ = file["data"].shape  # pyright: ignore[reportAttributeAccessIssue]
            if num_points > available:
                raise InvalidInputError(
                    f"{path} has {available} points per model, and `num_points` = {num_points} are asked for."
                )
            keys = ("data", "normal") if normals else ("data",)
            columns = [np.asarray(file[key][:, :num_points], dtype=np.float32) for key in keys]  # pyright: ignore
            labels = np.asarray(file["label"]).reshape(size).astype(np.int64)
    except (OSError, RuntimeError) as error:
        reason = "is empty" if path.stat().st_size == 0 else f"is cut short or no HDF5 file ({error})"
        raise InvalidInputError(f"{path} {reason}. Unpack the data set again.") from error
    points = np.concatenate(columns, axis=2)
    if not np.isfinite(points).all():
        raise InvalidInputError(f"{path} is damaged: a point is not finite. Unpack the data set again.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise InvalidInputError(
            f"{path} has the label {labels.max()}, but shape_names.txt names {num_classes} classes only."
        )
    return torch.from_numpy(points), torch.from_numpy(labels)


def _check_keys(path: Path, file: h5py.File, normals: bool) -> None:
    for key in ("data", "label", "normal") if normals else ("data", "label"):
        if not isinstance(file.get(key), h5py.Dataset):
            raise InvalidInputError(f"{path} has no {key!r}; it has {sorted(file)}.")
    shape = file["data"].shape  # pyright: ignore[reportAttributeAccessIssue]
    if len(shape) != 3 or shape[2] != 3:
        raise InvalidInputError(f"{path}: 'data' must have shape (N, 2048, 3), got {shape}.")
    labels = file["label"]
    if labels.dtype.kind not in "iu" or labels.shape not in ((shape[0], 1), (shape[0],)):  # pyright: ignore
        raise InvalidInputError(
            f"{path}: 'label' must be integers of shape ({shape[0]}, 1), one per model, "
            f"got {labels.dtype} of shape {labels.shape}."  # pyright: ignore[reportAttributeAccessIssue]
        )
    for key, rest in _OPTIONAL.items():
        if key in file and file[key].shape != (*shape[:2], *rest):  # pyright: ignore[reportAttributeAccessIssue]
            raise InvalidInputError(
                f"{path}: {key!r} must have shape {(*shape[:2], *rest)}, as 'data' has, got {file[key].shape}."  # pyright: ignore[reportAttributeAccessIssue]
            )


def _words(path: Path) -> list[str]:
    if not path.is_file():
        raise InvalidInputError(f"{path} is missing. Unpack the data set again, all of it.")
    words = path.read_text(encoding="utf-8").split()
    if not words:
        raise InvalidInputError(f"{path} is empty. Unpack the data set again.")
    return words
