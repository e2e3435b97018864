"""Frozen dataclasses to plain tables (JSON, TOML) and back: the parsing border of every part.

Understood field types: ``str``, ``int``, ``float``, ``bool``, ``Path``, enums (by value), dataclasses, ``tuple[X, ...]``,
``dict[str, X]``, ``X | None`` and ``Any``. ``strict`` refuses unknown keys (configuration files, where one is a typing
mistake); messages between versions are read with ``strict=False``, so that a newer peer may say more.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from failback.errors import ConfigurationError

T = TypeVar("T")


def parse_json(content: str | bytes, **hooks: Any) -> Any:
    """``json.loads`` whose every complaint is a ValueError: also of nesting without end (the interpreter's RecursionError)."""
    try:
        return json.loads(content, **hooks)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def encode(value: Any) -> Any:
    """A dataclass (or any nesting of the understood types) as JSON-ready tables and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def decode(table: Any, kind: type[T], where: str = "message", *, strict: bool = False) -> T:
    """Parse ``table`` into the dataclass ``kind``; ``where`` starts every error's sentence.

    Raises ConfigurationError for a missing key, a wrong type and, when strict, an unknown key.
    """
    decoded: T = _dataclass(table, kind, where, strict)
    return decoded


def _dataclass(table: Any, kind: Any, where: str, strict: bool) -> Any:
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where}: a table is expected, not {type(table).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(table) - set(fields))
    if unknown and strict:
        known = ", ".join(sorted(fields))
        raise ConfigurationError(f"{where}: unknown key {unknown[0]!r}", remedy=f"known keys: {known}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _value(table[name], hints[name], f"{where}: {name}", strict)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigurationError(f"{where}: key {name!r} is missing")
    return kind(**values)


def _value(value: Any, kind: Any, where: str, strict: bool) -> Any:  # noqa: PLR0911, PLR0912
    if kind is Any:
        return value
    kind = getattr(kind, "__supertype__", kind)  # a NewType is parsed as what it wraps
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = [argument for argument in arguments if argument is not type(None)]
        return _value(value, inner[0], where, strict)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigurationError(f"{where}: a list is expected, not {type(value).__name__}")
        return tuple(_value(item, arguments[0], f"{where}[{index}]", strict) for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigurationError(f"{where}: a table is expected, not {type(value).__name__}")
        return {key: _value(item, arguments[1], f"{where}.{key}", strict) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _dataclass(value, kind, where, strict)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(str(member.value) for member in kind)
            raise ConfigurationError(f"{where}: {value!r} is not one of {known}") from None
    if kind is Path:
        if not isinstance(value, str):
            raise ConfigurationError(f"{where}: a path is expected, not {type(value).__name__}")
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind):
        raise ConfigurationError(f"{where}: {kind.__name__} is expected, not {type(value).__name__}")
    return value
