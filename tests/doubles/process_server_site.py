"""A site for tests of the process server: its real process, a keeping master target, a fixed control plane, agents."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from process_server_doubles import QUICK, Authority, FixedControlPlane, KeepingMasterTarget, make_hello

from failback.errors import FailbackError
from failback.model.components import Endpoint, ProcessServerAssignment, Role, RoutedMachine
from failback.model.ids import ComponentId, MachineId
from failback.protocol.messages import Ack, Batch, DigestReply, Welcome
from failback.transport.sender import HeldItems, StreamSender


async def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError("what was waited for did not happen") from None


class Site:
    def __init__(
        self,
        directory: Path,
        *,
        spool_limit_bytes: int = 1 << 30,
        recent_memory_bytes: int = 96 << 20,
        authority: Authority | None = None,
    ) -> None:
        self.directory = directory
        self.authority = authority or Authority(directory / "ca")
        self.plane = FixedControlPlane(self.authority.identity("plane", Role.CONFIGURATION_SERVER))
        self.target_id, self.server_id = str(uuid.uuid4()), str(uuid.uuid4())
        self.target = KeepingMasterTarget(self.authority.identity(self.target_id, Role.MASTER_TARGET))
        self.target_port = 0
        self.agents: list[Agent] = []
        self._limit = spool_limit_bytes
        self.recent_memory_bytes = recent_memory_bytes
        """1: everything is spooled at once and read back."""
        self._process: subprocess.Popen[bytes] | None = None
        self.faults = ""
        self.kills = 0

    async def start(self) -> None:
        self.target_port = await self.target.start()
        state = self.directory / "state"
        self.authority.identity(self.server_id, Role.PROCESS_SERVER, state / "identity")
        self.port = _free_port()
        (self.directory / "ps.toml").write_text(
            f"""
            state_directory = "{state}"
            spool_directory = "{self.directory / "spool"}"
            spool_limit_bytes = {self._limit}
            recent_memory_bytes = {self.recent_memory_bytes}
            listen_host = "127.0.0.1"
            listen_port = {self.port}
            log_level = "DEBUG"
            [configuration_server]
            url = "{self.plane.url}"
            ca_file = "{self.authority.directory / "ca.pem"}"
            heartbeat_seconds = 0.2
            """
        )
        self.assign()
        self.launch()
        await self.listening()

    def launch(self) -> None:
        code = "import sys, pathlib; from failback.process_server.main import serve; sys.exit(serve(pathlib.Path(sys.argv[1])))"
        environment = {**os.environ, "FAILBACK_FAULTS": self.faults, "PYTHONUNBUFFERED": "1"}
        with (self.directory / "ps.log").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, str(self.directory / "ps.toml")], env=environment, stderr=output
            )

    async def listening(self) -> None:
        async def connects() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return False
            writer.close()
            return True

        async with asyncio.timeout(20):
            while not await connects():
                await asyncio.sleep(0.05)

    @property
    def killed(self) -> bool:
        return self._process is not None and self._process.poll() == -signal.SIGKILL

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def restart(self) -> None:
        self.kill()
        self.launch()
        await self.listening()

    async def close(self) -> None:
        for agent in self.agents:
            agent.stop()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            status = await asyncio.to_thread(self._process.wait, 10)
            assert status == 0, (self.directory / "ps.log").read_text()[-3000:]
        await self.target.close()
        self.plane.close()

    def assign(self, *machines: tuple[str, int]) -> None:
        endpoint = Endpoint("127.0.0.1", self.target_port, ComponentId(self.target_id))
        routed = tuple(RoutedMachine(MachineId(machine), epoch, endpoint) for machine, epoch in machines)
        self.plane.assign(ProcessServerAssignment(routed))

    def agent(self, *, start: bool = True) -> Agent:
        agent = Agent(self, str(uuid.uuid4()), start=start)
        if start:
            self.assign((agent.machine_id, 1))
        return agent

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port, ComponentId(self.server_id))

    def machine_status(self, machine_id: str) -> dict[str, Any]:
        machines = self.plane.status.get("machines", [])
        return next((machine for machine in machines if machine["machine_id"] == machine_id), {})

    def spools(self) -> list[tuple[str, str]]:
        return sorted((path.parent.name, path.name) for path in (self.directory / "spool").glob("*/*") if path.is_dir())

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def resident_megabytes(self) -> float:
        return self._memory("VmRSS")

    def peak_megabytes(self) -> float:
        return self._memory("VmHWM")

    def _memory(self, field: str) -> float:
        assert self._process is not None
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


class Agent:
    """A real sender with the items held in memory, as the mobility service uses it."""

    def __init__(self, site: Site, machine_id: str, *, epoch: int = 1, start: bool = True) -> None:
        self.machine_id, self.epoch = machine_id, epoch
        self.acks: list[Ack] = []
        self.replies: list[DigestReply] = []
        self.refusals: list[FailbackError] = []
        self._known = ("", 0)
        self.landed = self.spooled = 0
        self.forgotten = 0
        """Items that were acknowledged as spooled and not known any more at a later Welcome; has to stay 0."""
        self.identity = site.authority.identity(machine_id, Role.MOBILITY)
        self.items = HeldItems(
            self._hello, on_ack=self._ack, on_digest_reply=self._reply, on_refused=self.refusals.append,
            on_welcome=self._welcome, limit_bytes=24 << 20,
        )  # fmt: skip
        self.sender = StreamSender(
            site.endpoint, self.identity, self.items, expect=Role.PROCESS_SERVER, times=QUICK,
            first_backoff_seconds=0.05, longest_backoff_seconds=0.5,
        )  # fmt: skip
        self._task: asyncio.Task[None] | None = None
        site.agents.append(self)
        if start:
            self.start()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self.sender.run())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def send(self, *items: Batch) -> None:
        for item in items:
            await self.items.send(item)

    def _hello(self) -> Any:
        return make_hello(self.machine_id, self.epoch, incarnation=self._known[0], landed_sequence=self._known[1])

    async def _welcome(self, welcome: Welcome) -> None:
        self.forgotten = max(self.forgotten, self.spooled - welcome.spooled_sequence)
        self.spooled, self.landed = welcome.spooled_sequence, welcome.landed_sequence

    async def _ack(self, ack: Ack) -> None:
        self.acks.append(ack)
        self.spooled, self.landed = ack.spooled_sequence, ack.landed_sequence
        self._known = (ack.incarnation, ack.landed_sequence)

    async def _reply(self, reply: DigestReply) -> None:
        self.replies.append(reply)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
