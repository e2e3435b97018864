"""Two sites, an agent and a master target as doubles whose state is one JSON file: it outlives a killed process.

The doubles speak to the *real* registry (heartbeats, assignments, orders) over a real database, so fencing, twins and
generations are the product's own. They keep ``log``: every change of state that really took place, in order, so that a run
that was killed anywhere can be compared with one that was not. What must never happen is recorded in ``violations``.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from failback.configuration_server.database import Database, items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.items import ItemDiskRow, ItemRow
from failback.configuration_server.registry import Registry
from failback.errors import ConflictError, FabricError, FailbackError, NotFoundError
from failback.fabric.interfaces import Datastore, FabricDisk, FabricMachine, PowerState, Progress
from failback.model import orders as kinds
from failback.model.components import (
    ComparisonStatus,
    DiskFacts,
    Heartbeat,
    MasterTargetStatus,
    MobilityStatus,
    Order,
    OrderReport,
    OrderState,
    ReplicaStatus,
    Role,
    ScrubFinding,
    ScrubStatus,
    SyncProgress,
    ViewExport,
    ViewStatus,
)  # fmt: skip
from failback.model.ids import DiskId, MachineId, PassId, PointId
from failback.model.points import Gap, PointKind, RecoveryPoint
from failback.protection.readiness import AzureFacts, VSphereDatastore, VSphereFacts, VSphereMachine
from failback.runtime import records
from failback.runtime.clock import SystemClock

ITEM, MACHINE, PROCESS_SERVER, MASTER_TARGET = "item-1", "machine-1", "process-server-1", "master-target-1"
NEWCOMER = "machine-2"
CLOUD, HOME = "cloud-vm", "home-vm"
HARDWARE = {CLOUD: "hw-cloud", HOME: "hw-home"}
DISKS = ("disk-0", "disk-1")

REPROTECT_INPUTS = {
    "process_server_id": PROCESS_SERVER, "master_target_id": MASTER_TARGET, "retention_volume": "retention",
    "datastore": "store", "policy_name": "",
}  # fmt: skip

BEGINNING: dict[str, Any] = {
    "power": {CLOUD: "On", HOME: "Off"},
    "layer": "",
    "replica": "none",
    "replica_epoch": 0,
    "chosen": "",
    "marks": [],
    "points": [],
    "agent": {"epoch": 0, "pass_id": "", "ticks": 0, "frozen": "", "capture": "idle"},
    "missing": [],
    "views": {},
    "results": {},
    "log": [],
    "violations": [],
    "knobs": {},
}


class Sites:
    """The file and its changes. ``knobs`` make things go wrong on purpose (see where they are read)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        if not path.exists():
            self._store({**json.loads(json.dumps(BEGINNING)), "begun_wall_ns": time.time_ns()})

    def read(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.path.read_text())
        return state

    def _store(self, state: dict[str, Any]) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(state))
        os.replace(fresh, self.path)

    @contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        with self._lock, self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a test turns knobs while its server runs
            state = self.read()
            yield state
            if state["power"] == {CLOUD: "On", HOME: "On"} and "both on" not in state["violations"]:
                state["violations"].append("both on")
            self._store(state)

    def knob(self, name: str, value: Any) -> None:
        with self.change() as state:
            state["knobs"][name] = value


class SimulatedFabric:
    """One of the two sites; implements :class:`failback.fabric.interfaces.Fabric`."""

    def __init__(self, sites: Sites, machine: str) -> None:
        self._sites = sites
        self._machine = machine

    def probe(self) -> str:
        return ""

    def _shown(self) -> dict[str, Any]:
        """The knob ``fabric``: what this site shows instead of the ordinary."""
        shown: dict[str, Any] = self._sites.read()["knobs"].get("fabric", {}).get(self._machine, {})
        if shown.get("problem"):
            raise FabricError(shown["problem"])
        return shown

    def machines(self) -> tuple[FabricMachine, ...]:
        shown = self._shown()
        others = tuple(
            FabricMachine(f"other-{index}", name, hardware, PowerState.OFF, "bios", ())
            for index, (name, hardware) in enumerate(shown.get("others", ()))
        )
        return others if shown.get("gone") else (self.machine(self._machine), *others)

    def machine(self, name_or_id: str) -> FabricMachine:
        shown = self._shown()
        if name_or_id != self._machine or shown.get("gone"):
            raise NotFoundError(f"no machine {name_or_id}")
        state = self._sites.read()
        disks = tuple(
            FabricDisk(
                index, f"vd{index}", f"serial-{index}", shown.get("path", f"/store/{index}.img"), "raw",
                shown.get("size_bytes", 1 << 20), disk in state["missing"] or shown.get("missing", False),
                shown.get("backing", False),
            )
            for index, disk in enumerate(DISKS)
        )  # fmt: skip
        power = PowerState(state["power"][self._machine])
        return FabricMachine(
            self._machine, self._machine, HARDWARE[self._machine], power, shown.get("firmware", "bios"), disks,
            shown.get("kind", "virtual"),
        )  # fmt: skip

    def datastores(self) -> tuple[Datastore, ...]:
        return (Datastore("store", "/store", "dir", 1 << 40, 1 << 39),)

    def power_state(self, fabric_id: str) -> PowerState:
        return PowerState(self._sites.read()["power"][fabric_id])

    def power_on(self, fabric_id: str) -> None:
        with self._sites.change() as state:
            if state["knobs"].get(f"no start {fabric_id}"):
                raise FabricError("not enough memory on the host")
            if fabric_id == HOME and state["replica"] in ("attached", "rolled-back"):
                raise FabricError("the disks are locked by another process")
            if state["power"][fabric_id] != "On":
                state["power"][fabric_id] = "On"
                state["log"].append(f"{fabric_id} on")
                if fabric_id == CLOUD:
                    state["agent"]["capture"] = "idle"

    def power_off(self, fabric_id: str) -> None:
        with self._sites.change() as state:
            if state["knobs"].get(f"no stop {fabric_id}"):
                return
            if state["power"][fabric_id] != "Off":
                if fabric_id == CLOUD and not state["agent"]["frozen"]:
                    state["violations"].append("the source was powered off without a freeze")
                state["power"][fabric_id] = "Off"
                state["log"].append(f"{fabric_id} off")
                if fabric_id == CLOUD:
                    state["agent"].update(frozen="", capture="idle")

    def add_disk(self, fabric_id: str, path: str, file_format: str, serial: str) -> str:
        with self._sites.change() as state:
            added = state.setdefault("added", [])
            if path not in added:
                if state["power"][fabric_id] != "Off" or state["layer"]:
                    raise ConflictError("the machine runs, or on a layer")
                added.append(path)
                state["log"].append(f"disk added {path}")
            return f"vdx{added.index(path)}"

    def lay(self, fabric_id: str, key: str) -> None:
        with self._sites.change() as state:
            if state["power"][fabric_id] != "Off" or state["replica"] != "released":
                raise ConflictError("a layer needs released disks and a machine that is off")
            if state["layer"] != key:
                state["layer"] = key
                state["log"].append("layer laid")

    def merge(self, fabric_id: str, key: str, progress: Progress) -> None:
        with self._sites.change() as state:
            progress(1, 2)
            if state["layer"] == key:
                state["layer"] = ""
                state["log"].append("layer merged")
            progress(2, 2)

    def discard(self, fabric_id: str, key: str) -> None:
        with self._sites.change() as state:
            if state["power"][fabric_id] != "Off":
                raise ConflictError("the machine runs")
            if state["layer"] == key:
                state["layer"] = ""
                state["log"].append("layer discarded")

    def layered(self, fabric_id: str, key: str) -> bool:
        return bool(self._sites.read()["layer"] == key)


class SimulatedVSphere(SimulatedFabric):
    """Tells what a vSphere fabric would: sound, but for what the knob ``vsphere`` changes."""

    def vsphere(self, fabric_id: str, master_target_hardware_id: str) -> VSphereFacts:
        changes = self._sites.read()["knobs"].get("vsphere", {})
        deleted = changes.get("machine", {}) is None
        facts = VSphereFacts(
            "ESXi", "8.0", "enterprise", "vc-1", True, "esx-1",
            VSphereMachine("mt", **_tuples({"disk_ids": ["serial:mt"], **changes.get("master_target", {})})),
            None if deleted else VSphereMachine(
                fabric_id,
                **_tuples({"datastores": ["store"], "addresses": ["10.0.0.5"], **(changes.get("machine") or {})}),
            ),
            (VSphereDatastore(**{"name": "store", "kind": "VMFS", **changes.get("datastore", {})}),),
            original_vcenter="vc-1",
        )  # fmt: skip
        return replace(facts, **_tuples(changes.get("facts", {})))


class SimulatedAzure(SimulatedFabric):
    """Tells what an Azure fabric would; the knob ``azure`` changes it."""

    def azure(self, fabric_id: str) -> AzureFacts:
        facts = AzureFacts("rg-1", "rg-1", "vpn", ("10.1.0.5",))
        return replace(facts, **_tuples(self._sites.read()["knobs"].get("azure", {})))


def _tuples(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}


def fill(database: Database) -> None:
    """Rows of a machine that failed over to the cloud, and of the components that serve it."""
    with database.write() as session:
        for component_id, role, hardware in (
            (MACHINE, Role.MOBILITY, HARDWARE[CLOUD]),
            (PROCESS_SERVER, Role.PROCESS_SERVER, "hw-ps"),
            (MASTER_TARGET, Role.MASTER_TARGET, "hw-mt"),
        ):
            session.add(
                ComponentRow(component_id=component_id, role=role.value, hostname=component_id, hardware_id=hardware,
                             version="1", addresses=["127.0.0.1"], enrolled_wall_ns=1)
            )  # fmt: skip
        session.flush()
        item = ItemRow(
            item_id=ITEM, name="ledger", friendly_name="ledger", machine_id=MACHINE, created_wall_ns=1,
            on_premises_fabric="home", on_premises_fabric_id=HOME, on_premises_name=HOME,
            on_premises_hardware_id=HARDWARE[HOME], cloud_fabric="cloud", cloud_fabric_id=CLOUD, cloud_name=CLOUD,
            cloud_hardware_id=HARDWARE[CLOUD], live_side=items.CLOUD,
            disks=[
                ItemDiskRow(disk_id=disk, index=index, device_match=f"serial-{index}", serial=f"serial-{index}",
                            size_bytes=1 << 20, cloud_size_bytes=1 << 20)
                for index, disk in enumerate(DISKS)
            ],
        )  # fmt: skip
        session.add(item)


class Components:
    """Agent (on whichever side runs) and master target: heartbeats to the real registry, orders carried out on the file."""

    def __init__(self, sites: Sites, registry: Registry) -> None:
        self._sites = sites
        self._registry = registry
        self._clock = SystemClock()
        self._taken = {CLOUD: (0, None), HOME: (0, None), MASTER_TARGET: (0, None)}

    async def run(self, pause_seconds: float = 0.03) -> None:
        """Until cancelled."""
        while True:
            await self.beat()
            await asyncio.sleep(pause_seconds)

    async def beat(self) -> None:
        state = self._sites.read()
        for machine in (CLOUD, HOME):
            if state["power"][machine] == "On" and not state["knobs"].get(f"silent {machine}"):
                await self._agent(machine)
        if not state["knobs"].get("silent master target"):
            await self._master_target()

    async def _enrolled_anew(self) -> None:
        """The disks of the chosen point know nothing of the item's agent: another component speaks from home."""
        await self._heartbeat(HOME, NEWCOMER, Role.MOBILITY, HARDWARE[HOME], MobilityStatus())

    async def _agent(self, machine: str) -> None:
        if machine == HOME and self._sites.read()["knobs"].get("enrolled anew"):
            await self._enrolled_anew()
            return
        orders, assignment = await self._heartbeat(
            machine, MACHINE, Role.MOBILITY, HARDWARE[machine], self._agent_status(machine)
        )
        with self._sites.change() as state:
            agent = state["agent"]
            if machine == HOME:
                if assignment is not None and assignment["active"]:
                    state["violations"].append("the twin was told to stream")
                return
            if assignment is not None and not state["knobs"].get("no capture"):
                known = (agent["epoch"], agent["pass_id"])
                if assignment["active"] and known != (assignment["epoch"], assignment["pass_id"]):
                    agent.update(epoch=assignment["epoch"], pass_id=assignment["pass_id"], ticks=0)
                    state["log"].append("pass begun")
                working = "comparing" if assignment["comparison_seconds"] else "capturing"
                agent["capture"] = working if assignment["active"] else "idle"
                agent["comparison_seconds"] = assignment["comparison_seconds"]
            if agent["capture"] in ("capturing", "comparing") and not state["knobs"].get("no sync"):
                agent["ticks"] += 1
        for order in orders:
            self._carry_out(order, self._agent_order)

    def _agent_status(self, machine: str) -> MobilityStatus:
        agent = self._sites.read()["agent"]
        if machine == HOME:
            return MobilityStatus()
        done, every = agent["ticks"] >= 3, agent.get("comparison_seconds", 0)
        sync = tuple(SyncProgress(DiskId(disk), 100, min(100, agent["ticks"] * 34), 10, 10, done) for disk in DISKS)
        return MobilityStatus(
            capture=agent["capture"], self_test="failed" if every else "passed",
            epoch=agent["epoch"], pass_id=PassId(agent["pass_id"]),
            disks=self._disks(), sync_done=done, sync=sync, landed_sequence=min(99, agent["ticks"]),
            freeze="frozen" if agent["frozen"] else "", linked=True,
            problem=self._problem("agent problem", agent["epoch"]),
            comparison=ComparisonStatus(every, smeared=2) if every else None,
            scrub=records.decode(agent["scrub"], ScrubStatus) if agent.get("scrub") else None,
        )  # fmt: skip

    def _disks(self) -> tuple[DiskFacts, ...]:
        """The knob ``disks`` holds {match: size}."""
        seen = self._sites.read()["knobs"].get("disks", {})
        return tuple(DiskFacts(f"/dev/{match}", match, size, False) for match, size in seen.items())

    def _problem(self, knob: str, epoch: int) -> str:
        """The knob holds [epoch, problem]; epoch 0: every one."""
        ended, problem = self._sites.read()["knobs"].get(knob, (-1, ""))
        return problem if ended in (0, epoch) else ""

    def _agent_order(self, state: dict[str, Any], order: Order) -> dict[str, Any]:
        agent = state["agent"]
        if order.kind == kinds.SCRUB:
            found = (ScrubFinding(1, 65536, 8192, 1),)
            status = ScrubStatus(
                order.arguments["scrub_id"], "finished", 1, time.time_ns(), 2 << 20, 2 << 20, found, 8192
            )
            agent["scrub"] = records.encode(status)
            return {}
        if order.kind == kinds.THAW:
            if agent["frozen"]:
                agent["frozen"] = ""
                state["log"].append("thawed")
            return {}
        mark = order.arguments["mark_id"]
        if order.kind == kinds.FREEZE_LEASE:
            if state["knobs"].get("cannot freeze"):
                raise FailbackError("vfat cannot be frozen", code="FreezeFailed")
            agent["frozen"] = mark
            state["log"].append("frozen")
        else:
            state["log"].append("application-consistent mark")
        kind = PointKind.FINAL if order.kind == kinds.FREEZE_LEASE else PointKind.APP_CONSISTENT
        state["marks"].append(mark)
        state["points"].append([mark, kind.value, agent["epoch"]])
        marked = kinds.Marked(mark, agent["epoch"], agent["ticks"], agent["ticks"] * 100, 1.5)
        encoded: dict[str, Any] = records.encode(marked)
        return encoded

    async def _master_target(self) -> None:
        with self._sites.change() as state:
            agent, epoch = state["agent"], state["agent"]["epoch"]
            done = agent["ticks"] >= 3 and state["replica_epoch"] == epoch and not agent.get("comparison_seconds")
            if done and not any(point[2] == epoch for point in state["points"]):
                state["points"].append([f"point-of-{epoch}", PointKind.CRASH_CONSISTENT.value, epoch])
        orders, assignment = await self._heartbeat(
            MASTER_TARGET, MASTER_TARGET, Role.MASTER_TARGET, "hw-mt", self._master_target_status()
        )
        with self._sites.change() as state:
            accepted = [each for each in (assignment or {}).get("replicas", ()) if each["machine_id"] == MACHINE]
            if accepted and state["replica"] == "attached":
                state["replica_epoch"] = accepted[0]["epoch"]
        for order in orders:
            self._carry_out(order, self._master_target_order)

    def _master_target_status(self) -> MasterTargetStatus:
        state = self._sites.read()
        if state["replica"] == "none":
            return MasterTargetStatus()
        points = tuple(
            RecoveryPoint(
                PointId(point), MachineId(MACHINE), PointKind(kind), state["begun_wall_ns"] + index, epoch, index, index
            )
            for index, (point, kind, epoch) in enumerate(state["points"])
        )
        done = state["agent"]["ticks"] >= 3 and state["replica_epoch"] == state["agent"]["epoch"]
        done = done and not state["agent"].get("comparison_seconds")  # it writes all the time
        replica = ReplicaStatus(
            MachineId(MACHINE), state["replica"], state["replica_epoch"], "incarnation-1", 99, 1, 1, done, points=points,
            problem=self._problem("replica problem", state["replica_epoch"]),
            gaps=tuple(Gap(*gap) for gap in state["knobs"].get("gaps", ())),
        )  # fmt: skip
        views = tuple(records.decode(view, ViewStatus) for view in state["views"].values())
        return MasterTargetStatus(replicas=(replica,), views=views)

    def _master_target_order(self, state: dict[str, Any], order: Order) -> dict[str, Any]:
        def become(name: str) -> None:
            if state["replica"] != name:
                state["replica"] = name
                state["log"].append(f"replica {name}")

        if state["knobs"].get(f"fail {order.kind}"):
            raise FailbackError("the retention volume failed", code="StorageFailed")
        if order.kind == kinds.ATTACH_REPLICA:
            if state["replica"] == "none":
                state["points"].append(["before", PointKind.BEFORE_REPROTECT.value, 0])
            become("attached")
            known = {disk["disk_id"] for disk in state.get("attached", ())}
            joined = [disk["disk_id"] for disk in order.arguments["disks"] if known and disk["disk_id"] not in known]
            state["attached"] = order.arguments["disks"]
            result = kinds.AttachedReplica("incarnation-1", (*state["missing"], *joined))
            state["missing"] = []
            encoded: dict[str, Any] = records.encode(result)
            return encoded
        if order.kind == kinds.PREPARE_POINT:
            return self._prepared(state, order, become)
        if order.kind == kinds.SCRUB:
            return {}
        if order.kind in (kinds.OPEN_VIEW, kinds.CLOSE_VIEW):
            return self._viewed(state, order)
        if order.kind == kinds.DETACH_REPLICA and state["replica"] == "none":
            raise NotFoundError("no such replica")
        if order.kind == kinds.DETACH_REPLICA:
            state["points"] = []
        if order.kind == kinds.RELEASE_REPLICA and state["power"][CLOUD] != "Off":
            state["violations"].append("released while the source runs")
        become({kinds.RELEASE_REPLICA: "released", kinds.RESUME_REPLICA: "attached", kinds.COMMIT_POINT: "committed",
                kinds.DETACH_REPLICA: "none"}[order.kind])  # fmt: skip
        return {}

    def _viewed(self, state: dict[str, Any], order: Order) -> dict[str, Any]:
        if order.kind == kinds.CLOSE_VIEW:
            if order.arguments["view_id"] in state["views"]:
                state["views"][order.arguments["view_id"]]["ended"] = "closed"
            return {}
        asked = records.decode(order.arguments, kinds.OpenView)
        chosen = asked.choice.value or state["points"][-1][0]
        kind, epoch = next((kind, epoch) for point, kind, epoch in state["points"] if point == chosen)
        now = time.time_ns()
        view = ViewStatus(
            asked.view_id, asked.replica_of, RecoveryPoint(PointId(chosen), asked.replica_of, PointKind(kind), 7, epoch, 1, 1),
            asked.writable, now, now + int(asked.lease_seconds * 1e9),
            (ViewExport(DiskId("disk-0"), 0, 1 << 20, f"nbd+unix:///0?socket=/run/{asked.view_id}.sock"),),
            quota_bytes=asked.quota_bytes, remote_port=state["knobs"].get("remote port", 0),
        )  # fmt: skip
        state["views"][asked.view_id] = records.encode(view)
        encoded: dict[str, Any] = state["views"][asked.view_id]
        return encoded

    def _prepared(self, state: dict[str, Any], order: Order, become: Callable[[str], None]) -> dict[str, Any]:
        mark, choice = order.arguments["after_mark"], order.arguments["choice"]
        if mark and mark not in state["marks"]:
            raise FailbackError("the mark did not arrive", code="PeerUnavailable")
        chosen = choice["value"] or state["points"][-1][0]
        state["chosen"] = chosen
        become("rolled-back")
        kind, epoch = next((kind, epoch) for point, kind, epoch in state["points"] if point == chosen)
        point = RecoveryPoint(PointId(chosen), MachineId(MACHINE), PointKind(kind), 7, epoch, 1, 1)
        encoded: dict[str, Any] = records.encode(kinds.PreparedPoint(point, 0))
        return encoded

    def _carry_out(self, order: Order, work: Callable[[dict[str, Any], Order], dict[str, Any]]) -> None:
        """Effect and result are stored together; an order seen again has its result already."""
        with self._sites.change() as state:
            if order.order_id in state["results"] or order.kind in state["knobs"].get("ignored orders", ()):
                return
            try:
                report = {"result": work(state, order), "error": None}
            except FailbackError as error:
                report = {"result": {}, "error": error.as_dict()}
            state["results"][order.order_id] = report

    async def _heartbeat(
        self, key: str, component_id: str, role: Role, hardware_id: str, status: object
    ) -> tuple[tuple[Order, ...], dict[str, Any] | None]:
        generation, assignment = self._taken[key]
        reports = tuple(
            OrderReport(
                order_id, OrderState.FAILED if each["error"] else OrderState.SUCCEEDED, each["result"], each["error"]
            )
            for order_id, each in self._sites.read()["results"].items()
        )
        told = self._sites.read()["knobs"].get("told", {}).get(key, {})
        heartbeat = Heartbeat(
            role=role, hostname=component_id, version=told.get("version", "1"), hardware_id=hardware_id,
            boot_id=f"boot {key}", os_family=told.get("os_family", "linux"), os_version=told.get("os_version", ""),
            kernel="", wall_ns=self._clock.wall_ns(), monotonic=1.0, addresses=("127.0.0.1",),
            status={**records.encode(status), **told.get("status", {})}, reports=reports,
            assignment_generation=generation,
        )  # fmt: skip
        skew_seconds = told.get("skew_seconds", 0.0)
        reply = await self._registry.heartbeat(component_id, role, heartbeat, skew_seconds=skew_seconds)
        if reply.assignment is not None:
            assignment = reply.assignment
        self._taken[key] = (reply.assignment_generation, assignment)
        return reply.orders, assignment
