"""Guards while a machine replicates: a replica's machine that was started, its moved files, a volume of two master targets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import simulated_sites as sites_of
from simulated_sites import CLOUD, HOME, SimulatedFabric, Sites
from sqlalchemy import select

from failback.block import replica_disk
from failback.configuration_server.database import Database, items
from failback.configuration_server.database.events import EventRow
from failback.configuration_server.monitors.replica_guard import OFF_AGAIN, STARTED, ReplicaGuard
from failback.master_target.config import NamedPlace
from failback.master_target.volumes import CLAIM_FILE, Surrounding, VolumeClaims, facts
from failback.model.ids import DiskId
from failback.model.points import ReplicaDisk
from failback.runtime.clock import SystemClock


async def test_an_alarm_when_the_machine_of_a_replica_is_started(tmp_path: Path) -> None:
    database = Database.in_directory(tmp_path)
    database.upgrade()
    sites_of.fill(database)
    sites = Sites(tmp_path / "sites.json")
    guard = ReplicaGuard(database, {"home": SimulatedFabric(sites, HOME)}, SystemClock(), pause_seconds=1)

    def power(state: str) -> None:
        with sites.change() as site:
            site["power"] = {CLOUD: "On", HOME: state}

    power("On")
    assert await guard.look_once() == [], "its disks are no replica yet"
    with database.write() as session:
        items.get(session, sites_of.ITEM).protection_state = "Protected"
    assert await guard.look_once() == [STARTED]
    assert await guard.look_once() == [], "told once"
    power("Off")
    assert await guard.look_once() == [OFF_AGAIN]
    with database.read() as session:
        told = [(row.code, row.severity) for row in session.scalars(select(EventRow).order_by(EventRow.event_id))]
    assert told == [(STARTED, "Critical"), (OFF_AGAIN, "OK")]
    database.close()


def test_a_file_that_was_moved_away_is_noticed(tmp_path: Path) -> None:
    disk = ReplicaDisk(DiskId("d"), 0, str(tmp_path / "disk.img"), "raw", 1 << 20, create=True)
    replica_disk.create_if_missing(disk)
    assert not replica_disk.moved_away(disk)
    replica_disk.fenced(Path(disk.path)).rename(tmp_path / "elsewhere.img")
    assert replica_disk.moved_away(disk)


def test_a_volume_belongs_to_one_master_target(tmp_path: Path) -> None:
    place = NamedPlace("retention", tmp_path)
    script = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / CLAIM_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        claims = VolumeClaims((place,))
        assert claims.locked() == {tmp_path}
        found = facts(place, [], Surrounding(locked=claims.locked()))
        assert found.locked and "locked by another process" in found.problem
        other.kill()
    assert claims.locked() == frozenset()
    claims.close()


def test_what_else_lies_in_a_retention_volume(tmp_path: Path) -> None:
    place = NamedPlace("retention", tmp_path / "retention")
    store = tmp_path / "retention" / "store"
    store.mkdir(parents=True)
    inside = facts(place, [], Surrounding((("the datastore store", store),)))
    assert inside.holds == ("the datastore store",) and "another use" in inside.problem
    beside = tmp_path / "beside"
    beside.mkdir()
    near = facts(place, [], Surrounding((("the datastore beside", beside),)))
    assert near.shares_with == ("the datastore beside",) and not near.problem
