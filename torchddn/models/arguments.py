"""The door of the networks: what a user passes, checked."""

from collections.abc import Sequence

from torchddn.errors import InvalidInputError

__all__ = ["check_count", "check_widths"]


def check_count(call: str, name: str, value: object) -> None:
    """Raises unless ``value`` is a positive integer."""
    if not _is_count(value):
        raise InvalidInputError(f"`{call}({name}=...)` must be a positive integer, got {value!r}.")


def check_widths(call: str, name: str, value: object) -> None:
    """Raises unless ``value`` is one or more positive integers."""
    if not isinstance(value, Sequence) or not value or not all(map(_is_count, value)):
        raise InvalidInputError(f"`{call}({name}=...)` must be one or more positive integers, got {value!r}.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
