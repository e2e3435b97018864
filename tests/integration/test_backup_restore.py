"""Backup and restore with the real command and real servers, on SQLite and PostgreSQL, and from one into the other."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from postgres_server import PostgresServer
from running_configuration_server import RunningConfigurationServer
from sqlalchemy import select

from failback.configuration_server.config import BACKUP_MARKER
from failback.configuration_server.database import Database, items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.events import EventRow, record
from failback.configuration_server.database.jobs import JobRow, TaskRow
from failback.configuration_server.database.orders import OrderRow
from failback.model.components import ProcessServerAssignment, ProcessServerStatus, Role
from failback.transport import identity as identities
from failback.transport.control import ControlLoop
from failback.transport.https import ControlConfig
from failback.transport.identity import Identity

PASSPHRASE = "a passphrase for the tests"


@pytest.fixture
def server(tmp_path: Path, database_url: str) -> Iterator[RunningConfigurationServer]:
    with at(tmp_path / "first", database_url) as running:
        yield running


def at(directory: Path, database_url: str, *, starts: bool = True) -> RunningConfigurationServer:
    directory.mkdir(exist_ok=True)
    line = f'database_url = "{database_url}"\n' if database_url else ""
    return RunningConfigurationServer(directory, line, starts=starts)


def failback(
    directory: Path, *arguments: object, status: int = 0, faults: str = ""
) -> subprocess.CompletedProcess[str]:
    secret = directory / "passphrase"
    secret.write_text(PASSPHRASE)
    done = subprocess.run(
        [sys.executable, "-m", "failback", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False,
        stdin=subprocess.DEVNULL, env={**os.environ, "HOME": str(directory), "FAILBACK_FAULTS": faults},
    )  # fmt: skip
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def database_of(server: RunningConfigurationServer, database_url: str) -> Database:
    return Database(database_url) if database_url else Database.in_directory(server.state)


def fill(server: RunningConfigurationServer, database_url: str, component_id: str) -> None:
    """An item under epoch 7, its job in the middle of a step with an order under way, and many events."""
    database = database_of(server, database_url)
    with database.write() as session:
        session.add(
            items.ItemRow(
                item_id="item", name="ledger", friendly_name="Ledger é", created_wall_ns=1, epoch=7, epoch_highest=7,
                generation=3, current_job_id="job",
            )
        )  # fmt: skip
        tasks = [
            TaskRow(
                index=0, name="One", task_id="One", friendly_name="one", state="Succeeded", result={"a": [1, None]}
            ),
            TaskRow(index=1, name="Two", task_id="Two", friendly_name="two", state="InProgress"),
        ]
        session.add(
            JobRow(
                job_id="job", key="job", scenario="CommitFailover", friendly_name="Commit", item_id="item",
                target_name="ledger", state="InProgress", generation=3, attempt=1, tasks=tasks,
            )
        )  # fmt: skip
        session.add(
            OrderRow(order_id="order", key="order", component_id=component_id, item_id="item", kind="x", generation=3)
        )
        for number in range(4500):
            record(session, time.time_ns(), "Test", f"event {number}")
    database.close()


async def enrolled(server: RunningConfigurationServer, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Identity:
    monkeypatch.setenv("FAILBACK_HARDWARE_ID", f"hw-{uuid.uuid4()}")
    return await identities.enrol_if_needed(directory, server.control(), Role.PROCESS_SERVER)


async def generation_told(who: Identity, config: ControlConfig) -> None:
    """Run the component's real control loop until it was given an assignment."""
    stop, told = asyncio.Event(), asyncio.Event()

    async def apply(_assignment: object) -> None:
        told.set()

    loop = ControlLoop(
        who, config, status=ProcessServerStatus, assignment_kind=ProcessServerAssignment, apply_assignment=apply, orders={}
    )  # fmt: skip
    running = asyncio.create_task(loop.run(stop))
    async with asyncio.timeout(60):
        await told.wait()
    stop.set()
    with suppress(asyncio.CancelledError):
        await running


async def test_backed_up_while_serving_and_restored_under_another_address(
    server: RunningConfigurationServer, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    postgres: PostgresServer,
) -> None:  # fmt: skip
    component = tmp_path / "component"
    who = await enrolled(server, component, monkeypatch)
    await generation_told(who, server.control())
    fill(server, database_url, who.component_id)
    archive, secret = tmp_path / "night.backup", tmp_path / "passphrase"
    made = failback(tmp_path, "backup", archive, "--config", server.configure(), "--passphrase-file", secret)
    assert "read back and verified" not in made.stderr and "rows" in made.stdout
    assert (server.state / BACKUP_MARKER).exists()  # what readiness asks for
    assert archive.stat().st_mode & 0o777 == 0o600 and b"ledger" not in archive.read_bytes()
    token, url, ca = server.token, server.url, server.ca_file.read_bytes()
    server.kill()

    # the other kind of database, in another directory, on another port
    other = postgres.fresh() if database_url.startswith("sqlite") else ""
    moved = at(tmp_path / "second", other, starts=False)
    done = failback(tmp_path, "restore", archive, "--config", moved.configure(), "--passphrase-file", secret, "--json")
    assert json.loads(done.stdout)["stoppedJobs"] == ["Commit of ledger"]
    with moved:
        moved.start()
        assert moved.url != url and moved.token == token and moved.ca_file.read_bytes() == ca
        config = component / "process-server.toml"
        config.write_text(f'state_directory = "{component}"\n[configuration_server]\nurl = "{url}"\nca_file = "x"\n')
        found = json.loads(failback(tmp_path, "repoint", "--config", config, moved.url, "--json").stdout)
        assert found["component"] == who.component_id and f'url = "{moved.url}"' in config.read_text()
        control = ControlConfig(moved.url, who.ca_path, None, None, 0.5)
        await generation_told(who, control)  # it was told anew, although its certificate and id are the old ones
        _restored_rows(database_of(moved, other), who.component_id)


def _restored_rows(database: Database, component_id: str) -> None:
    with database.write() as session:
        item = items.get(session, "item")
        assert item.friendly_name == "Ledger é" and item.current_job_id is None and item.epoch == 7
        assert item.generation > 1_000_000 and items.issue_epoch(item) > 1_000_000
        component = session.get(ComponentRow, component_id)
        assert component is not None and component.assignment_generation > 1_000_000
        job = session.get(JobRow, "job")
        assert job is not None and job.state == "Failed" and job.errors[-1].code == "ConfigurationServerRestored"
        assert job.tasks[0].result == {"a": [1, None]} and job.tasks[1].state == "Failed"
        order = session.get(OrderRow, "order")
        assert order is not None and order.finished()
        assert len(list(session.scalars(select(EventRow).where(EventRow.code == "Test")))) == 4500
        newest = record(session, time.time_ns(), "After", "numbers go on above the restored ones")
        assert newest.event_id > 4500
    database.close()


def test_what_would_lose_something_is_refused(
    server: RunningConfigurationServer, database_url: str, tmp_path: Path
) -> None:
    archive, secret = tmp_path / "night.backup", tmp_path / "passphrase"
    config = server.configure()
    common = ("--config", config, "--passphrase-file", secret)
    failback(tmp_path, "backup", archive, *common)
    running = failback(tmp_path, "restore", archive, *common, "--replace", "--yes", status=4)
    assert "runs on" in running.stderr
    token = server.token
    server.stop()
    assert "--replace" in failback(tmp_path, "restore", archive, *common, status=4).stderr
    (tmp_path / "wrong").write_text("not the passphrase")
    refused = failback(
        tmp_path, "restore", archive, "--config", config, "--passphrase-file", tmp_path / "wrong", "--replace", "--yes",
        status=5,
    )  # fmt: skip
    assert "passphrase" in refused.stderr
    damaged = tmp_path / "damaged"
    content = bytearray(archive.read_bytes())
    content[-30] ^= 4
    damaged.write_bytes(content)
    failback(tmp_path, "restore", damaged, *common, "--replace", "--yes", status=5 if len(content) < 1 << 20 else 1)
    server.start()  # nothing was touched
    assert server.token == token


@pytest.mark.parametrize(
    "point", ["restore.marked", "restore.before_commit", "restore.database_filled", "restore.files_written"]
)
def test_half_a_restore_is_never_served(
    server: RunningConfigurationServer, database_url: str, tmp_path: Path, point: str
) -> None:
    archive, secret = tmp_path / "night.backup", tmp_path / "passphrase"
    common = (archive, "--config", server.configure(), "--passphrase-file", secret)
    failback(tmp_path, "backup", *common)
    server.stop()
    failback(tmp_path, "restore", *common, "--replace", "--yes", status=-9, faults=f"{point}=kill@1")
    server.launch()
    assert server.wait() == 1 and "is being restored" in server.log
    failback(tmp_path, "restore", *common, "--replace", "--yes")
    server.start()
    assert server.get("/healthz")["status"] == "ok"
