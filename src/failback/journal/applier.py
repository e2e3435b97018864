"""The applier: redo records to the target disks, undo first, points at exactly their batch (D3, D13).

``step`` takes a group of consecutive batches (bounded in bytes, ending at a point or before a digest table), saves the
old blocks, makes them durable, writes the group's last-write-wins pieces, and from time to time flushes the disks and
advances the durable applied position. A digest table is compared when everything before it is written and nothing after.
One thread calls; after an exception the state is taken anew from the files, so that the next call repeats the work.
"""

from __future__ import annotations

import bisect
import errno
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from failback.block import scattered
from failback.block.device import BlockDevice
from failback.block.raw import storage_error
from failback.errors import FailbackError, IntegrityError, ProtocolError
from failback.journal import last_write, lost_undo, pacing, unproven
from failback.journal.catalogue import Applied, Catalogue, Interval, Mark
from failback.journal.damage import REDO_DAMAGED
from failback.journal.digests import compare
from failback.journal.known_digests import KnownDigests
from failback.journal.recent_redo import RedoRecord
from failback.journal.redo import RedoLog
from failback.journal.undo import EMPTY, Preserver, UndoDamagedError, UndoFile, UndoFolder
from failback.model.ids import MachineId, PointId, new_id
from failback.model.points import PointKind, RecoveryPoint
from failback.model.stream import Codec, Operation
from failback.protocol.compression import decompress
from failback.protocol.items import ItemHeader
from failback.protocol.layout import FrameType
from failback.protocol.messages import Batch, DigestReply, Digests
from failback.runtime import faults, logs

log = logs.get(__name__)

GROUP_BYTES = 8 << 20
FLUSH_SECONDS = 1.0
FLUSH_BYTES = 256 << 20


@dataclass(slots=True)
class Group:
    """Consecutive batches that are written as one."""

    records: list[RedoRecord] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    payloads: list[memoryview] = field(default_factory=list)
    decisions: list[pacing.Decision] = field(default_factory=list)

    @property
    def last(self) -> RedoRecord:
        return self.records[-1]


@dataclass(frozen=True, slots=True)
class Target:
    """The replica's disks by index, and the threads that read old blocks."""

    devices: Mapping[int, BlockDevice]
    readers: Executor

    def flush(self) -> None:
        for device in self.devices.values():
            device.flush()


class Applier:
    """``pace_seconds`` gives the policy's present interval between crash-consistent points."""

    def __init__(self, folder: UndoFolder, catalogue: Catalogue, redo: RedoLog, target: Target, *,
                 pace_seconds: Callable[[], int], on_reply: Callable[[DigestReply], None]) -> None:  # fmt: skip
        self._folder = folder
        self._catalogue = catalogue
        self._redo = redo
        self._target = target
        self._devices = target.devices
        self._readers = target.readers
        self._pace_seconds = pace_seconds
        self._on_reply = on_reply
        self.known = KnownDigests(target.devices, folder.incarnation)
        self.advanced = threading.Condition()
        """Notified whenever the durable applied position advanced."""
        self.published = 0
        self.up_to: int | None = None
        """The last record that may be applied; None: all."""
        self._file: UndoFile | None = None
        self._attempted = 0
        self.replayed_until = 0
        """Before this record the disks may hold more than is written again since the last failure."""
        self._load()

    # --- state ------------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Take everything from the files: the durable position, the open interval and what it has saved."""
        self._stale = True
        self.known.clear()  # nobody knows how far a failed step came
        if self._file is not None:
            self._file.cut_back()  # what is not known to be durable may be lost, whatever the page cache shows
            self._file.close()
            self._file = None
        interval = self._catalogue.intervals()[-1]
        try:
            self._file = self._folder.open(interval.file, interval.interval_id, interval.durable)
        except UndoDamagedError as error:
            interval = lost_undo.begin_after(self._folder, self._catalogue, error)
            self._file = self._folder.open(interval.file, interval.interval_id, interval.durable)
        self._interval_file = interval.file
        self._preserver = Preserver(self._file, self._devices, self._readers)
        self.durable = self.written = self._catalogue.applied
        self.replayed_until = max(self.replayed_until, self._attempted)
        self._cut = unproven.cut(self._catalogue)
        pace = self._catalogue.get(unproven.PACE)
        self._pace = int(pace) if pace is not None else -1
        published = [entry for entry in self._catalogue.points() if not entry.point.abandoned]
        self._last_point_wall_ns = published[-1].point.wall_ns if published else 0
        only_before = bool(published) and published[-1].point.kind is PointKind.BEFORE_REPROTECT
        self._after_pass = bool(self._catalogue.get("after_pass")) or only_before
        self._events: list[tuple[str, int]] = []
        self._marks: list[Mark] = []
        self._replies: list[DigestReply] = []
        self._unflushed_bytes = 0
        self._flushed_at = time.monotonic()
        self._stale = False

    @contextmanager
    def _restarting(self) -> Iterator[None]:
        if self._stale:
            self._load()
        try:
            yield
        except BaseException:
            self._load()
            raise

    @property
    def behind(self) -> int:
        """Landed records that are not written yet and may be."""
        last = self._redo.synced_ordinal if self.up_to is None else min(self._redo.synced_ordinal, self.up_to)
        return max(0, last - self.written.ordinal)

    def forget(self) -> None:
        """The catalogue was changed by another hand: take everything from the files before the next step."""
        self._stale = True

    def begin_anew(self) -> None:
        """What was written does not matter any more: the disks will be compared, and records get numbers again."""
        self._attempted = self.replayed_until = 0
        self.forget()

    @property
    def _is_mixture(self) -> bool:
        return self.written.ordinal < self.replayed_until or unproven.is_unproven(self._catalogue, self.written)

    # --- stepping ---------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Apply the next group; False when there was nothing to do.

        Raises StorageError, and IntegrityError ``RedoDamaged`` when the next record cannot be used: then everything before it
        is durable, and a point if it can be one.
        """
        with self._restarting():
            self._follow_policy()
            group = self._collect()
            if group is None:
                if self.written != self.durable and time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
                    self._settle(None)
                return False
            if group.last.item.header.type is FrameType.DIGESTS:
                self._compare(group.last)
            else:
                self._write(group)
            self._redo.applied(self.written.ordinal)
            decision = group.decisions[-1] if group.decisions else None
            due = time.monotonic() - self._flushed_at >= FLUSH_SECONDS or self._unflushed_bytes >= FLUSH_BYTES
            if decision is not None and decision.point is not None:
                self._settle(decision.point)
            elif due:
                self._settle(None)
            return True

    def settle(self) -> None:
        """Flush the disks and make the position durable now."""
        with self._restarting():
            if self.written != self.durable:
                self._settle(None)

    def publish(self) -> None:
        """Make what is written a crash-consistent point, unless it lies in a gap or is one already."""
        with self._restarting():
            lost_until = self._catalogue.lost_until()
            newest = max(
                (entry.ordinal for entry in self._catalogue.points() if entry.ordinal > lost_until), default=-1
            )
            held_back = self.written.gap or self._after_pass or self._is_mixture
            if held_back or self.written.ordinal <= max(newest, lost_until):
                self.settle()
            else:
                self._settle(PointKind.CRASH_CONSISTENT)

    def _collect(self) -> Group | None:
        group = Group()
        total = 0
        try:
            for record in self._redo.read_after(self.written.ordinal, self.up_to):
                header = record.item.header
                if header.type is FrameType.DIGESTS:
                    _prove(record)
                    if not group.records:
                        group.records.append(record)
                    break
                if group.records and total + header.payload_raw_bytes > GROUP_BYTES:
                    break
                batch = decode(record)
                payload = payload_of(batch)
                decision = self._decide(header, record.ordinal)
                group.records.append(record)
                group.batches.append(batch)
                group.payloads.append(payload)
                group.decisions.append(decision)
                total += header.payload_raw_bytes
                if decision.point is not None or total >= GROUP_BYTES:
                    break
        except (IntegrityError, ProtocolError, OSError) as error:
            if not group.records:
                raise self._unusable(error) from error
        return group if group.records else None

    def _unusable(self, error: IntegrityError | ProtocolError | OSError) -> FailbackError:
        """The next record is damaged: keep what was reached before it."""
        if isinstance(error, OSError) and error.errno not in (errno.EIO, errno.ENOENT):
            return storage_error("cannot read the redo log", error)
        self.publish()
        return IntegrityError(
            f"redo record {self.written.ordinal + 1} cannot be used: {error}",
            code=REDO_DAMAGED,
            possible_causes="the retention volume lost or changed bytes that were durable",
            remedy="the machine's disks are compared by hash under a new epoch; check the retention volume",
        )

    def _follow_policy(self) -> None:
        """Another pace holds from a durable place on: what is written again after a failure makes the same points again, for
        the disks are not as they were at any other place."""
        wanted = self._pace_seconds()
        if wanted == self._pace or (self._pace >= 0 and self._is_mixture):
            return
        if self.written != self.durable:
            self._settle(None)
        self._catalogue.set(unproven.PACE, wanted)
        self._pace = wanted

    def _decide(self, header: ItemHeader, ordinal: int) -> pacing.Decision:
        pace = pacing.Pace(self._last_point_wall_ns, self._after_pass)
        decision = pacing.decide(pace, header.gap, header.mark_kind, header.wall_ns, self._pace)
        if self._cut.covers(ordinal, header.epoch, header.end_position):
            decision = pacing.Decision(None, decision.gap, self._after_pass or decision.after_pass)
        self._after_pass = decision.after_pass
        return decision

    # --- writing ----------------------------------------------------------------------------------------------------

    def _write(self, group: Group) -> None:
        self._attempted = max(self._attempted, group.last.ordinal)
        resolved = last_write.resolve([last_write.extent_table(batch.extents) for batch in group.batches])
        saved = sum(self._preserver.preserve(disk, pieces.offset, pieces.end) for disk, pieces in resolved.items())
        self._preserver.sync()
        payloads = Payloads(group.payloads)
        for disk, pieces in resolved.items():
            self.known.forget(disk, pieces)
            self._unflushed_bytes += write_pieces(self._devices[disk], pieces, payloads)
            self.known.learn_pieces(disk, pieces, payloads.part)
        for record, decision in zip(group.records, group.decisions, strict=True):
            self._advance(record, decision)
        log.debug("group written", records=len(group.records), undo_bytes=saved, ordinal=self.written.ordinal)

    def _advance(self, record: RedoRecord, decision: pacing.Decision) -> None:
        header = record.item.header
        if decision.gap != self.written.gap:
            if self.written.gap:
                self._events.append(("", header.wall_ns))
            if decision.gap:
                self._events.append((decision.gap, self.written.wall_ns or header.wall_ns))
        if header.mark_id:
            self._marks.append(Mark(header.mark_id, record.ordinal, decision.point is not None))
        self.written = Applied(
            record.ordinal, header.epoch, header.sequence, header.end_position, header.wall_ns, decision.gap
        )

    def _compare(self, record: RedoRecord) -> None:
        digests = record.item.decode()
        if isinstance(digests, Digests) and digests.epoch == self._catalogue.get("epoch"):
            reply = compare(digests, self._devices[digests.disk_index], self._readers, self.known)
            self._replies.append(reply)
            self._on_reply(reply)
        header = record.item.header
        self.written = Applied(record.ordinal, header.epoch, header.sequence, header.end_position,
                               self.written.wall_ns, self.written.gap)  # fmt: skip

    # --- durability -------------------------------------------------------------------------------------------------

    def _settle(self, point: PointKind | None) -> None:
        """Flush the disks, then one transaction: position, gaps, marks, replies and, with ``point``, the new interval."""
        faults.point("apply.before_flush")
        self._target.flush()
        interval = self._next_interval() if point is not None else None
        with self._catalogue.transaction():
            for cause, wall_ns in self._events:
                if cause:
                    self._catalogue.open_gap(cause, wall_ns)
                else:
                    self._catalogue.close_gap(wall_ns)
            for mark in self._marks:
                self._catalogue.add_mark(mark)
            for reply in self._replies:
                self._catalogue.add_reply(reply)
            self._catalogue.set_applied(self.written)
            if self._file is not None:
                self._catalogue.set_durable(self._interval_file, self._file.durable)
            self._catalogue.set("after_pass", self._after_pass)
            if point is not None and interval is not None:
                self._publish(point)
                self._catalogue.put_interval(interval)
        self._events, self._marks, self._replies = [], [], []
        self.durable = self.written
        self._unflushed_bytes = 0
        self._flushed_at = time.monotonic()
        if interval is not None:
            self.published += 1
            self._last_point_wall_ns = self.written.wall_ns
            if self._file is not None:
                self._file.close()
            self._file = self._folder.open(interval.file, interval.interval_id, interval.durable)
            self._interval_file = interval.file
            self._preserver = Preserver(self._file, self._devices, self._readers)
        with self.advanced:
            self.advanced.notify_all()

    def _next_interval(self) -> Interval:
        """The file of the next interval, durable before the catalogue names it."""
        number = self._catalogue.intervals()[-1].interval_id + 1
        name = f"undo/{number:012d}.undo"
        self._folder.path(name).unlink(missing_ok=True)
        self._folder.open(name, number).close()
        return Interval(number, self.written.ordinal, name, EMPTY)

    def _publish(self, kind: PointKind) -> None:
        marks = [mark for mark in self._marks if mark.ordinal == self.written.ordinal]
        point_id = PointId(marks[-1].mark_id if marks else new_id())
        written = self.written
        point = RecoveryPoint(point_id, MachineId(self._folder.machine_id), kind, written.wall_ns, written.epoch,
                              written.sequence, written.ring)  # fmt: skip
        self._catalogue.rename_point(point_id, new_id())  # a mark that was sent twice names its last place
        self._catalogue.add_point(point, written.ordinal)
        log.info("recovery point published", point=point_id, kind=kind.value, sequence=written.sequence)

    def close(self) -> None:
        self._redo.applied(self._redo.synced_ordinal)
        if self._file is not None:
            self._file.close()
            self._file = None


class Payloads:
    """The joined payloads of a group, addressed as one without joining them."""

    def __init__(self, parts: list[memoryview]) -> None:
        self._parts = parts
        self.memory = scattered.Memory(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()[:-1]

    def part(self, source: int, length: int) -> memoryview:
        """A piece never crosses two payloads: extents do not."""
        index = bisect.bisect_right(self._starts, source) - 1
        while len(self._parts[index]) == 0:
            index -= 1
        place = source - self._starts[index]
        return self._parts[index][place : place + length]


def _prove(record: RedoRecord) -> None:
    if not record.proven:
        record.item.verify()


def decode(record: RedoRecord) -> Batch:
    """The record's batch, checksums verified. Raises IntegrityError naming the record."""
    _prove(record)
    batch = record.item.decode()
    if not isinstance(batch, Batch):
        raise IntegrityError(f"redo record {record.ordinal} is no batch", code=REDO_DAMAGED)
    return batch


def payload_of(batch: Batch) -> memoryview:
    """The decoded payload. Raises IntegrityError."""
    if batch.codec is Codec.RAW:
        return memoryview(batch.payload)
    raw = decompress(batch.payload, batch.payload_raw_bytes, f"the payload of batch {batch.sequence}")
    return memoryview(raw)


def write_pieces(device: BlockDevice, pieces: last_write.Pieces, payloads: Payloads) -> int:
    """Write the pieces, which are disjoint; returns the bytes."""
    left = np.ones(len(pieces.offset), np.bool_)
    if (
        scattered.can(device)
        and not faults.is_armed("apply.mid")
        and scattered.fits(device, pieces.offset, pieces.length)
    ):
        data = (pieces.operation == int(Operation.DATA)) & scattered.are_small(pieces.length)
        columns = [column[data] for column in (pieces.offset, pieces.length, pieces.source)]
        addresses = payloads.memory.addresses(columns[2], columns[1])
        if addresses is not None:
            scattered.write(device, columns[0], columns[1], addresses)
            left = ~data
    _write_one_by_one(device, pieces, payloads, left)
    return int(pieces.length.sum())


def _write_one_by_one(
    device: BlockDevice, pieces: last_write.Pieces, payloads: Payloads, left: npt.NDArray[np.bool_]
) -> None:
    columns = (column[left].tolist() for column in (pieces.offset, pieces.length, pieces.source, pieces.operation))
    for offset, length, source, operation in zip(*columns, strict=True):
        faults.point("apply.mid")
        if operation == Operation.DATA:
            device.write(offset, payloads.part(source, length))
        elif operation == Operation.ZERO:
            device.zero(offset, length)
        else:
            device.discard(offset, length)
