"""``failback backup FILE``: all that a configuration server is, in one sealed file, while it serves.

A gzipped tar within the seal: ``tables/NAME/NUMBER.json`` (rows of one consistent view), ``files/...`` (certificate authority,
server certificate, passphrase and tokens), ``configuration.toml``, and last ``manifest.json`` with the SHA-256 of each member.
The file appears whole or not at all, and is read back before that.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from failback import __version__
from failback.configuration_server.config import BACKUP_MARKER, ServerConfig, load
from failback.configuration_server.database import Database
from failback.configuration_server.enrolment.bootstrap import METRICS_TOKEN_FILE, PASSPHRASE_FILE, TOKEN_FILE
from failback.configuration_server.safekeeping import tables
from failback.configuration_server.safekeeping.sealed import OpeningReader, SealingWriter
from failback.errors import ConfigurationError, IntegrityError, StorageError
from failback.runtime import faults
from failback.runtime.clock import SystemClock
from failback.runtime.durable_files import sync_directory

FILES = (
    "ca/key.pem", "ca/ca.pem", "server/key.pem", "server/certificate.pem", PASSPHRASE_FILE, TOKEN_FILE, METRICS_TOKEN_FILE,
)  # fmt: skip
"""Of the state directory, in the order in which they are written back: ``ca/ca.pem`` after its key."""
CONFIGURATION = "configuration.toml"
MANIFEST = "manifest.json"
_MOST_MEMBER_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Summary:
    """What a backup holds."""

    made_wall_ns: int
    version: str
    revision: str
    rows: int
    bytes: int = 0


def make(config_path: Path, target: Path, passphrase: str) -> Summary:
    """Raises ConfigurationError and StorageError; ``target`` is then as it was."""
    config = load(config_path)
    if not (config.state_directory / "ca" / "ca.pem").exists():
        raise ConfigurationError(
            f"there is no configuration server in {config.state_directory}", remedy="check state_directory in --config"
        )
    partial = target.with_name(target.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "r+b") as raw:
                sealing = SealingWriter(raw, passphrase)
                _write(config, config_path, sealing)
                sealing.finish()
                raw.flush()
                os.fsync(raw.fileno())
            summary = verify(partial, passphrase)
            faults.point("backup.written")
            partial.replace(target)
            sync_directory(target.parent)
            (config.state_directory / BACKUP_MARKER).touch(0o600)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write the backup {target}: {error.strerror or error}") from error
    return summary


def _write(config: ServerConfig, config_path: Path, sealing: SealingWriter) -> None:
    digests: dict[str, str] = {}
    made = SystemClock().wall_ns()
    with tarfile.open(fileobj=sealing, mode="w|gz") as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(content), 0o600, made // 1_000_000_000
            archive.addfile(member, io.BytesIO(content))
            digests[name] = hashlib.sha256(content).hexdigest()

        revision, rows = _add_tables(config, add)
        add(CONFIGURATION, config_path.read_bytes())
        for name in FILES:
            path = config.state_directory / name
            if path.exists():
                add(f"files/{name}", path.read_bytes())
        manifest = {"made_wall_ns": made, "version": __version__, "revision": revision, "rows": rows, "sha256": digests}
        add(MANIFEST, json.dumps(manifest).encode("utf-8"))


def _add_tables(config: ServerConfig, add: Any) -> tuple[str, int]:
    database = Database(config.database_url) if config.database_url else Database.in_directory(config.state_directory)
    revision, rows = "", 0
    try:
        for number, (found, part) in enumerate(tables.export(database)):
            revision = found
            rows += part.rows
            add(f"tables/{part.table}/{number:06}.json", part.content)
    finally:
        database.close()
    return revision, rows


def members(path: Path, passphrase: str) -> Iterator[tuple[str, bytes]]:
    """The archive's members in their order. Raises AuthenticationError and IntegrityError."""
    try:
        with (
            path.open("rb") as raw,
            tarfile.open(fileobj=io.BufferedReader(OpeningReader(raw, passphrase)), mode="r|gz") as archive,
        ):
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() and member.size <= _MOST_MEMBER_BYTES else None
                if stream is None:
                    raise IntegrityError(f"the backup holds {member.name!r}, which is no plain file")
                yield member.name, stream.read()
    except (tarfile.TarError, EOFError) as error:
        raise IntegrityError(f"the backup cannot be read: {error}", remedy="take another copy of it") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def verify(path: Path, passphrase: str) -> Summary:
    """Read all of it and compare with its manifest. Raises AuthenticationError and IntegrityError."""
    digests: dict[str, str] = {}
    manifest: dict[str, Any] = {}
    for name, content in members(path, passphrase):
        if name == MANIFEST:
            manifest = json.loads(content)
        else:
            digests[name] = hashlib.sha256(content).hexdigest()
    if not manifest or manifest["sha256"] != digests:
        raise IntegrityError("the backup does not hold what its manifest says", remedy="take another copy of it")
    return Summary(
        manifest["made_wall_ns"], manifest["version"], manifest["revision"], manifest["rows"], path.stat().st_size
    )
