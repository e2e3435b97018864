"""A whole control plane in one process for tests of the API and the command line: ``python api_site.py DIRECTORY``.

The product's own database, certificates, registry, job engine, workflows and API on a real TLS port; the two sites, the
agent, the process server and the master target are the doubles of :mod:`simulated_sites`, which also answer probes and
report a retention volume and a datastore here. ``knobs`` in ``sites.json`` make things go wrong.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import simulated_sites as sites_of
from simulated_sites import Components, SimulatedAzure, SimulatedFabric, SimulatedVSphere, Sites
from workflow_driver import QUICK

from failback.configuration_server import app, serving
from failback.configuration_server.api import Services, SiteFabric, Surroundings
from failback.configuration_server.api.readiness import preflight_of
from failback.configuration_server.config import BACKUP_MARKER, ServerConfig
from failback.configuration_server.database import items
from failback.configuration_server.jobs.engine import JobEngine
from failback.configuration_server.jobs.executor import DbosExecutor
from failback.configuration_server.monitors.repairs import Repairs
from failback.configuration_server.registry import Registry
from failback.configuration_server.workflows.catalogue import scenarios
from failback.configuration_server.workflows.world import World
from failback.model import orders as kinds
from failback.model.components import (
    DiskFacts,
    MasterTargetStatus,
    MobilityStatus,
    Order,
    ProcessServerStatus,
    Role,
    VolumeFacts,
)
from failback.protection.operations import Side
from failback.runtime import records

GIB = 1 << 30


class Site(Components):
    """Adds what readiness looks at."""

    def __init__(self, sites: Sites, registry: Registry) -> None:
        super().__init__(sites, registry)
        self._taken["process-server"] = (0, None)

    async def beat(self) -> None:
        await super().beat()
        if not self._sites.read()["knobs"].get("silent process server"):
            status = ProcessServerStatus(9443, 4 * GIB, 3 * GIB)
            orders, _ = await self._heartbeat(
                "process-server", sites_of.PROCESS_SERVER, Role.PROCESS_SERVER, "hw-ps", status
            )
            for order in orders:
                self._carry_out(order, self._probed)
        if self._sites.read()["knobs"].get("second process server"):
            status = ProcessServerStatus(9443, 4 * GIB, self._sites.read()["knobs"].get("second free", 3) * GIB)
            self._taken.setdefault("process-server-2", (0, None))
            orders, _ = await self._heartbeat(
                "process-server-2", "process-server-2", Role.PROCESS_SERVER, "hw-ps-2", status
            )
            for order in orders:
                self._carry_out(order, self._probed)

    def _agent_status(self, machine: str) -> MobilityStatus:
        disks = tuple(DiskFacts(f"/dev/vd{n}", f"serial:serial-{n}", 1 << 20, n == 0) for n in range(2))
        return replace(super()._agent_status(machine), disks=disks, self_test="passed")

    def _agent_order(self, state: dict[str, Any], order: Order) -> dict[str, Any]:
        return self._probed(state, order) if order.kind == kinds.PROBE else super()._agent_order(state, order)

    def _master_target_order(self, state: dict[str, Any], order: Order) -> dict[str, Any]:
        return self._probed(state, order) if order.kind == kinds.PROBE else super()._master_target_order(state, order)

    def _master_target_status(self) -> MasterTargetStatus:
        return replace(
            super()._master_target_status(),
            retention_volumes=(VolumeFacts("retention", "/mnt/retention", "xfs", 100 * GIB, 90 * GIB),
                               VolumeFacts("small", "/mnt/small", "vfat", GIB, GIB, "The file system is FAT32."),),
            datastores=(VolumeFacts("store", "/store", "ext4", 100 * GIB, 50 * GIB),),
        )  # fmt: skip

    def _probed(self, state: dict[str, Any], order: Order) -> dict[str, Any]:
        blocked = state["knobs"].get("blocked", ())
        targets = order.arguments["targets"]
        encoded: dict[str, Any] = records.encode(
            kinds.ProbeResult(
                {target: "timed out" if target in blocked else "" for target in targets},
                {target: state["knobs"].get("milliseconds", 1.0) for target in targets if target not in blocked},
            )
        )
        return encoded


async def serve(directory: Path) -> None:
    config = ServerConfig(directory / "state", listen_host="127.0.0.1", listen_port=0, monitor_seconds=0.5)
    assembled = app.open_server(config)
    database = assembled.database
    with database.read() as session:
        fresh = session.get(sites_of.ComponentRow, sites_of.MACHINE) is None
    if fresh:
        sites_of.fill(database)
        with database.write() as session:  # the item is imported through the API
            session.delete(items.get(session, sites_of.ITEM))
    sites = Sites(directory / "sites.json")
    vsphere = sites.read()["knobs"].get("described", False)
    home, away = (SimulatedVSphere, SimulatedAzure) if vsphere else (SimulatedFabric, SimulatedFabric)
    fabrics = {
        "cloud": SiteFabric("cloud", Side.CLOUD, "simulated", away(sites, sites_of.CLOUD)),
        "home": SiteFabric("home", Side.ON_PREMISES, "vsphere" if vsphere else "kvm", home(sites, sites_of.HOME)),
    }
    around = Surroundings(
        database=database, orders=assembled.orders, news=assembled.news, fabrics=fabrics,
        heartbeat_alarm_seconds=5.0, probe_seconds=5.0, version="1",
        network_cards=directory / "network-cards", backup_marker=directory / "state" / BACKUP_MARKER, page_rows=3,
    )  # fmt: skip
    world = World(
        assembled.orders,
        assembled.news,
        {name: site.fabric for name, site in fabrics.items()},
        preflight_of(around),
        QUICK,
    )
    engine = JobEngine(
        database, scenarios(world), DbosExecutor(f"sqlite:///{directory / 'jobs.sqlite'}", "api"), poll_seconds=0.03
    )
    services = Services(
        **{field.name: getattr(around, field.name) for field in fields(around)},
        jobs=engine,
        groups=assembled.groups,
        view_certificates=assembled.installation.authority,
    )
    application = app.application_of(config, services, assembled.desk, assembled.registry)
    (directory / "openapi.json").write_text(json.dumps(application.openapi()))
    await engine.open()
    before = directory / "port"
    listening = serving.bind("127.0.0.1", int(before.read_text()) if before.exists() else 0)
    before.write_text(str(listening.getsockname()[1]))
    server = serving.server_for(application, assembled.installation)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve([listening]))
        group.create_task(Site(sites, assembled.registry).run())
        group.create_task(Repairs(database, engine).run(0.3))
        while not server.started:
            await asyncio.sleep(0.01)
        serving.describe(directory, listening)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(Path(sys.argv[1])))
