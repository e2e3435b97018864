"""The link from an agent: who may send, where it goes on, and what arrives.

Items are kept in memory, from where they are forwarded at once and spooled when they do not land in time (``stream``, decision
0010); nothing is acknowledged before it is durable in the spool or in the journal. While that memory is short, because the
spools are full and the master target takes nothing, this side does not read: the agent waits.
"""

from __future__ import annotations

import asyncio

from failback.errors import AuthenticationError, FailbackError, PeerError
from failback.model.components import Role
from failback.process_server.stream import ENDING_CODES, MachineStream
from failback.protocol.connection import items_missing, journal_fell_back, journal_replaced, negotiate
from failback.protocol.frames import RawItem
from failback.protocol.messages import Hello
from failback.runtime import logs
from failback.transport.link import Link

log = logs.get(__name__)

_HEARING_SECONDS = 4.0


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
            await _take(stream, link)
        finally:
            stream.agent_gone(link)


async def _greet(stream: MachineStream, link: Link, hello: Hello) -> None:
    if stream.problem is not None:
        raise stream.problem
    _compare_journals(stream, hello)
    await asyncio.to_thread(stream.spool.remember, hello.disks)
    stream.greeted.set()
    await _hear(stream)
    await _settle_before(stream)
    sequence, ring = await asyncio.to_thread(stream.spool.position)
    if hello.next_sequence > sequence + 1:
        raise items_missing(sequence + 1, hello.next_sequence)
    await link.send(stream.welcome(negotiate(hello), sequence, ring))


async def _hear(stream: MachineStream) -> None:
    """An earlier process forwarded items that it had not spooled: only the journal knows which of them landed."""
    try:
        async with asyncio.timeout(_HEARING_SECONDS):
            await stream.heard.wait()
    except TimeoutError:
        raise PeerError(
            "the master target has to say first what landed",
            code="JournalNotHeard",
            possible_causes="this process server was ended while it forwarded, and the master target is away",
            remedy="none when the master target comes back: the agent tries again and loses nothing",
        ) from None


async def _settle_before(stream: MachineStream) -> None:
    """Make durable what the link before left: an agent that has started again would make other items of it."""
    try:
        async with asyncio.timeout(_HEARING_SECONDS):
            await stream.spool_all()
    except TimeoutError:
        raise PeerError(
            "what came before cannot be spooled yet",
            code="SpoolFull",
            possible_causes="the spools are full, or their disk is slow",
            remedy="none when the master target takes items again: the agent tries again and loses nothing",
        ) from None


def _compare_journals(stream: MachineStream, hello: Hello) -> None:
    """The agent may remember more of the journal than this side does (D7). Raises ProtocolError JournalReplaced."""
    state = stream.spool.state
    if hello.incarnation and state.incarnation and hello.incarnation != state.incarnation:
        raise journal_replaced(hello.incarnation, state.incarnation)
    if hello.incarnation and hello.landed_sequence > state.landed_sequence and stream.master_target_linked:
        raise journal_fell_back(hello.incarnation, hello.landed_sequence, state.landed_sequence)
    stream.agent_remembers(hello.incarnation, hello.landed_sequence)


async def _take(stream: MachineStream, link: Link) -> None:
    while True:
        items = [message for message in await link.receive_some() if isinstance(message, RawItem)]
        if items:
            stream.received(items)
            items.clear()  # waiting for the next items must not keep these in memory
            await stream.memory.room()
