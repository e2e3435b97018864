"""What workflows do when the world does not play along: lost leases, failed starts, silent twins, cancels, lost sources."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from simulated_sites import CLOUD, HOME, ITEM, NEWCOMER, REPROTECT_INPUTS
from workflow_driver import QUICK, Running, finished, outcome, running

from failback.configuration_server.database import items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.jobs import store
from failback.configuration_server.workflows.scheduled_points import ScheduledPoints
from failback.errors import ConflictError

FAILOVER = {"selector": "latest", "value": "", "shut_down_source": True}


@pytest.fixture
async def run(tmp_path: Path, database_url: str) -> AsyncIterator[Running]:
    async with running(tmp_path, dataclasses.replace(QUICK, twin_seconds=4.0), database_url) as made:
        yield made


async def done(run: Running, scenario: str, inputs: dict[str, Any] | None = None) -> JobRow:
    job_id = await run.engine.start(scenario, ITEM, inputs or {}, f"{scenario} {asyncio.get_running_loop().time()}")
    await finished(run, job_id, 120)
    return job(run, job_id)


def job(run: Running, job_id: str) -> JobRow:
    with run.database.read() as session:
        return store.job(session, job_id)


def state(run: Running) -> str:
    with run.database.read() as session:
        return items.get(session, ITEM).protection_state


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def protected(run: Running) -> None:
    made = await done(run, "SwitchReplicationGroupProtection", REPROTECT_INPUTS)
    assert made.state == "Succeeded", [(error.code, error.message) for error in made.errors]
    assert state(run) == "Protected"


async def test_reprotect_asks_for_a_running_machine_and_goes_on_when_restarted(run: Running) -> None:
    with run.sites.change() as world:
        world["power"][CLOUD] = "Off"
    failed = await done(run, "SwitchReplicationGroupProtection", REPROTECT_INPUTS)
    assert (failed.state, failed.errors[0].code, failed.errors[0].task_name) == ("Failed", "78093", "DiscoverReplica")
    with run.sites.change() as world:
        world["power"][CLOUD] = "On"
    await run.engine.restart(failed.job_id)
    assert await finished(run, failed.job_id, 120) == "Succeeded"
    assert state(run) == "Protected"


async def test_a_missing_disk_is_created_and_sent_whole(run: Running) -> None:
    with run.sites.change() as world:
        world["missing"] = ["disk-1"]
    await protected(run)
    with run.database.read() as session:
        assert {disk.disk_id: disk.sync for disk in items.get(session, ITEM).disks} == {
            "disk-0": "compare",
            "disk-1": "full",
        }


async def test_a_cancelled_reprotect_puts_the_disks_back(run: Running) -> None:
    run.sites.knob("no capture", True)
    job_id = await run.engine.start("SwitchReplicationGroupProtection", ITEM, REPROTECT_INPUTS, "a")
    await until(
        lambda: store_task(run, job_id, "EnableDr").state == "InProgress" and state(run) == "UnprotectedStatesBegin"
    )
    with pytest.raises(ConflictError, match=job_id):
        await run.engine.start("DisableDr", ITEM, {}, "b")
    await run.engine.cancel(job_id)
    assert await finished(run, job_id, 120) == "Cancelled"
    seen = outcome(run.database, run.sites)
    assert seen["item"]["protection_state"] == "UnplannedFailoverCommitted"
    assert (seen["item"]["replicating"], seen["item"]["job"]) == (False, None)
    assert seen["item"]["floor"] > seen["item"]["epoch"]
    assert seen["world"]["log"] == ["replica attached", "replica rolled-back", "replica none"]
    assert run.sites.read()["chosen"] == "before"
    run.sites.knob("no capture", False)
    await run.engine.restart(job_id)
    assert await finished(run, job_id, 120) == "Succeeded"
    assert state(run) == "Protected"


def store_task(run: Running, job_id: str, name: str) -> Any:
    return store.task(job(run, job_id), name)


async def test_a_stalled_synchronisation_fails_and_is_restarted(tmp_path: Path) -> None:
    async with running(tmp_path, dataclasses.replace(QUICK, stall_seconds=3.0)) as run:
        run.sites.knob("no sync", True)
        await done(run, "SwitchReplicationGroupProtection", REPROTECT_INPUTS)
        with run.database.read() as session:
            completion = next(row for row in session.query(JobRow) if row.scenario == "IrCompletion")
        assert (completion.state, completion.errors[0].code) == ("Failed", "78169")
        assert state(run) == "UnprotectedStatesBegin"
        run.sites.knob("no sync", False)
        await run.engine.restart(completion.job_id)
        assert await finished(run, completion.job_id, 120) == "Succeeded"
        assert state(run) == "Protected"
        assert (store_task(run, completion.job_id, "IrCompletionTask").bytes_total) == 200


async def test_a_power_off_that_is_not_confirmed_in_the_lease_starts_nothing(run: Running) -> None:
    await protected(run)
    run.sites.knob(f"no stop {CLOUD}", True)
    failed = await done(run, "UnplannedFailover", {**FAILOVER, "lease_seconds": 6.0})
    assert (failed.state, failed.errors[0].code, failed.errors[0].retryable) == ("Failed", "FreezeLeaseLost", True)
    seen = outcome(run.database, run.sites)
    assert seen["world"]["power"] == {CLOUD: "On", HOME: "Off"}
    assert "home-vm on" not in seen["world"]["log"]
    assert seen["world"]["log"][-4:-2] == ["replica rolled-back", "thawed"]
    assert set(seen["world"]["log"][-2:]) == {"pass begun", "replica attached"}
    assert state(run) == "Protected"  # the comparison that followed is over
    run.sites.knob(f"no stop {CLOUD}", False)
    await run.engine.restart(failed.job_id)
    assert await finished(run, failed.job_id, 120) == "Succeeded"
    assert outcome(run.database, run.sites)["world"]["power"] == {CLOUD: "Off", HOME: "On"}
    assert job(run, failed.job_id).attempt == 2


async def test_a_point_that_takes_longer_than_the_lease_thaws_the_source(run: Running) -> None:
    await protected(run)
    run.sites.knob("ignored orders", ["prepare-point"])
    failed = await done(run, "UnplannedFailover", {**FAILOVER, "lease_seconds": 4.0})
    assert (failed.state, failed.errors[0].code) == ("Failed", "FreezeLeaseLost")
    seen = outcome(run.database, run.sites)
    assert seen["world"]["power"] == {CLOUD: "On", HOME: "Off"}
    assert "thawed" in seen["world"]["log"]
    assert "cloud-vm off" not in seen["world"]["log"]
    assert state(run) == "Protected"


async def test_a_machine_that_cannot_be_frozen_goes_on(run: Running) -> None:
    await protected(run)
    run.sites.knob("cannot freeze", True)
    failed = await done(run, "UnplannedFailover", FAILOVER)
    assert (failed.state, failed.errors[0].code) == ("Failed", "FreezeFailed")
    seen = outcome(run.database, run.sites)
    assert seen["world"]["log"] == ["replica attached", "pass begun"]
    assert (seen["item"]["protection_state"], seen["item"]["epoch"]) == ("Protected", 1)


async def test_a_failed_start_is_restarted_or_cancelled(run: Running) -> None:
    await protected(run)
    run.sites.knob(f"no start {HOME}", True)
    failed = await done(run, "UnplannedFailover", FAILOVER)
    assert (failed.state, failed.errors[0].code) == ("Failed", "8038")
    assert state(run) == "UnplannedFailoverCommitPendingStatesBegin"
    await run.engine.restart(failed.job_id)
    assert await finished(run, failed.job_id, 120) == "Failed"
    assert (await done(run, "CancelFailover")).state == "Succeeded"
    seen = outcome(run.database, run.sites)
    assert seen["world"]["power"] == {CLOUD: "On", HOME: "Off"}
    assert (state(run), seen["item"]["epoch"] > 1, seen["world"]["violations"]) == ("Protected", True, [])
    run.sites.knob(f"no start {HOME}", False)
    assert (await done(run, "UnplannedFailover", FAILOVER)).state == "Succeeded"


async def test_a_silent_twin_fails_the_job_and_may_be_committed(run: Running) -> None:
    await protected(run)
    run.sites.knob(f"silent {HOME}", True)
    failed = await done(run, "UnplannedFailover", FAILOVER)
    assert (failed.state, failed.errors[0].code) == ("Failed", "95226")
    run.sites.knob(f"silent {HOME}", False)
    await run.engine.restart(failed.job_id)
    assert await finished(run, failed.job_id, 120) == "Succeeded"
    assert (await done(run, "CommitFailover")).state == "Succeeded"
    seen = outcome(run.database, run.sites)
    assert (state(run), seen["item"]["live_side"]) == ("UnplannedFailoverCommitted", "onprem")
    assert seen["item"]["floor"] > seen["item"]["epoch"]


async def test_a_failback_cancelled_while_it_waits_goes_back_to_the_cloud(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await protected(run)
        run.sites.knob(f"silent {HOME}", True)
        job_id = await run.engine.start("UnplannedFailover", ITEM, FAILOVER, "a")
        await until(
            lambda: store_task(run, job_id, "VmFoStartVmOnSecondary").state_description.startswith(
                "waiting for the mob"
            )
        )
        await run.engine.cancel(job_id)
        assert await finished(run, job_id, 120) == "Cancelled"
        seen = outcome(run.database, run.sites)
        assert seen["world"]["power"] == {CLOUD: "On", HOME: "Off"}
        assert seen["world"]["log"][-5:-2] == ["home-vm off", "layer discarded", "cloud-vm on"]
        assert set(seen["world"]["log"][-2:]) == {"pass begun", "replica attached"}
        assert (state(run), seen["item"]["live_side"], seen["world"]["violations"]) == ("Protected", "cloud", [])


async def test_commit_is_refused_while_the_source_runs_and_completes_once_begun(run: Running) -> None:
    await protected(run)
    assert (await done(run, "UnplannedFailover", FAILOVER)).state == "Succeeded"
    run.sites.knob("fail commit-point", True)
    failed = await done(run, "CommitFailover")
    assert (failed.state, failed.errors[0].code) == ("Failed", "StorageFailed")
    cancelled = await done(run, "CancelFailover")
    assert (cancelled.state, cancelled.errors[0].code) == ("Failed", "CommitBegun")
    run.sites.knob("fail commit-point", False)
    await run.engine.restart(failed.job_id)
    assert await finished(run, failed.job_id, 120) == "Succeeded"
    assert outcome(run.database, run.sites)["world"]["log"][-2:] == ["replica committed", "layer merged"]


async def test_a_lost_source_is_failed_over_to_the_point_before_the_pass(tmp_path: Path) -> None:
    async with running(tmp_path, dataclasses.replace(QUICK, stall_seconds=3.0)) as run:
        run.sites.knob("no sync", True)
        await done(run, "SwitchReplicationGroupProtection", REPROTECT_INPUTS)
        with run.sites.change() as world:
            world["power"][CLOUD] = "Off"
        over = await done(run, "UnplannedFailover", {"selector": "point", "value": "before", "shut_down_source": False})
        assert over.state == "Succeeded", over.errors[0].message
        seen = outcome(run.database, run.sites)
        assert seen["world"]["power"] == {CLOUD: "Off", HOME: "On"}
        assert (state(run), run.sites.read()["chosen"]) == ("UnplannedFailoverCommitPendingStatesBegin", "before")


async def test_without_a_shutdown_the_source_has_to_be_off(run: Running) -> None:
    await protected(run)
    failed = await done(run, "UnplannedFailover", {**FAILOVER, "shut_down_source": False})
    assert (failed.state, failed.errors[0].code) == ("Failed", "SourceNotOff")
    assert outcome(run.database, run.sites)["world"]["log"] == ["replica attached", "pass begun"]


async def test_a_cancelled_completion_replicates_on_and_is_restarted(run: Running) -> None:
    run.sites.knob("no sync", True)
    job_id = await run.engine.start("SwitchReplicationGroupProtection", ITEM, REPROTECT_INPUTS, "a")
    assert await run.engine.wait(job_id, 10) == "Succeeded"
    with run.database.read() as session:
        completion = next(row.job_id for row in session.query(JobRow) if row.scenario == "IrCompletion")
    await run.engine.cancel(completion)
    assert await finished(run, completion, 120) == "Cancelled"
    run.sites.knob("no sync", False)
    await run.engine.restart(completion)
    assert await finished(run, completion, 120) == "Succeeded"
    assert state(run) == "Protected"


async def test_a_dead_master_target_does_not_keep_the_machine_from_going_back(tmp_path: Path) -> None:
    async with running(tmp_path, dataclasses.replace(QUICK, resume_seconds=0.5, prepare_seconds=1.0)) as run:
        await protected(run)
        assert (await done(run, "UnplannedFailover", FAILOVER)).state == "Succeeded"
        run.sites.knob("ignored orders", ["resume-replica"])
        assert (await done(run, "CancelFailover")).state == "Succeeded"
        seen = outcome(run.database, run.sites)
        assert seen["world"]["power"] == {CLOUD: "On", HOME: "Off"}
        assert seen["jobs"][-1][1] == "Failed"
        with run.database.read() as session:
            completion = session.query(JobRow).order_by(JobRow.created_wall_ns.desc()).first()
        run.sites.knob("ignored orders", [])
        await run.engine.restart(completion.job_id)
        assert await finished(run, completion.job_id, 120) == "Succeeded"
        assert (state(run), run.sites.read()["replica"]) == ("Protected", "attached")


async def test_points_by_the_policy_are_made_once_a_stretch(run: Running) -> None:
    await protected(run)
    schedule = ScheduledPoints(run.database, run.orders)
    assert await schedule.look() == []  # protected just now
    with run.sites.change() as world:
        world["begun_wall_ns"] -= 3700 * 10**9
    await asyncio.sleep(0.5)  # the next heartbeat of the master target brings the older points
    made = await asyncio.gather(schedule.look(), schedule.look())
    assert ["ledger"] in made
    assert outcome(run.database, run.sites)["world"]["log"].count("application-consistent mark") == 1


async def test_a_machine_that_enrols_anew_at_home_is_heard_and_becomes_the_items_agent(run: Running) -> None:
    """A point from before the first enrolment has no identity on its disks."""
    await protected(run)
    with run.database.write() as session:
        session.add(
            ComponentRow(component_id=NEWCOMER, role="mobility", hostname="ledger", hardware_id="hw-home", version="1",
                         enrolled_wall_ns=1)
        )  # fmt: skip
    run.sites.knob("enrolled anew", True)
    assert (
        await done(run, "UnplannedFailover", {**FAILOVER, "selector": "point", "value": "before"})
    ).state == "Succeeded"
    assert (await done(run, "CommitFailover")).state == "Succeeded"
    with run.database.read() as session:
        item = items.get(session, ITEM)
        assert (item.machine_id, item.live_side, item.protection_state) == (
            NEWCOMER,
            "onprem",
            "UnplannedFailoverCommitted",
        )
