"""Every part of the data path as a real process, links that fail, disks that fill, and the rules of the configuration server.

A machine with two captured loop disks, its mobility service, two process servers, one master target; each link goes
through a :class:`CuttingProxy`; spools and the retention volume are small file systems of their own; all roles run with
``stepped_clock.c`` preloaded so that their wall clocks can be stepped. What a configuration server decides (a new epoch,
compared or not) is decided by its own rules (``protection.repair_rules``) from the heartbeats, in :meth:`ChaosSite.watch`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from cutting_proxy import CuttingProxy
from mobility_world import World, run
from process_server_doubles import FixedControlPlane

from failback.model.components import (
    Endpoint,
    MasterTargetAssignment,
    MobilityStatus,
    ProcessServerAssignment,
    ReplicaAssignment,
    ReplicaStatus,
    Role,
    RoutedMachine,
    SpooledMachine,
    SyncMode,
)
from failback.model.ids import ComponentId, MachineId
from failback.model.policy import ReplicationPolicy
from failback.protection import repair_rules
from failback.protection.states import State
from failback.runtime import records

SIZES = (96 << 20, 128 << 20)
POLICY = ReplicationPolicy("chaos", crash_consistent_seconds=1, redo_window_seconds=20)
AGENT, MASTER_TARGET = "mobility", "master-target"
SERVERS = ("process-server-1", "process-server-2")
ROLES = (AGENT, *SERVERS, MASTER_TARGET)


class Part:
    """One role: its process, its configuration, its control plane. ``deaths`` are ends that nobody caused."""

    def __init__(self, site: ChaosSite, name: str, role: Role, component_id: str, toml: str) -> None:
        self.name = name
        self.role = role
        self.component_id = component_id
        self.port = free_port()
        self.deaths: list[str] = []
        self._ending = False
        self.state = site.directory / name
        site.world.authority.identity(component_id, role, self.state / "identity")
        self.plane = (
            site.world.plane if role is Role.MOBILITY
            else FixedControlPlane(site.world.authority.identity(str(uuid.uuid4()), Role.CONFIGURATION_SERVER))
        )  # fmt: skip
        listening = "" if role is Role.MOBILITY else f'listen_host = "127.0.0.1"\nlisten_port = {self.port}\n'
        self.config = self.state / "config.toml"
        self.config.write_text(
            f'state_directory = "{self.state}"\n{listening}{toml}\n'
            f'[configuration_server]\nurl = "{self.plane.url}"\nca_file = "{site.world.directory}/ca/ca.pem"\n'
            "heartbeat_seconds = 0.3\n"
        )
        self.clock_library = site.clock_library
        self.clock_file = self.state / "clock"
        self.step_clock(0)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.plane.status = {}  # what the life before said is no news
        environment = dict(
            os.environ, FAILBACK_HARDWARE_ID="11111111-2222-3333-4444-555555555555", LD_PRELOAD=str(self.clock_library),
            STEPPED_CLOCK=str(self.clock_file),
        )  # fmt: skip
        with (self.state / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "failback", "serve", self.role.value, "--config", str(self.config)],
                stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        if self._process is None:
            return False
        if self._process.poll() is not None:
            if not self._ending:
                self.deaths.append(f"{self.name} ended with {self._process.returncode}: {self.log()[-1500:]}")
            self._process, self._ending = None, False
            return False
        return True

    def kill(self, number: int = signal.SIGKILL, *, wait_seconds: float = 60.0) -> None:
        """``wait_seconds`` 0: it may take its time to die (one that reads a disk which hangs cannot be interrupted)."""
        if self.alive and self._process is not None:
            self._ending = True
            self._process.send_signal(number)
            if wait_seconds:
                self._process.wait(wait_seconds)
            self.plane.status = {}

    def step_clock(self, seconds: int) -> None:
        self.step_seconds = seconds
        with self.clock_file.open("r+b" if self.clock_file.exists() else "wb") as stream:
            stream.write(struct.pack("<q", seconds))

    def log(self) -> str:
        path = self.state / "log"
        return path.read_text(errors="replace") if path.exists() else ""


class Volume:
    """A small ext4 file system on a loop device."""

    def __init__(self, directory: Path, name: str, megabytes: int) -> None:
        self.path = directory / name
        self.path.mkdir()
        self._image = directory / f"{name}.img"
        self._image.touch()
        os.truncate(self._image, megabytes << 20)
        run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        run("mount", "-o", "loop", str(self._image), str(self.path))

    def fill(self) -> None:
        """Nothing is left but a few blocks."""
        facts = os.statvfs(self.path)
        with (self.path / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, max(facts.f_bavail * facts.f_frsize - (64 << 10), 4096))

    def free(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)
        self._image.unlink(missing_ok=True)


class ChaosSite:
    """``async with ChaosSite(directory, chance) as site``; ``directory`` is world-readable (PostgreSQL runs as its own user)."""

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.directory = directory
        self.chance = chance
        self.source_directory = directory / "source"
        """A file system of its own holds the files under the captured loop devices: it can be frozen."""
        self.counts: Counter[str] = Counter()
        self.story: list[str] = []
        self.epoch = 0
        self.server = SERVERS[0]
        self.away: set[str] = set()
        """Parts that stay down for now."""
        self.waiting_since: float | None = None
        """Since when somebody waits for :meth:`healthy`."""
        self._began = time.monotonic()
        self._volumes: list[Volume] = []

    async def __aenter__(self) -> ChaosSite:
        try:
            self._volume("source", 320)
            self.world = World(self.source_directory, sizes=SIZES)
            await self.world.__aenter__()
            await self._build()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _build(self) -> None:
        self.clock_library = self.directory / "stepped_clock.so"
        source = Path(__file__).with_name("stepped_clock.c")
        run("gcc", "-O2", "-shared", "-fPIC", "-o", str(self.clock_library), str(source), "-ldl")
        self.retention = self._volume("retention", 3072)
        self.spools = {name: self._volume(f"{name}-spool", 160) for name in SERVERS}
        self.datastore = self.directory / "datastore"
        self.datastore.mkdir()
        world = self.world
        disks = ", ".join(f'"{device}"' for device in world.devices)
        identities = {AGENT: world.machine_id, **{name: str(uuid.uuid4()) for name in (*SERVERS, MASTER_TARGET)}}
        toml = {
            AGENT: f'runtime_directory = "{self.directory}/run"\npin_directory = "{world.pins}"\ndisks = [{disks}]\n'
            "ring_megabytes = 16\n",
            MASTER_TARGET: f'retention_volumes = [{{name = "retention", path = "{self.retention.path}"}}]\n'
            f'datastores = [{{name = "datastore", path = "{self.datastore}"}}]\n',
            **{name: f'spool_directory = "{volume.path}/spool"\n' for name, volume in self.spools.items()},
        }
        roles = {AGENT: Role.MOBILITY, MASTER_TARGET: Role.MASTER_TARGET}
        self.parts = {
            name: Part(self, name, roles.get(name, Role.PROCESS_SERVER), identities[name], toml[name]) for name in ROLES
        }
        self.to_server = {name: CuttingProxy(self.parts[name].port) for name in SERVERS}
        self.to_target = {name: CuttingProxy(self.parts[MASTER_TARGET].port) for name in SERVERS}
        for proxy in self.proxies:
            await proxy.start()
        for part in self.parts.values():
            part.start()

    def _volume(self, name: str, megabytes: int) -> Volume:
        self._volumes.append(Volume(self.directory, name, megabytes))
        return self._volumes[-1]

    async def __aexit__(self, *_: object) -> None:
        for part in getattr(self, "parts", {}).values():
            part.kill()
            if part.plane is not self.world.plane:
                part.plane.close()
        for proxy in self.proxies if hasattr(self, "to_target") else ():
            await proxy.close()
        if hasattr(self, "world"):
            await self.world.__aexit__()
        for volume in self._volumes:
            volume.close()

    @property
    def proxies(self) -> tuple[CuttingProxy, ...]:
        return (*self.to_server.values(), *self.to_target.values())

    def note(self, what: str) -> None:
        self.story.append(f"{time.monotonic() - self._began:8.2f} {what}")

    # --- life and death ---------------------------------------------------------------------------------------------

    def kill(self, *names: str) -> None:
        for name in names:
            if self.parts[name].alive:
                self.parts[name].kill(wait_seconds=0 if name == AGENT else 60)
                self.counts[f"kill {name.rstrip('-12')}"] += 1
        self.note(f"kill -9: {', '.join(names)}")

    async def supervise(self) -> None:
        """As a service manager with Restart=always: what is down comes back soon, unless it is meant to stay away."""
        while True:
            for name, part in self.parts.items():
                if not part.alive and name not in self.away:
                    part.start()
            await asyncio.sleep(self.chance.choice((0.05, 0.3, 1.5)))

    # --- the configuration server's part ----------------------------------------------------------------------------

    def status(self, name: str, kind: type[Any], field: str = "") -> Any:
        said: Any = self.parts[name].plane.status
        if field:
            said = next(iter(said.get(field, ())), None)
        return records.decode(said, kind) if said else None

    def stream_parts(self) -> repair_rules.Parts:
        return repair_rules.Parts(
            self.status(AGENT, MobilityStatus),
            self.status(self.server, SpooledMachine, "machines"),
            self.status(MASTER_TARGET, ReplicaStatus, "replicas"),
        )

    async def watch(self) -> None:
        """A stream that ended for good gets a new epoch and a comparison, as ``monitors.repairs`` gives it."""
        while True:
            await asyncio.sleep(0.3)
            end = repair_rules.ended(self.epoch, self.stream_parts())
            if end is not None:
                self.counts[f"repair {end.code}"] += 1
                self.issue(SyncMode.COMPARE, f"{end.code}: {end.sentence}")

    def move(self) -> str:
        """To the other process server; compared only where the rules say that re-sending is not enough."""
        parts = self.stream_parts()
        agent = parts.agent
        state = State.PROTECTED if agent is not None and agent.sync_done else State.REPLICATING
        pass_id = agent.pass_id if agent is not None else ""
        reason = repair_rules.resend_is_enough(state, self.epoch, pass_id, parts)
        before, self.server = self.server, SERVERS[1 - SERVERS.index(self.server)]
        self.issue(SyncMode.COMPARE if reason else SyncMode.NONE, f"moved to {self.server} ({reason or 're-sent'})")
        return before

    def issue(self, sync: SyncMode, why: str) -> None:
        """The next epoch, told to all parts."""
        self.epoch += 1
        self.note(f"epoch {self.epoch} ({sync.value}): {why}")
        machine = MachineId(self.world.machine_id)
        server = ComponentId(self.parts[self.server].component_id)
        self.parts[MASTER_TARGET].plane.assign(
            MasterTargetAssignment((ReplicaAssignment(machine, self.epoch, server, POLICY),))
        )
        for name in SERVERS:
            target = ComponentId(self.parts[MASTER_TARGET].component_id)
            endpoint = Endpoint("127.0.0.1", self.to_target[name].port, target)
            routed = (RoutedMachine(machine, self.epoch, endpoint),) if name == self.server else ()
            self.parts[name].plane.assign(ProcessServerAssignment(routed))
        assigned = self.world.assignment(epoch=self.epoch, sync=sync)
        address = Endpoint("127.0.0.1", self.to_server[self.server].port, server)
        self.world.plane.assign(replace(assigned, process_server=address))

    async def order(self, kind: str, seconds: float = 60.0, **arguments: object) -> dict[str, Any]:
        """An order to the master target; its result. Raises AssertionError when it fails."""
        plane = self.parts[MASTER_TARGET].plane
        order_id = str(uuid.uuid4())
        plane.orders.append({"order_id": order_id, "kind": kind, "generation": 1,
                             "arguments": {"machine_id": self.world.machine_id, **arguments}})  # fmt: skip
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for report in plane.reports:
                if report["order_id"] == order_id and report["state"] in ("succeeded", "failed"):
                    plane.orders = [order for order in plane.orders if order["order_id"] != order_id]
                    assert report["state"] == "succeeded", report
                    return dict(report["result"] or {})
            await asyncio.sleep(0.05)
        raise AssertionError(f"{kind} has no result after {seconds} s:\n{self.parts[MASTER_TARGET].log()[-3000:]}")

    async def attach(self) -> None:
        disks = []
        for index, disk in enumerate(self.world.assignment().disks):
            path = self.datastore / f"disk{index}.raw"
            path.touch()
            os.truncate(path, SIZES[index])
            disks.append({"disk_id": disk.disk_id, "index": index, "path": str(path), "format": "raw",
                          "size_bytes": SIZES[index], "create": False})  # fmt: skip
        await self.order("attach-replica", retention_volume="retention", disks=disks)

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def healthy(self, seconds: float = 180.0) -> None:
        """The present epoch's stream flows, its pass is over and nothing holds points back."""

        def holds() -> bool:
            parts = self.stream_parts()
            agent, replica = parts.agent, parts.master_target
            return (
                agent is not None and agent.epoch == self.epoch and agent.linked and agent.sync_done and agent.gap == ""
                and replica is not None and replica.epoch == self.epoch and replica.state == "attached"
                and replica.consistent and not replica.stands_still
            )  # fmt: skip

        self.waiting_since = time.monotonic()
        try:
            await self.until(holds, seconds)
        finally:
            self.waiting_since = None

    def newest_point(self) -> str:
        replica = self.stream_parts().master_target
        return str(replica.points[-1].point_id) if replica is not None and replica.points else ""

    async def until(self, condition: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {self.report()}"
            await asyncio.sleep(0.1)

    def report(self) -> str:
        return "\n".join((*self.story[-40:], f"epoch {self.epoch} by {self.server}", *map(str, (self.stream_parts(),)),
                          *(f"--- {name}\n{part.log()[-2500:]}" for name, part in self.parts.items())))  # fmt: skip


_given: set[int] = set()


def free_port() -> int:
    """Below the ports that the kernel gives to connections, each one once."""
    while True:
        port = random.SystemRandom().randint(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
