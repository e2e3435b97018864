"""All replicas of this master target: found again after a restart, one order at a time on each, refused when not assigned.

``<state>/replicas/<machine>.json`` says which journals are ours and on which volume; what a replica is and how far it got
lies in its journal. A replica that cannot be opened (its volume is not mounted, a disk is in use) shows its problem and
is tried again every few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from failback.block.raw import sync_directory
from failback.errors import (
    ConfigurationError,
    ConflictError,
    FailbackError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    StorageError,
)
from failback.journal.catalogue import Catalogue
from failback.journal.journal import CATALOGUE_FILE, Journal
from failback.master_target import volumes
from failback.master_target.config import MasterTargetConfig, NamedPlace
from failback.master_target.quota import VolumeQuota
from failback.master_target.replica import ATTACHED, DETACHED, RELEASED, Replica
from failback.master_target.scrubs import UndoScrubs
from failback.master_target.views import ServedViews
from failback.master_target.witness import WitnessFile
from failback.model.components import MasterTargetAssignment, ReplicaAssignment, ReplicaStatus, VolumeFacts
from failback.model.ids import MachineId
from failback.model.orders import AttachedReplica, AttachReplica
from failback.model.points import ReplicaDisk
from failback.runtime import logs, records

log = logs.get(__name__)

MAXIMUM_DISKS = 60
"""Azure Site Recovery's limit of disks attached to a master target, kept."""
_RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Remembered:
    machine_id: MachineId
    retention_volume: str


class Replicas:
    """Methods named like orders block and run in threads, under the machine's lock."""

    def __init__(self, config: MasterTargetConfig) -> None:
        self._config = config
        self._directory = config.state_directory / "replicas"
        self._directory.mkdir(parents=True, exist_ok=True)
        digest = hashlib.blake2b(str(config.state_directory.resolve()).encode(), digest_size=6).hexdigest()
        self._runtime_directory = Path(f"/run/failback-{digest}")  # short: a unix socket's path has 108 bytes
        self._replicas: dict[MachineId, Replica] = {}
        self._broken: dict[MachineId, str] = {}
        self._assignments: dict[MachineId, ReplicaAssignment] = {}
        self._locks: dict[MachineId, asyncio.Lock] = {}
        self._serials: dict[MachineId, int] = {}
        self._quotas = {
            place.name: VolumeQuota(place, partial(self._redo_bytes, place), partial(self._undo_bytes, place))
            for place in config.retention_volumes
        }
        self._claims = volumes.VolumeClaims(config.retention_volumes)
        self._claims.locked()  # claims those that are there
        self.views = ServedViews(self._runtime_directory)
        self.views.on_news = self._news
        self.scrubs = UndoScrubs(
            self._replicas.values, config.scrub_every_hours * 3600, config.scrub_megabytes_per_second * 1e6
        )
        self.on_news: Callable[[], None] = lambda: None
        """Called in any thread when a replica's status has news that somebody waits for."""

    # --- finding ----------------------------------------------------------------------------------------------------

    def lock(self, machine_id: MachineId) -> asyncio.Lock:
        return self._locks.setdefault(machine_id, asyncio.Lock())

    def supersede(self, machine_id: MachineId) -> int:
        """A newer order on the machine came: an older one that still waits gives up (see ``is_newest``)."""
        self._serials[machine_id] = self._serials.get(machine_id, 0) + 1
        return self._serials[machine_id]

    def is_newest(self, machine_id: MachineId, serial: int) -> bool:
        return self._serials.get(machine_id) == serial

    def find(self, machine_id: MachineId) -> Replica:
        """Raises NotFoundError, or StorageError with the reason why a known one could not be opened."""
        if machine_id in self._replicas:
            return self._replicas[machine_id]
        if machine_id in self._broken:
            raise StorageError(
                f"the replica of machine {machine_id} is not open: {self._broken[machine_id]}", retryable=True
            )
        raise NotFoundError(
            f"this master target has no replica of machine {machine_id}", remedy="reprotect the machine"
        )

    def assigned(self, machine_id: MachineId) -> ReplicaAssignment | None:
        return self._assignments.get(machine_id)

    def assign(self, assignment: MasterTargetAssignment) -> None:
        """Take the whole of what is to be accepted."""
        self._assignments = {entry.machine_id: entry for entry in assignment.replicas}
        for machine_id, replica in self._replicas.items():
            self._give_policy(machine_id, replica)

    def _redo_bytes(self, place: NamedPlace) -> int:
        return sum(one.redo.size_bytes for one in self._journals_on(place))

    def _undo_bytes(self, place: NamedPlace) -> int:
        return sum(one.size_bytes - one.redo.size_bytes for one in self._journals_on(place))

    def _journals_on(self, place: NamedPlace) -> list[Journal]:
        journals = [replica.journal for replica in list(self._replicas.values())]
        return [one for one in journals if one.directory.is_relative_to(place.path)]

    def volume_facts(self) -> tuple[VolumeFacts, ...]:
        """The retention volumes, as large as their quotas let them be."""
        found = volumes.all_facts(self._config.retention_volumes, self._around())
        return tuple(self._quotas[facts.name].shown(facts) for facts in found)

    def _around(self) -> volumes.Surrounding:
        return volumes.Surrounding(volumes.neighbours_of(self._config), self._claims.locked())

    def _give_policy(self, machine_id: MachineId, replica: Replica) -> None:
        for place in self._config.retention_volumes:
            if place.quota_bytes and replica.journal.directory.is_relative_to(place.path):
                replica.journal.redo.free_bytes = self._quotas[place.name].free_bytes
        replica.on_news = self._news
        replica.on_views_end = lambda reason: self.views.end_of(machine_id, reason)
        entry = self._assignments.get(machine_id)
        if entry is not None:
            replica.journal.policy = entry.policy

    def _news(self) -> None:
        self.on_news()

    def statuses(self) -> tuple[ReplicaStatus, ...]:
        broken = [
            ReplicaStatus(machine_id, ATTACHED, 0, "", 0, 0, 0, False, problem=problem)
            for machine_id, problem in self._broken.items()
        ]
        return (*(replica.status() for replica in self._replicas.values()), *broken)

    # --- over restarts ----------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Open what was attached, locks and all. Blocks; what fails is kept as a problem for ``retry``."""
        for path in sorted(self._directory.glob("*.json")):
            self._reopen(MachineId(path.stem))

    def _reopen(self, machine_id: MachineId) -> None:
        try:
            journal = Journal.open(self._journal_directory(self._remembered(machine_id)))
            replica = Replica(journal, self._runtime_directory, self._witness(machine_id))
            try:
                if replica.state == ATTACHED:
                    replica.open()
            except BaseException:
                replica.close()
                raise
        except FailbackError as error:
            if self._broken.get(machine_id) != error.message:
                log.error("replica cannot be opened", machine=machine_id, code=error.code, reason=error.message,
                          remedy=error.remedy)  # fmt: skip
            self._broken[machine_id] = error.message
            return
        self._broken.pop(machine_id, None)
        self._give_policy(machine_id, replica)
        self._replicas[machine_id] = replica
        log.info("replica is open", machine=machine_id, state=replica.state, landed=replica.journal.landed.sequence)

    async def retry(self) -> None:
        """Until cancelled: try what could not be opened."""
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            for machine_id in list(self._broken):
                if self._is_remembered(machine_id):
                    async with self.lock(machine_id):
                        if machine_id in self._broken:
                            await asyncio.to_thread(self._reopen, machine_id)

    def _journal_directory(self, remembered: Remembered) -> Path:
        for volume in self._config.retention_volumes:
            if volume.name == remembered.retention_volume:
                return volume.path / "failback" / remembered.machine_id
        raise NotFoundError(
            f"there is no retention volume {remembered.retention_volume!r} on this master target",
            code="RetentionVolumeMissing",
            remedy="name one of: " + (", ".join(volume.name for volume in self._config.retention_volumes) or "(none)"),
        )

    def _witness(self, machine_id: MachineId) -> WitnessFile:
        return WitnessFile(self._directory / f"{machine_id}.witness")

    def _is_remembered(self, machine_id: MachineId) -> bool:
        return (self._directory / f"{machine_id}.json").exists()

    def _remembered(self, machine_id: MachineId) -> Remembered:
        """Raises IntegrityError: one damaged file stops one machine's replica, never the others'."""
        path = self._directory / f"{machine_id}.json"
        try:
            return records.decode(records.parse_json(path.read_text(encoding="utf-8")), Remembered, str(path))
        except (OSError, ValueError, ConfigurationError) as error:
            raise IntegrityError(
                f"where the journal of machine {machine_id} lies cannot be read: {error}",
                code="AttachmentUnreadable",
                possible_causes="the file was damaged or edited",
                remedy=f"reprotect the machine with the same retention volume, or restore {path}",
            ) from error

    def _remember(self, remembered: Remembered) -> None:
        path = self._directory / f"{remembered.machine_id}.json"
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as stream:
            json.dump(records.encode(remembered), stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_directory(self._directory)

    # --- orders -----------------------------------------------------------------------------------------------------

    def attach(self, arguments: AttachReplica) -> AttachedReplica:
        """See model.orders. The same arguments again give the same answer, also after a crash in the middle."""
        machine_id = MachineId(str(uuid.UUID(arguments.machine_id)))
        remembered = Remembered(machine_id, arguments.retention_volume)
        directory = self._journal_directory(remembered)
        self._check_volume(arguments)
        volumes.check_disks(arguments.disks, self._config.datastores)
        replica = self._replicas.get(machine_id)
        if replica is not None and replica.state not in (ATTACHED, RELEASED):
            self._put_away(machine_id)
            replica = None
        if replica is None:
            replica = self._open_journal(directory, arguments)
        try:
            if replica.state == RELEASED:
                raise ConflictError(f"a failback of machine {machine_id} is neither committed nor cancelled",
                                    remedy="commit or cancel it first")  # fmt: skip
            changed = _changed_disks(replica.journal.catalogue.disks, arguments)
            if changed is not None:
                replica.change_disks(changed)
            created = replica.create_missing()
            replica.open()
        except BaseException:
            if machine_id not in self._replicas and not self._is_remembered(machine_id):
                replica.abandon()
            raise
        self._remember(remembered)
        self._broken.pop(machine_id, None)
        self._give_policy(machine_id, replica)
        self._replicas[machine_id] = replica
        return AttachedReplica(replica.journal.incarnation, created)

    def _check_volume(self, arguments: AttachReplica) -> None:
        volume = next(each for each in self._config.retention_volumes if each.name == arguments.retention_volume)
        (found,) = volumes.all_facts((volume,), self._around())
        if found.problem:
            raise PreconditionError(f"the retention volume {volume.name} cannot be used: {found.problem}",
                                    code="RetentionVolumeUnfit", remedy="mount it, or name another one")  # fmt: skip
        others = sum(len(known.journal.catalogue.disks) for key, known in self._replicas.items()
                     if key != arguments.machine_id and known.state == ATTACHED)  # fmt: skip
        if others + len(arguments.disks) > MAXIMUM_DISKS:
            raise PreconditionError(f"a master target takes {MAXIMUM_DISKS} disks; {others} are attached already",
                                    code="TooManyDisks", remedy="use another master target")  # fmt: skip

    def _open_journal(self, directory: Path, arguments: AttachReplica) -> Replica:
        """The journal of an attach that a crash interrupted, or a new one; one that was closed is put away first."""
        if (directory / CATALOGUE_FILE).exists():
            catalogue = Catalogue(directory / CATALOGUE_FILE)
            state = catalogue.get("state")
            unused = not self._is_remembered(arguments.machine_id) and not catalogue.get("epoch")
            other = catalogue.get("disks") != records.encode(arguments.disks)
            catalogue.close()
            if state not in (None, ATTACHED, RELEASED) or (state == ATTACHED and unused and other):
                _archive(directory)
                self._witness(arguments.machine_id).forget()
        if not self._is_remembered(arguments.machine_id):
            self._witness(arguments.machine_id).forget()
        journal = Journal.create(directory, arguments.machine_id, arguments.disks, time.time_ns())
        return Replica(journal, self._runtime_directory, self._witness(arguments.machine_id))

    def _put_away(self, machine_id: MachineId) -> None:
        """A journal that was committed or detached stays as a list of points without data."""
        replica = self._replicas.pop(machine_id)
        directory = replica.journal.directory
        replica.release()
        replica.close()
        _archive(directory)
        self._witness(machine_id).forget()

    def detach(self, machine_id: MachineId) -> None:
        """Release and forget. A machine that is not known is detached."""
        replica = self._replicas.get(machine_id)
        if replica is not None:
            replica.release()
            replica.journal.catalogue.set("state", DETACHED)
            (self._directory / f"{machine_id}.json").unlink(missing_ok=True)
            sync_directory(self._directory)
            self._put_away(machine_id)
        elif machine_id in self._broken:
            raise ConflictError(f"the replica of machine {machine_id} is not open: {self._broken[machine_id]}",
                                remedy="mount its retention volume, so that its disks can be given back")  # fmt: skip

    async def expire_views(self) -> None:
        """Until cancelled: end the views whose lease is over."""
        while True:
            await asyncio.sleep(1.0)
            await asyncio.to_thread(self.views.expire)

    def close(self) -> None:
        self.scrubs.close()
        self.views.close()
        self._claims.close()
        for replica in self._replicas.values():
            with contextlib.suppress(FailbackError):  # a clean end is a courtesy; the journal knows where it stands
                replica.close()
        self._replicas = {}


def _changed_disks(known: tuple[ReplicaDisk, ...], arguments: AttachReplica) -> tuple[ReplicaDisk, ...] | None:
    """The disks that the replica is to have from now on; None when it has them. Raises ConflictError for other ones: a disk may
    join, grow or leave, and no disk is ever forgotten or becomes another."""
    asked = {disk.index: disk for disk in arguments.disks}
    before = {disk.index: replace(disk, create=False) for disk in known}
    if before == {index: replace(disk, create=False) for index, disk in asked.items()}:
        return None
    for index, disk in before.items():
        other = asked.get(index)
        same = other is not None and (other.disk_id, other.path, other.format) == (disk.disk_id, disk.path, disk.format)
        if other is None or not same or other.size_bytes < disk.size_bytes or (disk.removed and not other.removed):
            raise ConflictError(
                f"machine {arguments.machine_id} has a replica with other disks here",
                remedy="detach (disable the protection of) the machine first",
            )
    return arguments.disks


def _archive(directory: Path) -> None:
    """Move a closed journal aside, without its redo and undo: the list of its points stays."""
    closed = directory.parent / "closed"
    closed.mkdir(exist_ok=True)
    target = closed / f"{directory.name}-{time.time_ns()}"
    directory.rename(target)
    sync_directory(directory.parent)
    sync_directory(closed)
    shutil.rmtree(target / "redo", ignore_errors=True)
    shutil.rmtree(target / "undo", ignore_errors=True)
