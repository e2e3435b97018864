"""A stream that ended for good leads to a comparison by itself: as a job, once, also over a restart and during another job; an
operator's repair; a change of process server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from simulated_sites import ITEM, PROCESS_SERVER, REPROTECT_INPUTS
from workflow_driver import Running, finished, outcome, running

from failback.configuration_server.database import items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.events import EventRow
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.database.orders import OrderRow
from failback.configuration_server.monitors.repairs import Repairs
from failback.errors import ConflictError
from failback.model.components import Role
from failback.runtime.clock import SystemClock

REPAIR = "RepairVMReplication"
SECOND = "process-server-2"


@pytest.fixture
async def run(tmp_path: Path, database_url: str) -> AsyncIterator[Running]:
    async with running(tmp_path, database_url=database_url) as made:
        yield made


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def job(run: Running, scenario: str, inputs: dict[str, Any], key: str) -> JobRow:
    job_id = await run.engine.start(scenario, ITEM, inputs, key)
    await finished(run, job_id, 60)
    with run.database.read() as session:
        found = session.get(JobRow, job_id)
        assert found is not None
        return found


async def protected(run: Running) -> None:
    assert (await job(run, "SwitchReplicationGroupProtection", REPROTECT_INPUTS, "first")).state == "Succeeded"
    assert item(run).protection_state == "Protected"


def item(run: Running) -> items.ItemRow:
    with run.database.read() as session:
        return items.get(session, ITEM)


def events(run: Running, code: str) -> list[EventRow]:
    with run.database.read() as session:
        return session.query(EventRow).filter(EventRow.code == code).all()


def jobs(run: Running, scenario: str) -> list[JobRow]:
    with run.database.read() as session:
        return session.query(JobRow).filter(JobRow.scenario == scenario).order_by(JobRow.created_wall_ns).all()


@pytest.mark.parametrize("knob", ["agent problem", "replica problem"])
async def test_a_stream_that_ended_is_compared_by_itself_once(run: Running, knob: str) -> None:
    await protected(run)
    epoch, pass_id = item(run).epoch, item(run).pass_id
    repairs = Repairs(run.database, run.engine)
    assert await repairs.look() == []
    run.sites.knob(knob, [epoch, "JournalReplaced: the journal is another one"])
    started: list[str] = []

    async def looked() -> None:
        while not started:
            started.extend(await repairs.look())

    async with asyncio.timeout(20):
        await looked()
    # a restarted server, and another look while the job runs, begin nothing
    assert await Repairs(run.database, run.engine).look() == [] and await repairs.look() == []
    assert await finished(run, started[0], 60) == "Succeeded"
    assert await Repairs(run.database, run.engine).look() == []
    now = item(run)
    assert (now.protection_state, now.epoch, now.protection_stage) == ("Protected", epoch + 1, "differential")
    assert now.pass_id != pass_id and {disk.sync for disk in now.disks} == {"compare"}
    (told,) = events(run, "ECH0007")
    assert "JournalReplaced: the journal is another one" in told.description and told.severity == "Warning"
    (repaired,) = jobs(run, REPAIR)
    assert (repaired.started_by, repaired.friendly_name) == ("monitor", "Resynchronize")
    assert outcome(run.database, run.sites)["world"]["violations"] == []


async def test_it_ends_the_job_that_waits_for_a_pass_which_cannot_end(run: Running) -> None:
    run.sites.knob("no sync", True)
    started = await run.engine.start("SwitchReplicationGroupProtection", ITEM, REPROTECT_INPUTS, "first")
    assert await run.engine.wait(started, 60) == "Succeeded"
    await until(lambda: [row.state for row in jobs(run, "IrCompletion")] == ["InProgress"])
    repairs = Repairs(run.database, run.engine)
    run.sites.knob("replica problem", [item(run).epoch, "RedoDamaged: record 7 cannot be used"])
    await until(lambda: jobs(run, "IrCompletion")[0].state == "Failed")
    assert [error.code for error in jobs(run, "IrCompletion")[0].errors] == ["RedoDamaged"]
    run.sites.knob("no sync", False)
    (repair,) = await repairs.look()
    assert await finished(run, repair, 60) == "Succeeded"
    assert item(run).protection_state == "Protected"
    assert [row.state for row in jobs(run, "IrCompletion")] == ["Failed", "Succeeded"]


async def test_a_loss_that_comes_again_and_again_needs_a_person(run: Running) -> None:
    await protected(run)
    repairs = Repairs(run.database, run.engine)
    run.sites.knob("agent problem", [0, "ItemsMissing: again"])
    async with asyncio.timeout(40):
        while not [one for one in events(run, "ECH0007") if one.severity == "Critical"]:
            await repairs.look()
            await asyncio.sleep(0.05)
    assert len(jobs(run, REPAIR)) == 3
    assert await repairs.look() == []
    assert len([one for one in events(run, "ECH0007") if one.severity == "Critical"]) == 1
    run.sites.knob("agent problem", [-1, ""])  # the cause was found
    assert (await job(run, REPAIR, {}, "operator")).state == "Succeeded"
    assert item(run).protection_state == "Protected"


async def test_an_operators_repair_is_refused_where_nothing_replicates(run: Running) -> None:
    refused = await job(run, REPAIR, {}, "too early")
    assert (refused.state, refused.errors[0].code) == ("Failed", "OperationNotAllowed")
    await protected(run)
    run.sites.knob("no sync", True)
    first = await run.engine.start(REPAIR, ITEM, {}, "asked")
    with pytest.raises(ConflictError):
        await run.engine.start(REPAIR, ITEM, {}, "asked twice")
    run.sites.knob("no sync", False)
    assert await finished(run, first, 60) == "Succeeded"
    assert item(run).protection_state == "Protected" and events(run, "ECH0007") == []


def second_server(run: Running, heard: bool) -> None:
    now = SystemClock().wall_ns() if heard else 0
    with run.database.write() as session:
        session.add(
            ComponentRow(component_id=SECOND, role=Role.PROCESS_SERVER.value, hostname=SECOND, hardware_id="hw-2", version="1",
                         addresses=["127.0.0.1"], enrolled_wall_ns=1, last_heartbeat_wall_ns=now)
        )  # fmt: skip


async def test_another_process_server_takes_over_without_a_comparison(run: Running) -> None:
    await protected(run)
    epoch = item(run).epoch
    second_server(run, heard=True)
    assert (await job(run, REPAIR, {"process_server_id": SECOND}, "moved")).state == "Succeeded"
    now = item(run)
    assert (now.process_server_id, now.epoch, now.protection_state) == (SECOND, epoch + 1, "Protected")
    assert {disk.sync for disk in now.disks} == {"none"}
    with run.database.read() as session:
        assert session.query(OrderRow).filter(OrderRow.kind == "resume-replica").count() == 0


async def test_another_process_server_and_a_lost_journal_are_compared(run: Running) -> None:
    await protected(run)
    second_server(run, heard=True)
    run.sites.knob("agent problem", [item(run).epoch, "JournalReplaced: another one"])
    await until(lambda: _agent_problem(run))
    made = await job(run, REPAIR, {"process_server_id": SECOND}, "moved")
    assert made.state == "Succeeded" and "stream ended" in made.tasks[0].result["because"]
    assert item(run).process_server_id == SECOND and {disk.sync for disk in item(run).disks} == {"compare"}


def _agent_problem(run: Running) -> bool:
    with run.database.read() as session:
        row = session.get(ComponentRow, "machine-1")
        return row is not None and bool(row.status.get("problem"))


async def test_a_process_server_that_is_away_is_refused(run: Running) -> None:
    await protected(run)
    second_server(run, heard=False)
    epoch = item(run).epoch
    refused = await job(run, REPAIR, {"process_server_id": SECOND}, "moved")
    assert (refused.state, refused.errors[0].code) == ("Failed", "PeerUnavailable")
    assert (item(run).process_server_id, item(run).epoch) == (PROCESS_SERVER, epoch)


async def test_a_lost_journal_is_made_anew_only_when_an_operator_asks(run: Running) -> None:
    await protected(run)
    epoch = item(run).epoch
    with run.sites.change() as world:
        world["replica"], world["points"], world["log"] = "none", [], []
    await asyncio.sleep(0.2)
    refused = await job(run, REPAIR, {"reason": "ItemsMissing: a test"}, "by itself")
    assert refused.state == "Failed" and "no replica" in refused.errors[0].message
    assert item(run).epoch == epoch and item(run).protection_state == "Protected"
    assert (await job(run, REPAIR, {}, "operator")).state == "Succeeded"
    assert item(run).protection_state == "Protected" and item(run).epoch == epoch + 1
    assert run.sites.read()["log"] == ["replica attached", "pass begun"]


async def test_a_machine_that_cannot_be_captured_is_compared_and_captured_again_by_choice(run: Running) -> None:
    """It is protected without a point, the failback's mark makes one; a repair changes the way of replication."""
    inputs = {**REPROTECT_INPUTS, "comparison_minutes": 15}
    started = await run.engine.start("SwitchReplicationGroupProtection", ITEM, inputs, "compared")
    assert await finished(run, started, 60) == "Succeeded"
    assert (item(run).protection_state, item(run).comparison_minutes) == ("Protected", 15)
    agent = run.sites.read()["agent"]
    assert (agent["comparison_seconds"], agent["capture"]) == (900, "comparing")
    assert [point[0] for point in run.sites.read()["points"]] == ["before"]
    assert (await job(run, REPAIR, {}, "as before")).state == "Succeeded"
    assert item(run).comparison_minutes == 15
    assert (await job(run, REPAIR, {"comparison_minutes": 0}, "captured")).state == "Succeeded"
    assert item(run).comparison_minutes == 0 and run.sites.read()["agent"]["capture"] == "capturing"
    assert {disk.sync for disk in item(run).disks} == {"compare"}
