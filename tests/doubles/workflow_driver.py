"""Runs jobs of the real engine, database, registry and workflows against :mod:`simulated_sites`; killed at will.

``python workflow_driver.py`` is a server on its standard input: each line is one run as JSON
``{"directory", "scenario", "inputs", "key", "faults", "seconds"}``; it forks (imports are paid once), arms the faults, runs the
job of that key until it and the job that follows it ended, and answers ``{"status": wait status, "outcome": {...}}``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simulated_sites as sites_of
from simulated_sites import Components, SimulatedFabric, Sites

from failback.configuration_server.app import jobs_url
from failback.configuration_server.database import Database, items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.jobs.engine import JobEngine
from failback.configuration_server.jobs.executor import DbosExecutor
from failback.configuration_server.registry import News, Orders, Registry
from failback.configuration_server.workflows.catalogue import scenarios
from failback.configuration_server.workflows.inputs import ReprotectInputs
from failback.configuration_server.workflows.world import Timing, World
from failback.protection.readiness import Check
from failback.runtime import faults

QUICK = Timing(
    agent_seconds=60, order_seconds=60, prepare_seconds=60, fabric_seconds=20, power_seconds=5, twin_seconds=60,
    stall_seconds=60, point_seconds=60, lease_seconds=120, heard_seconds=20,
)  # fmt: skip


@dataclass
class Running:
    database: Database
    engine: JobEngine
    sites: Sites
    orders: Orders
    world: World


async def _ready(_item_id: str, _inputs: ReprotectInputs, _job_id: str) -> list[Check]:
    return []


@asynccontextmanager
async def running(directory: Path, timing: Timing = QUICK, database_url: str = "") -> AsyncIterator[Running]:
    """``database_url``: an empty one; without it SQLite in the directory, which may be that of a run before."""
    fresh = bool(database_url) or not (directory / "configuration-server.sqlite").exists()
    database = Database(database_url) if database_url else Database.in_directory(directory)
    if fresh:
        database.upgrade()
        sites_of.fill(database)
    sites = Sites(directory / "sites.json")
    news = News()
    registry, orders = Registry(database, news), Orders(database, news)
    fabrics = {"cloud": SimulatedFabric(sites, sites_of.CLOUD), "home": SimulatedFabric(sites, sites_of.HOME)}
    world = World(orders, news, fabrics, _ready, timing)
    executor = DbosExecutor(jobs_url(database_url, directory), "test")
    engine = JobEngine(database, scenarios(world), executor, poll_seconds=0.03)
    beating = asyncio.create_task(Components(sites, registry).run())
    await engine.open()
    try:
        yield Running(database, engine, sites, orders, world)
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        await engine.close()
        news.close()
        database.close()


async def finished(run: Running, job_id: str, seconds: float) -> str:
    """Wait for the job and for those that follow it; returns the state of the first."""
    state = await run.engine.wait(job_id, seconds)
    while True:
        with run.database.read() as session:
            waiting = [
                row.job_id for row in session.query(JobRow) if row.state not in ("Succeeded", "Failed", "Cancelled")
            ]
        if not waiting or state not in ("Succeeded", "Failed", "Cancelled"):
            return state
        if await run.engine.wait(waiting[0], seconds) not in ("Succeeded", "Failed", "Cancelled"):
            raise TimeoutError(f"the job {waiting[0]} did not end")


def outcome(database: Database, sites: Sites) -> dict[str, Any]:
    """Everything by which two runs are compared: no ids, no times, no generations."""
    state = sites.read()
    with database.read() as session:
        item = items.get(session, sites_of.ITEM)
        jobs = [
            [
                row.scenario,
                row.state,
                [[task.name, task.state] for task in row.tasks],
                [error.code for error in row.errors],
            ]
            for row in session.query(JobRow).order_by(JobRow.created_wall_ns)
        ]
        shown = {
            "protection_state": item.protection_state, "stage": item.protection_stage, "live_side": item.live_side,
            "replicating": item.replicating, "epoch": item.epoch, "floor": item.epoch_floor, "layer": bool(item.layer_key),
            "job": item.current_job_id,
        }  # fmt: skip
    world = {key: state[key] for key in ("power", "layer", "replica", "log", "violations")}
    world["layer"] = bool(world["layer"])
    return {"item": shown, "jobs": jobs, "world": world}


async def _turn(run: Running, knobs: dict[str, Any]) -> None:
    """Turn the knobs, and wait until the registry heard of the disks."""
    for name, value in knobs.items():
        run.sites.knob(name, value)
    while "disks" in knobs:
        with run.database.read() as session:
            row = session.get(ComponentRow, sites_of.MACHINE)
            told = {disk["device_match"]: disk["size_bytes"] for disk in (row.status if row else {}).get("disks", ())}
        if told == knobs["disks"]:
            return
        await asyncio.sleep(0.02)


async def _one(wanted: dict[str, Any], answer: int) -> None:
    """Leaves the process itself, without a tidy stop: what is recorded has to be enough."""
    async with running(Path(wanted["directory"])) as run:
        await _turn(run, wanted.get("knobs", {}))
        job_id = await run.engine.start(wanted["scenario"], sites_of.ITEM, wanted["inputs"], wanted["key"])
        await finished(run, job_id, wanted["seconds"])
        os.write(answer, json.dumps(outcome(run.database, run.sites)).encode())
        os._exit(0)


def _child(wanted: dict[str, Any], answer: int) -> None:
    faults.arm(wanted["faults"])
    try:
        asyncio.run(_one(wanted, answer))
    except BaseException as error:
        os.write(answer, json.dumps({"error": repr(error)}).encode())
        os._exit(3)


def main() -> None:
    for line in sys.stdin:
        wanted = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _child(wanted, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            said = stream.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": status, "outcome": json.loads(said) if said else None}), flush=True)


if __name__ == "__main__":
    main()
