"""A world for the real mobility service: loop devices, a control plane and a receiving end in this process, the agent as the
process that users run. Everything is removed at the end, also after a failure."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from applying_process_server import ApplyingProcessServer, Replica
from process_server_doubles import Authority, FixedControlPlane

from failback.mobility import facts
from failback.model.components import Endpoint, MobilityAssignment, Role, SourceDisk, SyncMode
from failback.model.ids import ComponentId, DiskId, MachineId, PassId
from failback.model.stream import GapCause

BPFFS = Path("/sys/fs/bpf")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@dataclass
class World:
    directory: Path
    sizes: tuple[int, ...] = (96 << 20,)
    ring_megabytes: int = 16
    extra_toml: str = ""
    control_toml: str = ""
    """Further lines of [configuration_server]."""
    prefix: tuple[str, ...] = ()
    """A command that starts the agent, such as one that takes capabilities from it."""
    machine_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    server_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    devices: list[str] = field(default_factory=list)
    mounts: list[Path] = field(default_factory=list)
    agent: subprocess.Popen[bytes] | None = None
    starts: int = 0

    async def __aenter__(self) -> World:
        self.authority = Authority(self.directory / "ca")
        self.pins = BPFFS / f"failback-test-{uuid.uuid4().hex[:12]}"
        self.plane = FixedControlPlane(self.authority.identity(str(uuid.uuid4()), Role.CONFIGURATION_SERVER))
        self.authority.identity(self.machine_id, Role.MOBILITY, self.directory / "state" / "identity")
        for number, size in enumerate(self.sizes):
            image = self.directory / f"disk{number}"
            image.touch()
            os.truncate(image, size)
            self.devices.append(run("losetup", "-f", "--show", str(image)))
        replicas = {
            number: Replica(self.directory / f"replica{number}", size) for number, size in enumerate(self.sizes)
        }
        self.receiver = ApplyingProcessServer(self.authority.identity(self.server_id, Role.PROCESS_SERVER), replicas)
        self.port = await self.receiver.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()
        for mount in reversed(self.mounts):
            subprocess.run(["fsfreeze", "-u", str(mount)], capture_output=True, check=False)
            if not os.path.ismount(mount):
                continue
            for _ in range(20):  # a writer that was killed may still be on its way out
                if subprocess.run(["umount", str(mount)], capture_output=True, check=False).returncode == 0:
                    break
                await asyncio.sleep(0.1)
        if self.pins.is_dir():
            for pin in self.pins.iterdir():
                pin.unlink()
            self.pins.rmdir()
        for device in self.devices:
            subprocess.run(["losetup", "-d", device], capture_output=True, check=False)
        await self.receiver.close()
        self.plane.close()
        for path in self.directory.glob("*"):
            if path.is_file() and path.suffix != ".log":
                path.unlink()

    # --- the agent --------------------------------------------------------------------------------------------------

    def start(self, faults: str = "") -> None:
        config = self.directory / "mobility.toml"
        disks = ", ".join(f'"{device}"' for device in self.devices)
        config.write_text(
            f'state_directory = "{self.directory}/state"\nruntime_directory = "{self.directory}/run"\n'
            f'pin_directory = "{self.pins}"\ndisks = [{disks}]\nring_megabytes = {self.ring_megabytes}\n'
            f"{self.extra_toml}\n"
            f'[configuration_server]\nurl = "{self.plane.url}"\nca_file = "{self.directory}/ca/ca.pem"\n'
            f"heartbeat_seconds = 0.3\n{self.control_toml}\n"
        )
        self.starts += 1
        environment = dict(
            os.environ, FAILBACK_HARDWARE_ID="11111111-2222-3333-4444-555555555555", FAILBACK_FAULTS=faults
        )
        with (self.directory / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "failback", "serve", "mobility", "--config", str(config)],
                stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.agent is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.agent.pid, number)
            self.agent.wait()
            self.agent = None

    def log(self) -> str:
        path = self.directory / "agent.log"
        return path.read_text()[-6000:] if path.exists() else ""

    # --- what it is told --------------------------------------------------------------------------------------------

    def assignment(self, *, epoch: int = 1, sync: SyncMode = SyncMode.COMPARE, pass_id: str = "") -> MobilityAssignment:
        disks = tuple(
            SourceDisk(DiskId(str(uuid.UUID(int=number + 1))), number,
                       facts.device_match(device.removeprefix("/dev/")), size, sync)
            for number, (device, size) in enumerate(zip(self.devices, self.sizes, strict=True))
        )  # fmt: skip
        return MobilityAssignment(
            active=True, machine_id=MachineId(self.machine_id), epoch=epoch, pass_id=PassId(pass_id or str(uuid.uuid4())),
            process_server=Endpoint("127.0.0.1", self.port, ComponentId(self.server_id)), disks=disks, batch_milliseconds=50,
        )  # fmt: skip

    def order(self, kind: str, **arguments: Any) -> str:
        order_id = str(uuid.uuid4())
        self.plane.orders.append({"order_id": order_id, "kind": kind, "generation": 1, "arguments": arguments})
        return order_id

    async def result(self, order_id: str, seconds: float = 60.0) -> dict[str, Any]:
        """The order's report once it is finished."""
        found: list[dict[str, Any]] = []

        def finished() -> bool:
            found[:] = [report for report in self.plane.reports
                        if report["order_id"] == order_id and report["state"] in ("succeeded", "failed")]  # fmt: skip
            return bool(found)

        await self.until(finished, seconds)
        self.plane.orders = [order for order in self.plane.orders if order["order_id"] != order_id]
        return found[0]

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s; status {self.plane.status}\n{self.log()}")
            await asyncio.sleep(0.02)

    async def synced(self, seconds: float = 60.0) -> None:
        await self.until(
            lambda: self.plane.status.get("sync_done") is True and self.plane.status.get("gap") == "", seconds
        )

    async def settled(self, seconds: float = 60.0) -> None:
        """Everything written until now has arrived and the stream has no gap."""
        run("sync")
        for device in self.devices:
            run("blockdev", "--flushbufs", device)
        order_id = self.order("app-consistent-mark", mark_id=str(uuid.uuid4()), limit_seconds=20.0)
        report = await self.result(order_id, seconds)
        assert report["state"] == "succeeded", report
        await self.until(lambda: self.receiver.sequence >= report["result"]["sequence"], seconds)
        last = [item for item in self.receiver.items if item.kind == "batch"][-1]
        assert last.gap is GapCause.NONE

    def same(self) -> bool:
        return all(self.receiver.same_as(number, device) for number, device in enumerate(self.devices))

    def mount(self, number: int = 0, kind: str = "ext4") -> Path:
        point = self.directory / f"mounted{number}"
        point.mkdir(exist_ok=True)
        run(f"mkfs.{kind}", "-q", *(["-F"] if kind == "ext4" else ["-f"]), self.devices[number])
        run("mount", self.devices[number], str(point))
        self.mounts.append(point)
        return point


def load(point: Path, seconds: float) -> subprocess.Popen[bytes]:
    """A mixed write load on a file system, ending by itself."""
    return subprocess.Popen(
        ["fio", "--name=load", f"--directory={point}", "--rw=randwrite", "--size=24m", "--bsrange=4k-64k", "--ioengine=psync",
         "--fsync=16", "--numjobs=2", "--thread", "--time_based", f"--runtime={seconds}", "--rate=20m", "--output=/dev/null",
         "--randrepeat=0", "--buffer_compress_percentage=50", "--refill_buffers"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
