"""The link from an agent: who may send, where it goes on, and the loop receive -> spool -> acknowledge.

One sync covers everything that arrived while the sync before it ran (group commit). Nothing is acknowledged before it is
durable. While the spools are full this side does not read: the agent waits.
"""

from __future__ import annotations

import asyncio

from failback.errors import AuthenticationError, FailbackError, PeerError
from failback.model.components import Role
from failback.process_server.stream import ENDING_CODES, MachineStream
from failback.protocol.connection import items_missing, journal_fell_back, journal_replaced, negotiate
from failback.protocol.frames import RawItem
from failback.protocol.messages import Hello
from failback.runtime import faults, logs
from failback.transport.link import Link

log = logs.get(__name__)


def check_peer(link: Link, hello: Hello) -> None:
    """Only a machine's own agent sends its stream. Raises AuthenticationError."""
    if link.peer.role is not Role.MOBILITY or str(link.peer.component_id) != hello.machine_id:
        raise AuthenticationError(
            f"{link.peer.role.value} {link.peer.component_id} may not send the stream of machine {hello.machine_id}",
            code="NotYourStream",
            possible_causes="a copied disk carries the certificate of another machine",
            remedy="enrol the machine's own mobility service",
        )


async def take_stream(stream: MachineStream, link: Link, hello: Hello) -> None:
    """Serve the link until it ends (always by an error: PeerError when the agent just went away)."""
    if stream.agent is not None:
        stream.drop_agent(PeerError("a newer connection of the same machine took over"))
    async with stream.intake:
        try:
            await _greet(stream, link, hello)
        except FailbackError as error:
            if error.code in ENDING_CODES:
                await stream.end(error)
            raise
        stream.agent_linked(link)
        log.info("agent is linked", machine=hello.machine_id, epoch=hello.epoch, address=link.address,
                 spooled=stream.spool.spooled_sequence)  # fmt: skip
        try:
            await _spool(stream, link)
        finally:
            stream.agent_gone(link)


async def _greet(stream: MachineStream, link: Link, hello: Hello) -> None:
    if stream.problem is not None:
        raise stream.problem
    _compare_journals(stream, hello)
    sequence, ring = await asyncio.to_thread(stream.spool.position)  # after an append of the link before
    if hello.next_sequence > sequence + 1:
        raise items_missing(sequence + 1, hello.next_sequence)
    await asyncio.to_thread(stream.spool.remember, hello.disks)
    if (sequence, ring) != (stream.spool.spooled_sequence, stream.spool.spooled_ring):
        raise PeerError("the journal was ahead of the spool: greet again")
    stream.greeted.set()
    await link.send(stream.welcome(negotiate(hello), sequence, ring))


def _compare_journals(stream: MachineStream, hello: Hello) -> None:
    """The agent may remember more of the journal than this side does (D7). Raises ProtocolError JournalReplaced."""
    state = stream.spool.state
    if hello.incarnation and state.incarnation and hello.incarnation != state.incarnation:
        raise journal_replaced(hello.incarnation, state.incarnation)
    if hello.incarnation and hello.landed_sequence > state.landed_sequence and stream.master_target_linked:
        raise journal_fell_back(hello.incarnation, hello.landed_sequence, state.landed_sequence)
    stream.agent_remembers(hello.incarnation, hello.landed_sequence)


async def _spool(stream: MachineStream, link: Link) -> None:
    while True:
        items = [message for message in await link.receive_some() if isinstance(message, RawItem)]
        if not items:
            continue
        for together in groups(items, stream.space.limit_bytes // 4):
            async with stream.space.reserved(sum(len(item.buffer) for item in together)):
                await asyncio.to_thread(stream.spool.append, together)
            faults.point("spool.before_ack")
            stream.spooled_more()
            together.clear()  # waiting for the next items must not keep these in memory
        items.clear()


def groups(items: list[RawItem], limit_bytes: int) -> list[list[RawItem]]:
    """The items in order, in groups of at most ``limit_bytes`` or one item: what is synced together."""
    found: list[list[RawItem]] = []
    size = 0
    for item in items:
        if not found or size + len(item.buffer) > limit_bytes:
            found.append([])
            size = 0
        found[-1].append(item)
        size += len(item.buffer)
    return found
