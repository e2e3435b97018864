"""Disks of a protected machine that grow, join or leave: seen long enough, one job, one event, only what is new is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from simulated_sites import DISKS, ITEM, REPROTECT_INPUTS
from workflow_driver import Running, finished, running

from failback.configuration_server.database import items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.events import EventRow
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.monitors.disk_changes import DiskWatch
from failback.configuration_server.registry import desired
from failback.model.components import SourceDisk, SyncMode
from failback.runtime.clock import SystemClock

MEBIBYTE = 1 << 20


class Later:
    """The real clock, with a hand on it."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0
        self._clock = SystemClock()

    def monotonic(self) -> float:
        return self._clock.monotonic() + self.ahead_seconds

    def wall_ns(self) -> int:
        return self._clock.wall_ns()


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as made:
        yield made


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


def reported(run: Running) -> dict[str, int]:
    with run.database.read() as session:
        status = (session.get(ComponentRow, "machine-1") or ComponentRow(status={})).status
        return {disk["device_match"]: disk["size_bytes"] for disk in status.get("disks", ())}


async def report(run: Running, **sizes: int) -> None:
    disks = {name.replace("_", "-"): size for name, size in sizes.items()}
    run.sites.knob("disks", disks)
    await until(lambda: reported(run) == disks)


def item(run: Running) -> items.ItemRow:
    with run.database.read() as session:
        return items.get(session, ITEM)


def streamed(run: Running) -> dict[int, SourceDisk]:
    with run.database.read() as session:
        return {disk.index: disk for disk in desired.machine_of(session, items.get(session, ITEM)).disks}


def said(run: Running) -> list[str]:
    with run.database.read() as session:
        return [row.description for row in session.query(EventRow).filter(EventRow.code == "FBK0012")]


async def protected(run: Running) -> None:
    job_id = await run.engine.start("SwitchReplicationGroupProtection", ITEM, REPROTECT_INPUTS, "first")
    assert await finished(run, job_id, 60) == "Succeeded"
    assert item(run).protection_state == "Protected"


async def look(run: Running, watch: DiskWatch) -> list[str]:
    jobs = await watch.look()
    for job_id in jobs:
        assert await finished(run, job_id, 60) == "Succeeded"
    return jobs


async def test_a_disk_grows_and_one_joins_then_one_leaves(run: Running) -> None:
    clock = Later()
    watch = DiskWatch(run.database, run.engine, clock)
    await protected(run)
    await report(run, serial_0=MEBIBYTE, serial_1=MEBIBYTE, scratch=MEBIBYTE)
    assert await look(run, watch) == []
    assert item(run).other_disks == ["scratch"]  # there from the beginning: stays outside
    before = item(run)

    await report(run, serial_0=4 * MEBIBYTE, scratch=MEBIBYTE, serial_9=2 * MEBIBYTE)
    assert await look(run, watch) == []  # not yet: seen only now
    clock.ahead_seconds += 15
    jobs = await look(run, watch)
    assert len(jobs) == 1
    with run.database.read() as session:
        job = session.get(JobRow, jobs[0])
        assert job is not None
        assert (job.scenario, job.started_by) == ("UpdateReplicaDisks", "monitor")
    after = item(run)
    assert after.epoch == before.epoch + 1
    assert after.protection_state == "Protected"
    (sentence,) = said(run)
    assert "disk 0 grew to 4194304 bytes" in sentence
    assert "/dev/serial-9 of 2097152 bytes was added" in sentence
    assert "gone" not in sentence
    disks = streamed(run)
    assert (disks[0].size_bytes, disks[0].sync, disks[0].sync_from_bytes) == (4 * MEBIBYTE, SyncMode.FULL, MEBIBYTE)
    assert disks[1].sync is SyncMode.NONE
    assert (disks[2].device_match, disks[2].size_bytes, disks[2].sync) == ("serial-9", 2 * MEBIBYTE, SyncMode.FULL)
    attached = {disk["index"]: disk for disk in run.sites.read()["attached"]}
    assert attached[0]["size_bytes"] == 4 * MEBIBYTE
    assert (attached[2]["create"], attached[2]["format"]) == (True, "raw")

    clock.ahead_seconds += 60
    jobs = await look(run, watch)  # it stayed away
    assert len(jobs) == 1
    assert "disk 1 is gone" in said(run)[-1]
    assert sorted(streamed(run)) == [0, 2]
    assert {disk["index"]: disk["removed"] for disk in run.sites.read()["attached"]} == {0: False, 1: True, 2: False}
    assert [disk.disk_id for disk in item(run).disks][:2] == list(DISKS)
    clock.ahead_seconds += 600
    assert await look(run, watch) == []
    assert len(said(run)) == 2


async def test_a_disk_that_comes_back_in_time_never_left(run: Running) -> None:
    clock = Later()
    watch = DiskWatch(run.database, run.engine, clock)
    await protected(run)
    await report(run, serial_0=MEBIBYTE, serial_1=MEBIBYTE)
    await look(run, watch)
    await report(run, serial_0=MEBIBYTE)
    await look(run, watch)
    clock.ahead_seconds += 50
    assert await look(run, watch) == []
    await report(run, serial_0=MEBIBYTE, serial_1=MEBIBYTE)
    await look(run, watch)
    await report(run, serial_0=MEBIBYTE)
    clock.ahead_seconds += 50
    assert await look(run, watch) == []
    assert said(run) == []


async def test_an_agent_that_reports_no_disk_or_only_foreign_ones_changes_nothing(run: Running) -> None:
    clock = Later()
    watch = DiskWatch(run.database, run.engine, clock)
    await protected(run)
    await report(run, serial_0=MEBIBYTE, serial_1=MEBIBYTE)
    await look(run, watch)
    for sizes in ({}, {"elsewhere": MEBIBYTE}):
        await report(run, **sizes)
        await look(run, watch)
        clock.ahead_seconds += 600
        assert await look(run, watch) == []


async def test_a_disk_that_joined_comes_home_with_the_machine(run: Running) -> None:
    """The definition on premises does not know it: it is added there before the layer is laid; the others are not."""
    clock = Later()
    watch = DiskWatch(run.database, run.engine, clock)
    await protected(run)
    await report(run, serial_0=MEBIBYTE, serial_1=MEBIBYTE)
    assert await look(run, watch) == []
    await report(run, serial_0=MEBIBYTE, serial_1=MEBIBYTE, serial_9=2 * MEBIBYTE)
    assert await look(run, watch) == []
    clock.ahead_seconds += 15
    assert len(await look(run, watch)) == 1
    job_id = await run.engine.start("UnplannedFailover", ITEM, {}, "home")
    assert await finished(run, job_id, 60) == "Succeeded"
    joined = item(run).disks[2]
    log = run.sites.read()["log"]
    assert [line for line in log if line.startswith("disk added")] == [f"disk added {joined.path}"]
    assert log.index(f"disk added {joined.path}") < log.index("layer laid") and joined.on_premises_target == "vdx0"
