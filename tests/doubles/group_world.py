"""A replication group of real processes: two captured loop disks with an agent each, a process server, a master target, a
configuration server. Only the workflows that lead there are left out: items are put into the database as a reprotect
leaves them. The programs of a machine run in a control group of its own, which its agent holds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import group_talkers
from running_configuration_server import RunningConfigurationServer

from failback.block.raw import RawDevice
from failback.cli.client import Api
from failback.cli.settings import Settings
from failback.configuration_server.database import Database
from failback.configuration_server.database.components import ComponentRow, all_components
from failback.configuration_server.database.items import ItemDiskRow, ItemRow
from failback.configuration_server.database.points import PointRow
from failback.configuration_server.registry import News, Orders
from failback.journal.journal import Journal
from failback.mobility import facts
from failback.mobility.cgroups import Hierarchy
from failback.model import orders
from failback.model.components import SyncMode
from failback.model.ids import DiskId, MachineId
from failback.model.points import ReplicaDisk

GROUPS = "/replicationGroups"
DISK_BYTES = 32 << 20
NUMBERS = {"a": (0, 1 << 16), "b": (1 << 16, 0)}
"""Where a machine's disk holds what it sent and what it was told: flow a -> b at 0, flow b -> a at 64 KiB."""


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Machine:
    """One source machine. ``held``: whether its programs run in the control group that its agent holds."""

    name: str
    directory: Path
    held: bool = True
    device: str = ""
    hardware_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    item_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    disk_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    component_id: str = ""
    agent: subprocess.Popen[bytes] | None = None
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.mkdir()
        self.group = f"/failback-test-{uuid.uuid4().hex[:12]}"
        self.cgroup = Hierarchy().root / self.group[1:]
        self.pins = Path("/sys/fs/bpf") / f"failback-test-{uuid.uuid4().hex[:12]}"
        self.cgroup.mkdir()
        image = self.directory / "disk"
        image.touch()
        os.truncate(image, DISK_BYTES)
        self.device = run("losetup", "-f", "--show", str(image))

    def start(self, server: RunningConfigurationServer, faults: str = "") -> None:
        config = self.directory / "mobility.toml"
        config.write_text(
            f'state_directory = "{self.directory}/state"\nruntime_directory = "{self.directory}/run"\n'
            f'pin_directory = "{self.pins}"\ndisks = ["{self.device}"]\nring_megabytes = 8\n'
            f'hold_groups = ["{self.group}"]\n{connection(server)}'
        )
        environment = dict(os.environ, FAILBACK_HARDWARE_ID=self.hardware_id, FAILBACK_FAULTS=faults)
        self.agent = start("mobility", config, self.directory / "agent.log", environment)

    def run_program(self, kind: str, offset: int, port: int) -> None:
        command = [sys.executable, group_talkers.__file__, kind, self.device, str(offset), str(port)]
        join = f"echo $$ > {self.cgroup}/cgroup.procs; " if self.held else ""
        self.programs.append(subprocess.Popen(["sh", "-c", f'{join}exec "$@"', "sh", *command]))

    def number(self, offset: int) -> int:
        """What the disk holds now."""
        descriptor = os.open(self.device, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            value: int = struct.unpack("<Q", os.pread(descriptor, 8, offset))[0]
            return value
        finally:
            os.close(descriptor)

    @property
    def frozen(self) -> bool:
        return (self.cgroup / "cgroup.freeze").read_text().strip() == "1"

    def stop_programs(self) -> None:
        (self.cgroup / "cgroup.freeze").write_text("0")
        for program in self.programs:
            program.kill()
            program.wait()
        self.programs.clear()

    def kill_agent(self) -> None:
        if self.agent is not None:
            with contextlib.suppress(ProcessLookupError):
                self.agent.kill()
            self.agent.wait()
            self.agent = None

    def close(self) -> None:
        self.stop_programs()
        self.kill_agent()
        deadline = time.monotonic() + 5
        while self.cgroup.is_dir() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.cgroup.rmdir()
            time.sleep(0.01)
        if self.pins.is_dir():
            for pin in self.pins.iterdir():
                pin.unlink()
            self.pins.rmdir()
        subprocess.run(["losetup", "-d", self.device], capture_output=True, check=False)
        (self.directory / "disk").unlink()


def connection(server: RunningConfigurationServer) -> str:
    return (
        f'[configuration_server]\nurl = "{server.url}"\nca_file = "{server.ca_file}"\n'
        f'passphrase_file = "{server.state}/enrolment-passphrase"\nheartbeat_seconds = 0.5\naddresses = ["127.0.0.1"]\n'
    )


def start(role: str, config: Path, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        command = [sys.executable, "-m", "failback", "serve", role, "--config", str(config)]
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


class GroupWorld:
    """``async with GroupWorld(tmp_path) as world``: everything runs and both machines are protected."""

    def __init__(
        self, directory: Path, *, held: bool = True, hold_seconds: float = 5.0, faults: dict[str, str] | None = None
    ) -> None:
        """``faults``: fault points armed in the agents, by machine."""
        self.directory = directory
        self.held = held
        self.faults = faults or {}
        self._limits = f"[limits]\nhold_seconds = {hold_seconds}\n"
        self._servers: list[subprocess.Popen[bytes]] = []
        self.machines: dict[str, Machine] = {}

    async def __aenter__(self) -> GroupWorld:
        self.server = RunningConfigurationServer(self.directory, f"monitor_seconds = 1.0\n{self._limits}")
        try:
            self.server.__enter__()
            self.database = Database.in_directory(self.server.state)
            self.api = Api(Settings(self.server.url, self.server.ca_file, self.server.state / "administrator.token"))
            for name in NUMBERS:
                self.machines[name] = Machine(name, self.directory / name, self.held)
            await self._protect()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for machine in self.machines.values():
            machine.close()
        self.stop_servers()
        self.server.__exit__()
        if hasattr(self, "api"):
            self.api.__exit__()
            self.database.close()

    def stop_servers(self) -> None:
        for process in self._servers:
            process.send_signal(signal.SIGTERM)
        for process in self._servers:
            process.wait(20)
        self._servers.clear()

    # --- making it --------------------------------------------------------------------------------------------------

    async def _protect(self) -> None:
        retention, self.datastore = self.directory / "retention", self.directory / "datastore"
        for place in (retention, self.datastore):
            place.mkdir()
        self.retention = retention
        self._start_server(
            "process-server", f'spool_directory = "{self.directory}/spool"\nspool_limit_bytes = 268435456\n'
        )
        places = f'retention_volumes = [{{name = "retention", path = "{retention}"}}]\n'
        places += f'datastores = [{{name = "store", path = "{self.datastore}"}}]\n'
        self._start_server("master-target", places)
        for machine in self.machines.values():
            machine.start(self.server, self.faults.get(machine.name, ""))
        await self.until(self._all_heard, 60)
        with self.database.write() as session:
            by_role = {row.role: row.component_id for row in all_components(session)}
            for machine in self.machines.values():
                session.add(self._item(machine, by_role))
        await asyncio.gather(*(self._attach(machine) for machine in self.machines.values()))
        with self.database.write() as session:
            for machine in self.machines.values():
                row = session.get_one(ItemRow, machine.item_id)
                row.replicating, row.epoch, row.epoch_highest = True, 1, 1
        await self.until(self._all_in_step, 90)
        with self.database.write() as session:
            for machine in self.machines.values():
                session.get_one(ItemRow, machine.item_id).protection_state = "Protected"

    def _start_server(self, role: str, toml: str) -> None:
        config = self.directory / f"{role}.toml"
        config.write_text(
            f'state_directory = "{self.directory}/{role}"\nlisten_host = "127.0.0.1"\nlisten_port = {free_port()}\n'
            f"{toml}{connection(self.server)}"
        )
        environment = dict(os.environ, FAILBACK_HARDWARE_ID=str(uuid.uuid4()))
        self._servers.append(start(role, config, self.directory / f"{role}.log", environment))

    def _all_heard(self) -> bool:
        with self.database.read() as session:
            heard = [row for row in all_components(session) if row.last_heartbeat_wall_ns and row.status]
        for machine in self.machines.values():
            mine = [row for row in heard if row.hardware_id == machine.hardware_id]
            if not mine or not mine[0].status.get("disks") or mine[0].status.get("self_test") != "passed":
                return False
            machine.component_id = mine[0].component_id
        return sorted(row.role for row in heard) == ["master-target", "mobility", "mobility", "process-server"]

    def _item(self, machine: Machine, by_role: dict[str, str]) -> ItemRow:
        return ItemRow(
            item_id=machine.item_id, name=machine.name, friendly_name=machine.name, machine_id=machine.component_id,
            cloud_hardware_id=machine.hardware_id, os_family="Linux", protection_state="UnprotectedStatesBegin",
            process_server_id=by_role["process-server"], master_target_id=by_role["master-target"],
            retention_volume="retention", pass_id=str(uuid.uuid4()),
            disks=[
                ItemDiskRow(
                    disk_id=machine.disk_id, index=0, device_match=facts.device_match(machine.device.removeprefix("/dev/")),
                    path=str(self.datastore / f"{machine.name}.raw"), size_bytes=DISK_BYTES, sync=SyncMode.COMPARE.value,
                )
            ],
        )  # fmt: skip

    async def _attach(self, machine: Machine) -> None:
        disk = ReplicaDisk(
            DiskId(machine.disk_id), 0, str(self.datastore / f"{machine.name}.raw"), "raw", DISK_BYTES, True
        )
        with self.database.read() as session:
            target = session.get_one(ItemRow, machine.item_id).master_target_id
        book = Orders(self.database, News())
        arguments = orders.AttachReplica(MachineId(machine.component_id), "retention", (disk,))
        order_id = await book.give(str(target), orders.ATTACH_REPLICA, 1, arguments, f"attach {machine.name}")
        await book.await_result(order_id, 60)

    def status(self, name: str) -> dict[str, Any]:
        with self.database.read() as session:
            row = session.get_one(ComponentRow, self.machines[name].component_id)
            return dict(row.status)

    def _all_in_step(self) -> bool:
        told = [self.status(name) for name in self.machines]
        return all(each.get("sync_done") and not each.get("gap") and each.get("linked") for each in told)

    # --- using it ---------------------------------------------------------------------------------------------------

    def talk(self) -> None:
        """Both machines pass numbers to each other, both ways."""
        for source, other in (("a", "b"), ("b", "a")):
            port = free_port()
            sent, told = NUMBERS[source][0], NUMBERS[other][1]
            self.machines[other].run_program("receiver", told, port)
            self.machines[source].run_program("sender", sent, port)

    async def talking(self, seconds: float = 60.0) -> None:
        """Every disk has new numbers, sent and told."""
        places = [(machine, offset) for name, machine in self.machines.items() for offset in NUMBERS[name]]
        before = [machine.number(offset) for machine, offset in places]
        await self.until(
            lambda: all(machine.number(at) > was for (machine, at), was in zip(places, before, strict=True)), seconds
        )

    def group(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(f"{GROUPS}/pair")
        return found["properties"]

    def marks(self, *, complete: bool = False) -> list[dict[str, Any]]:
        found = self.api.every(f"{GROUPS}/pair/recoveryPoints", {} if complete else {"marks": "all"})
        return [{"id": each["name"], **each["properties"]} for each in found]

    async def make_group(self, every_seconds: int = 86_400) -> None:
        """A group that is marked when it is asked for, or every so many seconds."""
        body = {"properties": {"members": list(self.machines), "crashConsistentFrequencyInSeconds": every_seconds}}
        await asyncio.to_thread(self.api.put, f"{GROUPS}/pair", body)

    async def mark(self) -> dict[str, Any]:
        """One common mark now; raises what the server answers."""
        made: dict[str, Any] = await asyncio.to_thread(self.api.post, f"{GROUPS}/pair/createRecoveryPoint")
        return {"id": made["name"], **made["properties"]}

    async def all_decided(self, seconds: float = 60.0) -> None:
        await self.until(lambda: all(each["state"] in ("complete", "void") for each in self.marks()), seconds)

    def published(self, name: str) -> set[str]:
        with self.database.read() as session:
            rows = session.query(PointRow.point_id).filter(PointRow.item_id == self.machines[name].item_id)
            return {row[0] for row in rows}

    def numbers_at(self, point_ids: list[str]) -> dict[str, dict[str, tuple[int, int]]]:
        """What each machine's disk holds at each point: (sent, told). The servers have to be stopped."""
        found: dict[str, dict[str, tuple[int, int]]] = {point_id: {} for point_id in point_ids}
        for name, machine in self.machines.items():
            journal = Journal.open(self.retention / "failback" / machine.component_id)
            disk = RawDevice(self.datastore / f"{name}.raw.replica")
            try:
                journal.start({0: disk}, lambda reply: None)
                while journal.apply_step():
                    pass
                for point_id in point_ids:
                    view = journal.view(point_id, 0)
                    sent, told = (struct.unpack("<Q", view.read(offset, 8))[0] for offset in NUMBERS[name])
                    found[point_id][name] = (sent, told)
                    view.close()
            finally:
                journal.stop()
                journal.close()
                disk.close()
        return found

    async def until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not await asyncio.to_thread(condition):
            assert time.monotonic() < deadline, f"not within {seconds} s\n{self.logs()}"
            await asyncio.sleep(0.05)

    def logs(self) -> str:
        files = [*self.directory.glob("*.log"), *self.directory.glob("*/agent.log")]
        return "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in files)


def torn(numbers: dict[str, dict[str, tuple[int, int]]]) -> list[str]:
    """Points at which a machine was told a number that the other's disk does not hold."""
    return [
        point_id
        for point_id, at in numbers.items()
        if at["b"][1] > at["a"][0] or at["a"][1] > at["b"][0]
    ]  # fmt: skip
