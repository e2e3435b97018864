"""Changing the recovery point before the commit: what is refused, what a failure leaves, and that no restart comes too late."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from simulated_sites import CLOUD, HOME, ITEM, NEWCOMER, REPROTECT_INPUTS
from workflow_driver import QUICK, Running, finished, outcome, running

from failback.configuration_server.database import items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.jobs import store

CHANGE = "ChangeRecoveryPoint"
FAILOVER = {"selector": "latest", "value": "", "shut_down_source": True}
BEFORE = {"selector": "point", "value": "before"}
AT_HOME = {CLOUD: "Off", HOME: "On"}


@pytest.fixture
async def run(tmp_path: Path, database_url: str) -> AsyncIterator[Running]:
    """A machine that failed back to the latest point and waits for its commit."""
    async with running(tmp_path, dataclasses.replace(QUICK, twin_seconds=20.0), database_url) as made:
        assert (await done(made, "SwitchReplicationGroupProtection", REPROTECT_INPUTS)).state == "Succeeded"
        assert (await done(made, "UnplannedFailover", FAILOVER)).state == "Succeeded"
        yield made


async def done(run: Running, scenario: str, inputs: dict[str, Any] | None = None) -> JobRow:
    job_id = await run.engine.start(scenario, ITEM, inputs or {}, f"{scenario} {asyncio.get_running_loop().time()}")
    await finished(run, job_id, 120)
    return job(run, job_id)


def job(run: Running, job_id: str) -> JobRow:
    with run.database.read() as session:
        return store.job(session, job_id)


def item(run: Running) -> ItemRow:
    with run.database.read() as session:
        return items.get(session, ITEM)


def world(run: Running) -> dict[str, Any]:
    found: dict[str, Any] = outcome(run.database, run.sites)["world"]
    return found


def code(failed: JobRow) -> tuple[str, str]:
    return failed.state, failed.errors[0].code if failed.errors else ""


async def test_the_machine_starts_again_at_the_other_point_and_may_be_committed(run: Running) -> None:
    begun = world(run)["log"]
    changed = await done(run, CHANGE, BEFORE)
    assert changed.state == "Succeeded", [(error.code, error.message) for error in changed.errors]
    seen = world(run)
    assert seen["log"][len(begun) :] == [
        "home-vm off", "layer discarded", "replica attached", "replica rolled-back", "replica released", "layer laid",
        "home-vm on",
    ]  # fmt: skip
    assert (seen["power"], seen["violations"]) == (AT_HOME, [])
    row = item(run)
    assert (row.chosen_point_id, row.live_side, row.protection_stage) == ("before", "onprem", "")
    assert row.protection_state == "UnplannedFailoverCommitPendingStatesBegin"
    assert (await done(run, "CommitFailover")).state == "Succeeded"
    assert item(run).protection_state == "UnplannedFailoverCommitted"
    assert world(run)["log"][-2:] == ["replica committed", "layer merged"]


async def test_what_is_refused_leaves_the_machine_running(run: Running) -> None:
    begun = world(run)["log"]
    assert code(await done(run, CHANGE, {"selector": "point", "value": "nowhere"})) == (
        "Failed",
        "RecoveryPointNotFound",
    )
    run.sites.knob("fail commit-point", True)
    assert (await done(run, "CommitFailover")).state == "Failed"
    assert code(await done(run, CHANGE, BEFORE)) == ("Failed", "CommitBegun")
    assert (world(run)["log"], world(run)["power"]) == (begun, AT_HOME)


async def test_a_failed_change_cannot_be_committed_and_is_restarted_from_its_beginning(run: Running) -> None:
    run.sites.knob("fail prepare-point", True)
    failed = await done(run, CHANGE, BEFORE)
    assert code(failed) == ("Failed", "StorageFailed")
    assert world(run)["power"] == {CLOUD: "Off", HOME: "Off"}
    assert code(await done(run, "CommitFailover")) == ("Failed", "FailoverIncomplete")
    run.sites.knob("fail prepare-point", False)
    await run.engine.restart(failed.job_id)
    assert await finished(run, failed.job_id, 120) == "Succeeded"
    assert (world(run)["power"], item(run).chosen_point_id) == (AT_HOME, "before")
    assert (await done(run, "CommitFailover")).state == "Succeeded"


async def test_after_a_failed_change_another_point_is_chosen(run: Running) -> None:
    run.sites.knob("fail prepare-point", True)
    assert (await done(run, CHANGE, BEFORE)).state == "Failed"
    run.sites.knob("fail prepare-point", False)
    assert (await done(run, CHANGE, {"selector": "latest", "value": ""})).state == "Succeeded"
    assert (world(run)["power"], world(run)["violations"]) == (AT_HOME, [])
    assert item(run).chosen_point_id != "before"


async def test_a_failed_change_is_called_off_with_the_failover_and_its_restart_comes_too_late(run: Running) -> None:
    run.sites.knob("fail prepare-point", True)
    failed = await done(run, CHANGE, BEFORE)
    run.sites.knob("fail prepare-point", False)
    assert (await done(run, "CancelFailover")).state == "Succeeded"
    seen = world(run)
    assert (seen["power"], seen["replica"], item(run).protection_state) == (
        {CLOUD: "On", HOME: "Off"}, "attached", "Protected",
    )  # fmt: skip
    await run.engine.restart(failed.job_id)
    assert await finished(run, failed.job_id, 120) == "Failed"
    assert job(run, failed.job_id).errors[-1].code == "OperationNotAllowed"
    assert (world(run)["log"], world(run)["replica"]) == (seen["log"], "attached")


async def test_a_machine_that_enrolled_anew_at_the_first_point_is_not_the_items_agent_after_the_change(
    tmp_path: Path, database_url: str
) -> None:
    async with running(tmp_path, dataclasses.replace(QUICK, twin_seconds=20.0), database_url) as run:
        assert (await done(run, "SwitchReplicationGroupProtection", REPROTECT_INPUTS)).state == "Succeeded"
        with run.database.write() as session:
            session.add(
                ComponentRow(component_id=NEWCOMER, role="mobility", hostname="ledger", hardware_id="hw-home", version="1",
                             enrolled_wall_ns=1)
            )  # fmt: skip
        run.sites.knob("enrolled anew", True)
        assert (await done(run, "UnplannedFailover", {**FAILOVER, **BEFORE})).state == "Succeeded"
        run.sites.knob("enrolled anew", False)
        machine_id = item(run).machine_id
        assert (await done(run, CHANGE, {"selector": "latest", "value": ""})).state == "Succeeded"
        assert (await done(run, "CommitFailover")).state == "Succeeded"
        assert item(run).machine_id == machine_id != NEWCOMER
