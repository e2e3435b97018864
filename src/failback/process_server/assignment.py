"""Which streams exist: the assignment made real, and what of earlier ones has to go (D6).

:func:`plan` decides from the spools found on disk and the assignment; :class:`Streams` does it. A spool of a machine that
is not assigned, or of a lower epoch, is deleted: its items were superseded. A spool of a *higher* epoch than assigned is
left alone (the configuration server may have been restored from an older copy) and not served.
"""

from __future__ import annotations

import asyncio
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from failback.errors import FailbackError, NotFoundError, PeerError, StaleEpochError, StorageError
from failback.model.components import Endpoint, ProcessServerAssignment, Role, RoutedMachine, SpooledMachine
from failback.model.ids import MachineId
from failback.process_server.forward import ForwardedItems, ReadBudget
from failback.process_server.recent import RecentMemory
from failback.process_server.space import SpoolSpace
from failback.process_server.spool import Spool
from failback.process_server.stream import MachineStream
from failback.runtime import faults, logs
from failback.transport.identity import Identity
from failback.transport.link import DEFAULT_TIMES, LinkTimes
from failback.transport.sender import StreamSender

log = logs.get(__name__)

_DELETED = "deleted-"
StreamKey = tuple[MachineId, int]


@dataclass(frozen=True, slots=True)
class Plan:
    delete: tuple[StreamKey, ...]
    serve: tuple[RoutedMachine, ...]


def plan(found: frozenset[StreamKey], assignment: ProcessServerAssignment) -> Plan:
    """``found``: the streams that have a spool."""
    wanted = {machine.machine_id: machine for machine in assignment.machines}
    delete = [
        (machine_id, epoch)
        for machine_id, epoch in sorted(found)
        if machine_id not in wanted or epoch < wanted[machine_id].epoch
    ]
    return Plan(tuple(delete), tuple(wanted.values()))


def spools_on_disk(directory: Path) -> frozenset[StreamKey]:
    """Spool directories are ``MACHINE/EPOCH``. Finishes deletions that a crash interrupted.

    What is not found here is never deleted: whatever else lies in the directory (a spool_directory named by mistake, a
    file system with other tenants) is not ours, however much it looks like ``something/15``.
    """
    found: set[StreamKey] = set()
    for machine in directory.iterdir():
        if machine.is_symlink() or not machine.is_dir():
            continue
        if machine.name.startswith(_DELETED) and _is_machine(machine.name.removeprefix(_DELETED).rsplit("-", 1)[0]):
            shutil.rmtree(machine)
        elif _is_machine(machine.name):
            epochs = [epoch for epoch in machine.iterdir() if epoch.name.isdigit()]
            found.update((MachineId(machine.name), int(epoch.name)) for epoch in epochs)
    return frozenset(found)


def _is_machine(name: str) -> bool:
    """Whether a directory's name is a machine id as the configuration server makes them."""
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def delete_spool(directory: Path, key: StreamKey) -> None:
    """May run twice; a crash in the middle leaves a directory that :func:`spools_on_disk` removes."""
    machine_id, epoch = key
    path = directory / machine_id / str(epoch)
    faults.point("spool.before_delete")
    if path.exists():
        path = path.rename(directory / f"{_DELETED}{machine_id}-{epoch}")
        shutil.rmtree(path)
    machine = directory / machine_id
    if machine.exists() and not any(machine.iterdir()):
        machine.rmdir()


@dataclass(slots=True)
class _Served:
    stream: MachineStream
    master_target: Endpoint
    forwarding: asyncio.Task[None]
    spooling: asyncio.Task[None]


class Streams:
    """All streams of this process. ``group`` runs their forwarders."""

    def __init__(self, directory: Path, identity: Identity, group: asyncio.TaskGroup, *, limit_bytes: int,
                 read_bytes: int = 32 << 20, recent_bytes: int = 96 << 20,
                 times: LinkTimes = DEFAULT_TIMES) -> None:  # fmt: skip
        self.space = SpoolSpace(limit_bytes, self._stored_bytes)
        self._directory = directory
        self._identity = identity
        self._group = group
        self._times = times
        self._segment_bytes = max(1 << 20, min(64 << 20, limit_bytes // 16))
        self._read_bytes = read_bytes
        self._read_budgets: dict[Endpoint, ReadBudget] = {}
        self._recent_memory = RecentMemory(recent_bytes)
        self._served: dict[MachineId, _Served] = {}
        self._assigned: dict[MachineId, int] = {}
        self._unusable: dict[MachineId, FailbackError] = {}

    def all(self) -> list[MachineStream]:
        return [served.stream for served in self._served.values()]

    def status(self) -> tuple[SpooledMachine, ...]:
        broken = [
            SpooledMachine(
                machine_id, self._assigned.get(machine_id, 0), False, False, 0, 0, 0, f"{error.code}: {error}"
            )
            for machine_id, error in self._unusable.items()
        ]
        return (*(stream.status() for stream in self.all()), *broken)

    def find(self, machine_id: MachineId, epoch: int) -> MachineStream:
        """The stream to spool into. Raises NotFoundError, StaleEpochError, PeerError (news may be under way)."""
        assigned = self._assigned.get(machine_id)
        if assigned is None:
            raise NotFoundError(
                f"machine {machine_id} is not assigned to this process server",
                code="MachineNotAssigned",
                remedy="none when protection was just begun or moved: the agent tries again",
                retryable=True,
            )
        if epoch < assigned:
            raise StaleEpochError(
                f"epoch {epoch} of machine {machine_id} is over: {assigned} is current",
                remedy="none: the agent waits for its assignment",
            )
        if epoch == assigned and machine_id in self._unusable:
            raise self._unusable[machine_id]
        served = self._served.get(machine_id)
        if epoch > assigned or served is None:
            raise PeerError(
                f"epoch {epoch} of machine {machine_id} is not known here yet (known: {assigned})",
                code="EpochNotAssigned",
            )
        return served.stream

    async def apply(self, assignment: ProcessServerAssignment) -> None:
        """Make the assignment real. May run again and again. A stream whose spool cannot be opened does not hold up the
        others; afterwards the first such error is raised (StorageError, IntegrityError), so that it is tried again."""
        try:
            await self._apply(assignment)
        except OSError as error:
            raise StorageError(f"the spool directory {self._directory} failed: {error}", retryable=True) from error

    async def _apply(self, assignment: ProcessServerAssignment) -> None:
        self._assigned = {machine.machine_id: machine.epoch for machine in assignment.machines}
        found = await asyncio.to_thread(spools_on_disk, self._directory)
        decided = plan(found, assignment)
        for machine_id, served in list(self._served.items()):
            if self._assigned.get(machine_id) != served.stream.epoch:
                await self._stop(machine_id)
        for key in decided.delete:
            log.info("spool is deleted", machine=key[0], epoch=key[1])
            await asyncio.to_thread(delete_spool, self._directory, key)
        self.space.look()
        self._unusable.clear()
        for machine in decided.serve:
            try:
                await self._serve(machine)
            except FailbackError as error:
                log.error("spool cannot be opened", machine=machine.machine_id, reason=error.message)
                self._unusable[machine.machine_id] = error
        for unusable in self._unusable.values():
            raise unusable

    async def remember_landed(self) -> None:
        """Until cancelled: store every second how far each journal had landed, so that a journal which was restored
        from an older copy is recognised after a restart too (D7)."""
        while True:
            await asyncio.sleep(1.0)
            for stream in self.all():
                try:
                    await asyncio.to_thread(stream.spool.store_landed)
                except StorageError as error:
                    stream.trouble = error.message

    async def close(self) -> None:
        for machine_id in list(self._served):
            await self._stop(machine_id)

    async def _serve(self, machine: RoutedMachine) -> None:
        served = self._served.get(machine.machine_id)
        if served is None:
            directory = self._directory / machine.machine_id / str(machine.epoch)
            spool = await asyncio.to_thread(
                Spool.open, directory, machine.machine_id, machine.epoch, segment_bytes=self._segment_bytes
            )
            stream = MachineStream(machine.machine_id, machine.epoch, spool, self.space, self._recent_memory)
            spooling = self._group.create_task(stream.keep_spooling(), name=f"spool {machine.machine_id}")
            log.info("stream is served", machine=machine.machine_id, epoch=machine.epoch,
                     spooled=spool.spooled_sequence, landed=spool.state.landed_sequence)  # fmt: skip
        elif served.master_target == machine.master_target:
            served.stream.pacer.limit = machine.bandwidth
            return
        else:
            stream, spooling = served.stream, served.spooling
            await _end(served.forwarding)
        stream.pacer.limit = machine.bandwidth
        task = self._group.create_task(
            self._forward(stream, machine.master_target), name=f"forward {machine.machine_id}"
        )
        self._served[machine.machine_id] = _Served(stream, machine.master_target, task, spooling)

    async def _forward(self, stream: MachineStream, master_target: Endpoint) -> None:
        await stream.greeted.wait()
        source = ForwardedItems(stream, self._budget_of(master_target))
        sender = StreamSender(
            master_target, self._identity, source, expect=Role.MASTER_TARGET, times=self._times,
            sent_fault="forward.after_send", pace=stream.pacer.pace,
        )  # fmt: skip
        try:
            await sender.run()
        finally:
            stream.master_target_linked = False
            source.drop_read_items()

    def _budget_of(self, master_target: Endpoint) -> ReadBudget:
        """Its part of the memory for reading; one item always passes."""
        budget = self._read_budgets.setdefault(master_target, ReadBudget(self._read_bytes))
        for each in self._read_budgets.values():
            each.limit_bytes = self._read_bytes // len(self._read_budgets)
        return budget

    async def _stop(self, machine_id: MachineId) -> None:
        served = self._served.pop(machine_id)
        error: FailbackError = StaleEpochError(
            f"epoch {served.stream.epoch} of machine {machine_id} is over",
            remedy="none: an assignment says what follows",
        )
        if self._assigned.get(machine_id) == served.stream.epoch:
            error = PeerError("the process server stops")
        served.stream.drop_agent(error)
        await _end(served.forwarding)
        await _end(served.spooling)
        async with served.stream.intake:
            if self._assigned.get(machine_id) == served.stream.epoch:
                await served.stream.settle()
            await asyncio.to_thread(served.stream.spool.position)  # an append may still be writing
        served.stream.recent.leave()
        await asyncio.to_thread(served.stream.spool.store_landed)
        await asyncio.to_thread(served.stream.spool.close)

    def _stored_bytes(self) -> int:
        return sum(served.stream.spool.pending_bytes for served in self._served.values())


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
