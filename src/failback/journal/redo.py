"""The redo log: every landed item of a machine, in order, in segment files of about 64 MiB.

``append`` writes a record, ``sync`` makes all appended records durable (group commit); only then they may be acknowledged.
Records carry an *ordinal* that counts through all epochs. A torn tail is cut when the log is opened: it was never
acknowledged. After a failed write or sync the file is cut back to what was durable, and nothing of it was acknowledged.
One thread appends and syncs; others read up to ``synced_ordinal``.
"""

from __future__ import annotations

import bisect
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from failback.block.raw import storage_error, sync_directory
from failback.errors import FailbackError, IntegrityError, OutOfSpaceError
from failback.journal import format as layout
from failback.journal.recent_redo import RecentRedo, RedoRecord
from failback.journal.torn_tail import Bound, bound_of_tail
from failback.protocol.items import RawItem
from failback.runtime import faults


@dataclass(slots=True)
class _Segment:
    path: Path
    first_ordinal: int
    size_bytes: int


class RedoLog:
    """``reserve_bytes`` of the volume are left free for the catalogue and the undo of what has landed."""

    def __init__(self, directory: Path, machine_id: str, incarnation: str, *, reserve_bytes: int = 64 << 20) -> None:
        self._directory = directory
        self._machine_id = machine_id
        self._incarnation = incarnation
        self._reserve_bytes = reserve_bytes
        self.free_bytes: Callable[[], int] = self._file_system_bytes
        """What the volume has left; its owner may set a bound of its own (a quota)."""
        self._lock = threading.Lock()
        self._segments: list[_Segment] = []
        self._fd = -1
        self._durable_bytes = 0
        self._appended_ordinal = 0
        self.synced_ordinal = 0
        self.cut = Bound()
        """What opening cut because it was not whole (``torn_tail``)."""
        self._place = (0, 0, 0)  # (ordinal, its segment, offset): where the last reader stopped
        self._recent = RecentRedo()
        directory.mkdir(parents=True, exist_ok=True)
        self._open_segments()

    # --- opening ----------------------------------------------------------------------------------------------------

    def _open_segments(self) -> None:
        for path in sorted(self._directory.glob("*.redo")):
            self._segments.append(_Segment(path, int(path.stem), path.stat().st_size))
        while self._segments:
            segment = self._segments[-1]
            self.synced_ordinal = self._appended_ordinal = self._cut_tail(segment)
            if segment.size_bytes > 0:
                self._fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
                os.fdatasync(self._fd)  # a killed process may have written records that it did not sync
                self._durable_bytes = segment.size_bytes
                return
            segment.path.unlink()
            self._segments.pop()

    def _cut_tail(self, segment: _Segment) -> int:
        """Cut the segment after its last whole record and return that record's ordinal; size 0 when there is none."""
        with segment.path.open("rb") as stream:
            header = stream.read(layout.FILE_HEADER_BYTES)
            try:
                found = layout.parse_file_header(header, layout.REDO_FILE_MAGIC, str(segment.path))
            except IntegrityError:
                self._note_cut(segment, 0, segment.first_ordinal - 1)
                segment.size_bytes = 0
                return segment.first_ordinal - 1
            if found.incarnation != self._incarnation:
                raise IntegrityError(f"{segment.path} belongs to another journal ({found.incarnation})")
            good, ordinal = layout.FILE_HEADER_BYTES, segment.first_ordinal - 1
            while (record := layout.parse_redo_record(stream.read(layout.REDO_RECORD_BYTES))) is not None:
                frame = stream.read(record[1])
                if record[0] != ordinal + 1 or len(frame) != record[1] or not _is_whole(frame):
                    break
                good += layout.REDO_RECORD_BYTES + len(frame)
                ordinal = record[0]
        if good < segment.size_bytes:
            self._note_cut(segment, good, ordinal)
        if good == layout.FILE_HEADER_BYTES:
            segment.size_bytes = 0
            return segment.first_ordinal - 1
        if good < segment.size_bytes:
            with segment.path.open("rb+") as stream:
                stream.truncate(good)
                os.fsync(stream.fileno())
            segment.size_bytes = good
        return ordinal

    def _note_cut(self, segment: _Segment, good: int, ordinal: int) -> None:
        with segment.path.open("rb") as stream:
            stream.seek(good)
            self.cut = self.cut.or_later(bound_of_tail(stream.read(), ordinal))

    # --- appending --------------------------------------------------------------------------------------------------

    def append(self, item: RawItem) -> int:
        """Write one item behind the last; returns its ordinal. Durable after :meth:`sync`.

        Raises OutOfSpaceError (the reserve is kept free) and StorageError; then nothing was appended.
        """
        ordinal = self._appended_ordinal + 1
        size = layout.REDO_RECORD_BYTES + len(item.buffer)
        self._check_room(size)
        if self._fd < 0 or self._segments[-1].size_bytes + size > layout.REDO_SEGMENT_BYTES:
            self._begin_segment(ordinal)
        segment = self._segments[-1]
        parts: list[bytes | memoryview] = [layout.pack_redo_record(ordinal, len(item.buffer)), item.buffer]
        try:
            write_all(self._fd, parts, segment.size_bytes)
        except OSError as error:
            os.ftruncate(self._fd, segment.size_bytes)
            raise storage_error(f"cannot append to {segment.path}", error) from error
        with self._lock:
            segment.size_bytes += size
            self._appended_ordinal = ordinal
        if item.proven:
            self._recent.add(RedoRecord(ordinal, item, proven=True))
        faults.point("journal.after_append")
        return ordinal

    def _file_system_bytes(self) -> int:
        facts = os.statvfs(self._directory)
        return facts.f_bavail * facts.f_frsize

    def _check_room(self, size: int) -> None:
        free = self.free_bytes()
        if free < size + self._reserve_bytes:
            raise OutOfSpaceError(
                f"the retention volume of {self._directory} is full: {free >> 20} MiB left",
                possible_causes="the machine changes faster than its points are thinned, or something else uses the volume",
                remedy="enlarge the retention volume or shorten the policy's history; replication waits and loses nothing",
            )

    def _begin_segment(self, first_ordinal: int) -> None:
        if self._fd >= 0:
            self.sync()
            os.close(self._fd)
            self._fd = -1
        path = self._directory / f"{first_ordinal:020d}.redo"
        header = layout.FileHeader(
            layout.REDO_FILE_MAGIC, self._machine_id, self._incarnation, first_ordinal, time.time_ns()
        )
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            write_all(self._fd, [layout.pack_file_header(header)], 0)
            sync_directory(self._directory)
        except OSError as error:
            self.close()  # what follows belongs behind the last segment, not into this file
            raise storage_error(f"cannot create {path}", error) from error
        self._durable_bytes = 0
        with self._lock:
            self._segments.append(_Segment(path, first_ordinal, layout.FILE_HEADER_BYTES))

    def sync(self) -> int:
        """Make everything appended durable; returns the last durable ordinal. Raises StorageError: nothing was."""
        target = self._appended_ordinal
        if self._fd < 0 or target == self.synced_ordinal:
            return self.synced_ordinal
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._cut_back()
            raise storage_error(f"cannot make {self._segments[-1].path} durable", error) from error
        faults.point("journal.after_sync")
        with self._lock:
            self._durable_bytes = self._segments[-1].size_bytes
            self.synced_ordinal = target
        return target

    def _cut_back(self) -> None:
        """Forget what was appended since the last sync: the kernel may have dropped it and call the pages clean."""
        segment = self._segments[-1]
        self._recent.forget_after(self.synced_ordinal)
        os.ftruncate(self._fd, self._durable_bytes)
        with self._lock:
            segment.size_bytes = max(self._durable_bytes, 0)
            self._appended_ordinal = self.synced_ordinal
            if self._durable_bytes == 0:
                self._segments.pop()
                os.close(self._fd)
                self._fd = -1
                segment.path.unlink(missing_ok=True)
                if self._segments:
                    self._fd = os.open(self._segments[-1].path, os.O_RDWR | os.O_CLOEXEC)
                    self._durable_bytes = self._segments[-1].size_bytes

    # --- reading ----------------------------------------------------------------------------------------------------

    def read_after(self, ordinal: int, up_to: int | None = None) -> Iterator[RedoRecord]:
        """Durable records with higher ordinals, in order, until there are no more now, or up to ``up_to``.

        Raises IntegrityError when one is missing or damaged; the frame's own checksums are for the reader to verify.
        """
        wanted = ordinal + 1
        while wanted <= (last := self._last(up_to)):
            recent = self._recent.get(wanted)
            if recent is not None:
                yield recent
                wanted += 1
                continue
            segment = self._segment_of(wanted)
            with segment.path.open("rb") as stream:
                known, first, offset = self._place
                stream.seek(offset if (known, first) == (wanted, segment.first_ordinal) else layout.FILE_HEADER_BYTES)
                while wanted <= last and self._recent.get(wanted) is None:
                    head = stream.read(layout.REDO_RECORD_BYTES)
                    if not head and wanted > segment.first_ordinal:
                        break  # the next segment goes on
                    record = layout.parse_redo_record(head)
                    if record is None:
                        raise IntegrityError(f"{segment.path} is damaged before record {wanted}", code="RedoDamaged")
                    if record[0] < wanted:
                        stream.seek(record[1], os.SEEK_CUR)
                        continue
                    frame = stream.read(record[1])
                    if record[0] != wanted or len(frame) != record[1]:
                        raise IntegrityError(f"record {wanted} is missing in {segment.path}", code="RedoDamaged")
                    self._place = (wanted + 1, segment.first_ordinal, stream.tell())
                    yield RedoRecord(wanted, RawItem.from_buffer(frame))
                    wanted += 1

    def applied(self, ordinal: int) -> None:
        """Records up to there are written to the disks: they need not be in memory any more."""
        self._recent.forget_up_to(ordinal)

    def _last(self, up_to: int | None) -> int:
        return self.synced_ordinal if up_to is None else min(self.synced_ordinal, up_to)

    def last(self) -> RedoRecord | None:
        """The newest durable record."""
        if not self._segments or self.synced_ordinal == 0:
            return None
        return next(self.read_after(self.synced_ordinal - 1), None)

    def _segment_of(self, ordinal: int) -> _Segment:
        with self._lock:
            index = bisect.bisect_right([segment.first_ordinal for segment in self._segments], ordinal) - 1
            if index < 0:
                raise IntegrityError(f"redo record {ordinal} was freed already", code="RedoFreed")
            return self._segments[index]

    @property
    def pending(self) -> int:
        """Records that were appended and are not synced."""
        return self._appended_ordinal - self.synced_ordinal

    @property
    def first_ordinal(self) -> int:
        """The oldest record that is still there."""
        with self._lock:
            return self._segments[0].first_ordinal if self._segments else self._appended_ordinal + 1

    @property
    def size_bytes(self) -> int:
        with self._lock:
            return sum(segment.size_bytes for segment in self._segments)

    def free(self, applied_ordinal: int, older_than_wall_s: float) -> int:
        """Remove whole segments that are applied and were last written before that time; returns how many.

        The last two stay: the newest record says where the stream stands.
        """
        freed = 0
        while len(self._segments) > 2:
            segment, following = self._segments[0], self._segments[1]
            if following.first_ordinal - 1 > applied_ordinal or segment.path.stat().st_mtime > older_than_wall_s:
                break
            with self._lock:
                self._segments.pop(0)
            faults.point("redo.before_free")
            segment.path.unlink(missing_ok=True)
            freed += 1
        return freed

    # --- dropping what is not to be applied -------------------------------------------------------------------------

    def cut_after(self, ordinal: int) -> None:
        """Remove every record behind ``ordinal``; the next one appended follows it. Nobody reads meanwhile. May be repeated."""
        self._recent.forget_after(ordinal)
        if self._appended_ordinal <= ordinal:
            return
        with self._lock:
            keep = [segment for segment in self._segments if segment.first_ordinal <= ordinal]
        end = _end_of(keep[-1].path, ordinal) if keep else 0
        if not end:
            self.restart_after(ordinal)  # not even the way to that record can be read
            return
        for segment in reversed(self._segments[len(keep) :]):
            segment.path.unlink(missing_ok=True)
            faults.point("redo.mid_cut")
        self._forget(keep)
        keep[-1].size_bytes = self._durable_bytes = end
        self._fd = os.open(keep[-1].path, os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(self._fd, end)
        os.fsync(self._fd)
        sync_directory(self._directory)
        self._appended_ordinal = self.synced_ordinal = ordinal

    def restart_after(self, ordinal: int) -> None:
        """Remove every record; the next one appended follows ``ordinal``."""
        self._recent.forget_after(0)
        for segment in reversed(self._segments):
            segment.path.unlink(missing_ok=True)
        self._forget([])
        self._durable_bytes = 0
        sync_directory(self._directory)
        self._appended_ordinal = self.synced_ordinal = ordinal

    def _forget(self, keep: list[_Segment]) -> None:
        with self._lock:
            self._segments = keep
            self._place = (0, 0, 0)
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _is_whole(frame: bytes) -> bool:
    try:
        RawItem.from_buffer(frame).verify()
    except FailbackError:
        return False
    return True


def _end_of(path: Path, ordinal: int) -> int:
    """Where the record ends, found by the headers before it; 0 when one of them is damaged."""
    with path.open("rb") as stream:
        stream.seek(layout.FILE_HEADER_BYTES)
        while (record := layout.parse_redo_record(stream.read(layout.REDO_RECORD_BYTES))) is not None:
            end = stream.seek(record[1], os.SEEK_CUR)
            if record[0] == ordinal:
                return end if end <= path.stat().st_size else 0
    return 0


def write_all(descriptor: int, parts: list[bytes | memoryview], offset: int) -> None:
    """Write the parts one after the other at ``offset``, however often the kernel stops early. Raises OSError."""
    for part in parts:
        view = memoryview(part)
        while view:
            count = os.pwrite(descriptor, view, offset)
            view = view[count:]
            offset += count
