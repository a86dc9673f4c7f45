"""Arrays that take long to make are made once and kept in a file that is mapped, not read."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchddn.errors import InvalidInputError

__all__ = ["cached"]


def cached(name: str, shape: tuple[int, ...], build: Callable[[], np.ndarray], folder: str | Path | None) -> Tensor:
    """The float32 array of ``build``, from the file ``name`` if it is there and sound.

    The tensor is a private map of the file: pages come from the disk as they are asked for, and are shared by all
    processes of a machine.

    Args:
        name: Of the file; must say everything that the array depends on.
        shape: Of the array.
        build: Makes it.
        folder: Where the file lies; ``$TORCHDDN_CACHE``, or ``torchddn`` in the user's folder for caches, unless given.
    """
    path = _folder(folder) / f"{name}.npy"
    found = _read(path, shape)
    if found is None:
        _write(path, build())
        found = _read(path, shape)
    if found is None:
        raise InvalidInputError(f"{path} was written and cannot be read. Is the disk full or shared? Remove the file.")
    return found


def _folder(folder: str | Path | None) -> Path:
    if folder is not None:
        return Path(folder).expanduser()
    home = os.environ.get("TORCHDDN_CACHE")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torchddn"


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    try:
        # "c": writes stay in memory; a read-only array would make torch warn.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return torch.from_numpy(array) if array.shape == shape and array.dtype == np.float32 else None


def _write(path: Path, array: np.ndarray) -> None:
    """By renaming, so that a process that is killed, or another that writes the same, leaves no half of a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                np.save(file, array.astype(np.float32), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be written ({error}). Set `cache=` or TORCHDDN_CACHE to a folder with room."
        ) from error
