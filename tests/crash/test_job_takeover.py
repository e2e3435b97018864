"""Two processes with the real engine on one PostgreSQL: a killed one's job goes on in the other; a sleeper changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from postgres_server import PostgresServer
from sqlalchemy import select

from failback.configuration_server.database import Database, items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.jobs.processes import Processes

SCRIPT = Path(__file__).parents[1] / "doubles" / "job_process.py"


@contextmanager
def process(url: str, directory: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    with (directory / f"log-{name}").open("ab") as log:
        running = subprocess.Popen([sys.executable, SCRIPT, url, directory, name], stdout=log, stderr=log)
    try:
        until(lambda: (directory / f"open-{name}").exists() or running.poll() is not None)
        assert running.poll() is None, (directory / f"log-{name}").read_text()
        yield running
    finally:
        running.kill()
        running.wait()


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def prepared(postgres: PostgresServer) -> tuple[str, Database]:
    url = postgres.fresh()
    database = Database(url)
    database.upgrade()
    with database.write() as session:
        session.add(items.ItemRow(item_id="item", name="ledger", friendly_name="ledger", created_wall_ns=1))
        session.add(
            ComponentRow(
                component_id="cs", role="configuration-server", hostname="h", hardware_id="h", version="1", status={},
                twin_status={},
            )
        )  # fmt: skip
    return url, database


def job_of(database: Database) -> JobRow:
    with database.read() as session:
        return session.scalars(select(JobRow)).one()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "asleep"])
def test_the_job_of_a_dead_process_is_taken_over(
    postgres: PostgresServer, tmp_path: Path, number: signal.Signals
) -> None:
    url, database = prepared(postgres)
    with process(url, tmp_path, "first") as first, process(url, tmp_path, "second"):
        until((tmp_path / "two-first").exists)
        before = job_of(database)
        assert before.owner == "process-first" and before.state == "InProgress"
        os.kill(first.pid, number)
        began = time.monotonic()
        until((tmp_path / "two-second").exists)
        print(f"taken over after {time.monotonic() - began:.1f} s")
        (tmp_path / "go").touch()
        until(lambda: job_of(database).state == "Succeeded")
        if number is signal.SIGSTOP:
            os.kill(first.pid, signal.SIGCONT)  # it wakes in the middle of the step and wants to write
            until((tmp_path / "refused-first").exists)
        job = job_of(database)
        assert job.owner == "process-second" and job.generation > before.generation
        assert (tmp_path / "one").read_text() == "first\n"  # a step that had ended is not run again
        assert job.tasks[1].result["by"] == "second"
        with database.read() as session:
            assert items.get(session, "item").friendly_name == "written by second"
    database.close()


class Hand:
    """A clock moved by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall_ns(self) -> int:
        return 0


def test_who_is_dead() -> None:
    clock = Hand()
    watching = Processes(Database("sqlite://"), "me", clock, dead_seconds=15)  # type: ignore[arg-type]
    assert (
        watching.may_take("me", "job") and not watching.may_take("never-seen", "job") and not watching.may_take("", "j")
    )
    watching.observe({"other": 1})
    clock.now = 14
    watching.observe({"other": 2})
    clock.now = 16
    assert watching.may_take("never-seen", "job") and watching.may_take("", "j")
    assert not watching.may_take("other", "job") and not watching.may_take("", "new")
    watching.observe({"other": 2})
    clock.now = 30
    assert watching.may_take("other", "job")
    watching.observe({"other": 3})
    assert not watching.may_take("other", "job")
