"""One machine's items of one epoch on disk, from their arrival until they have landed.

Theory of operation. A directory holds segment files and ``state.json``. A segment is nothing but item frames, one after
the other, exactly as they came (docs/protocol.md); its name is the sequence of its first item. Items are appended, then
synced together; only then is anything acknowledged. A segment is synced before the next one is created, so only the last
one can have a torn tail, which :meth:`Spool.open` cuts off at the first frame that is not whole: it was never
acknowledged. ``state.json`` is replaced durably before anything that has landed is deleted, so that an empty spool still
knows where the stream stands and which journal took it (D7). Items that landed before they were written are never written:
the stream then stands behind them, and a segment that follows begins behind them (decision 0010).

Calls block and may come from several threads; a lock orders them. Fault points: ``spool.before_sync``,
``spool.after_sync``, ``spool.before_free``, ``spool.after_free``, ``spool.before_state``.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from failback.errors import FailbackError, IntegrityError, OutOfSpaceError, ProtocolError, StorageError
from failback.model.ids import MachineId
from failback.protocol.connection import items_missing
from failback.protocol.frames import ITEM_HEADER_BYTES, ItemHeader, RawItem, parse_item_header
from failback.protocol.messages import StreamDisk
from failback.runtime import faults, logs, records

log = logs.get(__name__)

SUFFIX = ".items"
_STATE = "state.json"
_RESERVE = "reserve"
_RESERVE_BYTES = 64 << 10
"""Kept beside the first segment and given up for the state when the disk is full: without a state nothing may be freed."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_KEPT_SEGMENT_BYTES = 1 << 20
"""A last segment below this size is kept although all of it has landed: deleting it would cost more than it frees."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """What is known of a stream beside its items. The landed position belongs to the incarnation."""

    machine_id: MachineId
    epoch: int
    disks: tuple[StreamDisk, ...] = ()
    incarnation: str = ""
    landed_sequence: int = 0
    landed_ring: int = 0
    problem: dict[str, str] = field(default_factory=dict)
    """An error that ended the epoch (``FailbackError.as_dict``); empty while all is well."""
    forwards_early: bool = False
    """Items may have been forwarded that are not spooled: after a restart the journal says first where the stream stands."""


@dataclass(slots=True)
class Segment:
    path: Path
    first_sequence: int
    last_sequence: int
    durable_bytes: int


class Spool:
    """See the module. ``spooled_sequence`` and ``spooled_ring`` are durable whenever they are seen."""

    def __init__(self, directory: Path, state: StreamState, segment_bytes: int) -> None:
        self.directory = directory
        self.state = state
        self.segments: list[Segment] = []
        self.spooled_sequence = state.landed_sequence
        self.spooled_ring = state.landed_ring
        self._stored = state
        self._segment_bytes = segment_bytes
        self._descriptor = -1
        self._lock = threading.Lock()

    @staticmethod
    def open(directory: Path, machine_id: MachineId, epoch: int, *, segment_bytes: int = 64 << 20) -> Spool:
        """Open or create. Raises StorageError for a disk that fails and IntegrityError for an unreadable state."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _sync_directory(directory.parent)
            spool = Spool(directory, _read_state(directory, machine_id, epoch), segment_bytes)
            spool._recover()
        except OSError as error:
            raise _storage_error(error, directory) from error
        return spool

    def close(self) -> None:
        with self._lock:
            self._close_segment()

    # --- figures ----------------------------------------------------------------------------------------------------

    @property
    def total_bytes(self) -> int:
        """Bytes on disk."""
        return sum(segment.durable_bytes for segment in list(self.segments))

    @property
    def pending_bytes(self) -> int:
        """Bytes on disk of segments with items that have not landed."""
        landed = self.state.landed_sequence
        return sum(segment.durable_bytes for segment in list(self.segments) if segment.last_sequence > landed)

    @property
    def first_held(self) -> int:
        """Sequence of the oldest item that can be read; one after the last when nothing is held."""
        segments = self.segments
        return segments[0].first_sequence if segments else self.spooled_sequence + 1

    def position(self) -> tuple[int, int]:
        """(sequence, ring) up to which everything is durable, after appends that are under way."""
        with self._lock:
            return self.spooled_sequence, self.spooled_ring

    # --- writing ----------------------------------------------------------------------------------------------------

    def append(self, items: list[RawItem]) -> None:
        """Write and sync the items; durable when this returns. On an error none of them counts as spooled. Those that have
        landed meanwhile are left out.

        Raises ProtocolError (not the next sequence), OutOfSpaceError, StorageError.
        """
        with self._lock:
            begun: list[Segment] = []
            written: dict[int, int] = {}
            expected = self.spooled_sequence
            items = [item for item in items if item.header.sequence > expected]
            if not items:
                return
            try:
                for item in items:
                    expected += 1
                    if item.header.sequence != expected:
                        raise ProtocolError(
                            f"item {item.header.sequence} cannot follow item {expected - 1}", code="OutOfOrder"
                        )
                    self._append_one(item, begun, written)
                faults.point("spool.before_sync")
                os.fdatasync(self._descriptor)
            except (OSError, FailbackError) as error:
                self._take_back(begun)
                if isinstance(error, OSError):
                    raise _storage_error(error, self.directory) from error
                raise
            for segment in self.segments:
                segment.durable_bytes += written.get(segment.first_sequence, 0)
            self.segments[-1].last_sequence = expected
            self.spooled_ring = items[-1].header.end_position
            self.spooled_sequence = expected
        faults.point("spool.after_sync")

    def _append_one(self, item: RawItem, begun: list[Segment], written: dict[int, int]) -> None:
        segment = self.segments[-1] if self.segments else None
        filled = segment.durable_bytes + written.get(segment.first_sequence, 0) if segment else 0
        if segment is None or self._descriptor < 0 or (filled and filled + len(item.buffer) > self._segment_bytes):
            if self._descriptor >= 0:
                os.fdatasync(self._descriptor)
            if segment is not None:
                segment.last_sequence = item.header.sequence - 1
            segment = self._begin_segment(item.header.sequence)
            begun.append(segment)
        rest = item.buffer
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        written[segment.first_sequence] = written.get(segment.first_sequence, 0) + len(item.buffer)

    def _begin_segment(self, sequence: int) -> Segment:
        self._close_segment()
        self._keep_reserve()
        path = self.directory / f"{sequence:020d}{SUFFIX}"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        _sync_directory(self.directory)
        segment = Segment(path, sequence, sequence, 0)
        self.segments.append(segment)
        return segment

    def _take_back(self, begun: list[Segment]) -> None:
        """Remove what was written and not synced. After a failed sync the kernel may have dropped pages: the next
        append begins a new segment instead of trusting the open one."""
        self._close_segment()
        for segment in begun:
            self.segments.remove(segment)
            segment.path.unlink(missing_ok=True)
        if self.segments:
            last = self.segments[-1]
            last.last_sequence = self.spooled_sequence
            try:
                os.truncate(last.path, last.durable_bytes)
            except OSError as error:  # harmless: readers stop at the segment's last sequence
                log.error("bytes that were not synced stay in a segment", path=str(last.path), reason=str(error))

    def _close_segment(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # --- state and freeing ------------------------------------------------------------------------------------------

    def remember(self, disks: tuple[StreamDisk, ...]) -> None:
        """Store the stream's disks durably, when they are news."""
        with self._lock:
            if disks != self.state.disks:
                self._store(replace(self.state, disks=disks))

    def end(self, problem: FailbackError) -> None:
        """Store durably that this epoch cannot go on."""
        with self._lock:
            self._store(replace(self.state, problem=problem.as_dict()))

    def store_landed(self) -> None:
        """Make the landed position durable, when it is news (D7)."""
        with self._lock:
            if self.state != self._stored:
                self._store(self.state)

    def set_early(self, early: bool) -> None:
        """Store durably whether items are forwarded before they are spooled. To end it everything forwarded is spooled."""
        with self._lock:
            if early != self.state.forwards_early:
                self._store(replace(self.state, forwards_early=early))

    def landed_at_once(self, sequence: int, ring: int, incarnation: str) -> bool:
        """As :meth:`landed` where that neither waits nor touches the disk; False: nothing was done."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self.segments or incarnation != self.state.incarnation:
                return False
            self.state = replace(self.state, landed_sequence=sequence, landed_ring=ring)
            if sequence > self.spooled_sequence:
                self.spooled_ring, self.spooled_sequence = ring, sequence
            return True
        finally:
            self._lock.release()

    def landed(self, sequence: int, ring: int, incarnation: str) -> None:
        """The journal holds everything up to ``sequence``: delete segments that it covers, state first. The stream goes on
        behind it even if it was not spooled up to there."""
        with self._lock:
            state = replace(self.state, incarnation=incarnation, landed_sequence=sequence, landed_ring=ring)
            ahead = sequence > self.spooled_sequence
            free = [segment for segment in self.segments if ahead or self._is_free(segment, sequence)]
            if free or state.incarnation != self.state.incarnation:
                self._store(state)
            else:
                self.state = state
            if ahead:
                self.spooled_ring, self.spooled_sequence = ring, sequence
            if not free:
                return
            faults.point("spool.before_free")
            if free[-1] is self.segments[-1]:
                self._close_segment()
            for segment in free:
                segment.path.unlink(missing_ok=True)
                self.segments.remove(segment)
        faults.point("spool.after_free")

    def fast_forward(self, sequence: int, ring: int, incarnation: str, *, although_greeted: bool = False) -> bool:
        """The journal is ahead of this spool (its disk was replaced): go on behind the journal's position.

        False, and nothing is changed, when an agent was greeted with the position before: what it sent since, or sends after a
        restart, would bear the numbers of landed items (D6). ``although_greeted``: it was a process before this one that
        greeted and forwarded without spooling, and none is greeted before the journal was heard (decision 0010).
        """
        with self._lock:
            if self.state.disks and not although_greeted:
                return False
            state = replace(self.state, incarnation=incarnation, landed_sequence=sequence, landed_ring=ring)
            self._store(state)
            self._close_segment()
            for segment in self.segments:
                segment.path.unlink(missing_ok=True)
            self.segments.clear()
            self.spooled_sequence, self.spooled_ring = sequence, ring
            return True

    def _is_free(self, segment: Segment, landed_sequence: int) -> bool:
        if segment.last_sequence > landed_sequence:
            return False
        return segment is not self.segments[-1] or segment.durable_bytes >= min(
            _KEPT_SEGMENT_BYTES, self._segment_bytes
        )

    def _store(self, state: StreamState) -> None:
        faults.point("spool.before_state")
        content = json.dumps(records.encode(state)).encode()
        try:
            try:
                _replace_durably(self.directory / _STATE, content)
            except OSError as error:
                if error.errno not in _FULL or not self._give_up_reserve():
                    raise
                _replace_durably(self.directory / _STATE, content)
        except OSError as error:
            raise _storage_error(error, self.directory) from error
        self.state = self._stored = state

    def _keep_reserve(self) -> None:
        """Before a segment is begun. Raises OSError: without a reserve nothing is spooled."""
        path = self.directory / _RESERVE
        if path.exists():
            return
        _replace_durably(path, bytes(_RESERVE_BYTES))

    def _give_up_reserve(self) -> bool:
        path = self.directory / _RESERVE
        if not path.exists():
            return False
        log.warning("the spool's disk is full: its reserve is given up for the state", directory=self.directory)
        path.unlink()
        _sync_directory(self.directory)
        return True

    # --- opening ----------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        self._find_segments()
        if self.segments and self.spooled_sequence < self.state.landed_sequence:  # all of it has landed already
            for segment in self.segments:
                segment.path.unlink()
            self.segments.clear()
            self.spooled_sequence, self.spooled_ring = self.state.landed_sequence, self.state.landed_ring

    def _find_segments(self) -> None:
        paths = sorted(self.directory.glob(f"*{SUFFIX}"))
        for path in paths:
            first = int(path.name.removesuffix(SUFFIX))
            if self.segments:
                self.segments[-1].last_sequence = first - 1
            self.segments.append(Segment(path, first, first, path.stat().st_size))
        if not self.segments:
            return
        last = self.segments[-1]
        header, whole = _scan(last.path, last.first_sequence)
        if whole < last.durable_bytes:
            log.warning(
                "torn tail of a spool is cut off", path=str(last.path), kept=whole, cut=last.durable_bytes - whole
            )
            os.truncate(last.path, whole)
            last.durable_bytes = whole
        if header is None:
            last.path.unlink()
            self.segments.pop()
            if self.segments:
                header = self._last_header(self.segments[-1])
        if header is not None:
            _sync_file(self.segments[-1].path)  # a killed process may have written items that it did not sync
            self.segments[-1].last_sequence = header.sequence
            self.spooled_sequence, self.spooled_ring = header.sequence, header.end_position

    def _last_header(self, segment: Segment) -> ItemHeader | None:
        header, whole = _scan(segment.path, segment.first_sequence)
        if header is None or header.sequence != segment.last_sequence:
            raise IntegrityError(
                f"{segment.path} ends with item {header.sequence if header else 'none'} "
                f"instead of {segment.last_sequence}",
                code="SpoolDamaged",
                remedy="a new epoch re-sends the blocks that have not landed",
            )
        segment.durable_bytes = whole
        return header


class SpoolReader:
    """Reads items in order, beginning right after a sequence. One reader, one caller at a time."""

    def __init__(self, spool: Spool, after_sequence: int) -> None:
        self._spool = spool
        self._next = after_sequence + 1
        self._segment_first = -1
        self._offset = 0

    @property
    def next_sequence(self) -> int:
        return self._next

    def next_bytes(self) -> int:
        """Size of the next durable item; 0 when none is there. Raises as :meth:`read_some`."""
        if self._next > self._spool.spooled_sequence:
            return 0
        segment = self._segment()
        try:
            with segment.path.open("rb", buffering=0) as stream:
                return _header_at(stream.fileno(), self._offset, segment.path).total_bytes
        except OSError as error:
            raise _storage_error(error, self._spool.directory) from error

    def read_some(self, limit_bytes: int) -> list[RawItem]:
        """The next durable items: at least one (however large), further ones up to the limit; empty when none is there.

        Raises ProtocolError (ItemsMissing), IntegrityError (SpoolDamaged), StorageError.
        """
        found: list[RawItem] = []
        taken = 0
        while self._next <= self._spool.spooled_sequence:
            segment = self._segment()
            try:
                descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise _storage_error(error, self._spool.directory) from error
            try:
                while self._next <= min(segment.last_sequence, self._spool.spooled_sequence):
                    header = _header_at(descriptor, self._offset, segment.path)
                    if header.sequence >= self._next:
                        if found and taken + header.total_bytes > limit_bytes:
                            return found
                        item = self._read_one(descriptor, segment.path, header)
                        found.append(item)
                        taken += len(item.buffer)
                        self._next += 1
                    self._offset += header.total_bytes
            finally:
                os.close(descriptor)
            if taken >= limit_bytes:
                break
        return found

    def _segment(self) -> Segment:
        for segment in list(self._spool.segments):
            if segment.first_sequence <= self._next <= segment.last_sequence:
                if segment.first_sequence != self._segment_first:
                    self._segment_first, self._offset = segment.first_sequence, 0
                return segment
        raise items_missing(self._next, self._spool.first_held)

    def _read_one(self, descriptor: int, path: Path, header: ItemHeader) -> RawItem:
        try:
            frame = bytearray(header.total_bytes)
            view = memoryview(frame)
            filled = 0
            while filled < len(frame):
                count = os.preadv(descriptor, [view[filled:]], self._offset + filled)
                if not count:
                    break
                filled += count
            item = RawItem.from_buffer(view[:filled].toreadonly())
            item.verify()
        except OSError as error:
            raise _storage_error(error, path.parent) from error
        except (IntegrityError, ProtocolError) as error:
            raise _damaged(path, self._offset, error) from error
        return item


def _header_at(descriptor: int, offset: int, path: Path) -> ItemHeader:
    try:
        return parse_item_header(os.pread(descriptor, ITEM_HEADER_BYTES, offset))
    except (IntegrityError, ProtocolError) as error:
        raise _damaged(path, offset, error) from error


def _damaged(path: Path, offset: int, error: FailbackError) -> IntegrityError:
    if error.code == "SpoolDamaged" and isinstance(error, IntegrityError):
        return error
    return IntegrityError(
        f"{path} is damaged at byte {offset}: {error.message}",
        code="SpoolDamaged",
        possible_causes="the spool's disk changed or lost bytes that were durable",
        remedy="a new epoch re-sends the blocks that have not landed; check the disk",
    )


def _scan(path: Path, first_sequence: int) -> tuple[ItemHeader | None, int]:
    """(header of the last whole item, length of the whole items) of a segment that may have a torn tail."""
    size = path.stat().st_size
    last: ItemHeader | None = None
    offset = 0
    with path.open("rb") as stream:
        while offset < size:
            stream.seek(offset)
            try:
                header = parse_item_header(stream.read(ITEM_HEADER_BYTES))
                if header.sequence != first_sequence + (last.sequence - first_sequence + 1 if last else 0):
                    break
                stream.seek(offset)
                RawItem.from_buffer(stream.read(header.total_bytes)).verify()
            except (IntegrityError, ProtocolError):
                break
            last = header
            offset += header.total_bytes
    return last, offset


def _read_state(directory: Path, machine_id: MachineId, epoch: int) -> StreamState:
    path = directory / _STATE
    if not path.exists():
        return StreamState(machine_id, epoch)
    try:
        return records.decode(records.parse_json(path.read_text(encoding="utf-8")), StreamState, str(path))
    except (ValueError, FailbackError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", code="SpoolDamaged") from error


def _replace_durably(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    _sync_directory(path.parent)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _storage_error(error: OSError, directory: Path) -> StorageError:
    if error.errno in _FULL:
        return OutOfSpaceError(
            f"the spool at {directory} has no space left",
            remedy="free space there; nothing acknowledged is lost and the agents wait",
        )
    return StorageError(f"the spool at {directory} failed: {error}", remedy="check the spool's disk", retryable=True)
