"""An item moves to another process server: the job tries the ways first, and the old server forgets when it comes back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_client import SiteProcess
from process_server_doubles import make_batch
from process_server_site import Agent, Site, eventually
from test_cli_story import decoded, failback

from failback.configuration_server.database import Database, items
from failback.configuration_server.database.components import ComponentRow
from failback.errors import PeerError, StaleEpochError
from failback.model.components import Role

SECOND = "process-server-2"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteProcess]:
    with SiteProcess(tmp_path_factory.mktemp("move")) as running:
        failback(running, "item", "import", "ledger", "--on-premises", "home-vm", "--cloud", "cloud-vm")
        failback(running, "reprotect", "ledger", "--datastore", "store", "--yes")
        with database(running).write() as session:
            session.add(
                ComponentRow(component_id=SECOND, role=Role.PROCESS_SERVER.value, hostname=SECOND, hardware_id="hw-ps-2",
                             version="1", addresses=["second.example"], enrolled_wall_ns=1)
            )  # fmt: skip
        yield running


def database(site: SiteProcess) -> Database:
    return Database.in_directory(site.directory / "state")


def item(site: SiteProcess) -> items.ItemRow:
    opened = database(site)
    with opened.read() as session:
        found = items.named(session, "ledger")
    opened.close()
    return found


def heard(site: SiteProcess) -> str:
    """The address of the second process server, once it is heard."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        rows = decoded(failback(site, "component", "list", "--json"))
        for row in rows:
            if row["id"] == SECOND and row["failback"]["alive"]:
                return str(row["ipAddress"])
        time.sleep(0.2)
    raise AssertionError("the second process server is not heard")


def test_a_move_that_cannot_work_changes_nothing(site: SiteProcess) -> None:
    before = item(site)
    assert "add --yes" in failback(site, "item", "move", "ledger", "--process-server", SECOND, status=6).stderr
    failback(site, "item", "move", "ledger", "--process-server", "nobody", "--yes", status=3)
    same = failback(site, "item", "move", "ledger", "--process-server", "process-server-1", "--yes", status=1)
    assert "already" in same.stderr
    silent = failback(site, "item", "move", "ledger", "--process-server", SECOND, "--yes", status=1)
    assert "not heard from" in silent.stderr
    site.knob("second process server", True)
    site.knob("blocked", [f"{heard(site)}:9443"])
    closed = failback(site, "item", "move", "ledger", "--process-server", SECOND, "--yes", status=1)
    assert "is closed: timed out" in closed.stderr and "replicates as before" in closed.stderr
    after = item(site)
    assert (after.process_server_id, after.epoch, after.protection_state) == (
        before.process_server_id, before.epoch, "Protected",
    )  # fmt: skip


def test_a_move_takes_the_stream_along_without_a_comparison(site: SiteProcess) -> None:
    before = item(site)
    site.knob("blocked", [])
    site.knob("second process server", True)
    heard(site)
    done = failback(site, "item", "move", "ledger", "--process-server", SECOND, "--yes")
    assert "Move to another process server of ledger: Succeeded" in done.stdout
    assert "Finalize protection of ledger: Succeeded" in done.stdout
    after = item(site)
    assert (after.process_server_id, after.epoch, after.protection_state) == (SECOND, before.epoch + 1, "Protected")
    assert {disk.sync for disk in after.disks} == {"none"}, "nothing is compared"
    told = decoded(failback(site, "event", "list", "--item", "ledger", "--json"))
    [event] = [one for one in told if one["properties"]["eventCode"] == "ProcessServerSwitched"]
    assert "from process server process-server-1 to process-server-2" in json.dumps(event)
    assert site.violations() == []


async def test_the_old_server_comes_back_with_its_spool_after_the_move(tmp_path: Path) -> None:
    """Items that it had spooled and not passed on are superseded: they are deleted, and none of them lands (D6)."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old = Site(tmp_path / "old")
    await old.start()
    new = Site(tmp_path / "new", authority=old.authority)
    await new.start()
    try:
        old.target.refuse = PeerError("the master target is away")  # what arrives stays in the spool
        agent = old.agent()
        await agent.send(*(make_batch(agent.machine_id, sequence) for sequence in range(1, 6)))
        await eventually(lambda: agent.spooled == 5)
        agent.stop()
        old.kill()
        assert old.spools() == [(agent.machine_id, "1")]
        old.assign()  # what the configuration server tells both after the move
        new.assign((agent.machine_id, 2))
        moved = Agent(new, agent.machine_id, epoch=2)
        await moved.send(*(make_batch(agent.machine_id, sequence, epoch=2) for sequence in range(1, 4)))
        await eventually(lambda: moved.landed == 3)
        old.target.refuse = StaleEpochError("epoch 1 is over")  # as a master target that was told of the move says
        old.launch()
        await old.listening()
        await eventually(lambda: old.spools() == [])
        late = Agent(old, agent.machine_id)
        await eventually(lambda: bool(late.refusals))
        assert late.refusals[-1].code == "MachineNotAssigned"
        assert (agent.machine_id, 1) not in old.target.streams, "not one item of the old spool was forwarded"
        assert len(new.target.streams[agent.machine_id, 2].items) == 3
    finally:
        await new.close()
        await old.close()
