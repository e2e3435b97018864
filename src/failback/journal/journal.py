"""The journal of one machine on a retention volume: what lands, what is applied, the points, and the ways back.

    journal = Journal.create(directory, machine_id, disks, wall_ns)   or   Journal.open(directory)
    journal.begin_epoch(epoch); journal.append(item); journal.sync()        one landing thread
    journal.start(devices, ...); journal.apply_step()                       one applying thread
    journal.prepare(choice); journal.resume(); journal.commit()             any thread; they wait for the applier's step

Opening repeats nothing and loses nothing: positions come from the redo log and the catalogue, the set of saved blocks
from the undo file, and an interrupted rollback is finished when the disks are given to ``start``.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from failback.block.device import BlockDevice
from failback.block.raw import storage_error, sync_directory
from failback.errors import ConflictError, IntegrityError, NotFoundError, ProtocolError, StaleEpochError
from failback.journal import catalogue_check, last_write, lost_return, lost_undo, merge, retention, unproven
from failback.journal.applier import Applier, Target
from failback.journal.catalogue import FORMAT, Applied, Catalogue, Interval, Mark
from failback.journal.choosing import Lost, choose
from failback.journal.damage import GAP, JOURNAL_REPLACED, REDO_DAMAGED, Damage, Witness, opens_a_pass
from failback.journal.overwriting import RETURN_FILE
from failback.journal.redo import RedoLog
from failback.journal.rollback import RETURNING, ROLLED, Destination, Progress, Rollback
from failback.journal.undo import EMPTY, UndoDamagedError, UndoFolder
from failback.journal.view import View
from failback.journal.views import ViewedJournal, Views
from failback.model.ids import MachineId, PointId, new_id
from failback.model.points import Gap, PointChoice, PointKind, PointSelector, RecoveryPoint, ReplicaDisk
from failback.model.policy import ReplicationPolicy
from failback.model.stream import Position
from failback.protocol.items import RawItem
from failback.protocol.layout import FrameType
from failback.protocol.messages import DIGEST_BYTES, DigestReply
from failback.runtime import faults, logs, records

log = logs.get(__name__)

READER_THREADS = 12
CATALOGUE_FILE = "catalogue.sqlite"
DEFAULT_POLICY = ReplicationPolicy(name="24-hour")


@functools.cache
def _readers() -> ThreadPoolExecutor:
    """The threads that read and compress old blocks, shared by all journals of the process."""
    return ThreadPoolExecutor(READER_THREADS, thread_name_prefix="undo-reader")


class Journal:
    """See the module. ``directory`` is ``<volume>/failback/<machine id>``."""

    def __init__(self, directory: Path, catalogue: Catalogue) -> None:
        self.directory = directory
        self.catalogue = catalogue
        self.machine_id = MachineId(str(catalogue.get("machine_id")))
        self.incarnation = str(catalogue.get("incarnation"))
        self.policy = DEFAULT_POLICY
        self.apply_lock = threading.RLock()
        """Held while disks or undo files change."""
        self._landing_lock = threading.Lock()
        self._sizes = {disk.index: disk.size_bytes for disk in catalogue.disks}
        self._folder = UndoFolder(directory, self.machine_id, self.incarnation)
        self._remove_unnamed()
        lost_undo.find_cut(self._folder, catalogue)
        self.redo = RedoLog(directory / "redo", self.machine_id, self.incarnation)
        self._applier: Applier | None = None
        self._rollback: Rollback | None = None
        self._devices: Mapping[int, BlockDevice] = {}
        viewed = ViewedJournal(self._folder, catalogue, self.redo, self.apply_lock, lambda: self._devices,
                               lambda: self.lost, self._undo_damaged)  # fmt: skip
        self.views = Views(viewed)
        self._damage: Damage | None = None
        unproven.begin(catalogue, self.redo.synced_ordinal, self.redo.cut)
        self._open_damage()
        self._find_landed()

    # --- creating and opening ---------------------------------------------------------------------------------------

    @staticmethod
    def create(directory: Path, machine_id: MachineId, disks: tuple[ReplicaDisk, ...], wall_ns: int) -> Journal:
        """Make a new journal with the point *before reprotect* (D14), or open the one that a crashed call left whole."""
        try:
            (directory / "undo").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(f"cannot create {directory}", error) from error
        catalogue = Catalogue(directory / CATALOGUE_FILE)
        if catalogue.get("format") is None:
            folder = UndoFolder(directory, machine_id, new_id())
            first = Interval(1, 0, "undo/000000000001.undo", EMPTY)
            folder.path(first.file).unlink(missing_ok=True)
            folder.open(first.file, first.interval_id).close()
            for place in (directory / "undo", directory, directory.parent):
                sync_directory(place)
            with catalogue.transaction():
                catalogue.set("machine_id", machine_id)
                catalogue.set("incarnation", folder.incarnation)
                catalogue.set("disks", records.encode(disks))
                catalogue.set("state", "attached")
                catalogue.set("epoch", 0)
                catalogue.set_applied(Applied())
                point_id = PointId(new_id())
                before = RecoveryPoint(point_id, machine_id, PointKind.BEFORE_REPROTECT, wall_ns, 0, 0, 0)
                catalogue.add_point(before, 0)
                catalogue.put_interval(first)
                catalogue.set("format", FORMAT)
            faults.point("journal.after_create")
        return Journal._opened(directory, catalogue)

    @staticmethod
    def open(directory: Path) -> Journal:
        """Raises NotFoundError, IntegrityError (damaged, another format), StorageError."""
        if not (directory / CATALOGUE_FILE).exists():
            raise NotFoundError(
                f"there is no journal in {directory}", remedy="check that the retention volume is mounted"
            )
        return Journal._opened(directory, Catalogue(directory / CATALOGUE_FILE))

    @staticmethod
    def _opened(directory: Path, catalogue: Catalogue) -> Journal:
        try:
            catalogue.check_format()
            catalogue_check.check(catalogue)
            return Journal(directory, catalogue)
        except BaseException:
            catalogue.close()
            raise

    def _remove_unnamed(self) -> None:
        """Undo files that no interval names: a merge or a new interval that a crash interrupted."""
        self._folder.keep_only({interval.file for interval in self.catalogue.intervals()} | {RETURN_FILE})

    def _find_landed(self) -> None:
        epoch = int(self.catalogue.get("epoch"))
        last = self.redo.last()
        applied = self.catalogue.applied
        if self.redo.synced_ordinal < applied.ordinal:
            reason = f"the redo log ends at record {self.redo.synced_ordinal}, but {applied.ordinal} was applied"
            self._declare(Damage(epoch, applied.ordinal + 1, REDO_DAMAGED, reason))
            self.redo.restart_after(applied.ordinal)
            last = None
        self.landed = Position(epoch, 0, 0)
        if last is not None and last.item.header.epoch == epoch:
            self.landed = Position(epoch, last.item.header.sequence, last.item.header.end_position)
        self._appended = self.landed

    # --- damage (D7) ------------------------------------------------------------------------------------------------

    @property
    def damage(self) -> Damage | None:
        """What holds this journal up until a pass of a higher epoch has begun."""
        return self._damage

    def _open_damage(self) -> None:
        stored = self.catalogue.get("damage")
        self._damage = records.decode(stored, Damage) if stored else None
        last = self.redo.last()
        if self._damage is None or last is None or last.item.header.epoch <= self._damage.epoch:
            return
        if last.item.header.epoch == int(self.catalogue.get("epoch")):
            self._cured()

    def _declare(self, damage: Damage) -> None:
        """Store the damage; a gap begins at the applied place. The caller holds what keeps the applier away."""
        applied = self.catalogue.applied
        with self.catalogue.transaction():
            self.catalogue.set("damage", records.encode(damage))
            if applied.gap != GAP:
                wall_ns = applied.wall_ns
                self.catalogue.close_gap(wall_ns)
                self.catalogue.open_gap(GAP, wall_ns)
                self.catalogue.set_applied(replace(applied, gap=GAP))
        if self._applier is not None and applied.gap != GAP:
            self._applier.forget()
        self._set_damage(damage)
        faults.point("journal.after_damage")
        log.error("the journal cannot go on under this epoch", machine=self.machine_id, epoch=damage.epoch,
                  code=damage.code, reason=damage.reason)  # fmt: skip

    def _set_damage(self, damage: Damage | None) -> None:
        self._damage = damage
        if self._applier is not None:
            self._applier.up_to = damage.ordinal - 1 if damage else None

    def _cured(self) -> None:
        """The pass has begun: its first item is durable."""
        self.catalogue.set("damage", None)
        self._set_damage(None)
        log.info("the journal goes on with a comparison of the disks", machine=self.machine_id)

    def _check_pass(self, item: RawItem) -> None:
        """Nothing but the beginning of a pass under a higher epoch is taken by a damaged journal. Raises its error."""
        damage = self._damage
        if damage is None:
            return
        if not damage.refuses(self.landed.epoch):
            if item.header.sequence > 1 or opens_a_pass(item.header):
                return
            damage = replace(damage, epoch=self.landed.epoch)
            self._declare(damage)
        raise damage.error()

    def distrust(self, witness: Witness) -> str:
        """Compare with what the master target remembers; why this is an older copy, or empty.

        Then the disks are ahead of what this journal knows, and undo that belongs to its points is missing: the points are
        abandoned, and what is not applied yet is never applied. Call it before :meth:`start`.
        """
        reason = witness.contradicts(self.witness)
        if not reason:
            return reason
        applied = self.catalogue.applied
        interval = self.catalogue.newest_interval() + 1
        fresh = Interval(max(interval, witness.interval_id + 1), applied.ordinal, "", EMPTY)
        fresh = replace(fresh, file=f"undo/{fresh.interval_id:012d}.undo")
        self._folder.path(fresh.file).unlink(missing_ok=True)
        self._folder.open(fresh.file, fresh.interval_id).close()
        epoch = max(int(self.catalogue.get("epoch")), witness.epoch)
        old = self.catalogue.intervals()
        with self.apply_lock, self._landing_lock, self.catalogue.transaction():
            self.catalogue.abandon_after(-1)
            for entry in old:
                self.catalogue.remove_interval(entry.interval_id)
            self.catalogue.put_interval(fresh)
            self.catalogue.set("rollback_phase", "")
            self.catalogue.set("rollback_destination", None)
            self.catalogue.set("after_pass", True)
            self.catalogue.set("epoch", epoch)
            self._declare(Damage(epoch, applied.ordinal + 1, JOURNAL_REPLACED, reason))
        self._remove_unnamed()
        self._find_landed()
        return reason

    @property
    def witness(self) -> Witness:
        """What a later look at this journal may not fall behind."""
        catalogue = self.catalogue
        epoch, life = int(catalogue.get("epoch")), int(catalogue.get("life") or 0)
        return Witness(self.incarnation, epoch, catalogue.newest_interval(), catalogue.applied.ordinal, life)

    def begin_life(self) -> None:
        """Before disks are written again: a copy of this journal from now is an old one after the next time (D7)."""
        self.catalogue.set("life", int(self.catalogue.get("life") or 0) + 1)

    # --- landing ----------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self.landed.epoch

    def begin_epoch(self, epoch: int) -> None:
        """Accept a higher epoch from now on, durably (D6). Raises StaleEpochError for a lower one."""
        with self._landing_lock:
            if self._damage is None or epoch <= self.landed.epoch:
                self._begin_epoch(epoch)
                return
        with self.apply_lock, self._landing_lock:  # in this order
            self._begin_epoch(epoch)

    def _begin_epoch(self, epoch: int) -> None:
        if epoch == self.landed.epoch:
            return
        if epoch < self.landed.epoch:
            raise StaleEpochError(f"epoch {epoch} is over: the journal of {self.machine_id} is at {self.landed.epoch}")
        self._sync()
        if self._damage is not None:
            faults.point("journal.before_cut")
            self.redo.cut_after(self._damage.ordinal - 1)
            faults.point("journal.after_cut")
        with self.catalogue.transaction():
            self.catalogue.set("epoch", epoch)
            self.catalogue.forget_replies(epoch)
            if self._damage is not None:
                unproven.forget(self.catalogue)
                if self._applier is not None:
                    self._applier.begin_anew()
        self.landed = self._appended = Position(epoch, 0, 0)

    def append(self, item: RawItem) -> bool:
        """Append one item; False when it has landed already (a re-sent one, D6). Durable after :meth:`sync`.

        Raises StaleEpochError, ProtocolError (a hole, impossible extents), IntegrityError, OutOfSpaceError, StorageError.
        """
        with self._landing_lock:
            header = item.header
            if header.epoch != self.landed.epoch:
                raise StaleEpochError(f"item of epoch {header.epoch}: the journal is at epoch {self.landed.epoch}")
            if header.sequence <= self._appended.sequence:
                return False
            if header.sequence != self._appended.sequence + 1:
                raise ProtocolError(f"item {header.sequence} came after item {self._appended.sequence}")
            self._check_pass(item)
            self._check(item)
            try:
                self.redo.append(item)
            except BaseException:
                if self.redo.pending == 0:
                    self._find_landed()  # a failed sync cut back what was appended before
                raise
            self._appended = Position(header.epoch, header.sequence, header.end_position)
            return True

    def _check(self, item: RawItem) -> None:
        header = item.header
        if not item.proven:
            item.verify()
        if header.type is FrameType.DIGESTS:
            size_bytes = self._sizes.get(header.disk_index, -1)
            count = header.payload_bytes // DIGEST_BYTES
            if (
                header.block_bytes <= 0
                or count <= 0
                or (header.first_block + count - 1) * header.block_bytes >= size_bytes
            ):
                raise ProtocolError(f"digests of disk {header.disk_index} lie outside the replica's disks")
        else:
            last_write.check(item.extents, self._sizes, header.payload_raw_bytes)

    def sync(self) -> Position:
        """Make all appended items durable; returns the landed position. Raises StorageError: none of them was."""
        with self._landing_lock:
            return self._sync()

    def _sync(self) -> Position:
        try:
            self.redo.sync()
        except BaseException:
            self._find_landed()
            raise
        self.landed = self._appended
        if self._damage is not None and self.landed.sequence and not self._damage.refuses(self.landed.epoch):
            faults.point("journal.before_cured")
            self._cured()
        return self.landed

    def change_disks(self, disks: tuple[ReplicaDisk, ...]) -> None:
        """Disks that joined, grew or left: the list that the next epoch writes to. The disks are not open now (``stop``).

        Nothing that landed is concerned: it was written for the list before, whose disks are all still there, as large or larger.
        """
        with self.apply_lock, self._landing_lock:
            if self._applier is not None or self.catalogue.get("rollback_phase"):
                raise ConflictError("the journal's disks are in use: stop it first, and not while it is rolled back")
            self.catalogue.change_disks(disks)
            self._sizes = {disk.index: disk.size_bytes for disk in disks}

    # --- applying ---------------------------------------------------------------------------------------------------

    def start(self, devices: Mapping[int, BlockDevice], on_reply: Callable[[DigestReply], None]) -> None:
        """Give the journal its disks (by index); finishes an interrupted rollback."""
        with self.apply_lock:
            self._devices = devices
            target = Target(devices, _readers())
            self._rollback = Rollback(self._folder, self.catalogue, self.redo, target)
            self._recover_rollback()
            self._applier = Applier(
                self._folder, self.catalogue, self.redo, target,
                pace_seconds=lambda: self.policy.crash_consistent_seconds, on_reply=on_reply,
            )  # fmt: skip
            self._set_damage(self._damage)

    def _recover_rollback(self) -> None:
        if self._rollback is None:
            return
        try:
            self._rollback.recover()
        except UndoDamagedError as error:
            if lost_return.concerns(self._folder, error):
                self._stay_at_the_point(error)
                return
            if not lost_undo.note(self._folder, self.catalogue, error):
                raise
            self._give_back()  # the destination cannot be reached; the order is repeated and told why

    def stop(self, *, settle: bool = True) -> None:
        """Let go of the disks (which stay open). What is not settled first is applied again from redo."""
        with self.apply_lock:
            if self._applier is not None:
                if settle and not self.catalogue.get("rollback_phase"):
                    self._applier.settle()
                self._applier.close()
            self._applier = self._rollback = None
            self._devices = {}

    @property
    def started(self) -> bool:
        return self._applier is not None

    def apply_step(self) -> bool:
        """Apply the next group of landed items; False when there is nothing to do now (also while rolled back).

        Redo that cannot be used raises IntegrityError ``RedoDamaged`` once and is remembered as :attr:`damage`.
        """
        with self.apply_lock:
            if self._applier is None or self.catalogue.get("rollback_phase"):
                return False
            try:
                return self._applier.step()
            except IntegrityError as error:
                if error.code == REDO_DAMAGED:
                    with self._landing_lock:
                        ordinal = self.catalogue.applied.ordinal + 1
                        self._declare(Damage(self.landed.epoch, ordinal, REDO_DAMAGED, error.message))
                raise

    @property
    def unproven(self) -> bool:
        """The disks may hold more than was applied (of a record that is torn now): no point until the redo goes on."""
        replaying = self._applier is not None and self.applied.ordinal < self._applier.replayed_until
        return replaying or unproven.is_unproven(self.catalogue, self.applied)

    @property
    def caught_up(self) -> bool:
        applier = self._applier
        return applier is not None and applier.behind == 0

    @property
    def news(self) -> tuple[int, str]:
        """Changes when a point was published or a gap began or ended."""
        applier = self._applier
        return (applier.published, applier.durable.gap) if applier is not None else (0, "")

    def settle(self) -> None:
        """Flush the disks and make the applied position durable."""
        with self.apply_lock:
            if self._applier is not None and not self.catalogue.get("rollback_phase"):
                self._applier.settle()

    @property
    def applied(self) -> Applied:
        """Durably applied."""
        return self.catalogue.applied

    def replies(self) -> list[DigestReply]:
        """All replies of the present epoch: a link that was interrupted gets them again."""
        return self.catalogue.replies(self.epoch)

    # --- points -----------------------------------------------------------------------------------------------------

    def points(self) -> list[RecoveryPoint]:
        """Oldest first, abandoned ones included; without those that damaged undo made unreachable (:attr:`lost`)."""
        lost_until = self.catalogue.lost_until()
        return [entry.point for entry in self.catalogue.points() if entry.ordinal > lost_until]

    @property
    def lost(self) -> Lost:
        """Which points cannot be reached because undo is damaged, and why."""
        damaged = [interval for interval in self.catalogue.intervals() if interval.damage]
        return Lost(damaged[-1].first_ordinal, damaged[-1].damage) if damaged else Lost()

    def gaps(self) -> list[Gap]:
        return self.catalogue.gaps()

    def mark(self, mark_id: str) -> Mark | None:
        """The applied mark, or None while it was not applied."""
        return self.catalogue.mark(mark_id)

    def publish_latest(self) -> None:
        """Make the applied place a point if it is consistent: *latest* then loses nothing that was applied."""
        with self.apply_lock:
            if self._applier is not None and not self.catalogue.get("rollback_phase"):
                self._applier.publish()

    def prepare(self, choice: PointChoice, progress: Progress) -> Destination:
        """Bring the disks exactly to the point; the same choice again gives the same result (D15).

        Raises NotFoundError (no such point), ConflictError (abandoned, replica not attached), IntegrityError (undo that the
        point needs is damaged; the disks are where they were).
        """
        with self.apply_lock:
            if self._applier is None or self._rollback is None:
                raise ConflictError("the replica's disks are not open", remedy="resume the replica first")
            known = self._rollback.destination
            try:
                if known is not None and known.choice == choice and self._rollback.phase != RETURNING:
                    return known if self._rollback.phase == ROLLED else self._rollback.finish(progress)
                self._give_back()
                self._applier.settle()
                self._applier.known.clear()
                destination = choose(choice, self.catalogue.points(), self.redo, self.applied.ordinal, self.lost)
                return self._rollback.roll(destination, progress)
            except UndoDamagedError as error:
                if lost_return.concerns(self._folder, error):
                    self._stay_at_the_point(error)
                elif lost_undo.note(self._folder, self.catalogue, error):
                    self._give_back()
                raise

    @property
    def rollback_phase(self) -> str:
        """Empty while the disks follow the stream; else they are at a point, or (after a failure) on the way there or back."""
        return str(self.catalogue.get("rollback_phase") or "")

    @property
    def destination(self) -> Destination | None:
        """The point that the disks are at, or None while they follow the stream or are under way."""
        if self.rollback_phase != ROLLED:
            return None
        return records.decode(self.catalogue.get("rollback_destination"), Destination)

    def resume(self) -> None:
        """Give the disks back what the rollback overwrote; applying goes on after it."""
        with self.apply_lock:
            if self._rollback is None:
                raise ConflictError("the replica's disks are not open")
            self._give_back()

    def _give_back(self) -> None:
        if self._rollback is not None and self._rollback.phase:
            try:
                self._rollback.give_back()
            except UndoDamagedError as error:
                self._stay_at_the_point(error)

    def _stay_at_the_point(self, error: UndoDamagedError) -> None:
        """The way back is lost (``lost_return``). The caller holds what keeps the applier away."""
        target = Target(self._devices, _readers())
        with self._landing_lock:
            self._declare(lost_return.stay(self._folder, self.catalogue, target, error, self.landed.epoch))

    def commit(self) -> None:
        """Abandon the points newer than the prepared one and close the journal for this direction; may be repeated."""
        with self.apply_lock:
            destination = self.destination
            with self.catalogue.transaction():
                if destination is not None:
                    self.catalogue.abandon_after(destination.base_ordinal)
                self.catalogue.set("state", "committed")

    def view(self, point_id: str, disk_index: int) -> View:
        """One disk as it was at the point, writable on a throw-away layer. Close it: its point is kept meanwhile."""
        opened = self.views.open(PointChoice(PointSelector.POINT, point_id), writable=True)
        return opened.only(disk_index)

    def _undo_damaged(self, error: UndoDamagedError) -> None:
        lost_undo.note(self._folder, self.catalogue, error)

    # --- room -------------------------------------------------------------------------------------------------------

    def thin(self) -> int:
        """Drop what the policy does not keep: points, and redo behind its window. Returns the points dropped."""
        dropped = 0
        for point_id in self._unwanted():  # one by one: the applier waits for none of them long
            with contextlib.suppress(NotFoundError, ConflictError):  # it stays for now
                self.drop_point(point_id)
                dropped += 1
        return dropped

    def _unwanted(self) -> list[PointId]:
        """The points that the policy does not keep; redo behind its window goes at once."""
        with self.apply_lock:
            applied, policy = self.catalogue.applied, self.policy
            if self.rollback_phase or self.catalogue.get("state") != "attached":
                return []
            if not self.views.opening:
                self.redo.free(applied.ordinal, time.time() - policy.redo_window_seconds)
            history_minutes = policy.recovery_point_history_minutes
            newest_ns = min(applied.wall_ns, time.time_ns())  # a source clock that steps forward ages nothing
            self.catalogue.forget_gaps(newest_ns - history_minutes * retention.MINUTE_NS)
            points = [entry.point for entry in self.catalogue.points()]
            return retention.to_drop(points, newest_ns, history_minutes, policy.thinning)

    def relieve(self) -> int:
        """The volume is full: free the applied redo now, whatever its window; returns how many segments."""
        with self.apply_lock:
            if self.catalogue.get("rollback_phase"):
                return 0
            return self.redo.free(self.catalogue.applied.ordinal, time.time())

    def drop_point(self, point_id: str) -> None:
        """Raises NotFoundError, and ConflictError for one that is in use now."""
        with self.apply_lock:
            if self.rollback_phase:
                raise ConflictError("the disks are at a chosen point", remedy="commit or cancel the failback first")
            self.views.check_droppable(self.catalogue.points(), point_id)
            merge.drop_point(self._folder, self.catalogue, point_id)

    @property
    def size_bytes(self) -> int:
        """Redo and undo files."""
        return self.redo.size_bytes + self._folder.size_bytes

    def close(self) -> None:
        """Let go of everything; nothing has to be done for safety."""
        with self.apply_lock, self._landing_lock:
            if self._applier is not None:
                self._applier.close()
            self._applier = self._rollback = None
            self.redo.close()
            self.catalogue.close()
