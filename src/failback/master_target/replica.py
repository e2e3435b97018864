"""One machine's replica: its disks (fenced and locked), its journal, and the thread that applies.

States: *attached* (disks are ours, the stream lands and is applied; rolled back while a point is prepared), *released*
(disks carry their own names, nothing lands), *committed* (released for good). The state lies in the journal's catalogue,
so that a restart, or another master target, finds it. Methods block and are called one at a time (``replicas`` sees to it).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from failback.block import replica_disk
from failback.block.device import BlockDevice
from failback.errors import ConflictError, FailbackError, OutOfSpaceError, StorageError
from failback.journal.journal import Journal
from failback.journal.rollback import Destination, Progress
from failback.journal.scrub import Proven
from failback.journal.views import OpenView
from failback.master_target.witness import WitnessFile
from failback.model.components import POINTS_LOST, ReplicaStatus
from failback.model.points import PointChoice, PointSelector, ReplicaDisk
from failback.protocol.messages import DigestReply
from failback.runtime import faults, logs

log = logs.get(__name__)

ATTACHED, RELEASED, COMMITTED, DETACHED = "attached", "released", "committed", "detached"
_IDLE_SECONDS = 0.25
_THIN_SECONDS = 60.0
_RETRY_SECONDS = 2.0
_STATUS_SECONDS = 1.0
_SHOWN_GAPS = 100

_applying = threading.Semaphore(2)
"""Replicas that apply at the same time: bounds the memory, whatever the number of machines."""


class Replica:
    def __init__(self, journal: Journal, runtime_directory: Path, witness: WitnessFile) -> None:
        self.journal = journal
        self._witness = witness
        self.on_reply: Callable[[DigestReply], None] = lambda reply: None
        """Called in the applying thread."""
        self.on_news: Callable[[], None] = lambda: None
        """Called in any thread when the status has news that somebody waits for."""
        self.on_views_end: Callable[[str], None] = lambda reason: None
        """Called, with the reason, when no view of the disks may be open any more; returns when none is."""
        self.landing_problem = ""
        self._problem = ""
        self._points_problem = ""
        self._moved_problem = ""
        self._runtime_directory = runtime_directory
        self._devices: dict[int, BlockDevice] = {}
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._work = threading.Event()
        self._status = self._make_status()

    # --- disks ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        return str(self.journal.catalogue.get("state"))

    def create_missing(self) -> tuple[str, ...]:
        """Create the disks that are not there and may be; ids of all that this journal has created."""
        catalogue = self.journal.catalogue
        created = set(catalogue.get("created") or ())
        created |= {disk.disk_id for disk in catalogue.disks if disk.create and not replica_disk.exists(disk)}
        catalogue.set("created", sorted(created))  # before the first one: a crash in between forgets none
        for disk in catalogue.disks:
            replica_disk.create_if_missing(disk)
            faults.point("attach.after_create")
        return tuple(sorted(created))

    def change_disks(self, disks: tuple[ReplicaDisk, ...]) -> None:
        """Disks that joined, grew or left, from the next epoch on (docs/decisions/0012). The files first, then the catalogue: a
        crash in between leaves larger files, which the repeated order takes."""
        if self.journal.rollback_phase or self.state != ATTACHED:
            raise ConflictError(
                "the replica's disks are at a chosen point", remedy="commit or cancel the failback first"
            )
        self._stop_applying()
        if self.journal.started:
            self.journal.stop()
        self._close_devices()
        known = {disk.disk_id: disk for disk in self.journal.catalogue.disks}
        for disk in disks:
            if disk.disk_id in known and disk.size_bytes > known[disk.disk_id].size_bytes:
                replica_disk.grow(disk)
        faults.point("attach.before_change")
        self.journal.change_disks(disks)
        log.info("the replica's disks changed", machine=self.journal.machine_id, disks=len(disks))

    def open(self) -> None:
        """Fence, lock and open the disks and begin to apply. Raises ConflictError (in use), NotFoundError, StorageError."""
        self._open_devices()
        if not self.journal.started:
            self._ask_witness()
            self.journal.start(self._devices, self._reply)
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._apply, name=f"applier {self.journal.machine_id}", daemon=True)
            self._thread.start()

    def _open_devices(self) -> None:
        if not self._devices:
            try:
                for disk in self.journal.catalogue.disks:
                    self._devices[disk.index] = replica_disk.open_locked(disk, self._runtime_directory)
            except BaseException:
                self._close_devices()
                raise

    def _ask_witness(self) -> None:
        """An old copy of the journal is not continued (D7)."""
        known = self._witness.read()
        if known is not None and self.journal.distrust(known):
            self.refresh_status()
        self.journal.begin_life()
        self._witness.keep(self.journal.witness, now=True)

    def _reply(self, reply: DigestReply) -> None:
        self.on_reply(reply)

    def abandon(self) -> None:
        """Undo an ``open`` of an attach that failed: names back, locks dropped."""
        self._stop_applying()
        if self.journal.started:
            self.journal.stop()
        for disk in self.journal.catalogue.disks:
            replica_disk.unfence(disk)
        self.close()

    def _stop_applying(self) -> None:
        self._stopping.set()
        self._work.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _reopen_lost(self) -> None:
        """The daemon that serves a disk died: take all disks anew. What it had not flushed is applied again from redo (D13).

        Called by the applying thread. Raises what :meth:`open` does; then it is tried again.
        """
        if self.journal.started and not any(map(replica_disk.is_lost, self._devices.values())):
            return
        self.on_views_end("a disk of the replica had to be opened again")
        with self.journal.apply_lock:
            self.journal.stop(settle=False)
            self._close_devices()
            self._open_devices()
            self.journal.start(self._devices, self._reply)
        log.warning("the disks of a replica were opened again", machine=self.journal.machine_id)

    def _close_devices(self) -> None:
        if self._devices:
            self.on_views_end("the disks of the replica were closed")
        for device in self._devices.values():
            device.close()
        self._devices = {}

    def release(self) -> None:
        """Flush, give the disks their names back, drop the locks. May be repeated."""
        if self.state == ATTACHED:
            self.journal.catalogue.set("state", RELEASED)
        self.on_views_end("the replica was released")
        self._stop_applying()
        if self.journal.started:
            self.journal.stop()
        for device in self._devices.values():
            device.flush()
        faults.point("release.before_unfence")
        for disk in self.journal.catalogue.disks:
            replica_disk.unfence(disk)
        self._close_devices()
        self.refresh_status()

    def resume(self) -> None:
        """The opposite of release and prepare: the disks are ours again and roll forward to landed (D15)."""
        if self.state in (COMMITTED, DETACHED):
            raise ConflictError("the failback was committed: the disks belong to the on-premises machine",
                                remedy="reprotect the machine instead")  # fmt: skip
        self.open()
        self.journal.resume()
        self.journal.catalogue.set("state", ATTACHED)
        self._work.set()
        self.refresh_status()

    def prepare(self, choice: PointChoice, progress: Progress) -> Destination:
        """Bring the disks to the point. Everything landed is applied first by the caller's waiting."""
        if self.state in (COMMITTED, DETACHED):
            raise ConflictError("the failback was committed already")
        known = self.journal.destination
        if known is not None and known.choice == choice:
            return known
        if self.state != ATTACHED or not self.journal.started:
            raise ConflictError("the replica's disks are released", remedy="cancel the failback first")
        if choice.selector is PointSelector.LATEST:
            self.journal.publish_latest()
        destination = self.journal.prepare(choice, progress)
        self.refresh_status()
        return destination

    def open_view(self, choice: PointChoice, writable: bool, quota_bytes: int, progress: Progress) -> OpenView:
        """The point as devices; *latest* is made a point first, if it is consistent."""
        if self.state != ATTACHED or not self.journal.started:
            raise ConflictError("the replica's disks are released: there is nothing to look at",
                                remedy="after a commit look at the machine itself")  # fmt: skip
        if choice.selector is PointSelector.LATEST:
            self.journal.publish_latest()
        return self.journal.views.open(choice, writable=writable, quota_bytes=quota_bytes, progress=progress)

    @property
    def undo_proven_wall_ns(self) -> int:
        return int(self.journal.catalogue.get("undo_proven") or 0)

    def prove_undo(self, go_on: Callable[[int], bool]) -> Proven:
        """Read all closed undo; points that need what is damaged are not offered any more."""
        journal = self.journal
        found = journal.views.prove(go_on)
        if found.whole:
            journal.catalogue.set("undo_proven", time.time_ns())
        self.refresh_status()
        if found.damaged:
            self.on_news()
        return found

    def relieve(self) -> None:
        """The retention volume is full: replication comes before what is merely looked at."""
        self.on_views_end("the retention volume is full")
        self.journal.relieve()

    def commit(self) -> None:
        """Close the journal for this direction; the disks are let go when they are still ours."""
        if self._devices:
            self.release()
        self.journal.commit()
        self.refresh_status()

    # --- applying ---------------------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> None:
        """Accept a higher epoch from now on, durably: not even an old copy of the journal goes back behind it (D6)."""
        self._witness.expect_epoch(epoch)
        self.journal.begin_epoch(epoch)

    def landed_more(self) -> None:
        """Something landed: apply it."""
        self._work.set()

    def _apply(self) -> None:
        thinned_at = looked_at = time.monotonic()
        seen = self.journal.news
        while not self._stopping.is_set():
            try:
                self._reopen_lost()
                with self.journal.apply_lock, _applying:  # in this order: a long rollback takes nobody's turn
                    self._witness.keep(self.journal.witness)  # before a new interval's first overwrite
                    progressed = self.journal.apply_step()
                self._problem = ""
                now = time.monotonic()
                if now - thinned_at > _THIN_SECONDS:
                    thinned_at = now
                    self.journal.thin()
                if now - looked_at > _STATUS_SECONDS or self.journal.news != seen:
                    looked_at = now
                    self.refresh_status()
                if self.journal.news != seen:
                    seen = self.journal.news
                    self.on_news()
            except (FailbackError, OSError) as error:
                self._fail(error)
                self._stopping.wait(_RETRY_SECONDS)
                continue
            except Exception as error:  # the border of one replica: it says what is wrong, the others go on
                log.exception("applying failed unexpectedly", machine=self.journal.machine_id)
                self._fail(
                    StorageError(f"applying failed unexpectedly: {error!r}", remedy="see the master target's log")
                )
                self._stopping.wait(_RETRY_SECONDS)
                continue
            if not progressed:
                self._work.wait(_IDLE_SECONDS)
                self._work.clear()

    def _fail(self, error: FailbackError | OSError) -> None:
        sentence = error.message if isinstance(error, FailbackError) else str(error)
        code = error.code if isinstance(error, FailbackError) else StorageError.code
        if self._problem != sentence:
            remedy = error.remedy if isinstance(error, FailbackError) else ""
            log.error(
                "applying stands still", machine=self.journal.machine_id, code=code, reason=sentence, remedy=remedy
            )
        self._problem = sentence
        if isinstance(error, OutOfSpaceError):
            self.relieve()
        self.refresh_status()

    @property
    def problem(self) -> str:
        """Begins with ``CODE:`` when only a new epoch helps."""
        damage = self.journal.damage
        if damage is not None and damage.refuses(self.journal.epoch):
            return f"{damage.code}: {damage.reason}"
        return self._problem or self.landing_problem or self._moved_problem or self._points_problem

    # --- status -----------------------------------------------------------------------------------------------------

    def refresh_status(self) -> None:
        self._status = self._make_status()

    def _make_status(self) -> ReplicaStatus:
        journal = self.journal
        applied = journal.applied
        lost = journal.lost
        moved = [disk.path for disk in journal.catalogue.disks if self._devices and replica_disk.moved_away(disk)]
        self._moved_problem = f"the files of disks were moved or deleted: {', '.join(moved)}" if moved else ""
        self._points_problem = f"{POINTS_LOST}: {lost.reason}" if lost.reason else ""
        state = self.state
        if state in (COMMITTED, DETACHED):
            state = RELEASED
        elif state == ATTACHED and journal.rollback_phase:
            state = "rolled-back"
        return ReplicaStatus(
            machine_id=journal.machine_id,
            state=state,
            epoch=journal.epoch,
            incarnation=journal.incarnation,
            landed_sequence=journal.landed.sequence,
            landed_ring=journal.landed.ring,
            applied_sequence=applied.sequence if applied.epoch == journal.epoch else 0,
            consistent=applied.gap == ""
            and applied.epoch == journal.epoch
            and applied.sequence > 0
            and not journal.unproven,
            gap=applied.gap,
            gaps=tuple(journal.gaps()[-_SHOWN_GAPS:]),
            points=tuple(journal.points()),
            disks=journal.catalogue.disks,
            journal_bytes=journal.size_bytes,
            undo_proven_wall_ns=self.undo_proven_wall_ns,
            problem=self.problem,
        )

    def status(self) -> ReplicaStatus:
        """As of the last second; landed positions and problems are of now. Does not block."""
        landed = self.journal.landed
        return replace(
            self._status,
            epoch=landed.epoch,
            landed_sequence=landed.sequence,
            landed_ring=landed.ring,
            problem=self.problem,
        )

    def close(self) -> None:
        """The process ends: the disks stay fenced by name, the locks go with the process."""
        self.on_views_end("the replica was closed")
        self._stop_applying()
        if self.journal.started:
            self.journal.stop()
            self._witness.keep(self.journal.witness, now=True)
        self._close_devices()
        self.journal.close()
