"""The door of the data sets: what a user passes, checked."""

import os
from pathlib import Path

from torchddn.errors import InvalidInputError

__all__ = ["SPLITS", "check_count", "check_data", "check_integer", "check_path", "check_share", "folder"]

SPLITS = ("train", "validation", "test")


def check_count(call: str, name: str, value: object) -> None:
    """Raises unless ``value`` is a positive integer."""
    if not _is_integer(value) or value < 1:  # pyright: ignore[reportOperatorIssue]
        raise InvalidInputError(f"`{call}({name}=...)` must be a positive integer, got {value!r}.")


def check_integer(call: str, name: str, value: object) -> None:
    """Raises unless ``value`` is a non-negative integer."""
    if not _is_integer(value) or value < 0:  # pyright: ignore[reportOperatorIssue]
        raise InvalidInputError(f"`{call}({name}=...)` must be a non-negative integer, got {value!r}.")


def check_share(call: str, name: str, value: object) -> None:
    """Raises unless ``value`` is a number strictly between 0 and 1."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise InvalidInputError(
            f"`{call}({name}=...)` must be a number between 0 and 1, got {value!r}. Divide percentages by 100."
        )


def check_path(call: str, name: str, value: object) -> None:
    """Raises unless ``value`` is a path or None."""
    if value is not None:
        _path(call, name, value)


def check_data(call: str, name: str, value: object, *needed: str) -> None:
    """Raises unless ``value`` has a length, items, and the attributes that are ``needed``."""
    missing = [part for part in ("__len__", "__getitem__", *needed) if not hasattr(value, part)]
    if missing:
        raise InvalidInputError(
            f"`{call}({name}=...)` must be a data set, got {type(value).__name__}, which has no {missing[0]}. "
            "`Labeled(inputs, labels)` makes one of tensors."
        )


def folder(call: str, name: str, value: object) -> Path:
    """``value`` as the path of a folder that is there."""
    path = _path(call, name, value).expanduser()
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise InvalidInputError(f"`{call}({name}=...)` must be a folder, but {path} {found}. Name the data's folder.")
    return path


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _path(call: str, name: str, value: object) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise InvalidInputError(f"`{call}({name}=...)` must be a path, got {type(value).__name__}.")
    return Path(os.fspath(value))  # pyright: ignore[reportArgumentType]
