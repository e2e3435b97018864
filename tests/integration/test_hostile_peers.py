"""Who may not, gets nothing: every listening port of every role against strangers, wrong roles, garbage, half-open
connections, and peers that send slowly or never read. The real processes; meanwhile an honest peer is served."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import hostile_peers as hostile
import journal_driver as driver
import pytest
from master_target_site import Site as MasterTargetSite
from process_server_doubles import QUICK, Authority, make_batch, make_hello
from process_server_site import Agent, Site, eventually
from running_configuration_server import RunningConfigurationServer

from failback.model.components import Role
from failback.protocol import layout
from failback.protocol.frames import Decoder, encode
from failback.protocol.messages import Ping, Refusal
from failback.transport import identity as identities
from failback.transport.door import DoorLimits
from failback.transport.link import open_link

LIMITS = DoorLimits()


@pytest.fixture
async def process_server(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    await site.start()
    yield site
    await site.close()


@pytest.fixture
async def master_target(tmp_path: Path) -> AsyncIterator[MasterTargetSite]:
    site = MasterTargetSite(tmp_path)
    site.start()
    site.make_disks(1)
    await site.attach()
    site.assign(1)
    yield site
    await site.close()


def said_by(answer: bytes) -> list[str]:
    """What a link's answer consists of: refusals by their code, everything else by its type."""
    messages = Decoder().feed(answer)
    return [message.code if isinstance(message, Refusal) else type(message).__name__ for message in messages]


async def strangers_get_nothing(authority: Authority, directory: Path, port: int, machine: str, role: Role) -> None:
    said = hostile.greeting(machine)
    component = machine if role is Role.MOBILITY else hostile.fresh_id()
    for name in hostile.STRANGERS:
        context = hostile.stranger(authority, directory, name, component, role)
        assert await asyncio.to_thread(hostile.knock, port, context, said) == b"", name


async def test_strangers_get_nothing_from_a_process_server(process_server: Site, tmp_path: Path) -> None:
    site = process_server
    agent = site.agent()
    await agent.send(make_batch(agent.machine_id, 1))
    await eventually(lambda: agent.landed == 1)
    await strangers_get_nothing(site.authority, tmp_path, site.port, agent.machine_id, Role.MOBILITY)
    for role in (Role.PROCESS_SERVER, Role.MASTER_TARGET, Role.CONFIGURATION_SERVER, Role.MOBILITY):
        name = hostile.fresh_id() if role is Role.MOBILITY else agent.machine_id
        context = site.authority.identity(name, role, tmp_path / f"wrong-{role.value}").client_context()
        answer = await asyncio.to_thread(hostile.knock, site.port, context, hostile.greeting(agent.machine_id))
        assert said_by(answer) == ["NotYourStream"], role
    assert site.spools() == [(agent.machine_id, "1")]
    await agent.send(make_batch(agent.machine_id, 2))
    await eventually(lambda: agent.landed == 2)


async def test_strangers_get_nothing_from_a_master_target(master_target: MasterTargetSite, tmp_path: Path) -> None:
    site = master_target
    await strangers_get_nothing(site.authority, tmp_path, site.port, driver.MACHINE, Role.PROCESS_SERVER)
    expected = {Role.MOBILITY: "AuthenticationFailed", Role.MASTER_TARGET: "AuthenticationFailed",
                Role.CONFIGURATION_SERVER: "AuthenticationFailed", Role.PROCESS_SERVER: "NotAssigned"}  # fmt: skip
    for role, code in expected.items():
        name = driver.MACHINE if role is Role.MOBILITY else hostile.fresh_id()
        context = site.authority.identity(name, role, tmp_path / f"wrong-{role.value}").client_context()
        answer = await asyncio.to_thread(hostile.knock, site.port, context, hostile.greeting(driver.MACHINE))
        assert said_by(answer) == [code], role
    sender = site.sender(1)
    await sender.send(driver.make_batch(1, 1))
    await site.landed(sender, 1)


@pytest.fixture
def server(tmp_path: Path) -> RunningConfigurationServer:
    with RunningConfigurationServer(tmp_path) as running:
        yield running


def _request(port: int, context: ssl.SSLContext, method: str, path: str, body: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=15)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


async def test_strangers_get_nothing_from_a_configuration_server(
    server: RunningConfigurationServer, tmp_path: Path
) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    heartbeat = b"POST /components/v1/heartbeat HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    authority = Authority(tmp_path / "forged-ca")  # nobody but the server holds its key: all of these are forged
    for name in hostile.STRANGERS[1:]:
        context = hostile.stranger(authority, tmp_path, name, hostile.fresh_id(), Role.MASTER_TARGET)
        assert await asyncio.to_thread(hostile.knock, port, context, heartbeat) == b"", name
    nobody = hostile.stranger(authority, tmp_path, "no certificate", "", Role.MOBILITY)
    status, answer = await asyncio.to_thread(_request, port, nobody, "POST", "/components/v1/heartbeat", "{}")
    assert status == 401 and json.loads(answer)["error"]["code"] == "AuthenticationFailed"
    enrolled = await identities.enrol_if_needed(tmp_path / "agent", server.control(), Role.MOBILITY)
    claim = _heartbeat(Role.MASTER_TARGET)
    status, answer = await asyncio.to_thread(
        _request, port, enrolled.client_context(), "POST", "/components/v1/heartbeat", claim
    )
    assert status == 401, answer


def _heartbeat(role: Role) -> str:
    return json.dumps(
        {"role": role.value, "hostname": "h", "version": "1", "hardware_id": "x", "boot_id": "b", "os_family": "linux",
         "os_version": "12", "kernel": "6", "wall_ns": 1, "monotonic": 1.0, "addresses": [], "status": {}, "reports": [],
         "assignment_generation": 0, "wait_seconds": 0}
    )  # fmt: skip


async def the_door_holds(port: int, pid: int) -> None:
    """Garbage and half-open connections from two addresses; then all of them are gone and nothing is left of them."""
    before, memory = hostile.open_files(pid), hostile.resident_megabytes(pid)
    for seed in range(60):
        await asyncio.to_thread(hostile.throw_garbage, port, seed)
    with hostile.half_open(port, LIMITS.of_address + 40) as held:
        turned_away = sum([await asyncio.to_thread(hostile.is_closed, one, 0.02) for one in held])
        assert turned_away >= 40, turned_away
        assert hostile.open_files(pid) <= before + LIMITS.of_address + 8
        for one in held:  # those inside are closed when their time for the handshake is over
            assert await asyncio.to_thread(hostile.is_closed, one, LIMITS.handshake_seconds + 20)
    await eventually(lambda: hostile.open_files(pid) <= before + 12, 30)  # links and spools of honest peers among them
    assert hostile.resident_megabytes(pid) < memory + 100  # what the handshakes took, Python gives back later


async def test_half_open_connections_take_nobodys_place_at_a_process_server(process_server: Site) -> None:
    site = process_server
    agent = site.agent()
    holding = asyncio.create_task(the_door_holds(site.port, site.pid))
    for number in range(1, 21):
        await agent.send(make_batch(agent.machine_id, number))
        await eventually(lambda: agent.landed == number)  # noqa: B023 - waited for at once
        link, _ = await open_link(
            site.endpoint, agent.identity, make_hello(agent.machine_id, next_sequence=number + 1),
            expect=Role.PROCESS_SERVER, times=QUICK,
        )  # fmt: skip
        await link.close()
        await asyncio.sleep(0.3)
    await holding


async def test_half_open_connections_take_nobodys_place_at_a_configuration_server(
    server: RunningConfigurationServer,
) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    holding = asyncio.create_task(the_door_holds(port, server.pid))
    while not holding.done():
        assert (await asyncio.to_thread(server.get, "/healthz"))["status"] == "ok"
        await asyncio.sleep(0.2)
    await holding


class RudePeer:
    """A linked agent that does not do its part."""

    def __init__(self, site: Site, agent: Agent, number: int) -> None:
        self._site, self._agent = site, agent
        self._address = f"127.0.1.{number + 1}"
        self.cut = False

    async def _link(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._site.port, ssl=self._agent.identity.client_context(), server_hostname="localhost",
            limit=4096, local_addr=(self._address, 0),
        )  # fmt: skip
        writer.write(hostile.greeting(self._agent.machine_id))
        await writer.drain()
        await reader.readexactly(layout.FRAME_HEADER_BYTES)  # the Welcome begins
        return reader, writer

    async def crawls(self) -> None:
        """Half a large frame, byte by byte."""
        frame = b"".join(bytes(part) for part in encode(make_batch(self._agent.machine_id, 1, payload_bytes=8 << 20)))
        reader, writer = await self._link()
        with contextlib.suppress(OSError):
            writer.write(frame[: 1 << 20])
            for place in range(1 << 20, 4 << 20):
                await writer.drain()
                await asyncio.sleep(0.5)
                writer.write(frame[place : place + 1])
                if reader.at_eof():
                    break
        self.cut = True
        writer.close()

    async def is_deaf(self) -> None:
        """Ping without end, and read none of the answers."""
        pings = b"".join(bytes(part) for part in encode(Ping(1))) * 1000
        reader, writer = await self._link()
        reader.feed_data(bytes(16384))  # from here on the stream reader is full: it reads no more
        with contextlib.suppress(OSError, TimeoutError):
            for _ in range(600):
                writer.write(pings)
                async with asyncio.timeout(20):
                    await writer.drain()
                await asyncio.sleep(0.05)
        writer.transport.abort()


async def test_slow_and_deaf_peers_hold_no_memory_and_block_nobody(process_server: Site) -> None:
    site = process_server
    honest = site.agent(start=False)
    rude = [site.agent(start=False) for _ in range(50)]
    site.assign(*((agent.machine_id, 1) for agent in (honest, *rude)))
    await eventually(lambda: len(site.plane.status.get("machines", [])) == 51)
    before = site.resident_megabytes()
    peers = [RudePeer(site, agent, number) for number, agent in enumerate(rude)]
    tasks = [asyncio.create_task(peer.crawls()) for peer in peers[:10]]
    tasks += [asyncio.create_task(peer.is_deaf()) for peer in peers[10:]]
    await asyncio.sleep(3)
    honest.start()
    await honest.send(*(make_batch(honest.machine_id, number, payload_bytes=1 << 20) for number in range(1, 21)))
    await eventually(lambda: honest.landed == 20, 120)
    assert site.peak_megabytes() - before < 64 + 100  # the budget for frames, and what Python needs beside it
    assert any(peer.cut for peer in peers[:10])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
