"""Where the configuration server is and how to sign in: options, then environment, then ``~/.config/failback/cli.toml``.

The file has the keys ``server``, ``ca_file`` and ``token_file``. Each setting is looked up by itself, so a file may hold the
CA and token while ``--server`` names another address.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from failback.errors import ConfigurationError

VARIABLES = {"server": "FAILBACK_SERVER", "ca_file": "FAILBACK_CA_FILE", "token_file": "FAILBACK_TOKEN_FILE"}


@dataclass(frozen=True, slots=True)
class Settings:
    server: str
    """``https://host[:port]``"""
    ca_file: Path
    token_file: Path

    def token(self) -> str:
        """The bearer token. Raises ConfigurationError."""
        try:
            return self.token_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigurationError(
                f"cannot read the token file {self.token_file}: {error.strerror}",
                remedy="sign in (failback login), or copy administrator.token from the server's state directory",
            ) from error


def default_file(environment: Mapping[str, str]) -> Path:
    base = environment.get("XDG_CONFIG_HOME") or str(Path(environment.get("HOME", "/root")) / ".config")
    return Path(base) / "failback" / "cli.toml"


def find(
    options: Mapping[str, str | None],
    environment: Mapping[str, str] | None = None,
    *,
    needed: Sequence[str] = tuple(VARIABLES),
) -> Settings:
    """Settings from options, environment and file, in this order. Raises ConfigurationError naming what is missing."""
    surroundings = os.environ if environment is None else environment
    path = default_file(surroundings)
    stored = _stored(path)
    found = {
        name: options.get(name) or surroundings.get(variable) or stored.get(name, "")
        for name, variable in VARIABLES.items()
    }
    missing = [name for name in needed if not found[name]]
    if missing:
        name = missing[0]
        raise ConfigurationError(
            f"the setting {name} is not known",
            remedy=f"give --{name.replace('_', '-')}, set {VARIABLES[name]}, or write {name} = ... to {path}",
        )
    server = found["server"] if "://" in found["server"] else f"https://{found['server']}"
    if not server.lower().startswith("https://"):
        raise ConfigurationError(
            f"{server} is not an https:// address: the token would travel where everybody can read it",
            remedy="use https://HOST[:PORT]",
        )
    return Settings(server.rstrip("/"), Path(found["ca_file"]).expanduser(), Path(found["token_file"]).expanduser())


def remember(path: Path, **values: str) -> None:
    """Write these settings into the file; what else it says stays."""
    stored = {**_stored(path), **values}
    keep(path, "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in stored.items()))


def keep(path: Path, text: str) -> None:
    """The whole file anew, for nobody else to read. Raises ConfigurationError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_name(f"{path.name}.partial")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(text)
        partial.replace(path)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path}: {error.strerror}", remedy="make the directory writable, or set XDG_CONFIG_HOME"
        ) from error


def _stored(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as stream:
            table = tomllib.load(stream)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}", remedy="correct or remove the file") from error
    unknown = sorted(set(table) - set(VARIABLES))
    if unknown:
        raise ConfigurationError(f"{path}: unknown key {unknown[0]!r}", remedy=f"known keys: {', '.join(VARIABLES)}")
    return {name: str(value) for name, value in table.items()}
