"""Links with real TLS: greeting, who may talk to whom, resume, back-pressure, dead peers, damaged bytes."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from process_server_doubles import (
    IMPATIENT,
    QUICK,
    Authority,
    KeepingMasterTarget,
    make_batch,
    make_digests,
    make_hello,
)

from failback.errors import AuthenticationError, FailbackError, PeerError, StaleEpochError
from failback.model.components import Endpoint, Role
from failback.protocol.frames import Decoder, encode
from failback.protocol.messages import Ack, DigestReply, Hello, Refusal, Welcome
from failback.transport.identity import Identity
from failback.transport.link import Link, open_link, serve_links
from failback.transport.sender import HeldItems, StreamSender

MACHINE = str(uuid.uuid4())
TARGET = str(uuid.uuid4())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def agent(authority: Authority) -> Identity:
    return authority.identity(MACHINE, Role.PROCESS_SERVER)


@pytest.fixture
async def target(authority: Authority) -> AsyncIterator[KeepingMasterTarget]:
    double = KeepingMasterTarget(authority.identity(TARGET, Role.MASTER_TARGET))
    await double.start()
    yield double
    await double.close()


def endpoint(port: int, component_id: str = TARGET) -> Endpoint:
    return Endpoint("127.0.0.1", port, component_id)  # type: ignore[arg-type]


def port_of(target: KeepingMasterTarget) -> int:
    assert target.server is not None
    return target.server.port


class Recorder:
    def __init__(self) -> None:
        self.acks: list[Ack] = []
        self.replies: list[DigestReply] = []
        self.welcomes: list[Welcome] = []
        self.refusals: list[FailbackError] = []

    async def ack(self, ack: Ack) -> None:
        self.acks.append(ack)

    async def reply(self, reply: DigestReply) -> None:
        self.replies.append(reply)

    async def welcome(self, welcome: Welcome) -> None:
        self.welcomes.append(welcome)

    def items(self, **options: int) -> HeldItems:
        return HeldItems(
            lambda: make_hello(MACHINE), on_ack=self.ack, on_digest_reply=self.reply, on_welcome=self.welcome,
            on_refused=self.refusals.append, **options,
        )  # fmt: skip


async def eventually(condition: object, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def test_items_arrive_and_are_acknowledged(target: KeepingMasterTarget, agent: Identity) -> None:
    recorder = Recorder()
    items = recorder.items()
    sender = StreamSender(endpoint(port_of(target)), agent, items, expect=Role.MASTER_TARGET, times=QUICK)
    task = asyncio.create_task(sender.run())
    sent = [make_batch(MACHINE, 1), make_digests(MACHINE, 2), make_batch(MACHINE, 3, payload_bytes=9 << 20)]
    for item in sent:
        await items.send(item)
    stream = await target.wait_for(MACHINE, 3)
    await eventually(lambda: recorder.acks and recorder.acks[-1].landed_sequence == 3)
    assert [item.decode() for item in stream.items] == sent
    assert recorder.acks[-1].incarnation == "journal-1" and recorder.acks[-1].landed_ring == 300
    assert [reply.sequence for reply in recorder.replies] == [2]
    assert items.held_bytes == 0 and sender.linked
    task.cancel()


async def test_a_reconnected_sender_goes_on_where_the_receiver_stands(
    target: KeepingMasterTarget, agent: Identity
) -> None:
    recorder = Recorder()
    items = recorder.items()
    port = port_of(target)
    sender = StreamSender(
        endpoint(port), agent, items, expect=Role.MASTER_TARGET, times=QUICK, first_backoff_seconds=0.05
    )
    task = asyncio.create_task(sender.run())
    for sequence in range(1, 61):
        await items.send(make_batch(MACHINE, sequence, payload_bytes=65536))
        if sequence % 15 == 0:
            await target.wait_for(MACHINE, sequence - 10)
            await target.close()
            await target.start(port)
    stream = await target.wait_for(MACHINE, 60)
    assert [item.decode() for item in stream.items] == [
        make_batch(MACHINE, sequence, payload_bytes=65536) for sequence in range(1, 61)
    ]
    assert stream.links >= 2 and len(recorder.welcomes) == stream.links
    task.cancel()


async def test_memory_of_unacknowledged_items_is_bounded(target: KeepingMasterTarget, agent: Identity) -> None:
    target.flow.clear()
    items = Recorder().items(limit_bytes=1 << 20)
    sender = StreamSender(endpoint(port_of(target)), agent, items, expect=Role.MASTER_TARGET, times=QUICK)
    task = asyncio.create_task(sender.run())

    async def produce() -> None:
        for sequence in range(1, 41):
            await items.send(make_batch(MACHINE, sequence, payload_bytes=128 << 10))

    producer = asyncio.create_task(produce())
    await asyncio.sleep(0.5)
    assert not producer.done() and items.held_bytes <= 1 << 20
    target.flow.set()
    await target.wait_for(MACHINE, 40)
    await producer
    task.cancel()


async def test_a_wrong_component_or_role_is_not_talked_to(target: KeepingMasterTarget, agent: Identity) -> None:
    hello = make_hello(MACHINE)
    with pytest.raises(AuthenticationError, match="not master-target"):
        await open_link(endpoint(port_of(target), str(uuid.uuid4())), agent, hello, expect=Role.MASTER_TARGET)
    with pytest.raises(AuthenticationError, match="not process-server"):
        await open_link(endpoint(port_of(target)), agent, hello, expect=Role.PROCESS_SERVER)


async def test_a_certificate_of_another_authority_is_refused_both_ways(
    target: KeepingMasterTarget, agent: Identity, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    stranger = other.identity(MACHINE, Role.PROCESS_SERVER)
    with pytest.raises(AuthenticationError, match="is not trusted"):
        await open_link(endpoint(port_of(target)), stranger, make_hello(MACHINE), expect=Role.MASTER_TARGET)
    trusting = other.identity(str(uuid.uuid4()), Role.PROCESS_SERVER)
    trusting.ca_path.write_bytes(agent.ca_path.read_bytes())  # trusts the server, is not trusted by it
    with pytest.raises(FailbackError):
        await open_link(endpoint(port_of(target)), trusting, make_hello(MACHINE), expect=Role.MASTER_TARGET)
    assert not target.streams


async def test_a_refusal_reaches_the_source_with_its_class(target: KeepingMasterTarget, agent: Identity) -> None:
    target.refuse = StaleEpochError("epoch 1 is over", remedy="ask again")
    with pytest.raises(StaleEpochError, match="epoch 1 is over") as caught:
        await open_link(endpoint(port_of(target)), agent, make_hello(MACHINE), expect=Role.MASTER_TARGET, times=QUICK)
    assert caught.value.remedy == "ask again" and not caught.value.retryable


async def test_no_common_version_is_a_refusal(target: KeepingMasterTarget, agent: Identity) -> None:
    hello = Hello(MACHINE, 1, "9.0", 7, 9, ())  # type: ignore[arg-type]
    with pytest.raises(FailbackError, match="versions 7 to 9") as caught:
        await open_link(endpoint(port_of(target)), agent, hello, expect=Role.MASTER_TARGET, times=QUICK)
    assert caught.value.code == "VersionMismatch"


async def test_damaged_bytes_close_the_link_with_the_reason(target: KeepingMasterTarget, agent: Identity) -> None:
    good = b"".join(bytes(part) for part in encode(make_batch(MACHINE, 1)))
    bad = bytearray(good)
    bad[-1] ^= 1
    answers = await _raw_exchange(port_of(target), agent, bytes(bad))
    assert isinstance(answers[-1], Refusal) and answers[-1].code == "PayloadDamaged"
    assert target.streams[(MACHINE, 1)].landed == 0
    skipped = b"".join(bytes(part) for part in encode(make_batch(MACHINE, 2)))
    answers = await _raw_exchange(port_of(target), agent, skipped)
    assert isinstance(answers[-1], Refusal) and answers[-1].code == "OutOfOrder"
    answers = await _raw_exchange(port_of(target), agent, good)
    assert isinstance(answers[-1], Ack) and answers[-1].landed_sequence == 1


async def _raw_exchange(port: int, identity: Identity, after_welcome: bytes) -> list[object]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=identity.client_context())
    decoder, answers = Decoder(), []
    writer.write(b"".join(bytes(part) for part in encode(make_hello(MACHINE))))
    async with asyncio.timeout(5):
        while len(answers) < 2:
            data = await reader.read(65536)
            if not data:
                break
            answers += decoder.feed(data)
            if len(answers) == 1:
                writer.write(after_welcome)
    writer.close()
    return list(answers)


async def test_a_silent_peer_is_declared_dead_and_a_quiet_one_is_not(authority: Authority, agent: Identity) -> None:
    async def idle(link: Link, hello: Hello) -> None:
        await link.send(Welcome(1, "test", hello.epoch, 0, 0, 0, 0, ""))
        await link.receive()

    server = await serve_links("127.0.0.1", 0, authority.identity(TARGET, Role.MASTER_TARGET), idle, times=IMPATIENT)
    link, _ = await open_link(
        endpoint(server.port), agent, make_hello(MACHINE), expect=Role.MASTER_TARGET, times=IMPATIENT
    )
    await asyncio.sleep(IMPATIENT.dead_seconds + 0.7)
    assert link.ended is None  # pings keep it alive
    await link.close()
    await server.close()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in encode(Welcome(1, "test", 1, 0, 0, 0, 0, "")):
            writer.write(part)
        await asyncio.sleep(30)

    context: ssl.SSLContext = authority.identity(TARGET, Role.MASTER_TARGET).server_context()
    silent = await asyncio.start_server(mute, "127.0.0.1", 0, ssl=context)
    port = silent.sockets[0].getsockname()[1]
    link, _ = await open_link(endpoint(port), agent, make_hello(MACHINE), expect=Role.MASTER_TARGET, times=IMPATIENT)
    with pytest.raises(PeerError, match="no sign of life"):
        async with asyncio.timeout(6):
            await link.receive()
    await link.close()
    silent.close()


async def test_many_links_share_one_budget_of_memory(authority: Authority) -> None:
    budget, frame = 4 << 20, 1 << 20
    machines = [str(uuid.uuid4()) for _ in range(12)]
    gate = asyncio.Event()
    received: dict[str, int] = {}

    async def slow(link: Link, hello: Hello) -> None:
        await link.send(Welcome(1, "test", hello.epoch, 0, 0, 0, 0, ""))
        while True:
            items = await link.receive_some()
            received[hello.machine_id] = received.get(hello.machine_id, 0) + len(items)
            await gate.wait()

    identity = authority.identity(TARGET, Role.MASTER_TARGET)
    server = await serve_links("127.0.0.1", 0, identity, slow, times=QUICK, budget_bytes=budget)
    senders = []
    for machine in machines:
        items = HeldItems(lambda machine=machine: make_hello(machine))  # type: ignore[misc]
        for sequence in range(1, 4):
            await items.send(make_batch(machine, sequence, payload_bytes=frame))
        sender = StreamSender(
            endpoint(server.port), authority.identity(machine, Role.MOBILITY), items, expect=Role.MASTER_TARGET,
            times=QUICK,
        )  # fmt: skip
        senders.append(asyncio.create_task(sender.run()))
    await asyncio.sleep(1.0)
    assert server.budget.used_bytes <= budget
    gate.set()
    await eventually(lambda: sum(received.values()) == 36)
    for task in senders:
        task.cancel()
    await asyncio.gather(*senders, return_exceptions=True)
    await server.close()
    assert server.budget.used_bytes == 0
