"""The link from a process server: who may send, under which epoch, and the loop receive -> journal -> acknowledge.

Accepted is only the machine, the epoch and the process server that the assignment names (D2, D6). A higher epoch becomes
durable before its first item; from then on a lower one is refused. One sync covers everything that arrived while the one
before it ran (group commit); nothing is acknowledged before it. A full retention volume ends the link with the reason:
the process server keeps the items and comes back.
"""

from __future__ import annotations

import asyncio

from failback import __version__
from failback.errors import (
    AuthenticationError,
    ConflictError,
    FailbackError,
    OutOfSpaceError,
    PeerError,
    PreconditionError,
    StaleEpochError,
    StorageError,
)
from failback.journal.journal import Journal
from failback.master_target.replica import ATTACHED, Replica
from failback.master_target.replicas import Replicas
from failback.model.components import Role
from failback.model.ids import MachineId
from failback.model.stream import Position
from failback.protocol.connection import items_missing, journal_fell_back, journal_replaced, negotiate
from failback.protocol.items import RawItem
from failback.protocol.messages import FEATURES, Ack, DigestReply, Hello, Welcome
from failback.runtime import faults, logs
from failback.transport.link import Link

log = logs.get(__name__)


class Intake:
    """Call :meth:`accept` for each link (:func:`failback.transport.link.serve_links`)."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._links: dict[MachineId, tuple[Link, int]] = {}
        """The living link of a machine and its epoch."""
        self._landing: dict[MachineId, asyncio.Lock] = {}

    async def accept(self, link: Link, hello: Hello) -> None:
        """Serve the link until it ends (always by an error: PeerError when the process server just went away)."""
        machine_id = hello.machine_id
        self._check_peer(link, hello)
        self.drop(machine_id, PeerError("a newer connection for the same machine took over"))
        async with self._landing.setdefault(machine_id, asyncio.Lock()):
            replica = self._replicas.find(machine_id)
            self._check_replica(replica, hello)
            journal = replica.journal
            await asyncio.to_thread(replica.begin_epoch, hello.epoch)
            await link.send(_welcome(journal, hello))
            self._links[machine_id] = (link, hello.epoch)
            loop = asyncio.get_running_loop()
            replica.on_reply = lambda reply: _reply_from_thread(loop, link, reply)
            for reply in await asyncio.to_thread(journal.replies):
                link.send_small(reply)
            log.info("process server is linked", machine=machine_id, epoch=hello.epoch, landed=journal.landed.sequence)
            try:
                await self._land(replica, link)
            except StorageError as error:
                replica.landing_problem = error.message
                if isinstance(error, OutOfSpaceError):
                    await asyncio.to_thread(replica.relieve)
                raise
            finally:
                if self._links.get(machine_id, (None, 0))[0] is link:
                    del self._links[machine_id]

    def drop(self, machine_id: MachineId, reason: FailbackError) -> None:
        """End the machine's link, if there is one."""
        known = self._links.pop(machine_id, None)
        if known is not None:
            known[0].refuse(reason)

    async def quiet(self, machine_id: MachineId) -> None:
        """Wait until nothing of the machine is being journaled."""
        async with self._landing.setdefault(machine_id, asyncio.Lock()):
            return

    def drop_unassigned(self) -> None:
        """After an assignment changed: links that it does not name any more end."""
        for machine_id, (link, epoch) in list(self._links.items()):
            entry = self._replicas.assigned(machine_id)
            if entry is None or entry.process_server_id != link.peer.component_id or entry.epoch != epoch:
                self.drop(machine_id, StaleEpochError("the assignment of this machine changed", retryable=True))

    def _check_peer(self, link: Link, hello: Hello) -> None:
        entry = self._replicas.assigned(hello.machine_id)
        if link.peer.role is not Role.PROCESS_SERVER:
            raise AuthenticationError(f"{link.peer.role.value} {link.peer.component_id} is no process server")
        if entry is None or entry.process_server_id != link.peer.component_id:
            raise ConflictError(
                f"machine {hello.machine_id} is not assigned to process server {link.peer.component_id} here",
                code="NotAssigned",
                retryable=True,
            )
        if hello.epoch < entry.epoch:
            raise StaleEpochError(f"epoch {hello.epoch} of machine {hello.machine_id} is over; it is at {entry.epoch}")
        if hello.epoch > entry.epoch:
            raise ConflictError(f"epoch {hello.epoch} of machine {hello.machine_id} is not assigned here yet",
                                code="NotAssigned", retryable=True)  # fmt: skip

    def _check_replica(self, replica: Replica, hello: Hello) -> None:
        journal = replica.journal
        if replica.state != ATTACHED:
            raise ConflictError(
                f"the replica of machine {hello.machine_id} is released", code="ReplicaReleased", retryable=True
            )
        if journal.damage is not None and journal.damage.refuses(hello.epoch):
            raise journal.damage.error()
        known = {disk.index: disk.size_bytes for disk in journal.catalogue.disks if not disk.removed}
        sent = {disk.index: disk.size_bytes for disk in hello.disks}
        if known != sent:
            raise PreconditionError(
                f"the source has disks {sent}, the replica {known} (index: bytes)",
                code="DisksDiffer",
                remedy="reprotect the machine again with its present disks",
            )
        if hello.incarnation and hello.incarnation != journal.incarnation:
            raise journal_replaced(hello.incarnation, journal.incarnation)
        landed = journal.landed if journal.epoch == hello.epoch else None
        sequence = landed.sequence if landed else 0
        if hello.incarnation and hello.landed_sequence > sequence:
            raise journal_fell_back(journal.incarnation, hello.landed_sequence, sequence)
        if hello.next_sequence > sequence + 1:
            raise items_missing(sequence + 1, hello.next_sequence)

    async def _land(self, replica: Replica, link: Link) -> None:
        journal = replica.journal
        while True:
            items = [message for message in await link.receive_some() if isinstance(message, RawItem)]
            if not items:
                continue
            landed = await asyncio.to_thread(_append, journal, items)
            replica.landing_problem = ""
            replica.landed_more()
            faults.point("landing.before_ack")
            link.send_small(
                Ack(landed.epoch, landed.sequence, landed.ring, landed.sequence, landed.ring, journal.incarnation)
            )


def _append(journal: Journal, items: list[RawItem]) -> Position:
    for item in items:
        journal.append(item)
    return journal.sync()


def _welcome(journal: Journal, hello: Hello) -> Welcome:
    landed = journal.landed
    return Welcome(negotiate(hello), __version__, landed.epoch, landed.sequence, landed.ring, landed.sequence,
                   landed.ring, journal.incarnation, FEATURES)  # fmt: skip


def _reply_from_thread(loop: asyncio.AbstractEventLoop, link: Link, reply: DigestReply) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(link.send_small, reply)
