"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torchddn.errors import DDNError

__all__ = ["StorageError", "read_json", "require_space", "sweep", "write", "write_json"]

_UNFINISHED = ".part"


class StorageError(DDNError, OSError):
    """A file of a run cannot be written."""


def write(path: Path, content: bytes) -> None:
    """Writes a file so that, whenever the process or the machine stops, the old or the new content is there.

    Raises:
        StorageError: If the disk is full, or the folder does not allow it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: two processes that write the same file do not write into one another.
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=_UNFINISHED)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise StorageError(_explain(path, error)) from error


def sweep(folder: Path) -> None:
    """Removes what processes that were killed while they wrote have left in ``folder``; nobody may be writing there."""
    for part in folder.rglob(f".*{_UNFINISHED}"):
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes plain data."""
    write(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Returns the plain data of a file that :func:`write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def require_space(folder: Path, num_bytes: int) -> None:
    """Raises a ``StorageError`` if the disk of ``folder`` has less room."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise StorageError(
            f"{folder} needs {num_bytes / 2**20:.1f} MiB for checkpoints and has {free / 2**20:.1f} MiB left. "
            "Make room, or name a folder on another disk with --output."
        )


def _flush_folder(folder: Path) -> None:
    # The rename itself is on the disk only when the folder is. Windows opens no folders.
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} cannot be written: the disk is full. Make room, then `torchddn resume` takes the run up again."
    return f"{path} cannot be written: {error.strerror}. Name another folder with --output."
