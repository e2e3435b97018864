"""The whole chain as users run it: mobility service, process server, master target, each its own process, mutual TLS on both
links, and a small control plane in this process that gives assignments and orders (tests/doubles).

``Chain.start`` makes everything ready but nothing protected; ``protect`` begins a stream; ``in_step`` waits until all that was
written is applied on the target's disk and flushed. ``close`` ends the processes and removes pins. What a bench may place where:
``spool``, ``journal`` and ``target`` are directories that it chooses (tmpfs or a file system on another image).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "doubles"))
from process_server_doubles import Authority, FixedControlPlane  # noqa: E402

from failback.mobility import facts  # noqa: E402
from failback.model import orders  # noqa: E402
from failback.model.components import (  # noqa: E402
    Endpoint,
    MasterTargetAssignment,
    MobilityAssignment,
    Order,
    ProcessServerAssignment,
    ReplicaAssignment,
    Role,
    RoutedMachine,
    SourceDisk,
    SyncMode,
)
from failback.model.ids import ComponentId, DiskId, MachineId, OrderId, PassId  # noqa: E402
from failback.model.points import ReplicaDisk  # noqa: E402
from failback.model.policy import ReplicationPolicy  # noqa: E402
from failback.runtime import records  # noqa: E402

HARDWARE_ID = "11111111-2222-3333-4444-555555555555"
COMPONENT_ROLES = (Role.MOBILITY, Role.PROCESS_SERVER, Role.MASTER_TARGET)


class Plane(FixedControlPlane):
    """Holds a heartbeat as long as the product's own server does, and answers at once when there is news."""

    def answer(self, heartbeat: dict[str, Any]) -> dict[str, Any]:
        with self._news:
            self.status = heartbeat["status"]
            self.reports = heartbeat["reports"]
            if heartbeat["assignment_generation"] >= self.generation and not self.orders:
                self._news.wait(heartbeat["wait_seconds"])
            news = heartbeat["assignment_generation"] < self.generation
            return {
                "wall_ns": time.time_ns(),
                "assignment_generation": self.generation,
                "assignment": self.assignment if news else None,
                "orders": self.orders,
            }

    def order(self, kind: str, arguments: object, seconds: float) -> dict[str, Any]:
        """Give the order and wait for its result. Raises RuntimeError when it fails."""
        order = Order(OrderId(str(uuid.uuid4())), kind, 1, records.encode(arguments))
        with self._news:
            self.orders = [records.encode(order)]
            self._news.notify_all()
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                for report in self.reports:
                    if report["order_id"] == order.order_id and report["state"] == "succeeded":
                        return dict(report["result"])
                    if report["order_id"] == order.order_id and report["state"] == "failed":
                        raise RuntimeError(f"{kind} failed: {report['error']}")
                time.sleep(0.01)
        finally:
            self.orders = []
        raise RuntimeError(f"{kind} has no result after {seconds} s")


@dataclass
class Chain:
    """One machine with one disk. ``working`` holds states, configurations and logs."""

    working: Path
    device: str
    size_bytes: int
    spool: Path
    journal: Path
    target: Path
    policy: ReplicationPolicy = field(default_factory=lambda: ReplicationPolicy(name="bench"))
    ring_megabytes: int = 64
    heartbeat_seconds: float = 0.25
    megabits: int = 0
    """Rate of the link from the machine to its process server; 0: no limit."""
    server_niceness: int = 0
    """Of process server and master target."""
    roles: tuple[Role, ...] = COMPONENT_ROLES
    """Those that are started."""
    processes: dict[Role, subprocess.Popen[bytes]] = field(default_factory=dict)
    epoch: int = 0

    def __enter__(self) -> Chain:
        self.machine_id, self.server_id, self.target_id = (str(uuid.uuid4()) for _ in range(3))
        self.pins = Path("/sys/fs/bpf") / f"failback-bench-{uuid.uuid4().hex[:12]}"
        for place in (self.working, self.spool, self.journal, self.target):
            place.mkdir(parents=True, exist_ok=True)
        self.authority = Authority(self.working / "ca")
        self.planes = {
            role: Plane(self.authority.identity(f"plane-{role.value}", Role.CONFIGURATION_SERVER))
            for role in COMPONENT_ROLES
        }
        self.ports = {role: _free_port() for role in (Role.PROCESS_SERVER, Role.MASTER_TARGET)}
        self.agent_port = self.ports[Role.PROCESS_SERVER]
        self._link: subprocess.Popen[bytes] | None = None
        try:
            self._configure()
            for role in self.roles:
                self._launch(role)
            self._listening()
            if self.megabits:
                self._slow_link()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- processes --------------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        component = {
            Role.MOBILITY: self.machine_id, Role.PROCESS_SERVER: self.server_id, Role.MASTER_TARGET: self.target_id,
        }  # fmt: skip
        own = {
            Role.MOBILITY: f'disks = ["{self.device}"]\nring_megabytes = {self.ring_megabytes}\npin_directory = "{self.pins}"\n'
            f'runtime_directory = "{self.working}/run"\n',
            Role.PROCESS_SERVER: f'spool_directory = "{self.spool}"\nlisten_host = "127.0.0.1"\n'
            f"listen_port = {self.ports[Role.PROCESS_SERVER]}\nniceness = {self.server_niceness}\n",
            Role.MASTER_TARGET: f'listen_host = "127.0.0.1"\nlisten_port = {self.ports[Role.MASTER_TARGET]}\n'
            f"niceness = {self.server_niceness}\n",
        }
        places = (
            f'[[retention_volumes]]\nname = "retention"\npath = "{self.journal}"\n'
            f'[[datastores]]\nname = "store"\npath = "{self.target}"\n'
        )
        for role in COMPONENT_ROLES:
            state = self.working / f"state-{role.value}"
            self.authority.identity(component[role], role, state / "identity")
            (self.working / f"{role.value}.toml").write_text(
                f'state_directory = "{state}"\n{own[role]}'
                f'[configuration_server]\nurl = "{self.planes[role].url}"\nca_file = "{self.authority.directory}/ca.pem"\n'
                f"heartbeat_seconds = {self.heartbeat_seconds}\n{places if role is Role.MASTER_TARGET else ''}"
            )

    def _launch(self, role: Role) -> None:
        environment = dict(os.environ, FAILBACK_HARDWARE_ID=HARDWARE_ID)
        with (self.working / f"{role.value}.log").open("ab") as log:
            self.processes[role] = subprocess.Popen(
                [sys.executable, "-m", "failback", "serve", role.value, "--config", str(self.working / f"{role.value}.toml")],
                stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip

    def _slow_link(self) -> None:
        port = str(self.ports[Role.PROCESS_SERVER])
        self.agent_port = _free_port()
        command = [sys.executable, str(ROOT / "bench" / "slow_link.py"), str(self.agent_port), port, str(self.megabits)]
        self._link = subprocess.Popen(command)
        self.until(lambda: _connects(self.agent_port), 30)

    def restart(self, role: Role) -> None:
        """Launch it again after it ended."""
        self.planes[role].status = {}
        self._launch(role)

    def _listening(self) -> None:
        self.until(lambda: all(self.planes[role].status for role in self.roles), 60)
        for port in [port for role, port in self.ports.items() if role in self.roles]:
            self.until(lambda port=port: _connects(port), 30)

    def close(self) -> None:
        if self._link is not None:
            self._link.kill()
            self._link.wait()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
        for plane in self.planes.values():
            plane.close()
        if self.pins.is_dir():
            for pin in self.pins.iterdir():
                pin.unlink()
            self.pins.rmdir()

    def remove(self) -> None:
        """All that was written, after ``close``."""
        for place in (self.working, self.spool, self.journal, self.target):
            shutil.rmtree(place, ignore_errors=True)

    def cpu_seconds(self) -> dict[str, float]:
        """User and system time of each role until now."""
        tick = os.sysconf("SC_CLK_TCK")
        found = {}
        for role, process in self.processes.items():
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            found[role.value] = (int(fields[11]) + int(fields[12])) / tick
        return found

    def physical_bytes(self) -> dict[str, int]:
        """Bytes that each role caused to be written to storage (write(2) where it lies in tmpfs)."""
        found = {}
        for role, process in self.processes.items():
            lines = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
            found[role.value] = int(lines["wchar"])
        return found

    def peak_megabytes(self) -> dict[str, float]:
        found = {}
        for role, process in self.processes.items():
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            found[role.value] = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
        return found

    # --- what is told -----------------------------------------------------------------------------------------------

    @property
    def replica_path(self) -> Path:
        return self.target / "disk-0.img.replica"

    def attach(self, *, create: bool) -> None:
        disk = ReplicaDisk(
            DiskId(str(uuid.UUID(int=1))), 0, str(self.target / "disk-0.img"), "raw", self.size_bytes, create
        )
        arguments = orders.AttachReplica(MachineId(self.machine_id), "retention", (disk,))
        self.planes[Role.MASTER_TARGET].order(orders.ATTACH_REPLICA, arguments, 60)

    def protect(self, sync: SyncMode, *, batch_milliseconds: int = 250) -> None:
        """Begin the next epoch. With ``SyncMode.NONE`` the replica is taken as being in step."""
        self.epoch += 1
        machine = MachineId(self.machine_id)
        master_target = Endpoint("127.0.0.1", self.ports[Role.MASTER_TARGET], ComponentId(self.target_id))
        routed = RoutedMachine(machine, self.epoch, master_target)
        self.planes[Role.PROCESS_SERVER].assign(ProcessServerAssignment((routed,)))
        self.until(lambda: [one["epoch"] for one in self._spooled()] == [self.epoch], 30)
        self.planes[Role.MASTER_TARGET].assign(
            MasterTargetAssignment((ReplicaAssignment(machine, self.epoch, ComponentId(self.server_id), self.policy),))
        )
        disk = SourceDisk(
            DiskId(str(uuid.UUID(int=1))), 0, facts.device_match(self.device.removeprefix("/dev/")), self.size_bytes, sync
        )  # fmt: skip
        pass_id = PassId("" if sync is SyncMode.NONE else str(uuid.uuid4()))
        self.planes[Role.MOBILITY].assign(
            MobilityAssignment(
                active=True,
                machine_id=machine,
                epoch=self.epoch,
                pass_id=pass_id,
                disks=(disk,),
                process_server=Endpoint("127.0.0.1", self.agent_port, ComponentId(self.server_id)),
                batch_milliseconds=batch_milliseconds,
            )
        )

    # --- what is seen -----------------------------------------------------------------------------------------------

    @property
    def agent(self) -> dict[str, Any]:
        return dict(self.planes[Role.MOBILITY].status)

    def _spooled(self) -> list[dict[str, Any]]:
        return list(self.planes[Role.PROCESS_SERVER].status.get("machines", []))

    @property
    def replica(self) -> dict[str, Any]:
        return dict(next(iter(self.planes[Role.MASTER_TARGET].status.get("replicas", [])), {}))

    def synced(self, seconds: float = 1800) -> None:
        """The pass is over and all of it is applied and flushed."""
        self.until(lambda: self._epoch_reached() and self.agent["sync_done"] and not self.agent["gap"], seconds)
        wanted = int(self.agent["landed_sequence"])
        self.until(lambda: self._applied() >= wanted and bool(self.replica["consistent"]), seconds)

    def capturing(self, seconds: float = 60) -> None:
        self.until(lambda: self._epoch_reached() and self.agent["linked"] and not self.agent["gap"], seconds)

    def in_step(self, seconds: float = 600) -> None:
        """Nothing is written any more: wait until everything is applied and flushed."""
        self.mark(seconds)
        wanted = int(self.agent["sent_sequence"])
        self.until(lambda: self._applied() >= wanted, seconds)

    def mark(self, seconds: float = 600) -> dict[str, Any]:
        arguments = orders.AppConsistentMark(str(uuid.uuid4()), limit_seconds=seconds)  # type: ignore[arg-type]
        return self.planes[Role.MOBILITY].order(orders.APP_CONSISTENT_MARK, arguments, seconds)

    def _epoch_reached(self) -> bool:
        return self.agent.get("epoch") == self.epoch

    def _applied(self) -> int:
        replica = self.replica
        return int(replica["applied_sequence"]) if replica.get("epoch") == self.epoch else -1

    def until(self, condition: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            for role, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{role.value} ended with {process.returncode}:\n{self.log(role)}")
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"not within {seconds} s; agent {self.agent}; replica {self.replica}\n{self.log(self.roles[0])}"
                )
            time.sleep(0.01)

    def log(self, role: Role) -> str:
        return (self.working / f"{role.value}.log").read_text()[-3000:]


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
