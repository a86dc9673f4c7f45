"""Configurations as text: what ``--set key=value`` changes, and what the record of a run keeps."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from torchddn.errors import InvalidInputError

__all__ = ["changed", "differences", "flat", "from_json", "to_json"]

C = TypeVar("C")


def changed(config: C, settings: Sequence[str]) -> C:
    """Returns ``config`` with each of ``settings``, ``"key=value"`` or ``"part.key=value"``, in place.

    A tuple is written with commas; ``none`` stands for no value.

    Raises:
        InvalidInputError: If a key is unknown, or a value is not of its type.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InvalidInputError(f"`--set {setting}` must be key=value.")
        config = _with(config, key.strip().split("."), text.strip(), setting)
    return config


def to_json(config: Any) -> dict[str, Any]:
    """Returns plain data: dicts, lists, numbers, strings."""
    return {
        name: to_json(value) if dataclasses.is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for name, value in _fields(config).items()
    }


def from_json(kind: type[C], plain: dict[str, Any]) -> C:
    """Returns the configuration of which ``plain`` is the ``to_json``.

    Raises:
        InvalidInputError: If the fields are not those of ``kind``.
    """
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    if plain.keys() != names:
        unlike = ", ".join(sorted(plain.keys() ^ names))
        raise InvalidInputError(
            f"The configuration is of another version of torchddn (it differs in {unlike}). Start the run anew."
        )
    return kind(**{name: _revive(hints[name], value) for name, value in plain.items()})


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the entries in which two configurations, as plain data, differ: dotted key, then both values."""
    flat_a, flat_b = flat(a), flat(b)
    return {
        key: (flat_a.get(key), flat_b.get(key))
        for key in [*flat_a, *(key for key in flat_b if key not in flat_a)]
        if flat_a.get(key) != flat_b.get(key)
    }


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns plain data without nested dicts, with dotted keys."""
    found = {}
    for key, value in plain.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _fields(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _with(config: C, path: list[str], text: str, setting: str) -> C:
    name, *rest = path
    values = _fields(config)
    if name not in values:
        raise InvalidInputError(f"`--set {setting}`: there is no {name!r}.{_advice(name, values)}")
    value = values[name]
    if dataclasses.is_dataclass(value):
        if not rest:
            raise InvalidInputError(f"`--set {setting}`: {name} has parts; set one of {', '.join(_fields(value))}.")
        new = _with(value, rest, text, setting)
    elif rest:
        raise InvalidInputError(f"`--set {setting}`: {name} has no parts.")
    else:
        new = _parse(typing.get_type_hints(type(config))[name], text, setting)
    return dataclasses.replace(config, **{name: new})  # pyright: ignore[reportArgumentType, reportReturnType, reportCallIssue]


def _advice(name: str, values: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, values, 1)
    return f" Did you mean {near[0]}?" if near else f" There are: {', '.join(values)}."


def _parse(hint: Any, text: str, setting: str) -> Any:
    if text.lower() == "none" and type(None) in typing.get_args(hint):
        return None
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_parse(inner, part.strip(), setting) for part in text.split(",") if part.strip())
    kind = _single(hint)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InvalidInputError(f"`--set {setting}` must be true or false.")
        return text.lower() == "true"
    try:
        value = kind(text)
    except ValueError as error:
        raise InvalidInputError(f"`--set {setting}` must be of type {kind.__name__}.") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInputError(f"`--set {setting}` must be finite.")
    return value


def _revive(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast("type[Any]", hint), value)
    return tuple(value) if isinstance(value, list) else value


def _single(hint: Any) -> type:
    """The type that is left of ``X | None``."""
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint
