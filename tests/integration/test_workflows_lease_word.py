"""The agent's last word may be older than a thaw: the source is powered off only when it says *now* that it is frozen (D20)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from simulated_sites import CLOUD, HOME, ITEM, REPROTECT_INPUTS
from workflow_driver import finished, outcome, running

from failback.configuration_server.jobs import store


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def test_an_agent_that_fell_silent_after_its_freeze_is_not_powered_off(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        made = await run.engine.start("SwitchReplicationGroupProtection", ITEM, REPROTECT_INPUTS, "a")
        assert await finished(run, made, 120) == "Succeeded"
        await _until(lambda: outcome(run.database, run.sites)["item"]["protection_state"] == "Protected")
        run.sites.knob("ignored orders", ["prepare-point"])
        inputs = {"selector": "latest", "value": "", "shut_down_source": True, "lease_seconds": 9.0}
        job_id = await run.engine.start("UnplannedFailover", ITEM, inputs, "b")

        def prepares() -> object:
            with run.database.read() as session:
                return store.recall(session, job_id, "VmShutdownVmOnPrimary", "prepare")

        await _until(prepares)  # the freeze was reported: the stored word says "frozen"
        with run.sites.change() as world:  # the agent is killed, its watchdog thaws, and nobody can say so
            world["knobs"] |= {f"silent {CLOUD}": True, "ignored orders": []}
            world["agent"]["frozen"] = ""
        await _until(lambda: "replica rolled-back" in run.sites.read()["log"])
        await asyncio.sleep(5)
        assert "cloud-vm off" not in run.sites.read()["log"]
        run.sites.knob(f"silent {CLOUD}", False)
        assert await finished(run, job_id, 120) == "Failed"
        with run.database.read() as session:
            assert store.job(session, job_id).errors[0].code == "FreezeLeaseLost"
        assert run.sites.read()["power"] == {CLOUD: "On", HOME: "Off"}
        assert not run.sites.read()["violations"]
