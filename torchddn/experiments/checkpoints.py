"""Checkpoints: the last two states of a training, each in one file that says whether it is whole.

The name of a file holds the step and the first digits of the SHA-256 of its content. A file is put in place by one
rename, so it is whole unless the disk itself has damaged it; then its digest tells, and the one before it is used.
"""

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from torchddn.experiments import storage

__all__ = ["CheckpointWarning", "Checkpoints"]

_NUM_KEPT = 2
_NUM_DIGITS = 16


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged and was passed over."""


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._checked_space = False

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes ``state`` (tensors, numbers, strings, dicts and lists of them); removes all but the last two.

        Raises:
            StorageError: If there is no room for it, the first time also if there is none for those to come.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        if not self._checked_space:
            # Two that stay, and a third that is being written; each with the moments of the optimizer, up to twice the
            # weights, which before the first step are not there.
            self._folder.mkdir(parents=True, exist_ok=True)
            storage.require_space(self._folder, (_NUM_KEPT + 1) * 3 * len(content))
            self._checked_space = True
        storage.write(self._folder / f"{step:010d}-{_digest(content)}.pt", content)
        for path in self._paths()[:-_NUM_KEPT]:
            path.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """Returns the last state that is whole, on the CPU; ``None`` if there is none."""
        for path in reversed(self._paths()):
            try:
                content = path.read_bytes()
            except OSError as error:
                _warn(path, f"cannot be read: {error.strerror}")
                continue
            if _digest(content) != path.stem.partition("-")[2]:
                _warn(path, "is damaged: its content does not have the digest in its name")
                continue
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return None

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*-*.pt"))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_NUM_DIGITS]


def _warn(path: Path, reason: str) -> None:
    warnings.warn(f"The checkpoint {path} {reason}. The one before it is used.", CheckpointWarning, stacklevel=3)
