"""TOML file -> frozen dataclass, once, at the border.

``load(path, Config)`` reads a file whose keys are the dataclass's fields; tables become nested dataclasses, arrays of
tables become tuples of dataclasses (see :mod:`failback.runtime.records`). Unknown keys, missing keys and wrong types are
:class:`ConfigurationError` with the key's full name: a typing mistake in a TOML never silently means the default.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from failback.errors import ConfigurationError
from failback.runtime import records

T = TypeVar("T")


def load(path: Path, kind: type[T]) -> T:
    """Parse the file into ``kind``. Raises ConfigurationError (unreadable file, TOML syntax, keys, types)."""
    try:
        with path.open("rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}", remedy="check --config") from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, or nested without end
        raise ConfigurationError(f"{path} is not valid TOML: {error}", remedy="correct the file") from error
    return records.decode(table, kind, str(path), strict=True)
