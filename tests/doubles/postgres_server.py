"""A PostgreSQL server of the tests' own: a fresh cluster in a directory, on a Unix socket only, run by an unprivileged user.

The database lives as long as the test run, so its durability is switched off; each test gets an empty database of its own.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

_USER = "postgres"
_SETTINGS = ("listen_addresses=", "fsync=off", "full_page_writes=off", "shared_buffers=16MB", "max_connections=60",
             "autovacuum=off")  # fmt: skip


def _programs() -> Path:
    """Where initdb and postgres are: on the path, or where Debian puts a version's programs."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert versions, "PostgreSQL is missing: apt install postgresql (deploy/system-packages.sh does)"
    return versions[-1].parent


class PostgresServer:
    """``with PostgresServer() as server``; ``server.fresh()`` gives the URL of an empty database and drops the one before."""

    def __init__(self) -> None:
        self._programs = _programs()
        self._made: list[str] = []
        self._owner: dict[str, Any] = {}
        if os.geteuid() == 0:
            known = pwd.getpwnam(_USER)
            self._owner = {"user": known.pw_uid, "group": known.pw_gid, "extra_groups": []}

    def __enter__(self) -> PostgresServer:
        self.directory = Path(tempfile.mkdtemp(prefix="failback-postgres-"))
        if self._owner:
            os.chown(self.directory, self._owner["user"], self._owner["group"])
        self._run("initdb", "-D", "data", "-A", "trust", "-U", "failback", "-N", "--locale=C.UTF-8", "-E", "UTF8")
        options = " ".join(f"-c {setting}" for setting in _SETTINGS)
        self._run(
            "pg_ctl", "-D", "data", "-w", "-t", "120", "-l", "log", "-o", f"-k {self.directory} {options}", "start"
        )
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def fresh(self) -> str:
        """The SQLAlchemy URL of a new, empty database."""
        name = f"test_{uuid.uuid4().hex}"
        self._run(
            "psql", "-q", "-h", str(self.directory), "-U", "failback", "-c", f"CREATE DATABASE {name}", "postgres"
        )
        return f"postgresql+psycopg://failback@/{name}?host={self.directory}"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments], cwd=self.directory, capture_output=True, text=True, check=False,
            timeout=180, env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}, stdin=subprocess.DEVNULL, **self._owner,
        )  # fmt: skip
        log = self.directory / "log"
        said = log.read_text()[-2000:] if log.exists() else ""
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}{said}"
