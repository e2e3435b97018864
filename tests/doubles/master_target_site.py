"""A site for tests of the master target: its real process, a fixed control plane that gives orders, and a sender that has a
process server's certificate. Disks and batches are those of ``journal_driver``."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import journal_driver as driver
from process_server_doubles import QUICK, Authority, FixedControlPlane
from process_server_site import eventually

from failback.errors import FailbackError, from_dict
from failback.model import orders
from failback.model.components import Endpoint, MasterTargetAssignment, Order, ReplicaAssignment, Role
from failback.model.ids import ComponentId, DiskId, MarkId, OrderId
from failback.model.points import PointChoice, ReplicaDisk
from failback.model.policy import ReplicationPolicy
from failback.protocol.messages import Ack, Batch, DigestReply, Digests, Hello, StreamDisk, Welcome
from failback.runtime import records
from failback.transport.sender import HeldItems, StreamSender

MACHINE = driver.MACHINE
POLICY = ReplicationPolicy(name="test", crash_consistent_seconds=10)


class Site:
    def __init__(self, directory: Path, *, sizes: dict[int, int] | None = None) -> None:
        self.directory = directory
        self.sizes = sizes or driver.SIZES
        self.authority = Authority(directory / "ca")
        self.plane = FixedControlPlane(self.authority.identity("plane", Role.CONFIGURATION_SERVER))
        self.target_id, self.server_id = str(uuid.uuid4()), str(uuid.uuid4())
        self.faults = ""
        self.kills = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.senders: list[Sender] = []
        self.retention, self.datastore = directory / "retention", directory / "datastore"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    def start(self) -> None:
        state = self.directory / "state"
        self.authority.identity(self.target_id, Role.MASTER_TARGET, state / "identity")
        for place in (self.retention, self.datastore):
            place.mkdir()
        (self.directory / "mt.toml").write_text(
            f"""
            state_directory = "{state}"
            listen_host = "127.0.0.1"
            listen_port = {self.port}
            log_level = "DEBUG"
            [configuration_server]
            url = "{self.plane.url}"
            ca_file = "{self.authority.directory / "ca.pem"}"
            heartbeat_seconds = 0.2
            [[retention_volumes]]
            name = "retention"
            path = "{self.retention}"
            [[datastores]]
            name = "store"
            path = "{self.datastore}"
            """
        )
        self.launch()

    def launch(self) -> None:
        environment = {**os.environ, "FAILBACK_FAULTS": self.faults, "PYTHONUNBUFFERED": "1"}
        command = [
            sys.executable,
            "-m",
            "failback",
            "serve",
            "master-target",
            "--config",
            str(self.directory / "mt.toml"),
        ]
        with (self.directory / "mt.log").open("ab") as output:
            self.process = subprocess.Popen(command, env=environment, stderr=output)

    def revive(self) -> None:
        """Start it again, without faults, when a fault killed it."""
        assert self.process is not None
        if self.process.poll() is not None:
            assert self.process.returncode == -signal.SIGKILL, self.log()[-3000:]
            self.kills += 1
            self.faults = ""
            self.launch()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.kills += 1
        self.launch()

    def kill_with(self, faults: str) -> None:
        """Restart it with a fault that kills it once more."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.faults = faults
        self.launch()

    def log(self) -> str:
        return (self.directory / "mt.log").read_text()

    def peak_megabytes(self) -> float:
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    async def close(self) -> None:
        for sender in self.senders:
            sender.stop()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            status = await asyncio.to_thread(self.process.wait, 20)
            assert status == 0, self.log()[-3000:]
        self.plane.close()

    # --- the configuration server's side ----------------------------------------------------------------------------

    def assign(self, epoch: int) -> None:
        entry = ReplicaAssignment(MACHINE, epoch, ComponentId(self.server_id), POLICY)
        self.plane.assign(MasterTargetAssignment((entry,)))

    async def order(self, kind: str, arguments: object, *, generation: int = 1) -> dict[str, Any]:
        """Give the order until its result comes, reviving a killed process. Raises the error that it failed with."""
        order = Order(OrderId(str(uuid.uuid4())), kind, generation, records.encode(arguments))
        self.plane.orders = [records.encode(order)]
        found: dict[str, Any] = {}

        def finished() -> bool:
            self.revive()
            for report in self.plane.reports:
                if report["order_id"] == order.order_id and report["state"] in ("succeeded", "failed"):
                    found.update(report)
            return bool(found)

        await eventually(finished, 40)
        self.plane.orders = []
        if found["state"] == "failed":
            raise from_dict(found["error"])
        result: dict[str, Any] = found["result"]
        return result

    def disks(self, *, kind: str = "raw", create: bool = False) -> tuple[ReplicaDisk, ...]:
        suffix = {"raw": "img", "vmdk-flat": "vmdk", "qcow2": "qcow2"}[kind]
        return tuple(
            ReplicaDisk(
                DiskId(f"disk-{index}"), index, str(self.datastore / f"disk-{index}.{suffix}"), kind, size, create
            )
            for index, size in self.sizes.items()
        )

    def make_disks(self, seed: int) -> None:
        for disk in self.disks():
            Path(disk.path).write_bytes(driver.initial(seed)[disk.index])

    async def attach(self, **fields: Any) -> orders.AttachedReplica:
        arguments = orders.AttachReplica(MACHINE, "retention", self.disks(**fields))
        return records.decode(await self.order(orders.ATTACH_REPLICA, arguments), orders.AttachedReplica)

    async def prepare(self, choice: PointChoice, mark: str = "") -> orders.PreparedPoint:
        arguments = orders.PreparePoint(MACHINE, choice, MarkId(mark))
        return records.decode(await self.order(orders.PREPARE_POINT, arguments), orders.PreparedPoint)

    async def plain(self, kind: str) -> None:
        await self.order(kind, orders.ReplicaOrder(MACHINE))

    def images(self, *, fenced: bool) -> dict[int, bytes]:
        suffix = ".replica" if fenced else ""
        return {disk.index: Path(disk.path + suffix).read_bytes() for disk in self.disks()}

    def replica(self) -> dict[str, Any]:
        return next(iter(self.plane.status.get("replicas", [])), {})

    def sender(self, epoch: int, **fields: Any) -> Sender:
        sender = Sender(self, epoch, **fields)
        self.senders.append(sender)
        return sender

    async def landed(self, sender: Sender, sequence: int, seconds: float = 40) -> None:
        def done() -> bool:
            self.revive()
            return sender.landed >= sequence

        await eventually(done, seconds)


class Sender:
    """A real stream sender with a process server's certificate."""

    def __init__(self, site: Site, epoch: int, *, server_id: str = "") -> None:
        self.epoch = epoch
        self.landed = 0
        self.incarnation = ""
        self.replies: dict[int, DigestReply] = {}
        self.refusals: list[FailbackError] = []
        self._sizes = site.sizes
        identity = site.authority.identity(server_id or site.server_id, Role.PROCESS_SERVER)
        self.items = HeldItems(
            self._hello, on_welcome=self._welcome, on_ack=self._ack, on_digest_reply=self._reply,
            on_refused=self.refusals.append, limit_bytes=64 << 20,
        )  # fmt: skip
        endpoint = Endpoint("127.0.0.1", site.port, ComponentId(site.target_id))
        sender = StreamSender(endpoint, identity, self.items, expect=Role.MASTER_TARGET, times=replace(QUICK, dead_seconds=10.0),
                              first_backoff_seconds=0.05, longest_backoff_seconds=0.3)  # fmt: skip
        self._task = asyncio.get_running_loop().create_task(sender.run())

    def stop(self) -> None:
        self._task.cancel()

    async def send(self, *items: Batch | Digests) -> None:
        for item in items:
            await self.items.send(item)

    def _hello(self) -> Hello:
        disks = tuple(StreamDisk(DiskId(f"disk-{index}"), index, size) for index, size in self._sizes.items())
        return Hello(MACHINE, self.epoch, "test", 1, 1, disks, self.incarnation, self.landed)

    async def _welcome(self, welcome: Welcome) -> None:
        self.landed, self.incarnation = max(self.landed, welcome.landed_sequence), welcome.incarnation

    async def _ack(self, ack: Ack) -> None:
        self.landed, self.incarnation = ack.landed_sequence, ack.incarnation

    async def _reply(self, reply: DigestReply) -> None:
        self.replies[reply.sequence] = reply
