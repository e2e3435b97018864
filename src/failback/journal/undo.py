"""Undo: blocks as they were before an interval's first overwrite, durable before that overwrite (D13).

An undo file belongs to one interval between recovery points (or to a rollback, whose undo is what a return needs).
:class:`SavedBlocks` knows which 4 KiB blocks the file holds; it is rebuilt from the file after a crash, before any replay.
:class:`Preserver` joins the two: ``preserve`` saves what is not saved yet, ``sync`` makes it durable.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from failback.block import scattered
from failback.block.device import BlockDevice
from failback.block.raw import storage_error, sync_directory
from failback.errors import IntegrityError
from failback.journal import format as layout
from failback.journal.format import UNDO_BLOCK_BYTES, UNDO_CHUNK_BLOCKS, RunKind, UndoCodec
from failback.journal.redo import write_all
from failback.journal.undo_packing import RUN_DTYPE, Blocks, ChunkMemory, Content, Parts, Runs, join_record, pack_record
from failback.protocol.compression import decompress
from failback.runtime import faults

REGION_BLOCKS = 32768
_HOLE_SEARCH_BLOCKS = 16
_OUTSTANDING_CHUNKS = 16
_HOLE_STRIDE_BLOCKS = 1 << 20
_LARGEST_BLOCK = 1 << 50


@dataclass(frozen=True, slots=True)
class Durable:
    """What of an undo file the catalogue knows to be durable; ``size_bytes`` 0: unknown (an older catalogue)."""

    size_bytes: int = 0
    records: int = 0


UNKNOWN = Durable()
EMPTY = Durable(layout.FILE_HEADER_BYTES, 0)


class UndoDamagedError(IntegrityError):
    """Undo that was durable cannot be read: points that need it are lost, nothing else is."""

    code = "UndoDamaged"

    def __init__(self, path: Path, offset: int, reason: str) -> None:
        interval = int(path.stem) if path.stem.isdigit() else 0
        whose = f"the undo of interval {interval}" if interval else "what the rollback overwrote"
        super().__init__(
            f"{path}: {whose} is damaged at byte {offset}: {reason}",
            possible_causes="the retention volume lost or changed bytes that were durable",
            remedy="choose a newer recovery point; check the retention volume",
        )
        self.path = path
        self.offset = offset


class _Cuts:
    """How often an undo file was cut while it was in use: who has read its records has to read them again."""

    count = 0


def cuts() -> int:
    return _Cuts.count


class SavedBlocks:
    """A sparse set of (disk, block): 4 KiB of bits for each touched region of 128 MiB."""

    def __init__(self) -> None:
        self._regions: dict[tuple[int, int], npt.NDArray[np.uint8]] = {}

    def mask(self, disk: int, region: int) -> npt.NDArray[np.bool_]:
        bits = self._regions.get((disk, region))
        if bits is None:
            return np.zeros(REGION_BLOCKS, np.bool_)
        return np.unpackbits(bits).view(np.bool_)

    def add_mask(self, disk: int, region: int, mask: npt.NDArray[np.bool_]) -> None:
        self._regions[disk, region] = np.packbits(self.mask(disk, region) | mask)

    def part(self, disk: int, region: int, begin: int, stop: int) -> npt.NDArray[np.bool_]:
        """The mask of [begin, stop) within the region."""
        bits = self._regions.get((disk, region))
        if bits is None:
            return np.zeros(stop - begin, np.bool_)
        low = begin // 8
        return np.unpackbits(bits[low : -(-stop // 8)]).view(np.bool_)[begin - low * 8 : stop - low * 8]

    def add_runs(self, runs: Runs) -> None:
        for disk, _, _, blocks, first in runs.tolist():
            for region in range(first // REGION_BLOCKS, (first + blocks - 1) // REGION_BLOCKS + 1):
                begin = region * REGION_BLOCKS
                mask = np.zeros(REGION_BLOCKS, np.bool_)
                mask[max(first - begin, 0) : min(first + blocks - begin, REGION_BLOCKS)] = True
                self.add_mask(disk, region, mask)


@dataclass(frozen=True, slots=True)
class UndoRecord:
    """One record of a file; ``load`` reads and decodes its content when it is needed."""

    path: Path
    offset: int
    header: layout.UndoRecordHeader
    runs: Runs

    @property
    def total_bytes(self) -> int:
        return layout.UNDO_RECORD_BYTES + self.header.body_bytes

    @property
    def has_proven_table(self) -> bool:
        """Whether the run table was proven when the record was found; else only :meth:`verify` proves it."""
        return any(self.header.table_checksum)

    def verify(self) -> memoryview:
        """The stored content, its checksum proven. Raises IntegrityError."""
        with self.path.open("rb") as stream:
            stream.seek(self.offset + layout.UNDO_RECORD_BYTES)
            body = stream.read(self.header.body_bytes)
        if len(body) != self.header.body_bytes or layout.body_checksum(body) != self.header.body_checksum:
            raise UndoDamagedError(self.path, self.offset, "the record does not match its checksum")
        return memoryview(body)[self.header.runs * layout.RUN_BYTES :]

    def load(self) -> memoryview:
        """The DATA runs' content. Raises IntegrityError."""
        return self.decode(self.verify())

    def decode(self, stored: memoryview) -> memoryview:
        """What :meth:`verify` gave, decompressed. Raises UndoDamagedError when it is not as long as the header says."""
        if self.header.codec is UndoCodec.RAW:
            if len(stored) != self.header.raw_bytes:
                reason = f"the record holds {len(stored)} bytes, not {self.header.raw_bytes}"
                raise UndoDamagedError(self.path, self.offset, reason)
            return stored
        try:
            return memoryview(decompress(stored, self.header.raw_bytes, "the record"))
        except IntegrityError as error:
            raise UndoDamagedError(self.path, self.offset, error.message) from error


def read_records(
    path: Path, durable: Durable, offset: int = layout.FILE_HEADER_BYTES, count: int = 0
) -> Iterator[UndoRecord]:
    """Whole records; ends at the first torn one behind what is durable. Contents and run tables are proven by ``verify``.

    ``offset`` and ``count`` go on where an earlier reading ended. Raises UndoDamagedError when a record that was durable is
    not there.
    """
    try:
        size = path.stat().st_size
        stream = path.open("rb")
    except FileNotFoundError:
        raise UndoDamagedError(path, 0, "the file is missing") from None
    with stream:
        while True:
            if offset > durable.size_bytes > 0 and count <= durable.records:
                raise UndoDamagedError(
                    path, offset, f"record {count} ends behind the {durable.size_bytes} durable bytes"
                )
            stream.seek(offset)
            header = layout.parse_undo_record(stream.read(layout.UNDO_RECORD_BYTES))
            if header is None or offset + layout.UNDO_RECORD_BYTES + header.body_bytes > size:
                break
            table = stream.read(header.runs * layout.RUN_BYTES)
            if any(header.table_checksum) and layout.table_checksum(table) != header.table_checksum:
                break
            runs = np.frombuffer(table, RUN_DTYPE)
            if not _is_possible(header, runs):
                break
            yield UndoRecord(path, offset, header, runs)
            offset += layout.UNDO_RECORD_BYTES + header.body_bytes
            count += 1
    if offset < durable.size_bytes:
        reason = f"no record stands here, and {durable.size_bytes} bytes in {durable.records} records were durable"
        raise UndoDamagedError(path, offset, reason)


def _is_possible(header: layout.UndoRecordHeader, runs: Runs) -> bool:
    """Whether the table is one that a writer makes: no run without blocks or beyond a region, as much content as it says."""
    if len(runs) == 0:
        return header.raw_bytes == 0
    kinds, blocks = runs["kind"], runs["blocks"]
    if kinds.min() < RunKind.DATA or kinds.max() > RunKind.ZERO:
        return False
    if blocks.min() == 0 or blocks.max() > REGION_BLOCKS or runs["first"].max() >= _LARGEST_BLOCK:
        return False
    carried = int(blocks.sum(where=kinds == int(RunKind.DATA), dtype=np.int64))
    return carried * UNDO_BLOCK_BYTES == header.raw_bytes


class UndoFile:
    """An undo file that is being written. Opening cuts a torn tail and gives the set of saved blocks.

    Raises UndoDamagedError when the tail would begin inside what is ``durable``; then nothing is cut.
    """

    def __init__(
        self, path: Path, machine_id: str, incarnation: str, interval_id: int, durable: Durable = UNKNOWN
    ) -> None:
        self.path = path
        self.interval_id = interval_id
        self._fd = -1
        try:
            if durable.size_bytes and (not path.exists() or path.stat().st_size < durable.size_bytes):
                raise UndoDamagedError(path, path.stat().st_size if path.exists() else 0, "the file is cut or missing")
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(self._fd).st_size < layout.FILE_HEADER_BYTES:
                header = layout.FileHeader(layout.UNDO_FILE_MAGIC, machine_id, incarnation, interval_id, 0)
                write_all(self._fd, [layout.pack_file_header(header)], 0)
                os.fdatasync(self._fd)
                sync_directory(path.parent)
        except OSError as error:
            raise storage_error(f"cannot open {path}", error) from error
        self.saved = SavedBlocks()
        try:
            self.durable = self._scan(incarnation, durable)
        except BaseException:
            self.close()
            raise
        self.size_bytes = self.durable.size_bytes
        self._records = self.durable.records

    def _scan(self, incarnation: str, durable: Durable) -> Durable:
        try:
            found = layout.parse_file_header(
                os.pread(self._fd, layout.FILE_HEADER_BYTES, 0), layout.UNDO_FILE_MAGIC, str(self.path)
            )
        except IntegrityError as error:
            raise UndoDamagedError(self.path, 0, error.message) from error
        if found.incarnation != incarnation or found.number != self.interval_id:
            raise IntegrityError(f"{self.path} belongs to another journal or interval")
        good = layout.FILE_HEADER_BYTES
        count = 0
        for record in read_records(self.path, durable):
            try:
                record.verify()
            except UndoDamagedError:
                if record.offset < durable.size_bytes:
                    raise
                break
            self.saved.add_runs(record.runs)
            good = record.offset + layout.UNDO_RECORD_BYTES + record.header.body_bytes
            count += 1
        self._cut(good)
        os.fdatasync(self._fd)
        return Durable(good, count)

    def _cut(self, size_bytes: int) -> None:
        if os.fstat(self._fd).st_size > size_bytes:
            _Cuts.count += 1
            os.ftruncate(self._fd, size_bytes)
            _Cuts.count += 1  # again: a reader between the two may have seen either length

    @property
    def synced_bytes(self) -> int:
        return self.durable.size_bytes

    def append(self, record: Parts) -> None:
        """Durable after :meth:`sync`. Raises OutOfSpaceError, StorageError."""
        try:
            write_all(self._fd, list(record), self.size_bytes)
        except OSError as error:
            raise storage_error(f"cannot append to {self.path}", error) from error
        self.size_bytes += sum(map(len, record))
        self._records += 1
        faults.point("undo.after_write")

    @property
    def appended(self) -> Durable:
        """What a :meth:`sync` that begins now makes durable."""
        return Durable(self.size_bytes, self._records)

    def sync(self, target: Durable | None = None) -> None:
        """Make what was appended durable, or (beside a thread that goes on appending) what ``target`` says was."""
        target = target or self.appended
        if target.size_bytes <= self.synced_bytes:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise storage_error(f"cannot make {self.path} durable", error) from error
        self.durable = target
        faults.point("undo.after_sync")

    def cut_back(self) -> None:
        """After a failure: forget what is not known to be durable."""
        self._cut(self.synced_bytes)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True, slots=True)
class UndoFolder:
    """Where a journal's undo files lie and whose they are; names are relative to the journal's directory."""

    directory: Path
    machine_id: str
    incarnation: str

    def path(self, name: str) -> Path:
        return self.directory / name

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.directory / "undo") as entries:
            return sum(entry.stat().st_size for entry in entries)
        return 0

    def keep_only(self, names: Collection[str]) -> None:
        """Remove all other undo files."""
        for path in (self.directory / "undo").glob("*.undo"):
            if f"undo/{path.name}" not in names:
                path.unlink()

    def open(self, name: str, number: int, durable: Durable = UNKNOWN) -> UndoFile:
        """Raises UndoDamagedError: what is ``durable`` cannot be read."""
        return UndoFile(self.path(name), self.machine_id, self.incarnation, number, durable)


_memory = ChunkMemory()


class Preserver:
    """Saves the old content of blocks that are about to be overwritten, each once for the file's life.

    After any exception the object is of no use: cut the file back and open it again.
    """

    def __init__(
        self, file: UndoFile, devices: Mapping[int, BlockDevice], readers: Executor, *, compress: bool = True
    ) -> None:
        self.file = file
        self._compress = compress
        self._devices = devices
        self._readers = readers
        self._memory = _memory

    def preserve(self, disk: int, start: Blocks, end: Blocks) -> int:
        """Save the blocks that the byte ranges [start, end) touch, unless saved. Sorted, disjoint ranges.

        Returns the bytes saved. Durable after ``sync``.
        """
        first, last = start // UNDO_BLOCK_BYTES, (end - 1) // UNDO_BLOCK_BYTES
        saved = 0
        low = 0
        region = int(first[0]) // REGION_BLOCKS if len(first) else 0
        while low < len(first):
            region = max(region, int(first[low]) // REGION_BLOCKS)
            begin = region * REGION_BLOCKS
            high = int(np.searchsorted(first, begin + REGION_BLOCKS))
            mask = np.zeros(REGION_BLOCKS, np.bool_)
            mine = zip((first[low:high] - begin).tolist(), (last[low:high] - begin + 1).tolist(), strict=True)
            for begin_block, end_block in mine:
                mask[max(begin_block, 0) : end_block] = True
            saved += self._preserve_region(disk, region, mask)
            while low < high and int(last[low]) < begin + REGION_BLOCKS:
                low += 1
            region += 1
        return saved

    def _preserve_region(self, disk: int, region: int, mask: npt.NDArray[np.bool_]) -> int:
        mask &= ~self.file.saved.mask(disk, region)
        ids: Blocks = np.flatnonzero(mask) + region * REGION_BLOCKS
        if len(ids) == 0:
            return 0
        outstanding: deque[Future[tuple[Parts, Content]]] = deque()
        for begin in range(0, len(ids), UNDO_CHUNK_BLOCKS):
            chunk = ids[begin : begin + UNDO_CHUNK_BLOCKS]
            outstanding.append(self._readers.submit(self._read_chunk, disk, chunk))
            if len(outstanding) >= _OUTSTANDING_CHUNKS:
                self._append(*outstanding.popleft().result())
        while outstanding:
            self._append(*outstanding.popleft().result())
        self.file.saved.add_mask(disk, region, mask)
        return len(ids) * UNDO_BLOCK_BYTES

    def _read_chunk(self, disk: int, ids: Blocks) -> tuple[Parts, Content]:
        """The chunk's record, and the memory that it may refer to."""
        device = self._devices[disk]
        memory = self._memory.take()
        content = memory[: len(ids)]
        if _is_hole(device, ids):
            return join_record(_zero_runs(disk, ids), content[:0], self.file.interval_id), memory
        read_blocks(device, ids, content)
        return pack_record(disk, ids, content, self.file.interval_id, compress=self._compress)[0], memory

    def _append(self, record: Parts, memory: Content) -> None:
        self.file.append(record)
        self._memory.give_back(memory)

    def sync(self) -> None:
        self.file.sync()


def _is_hole(device: BlockDevice, ids: Blocks) -> bool:
    """Whether one stretch without any data: on a new disk most of a first copy."""
    offset = int(ids[0]) * UNDO_BLOCK_BYTES
    length = min(len(ids) * UNDO_BLOCK_BYTES, device.size_bytes - offset)
    together = int(ids[-1]) - int(ids[0]) == len(ids) - 1
    return together and len(ids) >= _HOLE_SEARCH_BLOCKS and next(iter(device.data_ranges(offset, length)), None) is None


def _zero_runs(disk: int, ids: Blocks) -> Runs:
    """The table of one stretch of zeroes."""
    return np.array([(disk, int(RunKind.ZERO), 0, len(ids), int(ids[0]))], RUN_DTYPE)


def read_blocks(device: BlockDevice, ids: Blocks, content: Content) -> None:
    """The blocks' content into n x 4096 bytes, neighbours in one read, long holes without reading; zeroes behind the end."""
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    begins: Blocks = np.concatenate([[0], breaks])
    lengths: Blocks = np.diff(np.concatenate([begins, [len(ids)]])) * UNDO_BLOCK_BYTES
    offsets: Blocks = ids[begins] * UNDO_BLOCK_BYTES
    long = lengths >= _HOLE_SEARCH_BLOCKS * UNDO_BLOCK_BYTES
    cut = offsets + lengths > device.size_bytes
    if scattered.can(device):
        simple = ~(long | cut)
        addresses = content.ctypes.data + begins[simple] * UNDO_BLOCK_BYTES
        scattered.read(device, offsets[simple], lengths[simple], addresses)
        begins, lengths, offsets = (column[~simple] for column in (begins, lengths, offsets))
        long, cut = long[~simple], cut[~simple]
    view = memoryview(content.data).cast("B")
    columns = (column.tolist() for column in (begins, lengths, offsets, long, cut))
    for begin, whole, offset, is_long, is_cut in zip(*columns, strict=True):
        at = begin * UNDO_BLOCK_BYTES
        length = min(whole, device.size_bytes - offset)
        if is_long or is_cut:
            content[begin : begin + whole // UNDO_BLOCK_BYTES] = 0
        for place, part in device.data_ranges(offset, length) if is_long else [(offset, length)]:
            device.read_into(place, view[at + place - offset : at + place - offset + part])


def write_runs(device_of: Mapping[int, BlockDevice], runs: Runs, content: memoryview) -> int:
    """Put old content back: every run of the table, in its order. Returns the bytes written."""
    place = written = 0
    for disk, kind, _, blocks, first in runs.tolist():
        device = device_of[disk]
        offset = first * UNDO_BLOCK_BYTES
        length = min(blocks * UNDO_BLOCK_BYTES, device.size_bytes - offset)
        if kind == RunKind.DATA:
            device.write(offset, content[place : place + length])
            place += blocks * UNDO_BLOCK_BYTES
        else:
            device.zero(offset, length)
        written += length
    return written


def write_blocks(device: BlockDevice, ids: Blocks, content: Content | None) -> int:
    """Write blocks (ascending ids, n x 4096; None: zeroes, as holes), neighbours in one call. Returns the bytes."""
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    begins: Blocks = np.concatenate([[0], breaks])
    offsets: Blocks = ids[begins] * UNDO_BLOCK_BYTES
    lengths: Blocks = np.diff(np.concatenate([begins, [len(ids)]])) * UNDO_BLOCK_BYTES
    lengths = np.minimum(lengths, device.size_bytes - offsets)
    places = begins * UNDO_BLOCK_BYTES
    if content is None:
        for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
            device.zero(offset, length)
        return int(lengths.sum())
    whole = np.ascontiguousarray(content)
    left = np.ones(len(offsets), np.bool_)
    if scattered.can(device) and scattered.fits(device, offsets, lengths):
        left = ~scattered.are_small(lengths)
        scattered.write(device, offsets[~left], lengths[~left], places[~left] + whole.ctypes.data)
    flat = memoryview(whole.data).cast("B")
    for offset, length, at in zip(offsets[left].tolist(), lengths[left].tolist(), places[left].tolist(), strict=True):
        device.write(offset, flat[at : at + length])
    return int(lengths.sum())


def add_ids(blocks: SavedBlocks, disk: int, ids: Blocks) -> None:
    """Add ascending block ids that lie in one region each or in neighbouring ones."""
    regions = ids // REGION_BLOCKS
    for region in np.unique(regions).tolist():
        mask = np.zeros(REGION_BLOCKS, np.bool_)
        mask[ids[regions == region] - region * REGION_BLOCKS] = True
        blocks.add_mask(disk, region, mask)


@dataclass(frozen=True, slots=True)
class Piece:
    """Blocks of one run of a record. ``place``: where the run's content begins among the record's; -1 for zeroes."""

    disk: int
    ids: Blocks
    first: int
    place: int


def pieces_of(record: UndoRecord, known: SavedBlocks, *, present: bool) -> list[Piece]:
    """The record's blocks that are (``present``) or are not in the set ``known``. Reads nothing."""
    found: list[Piece] = []
    place = 0
    for disk, kind, _, blocks, first in record.runs.tolist():
        begin = -1
        if kind == RunKind.DATA:
            begin, place = place, place + blocks * UNDO_BLOCK_BYTES
        for low in range(first, first + blocks, REGION_BLOCKS):
            low_end = min(first + blocks, (low // REGION_BLOCKS + 1) * REGION_BLOCKS)
            region = low // REGION_BLOCKS
            mask = known.part(disk, region, low - region * REGION_BLOCKS, low_end - region * REGION_BLOCKS)
            ids: Blocks = np.flatnonzero(mask if present else np.logical_not(mask)) + low
            if len(ids):
                found.append(Piece(disk, ids, first, begin))
    return found


def contents_of(record: UndoRecord, pieces: list[Piece]) -> list[npt.NDArray[np.uint8] | None]:
    """The contents of the pieces (n x 4096), None for zeroes; nothing is copied where a piece is a whole stretch.

    Raises UndoDamagedError.
    """
    stored = record.verify()
    found: list[npt.NDArray[np.uint8] | None] = []
    content: npt.NDArray[np.uint8] | None = None
    for piece in pieces:
        if piece.place < 0:
            found.append(None)
            continue
        if content is None:
            content = np.frombuffer(record.decode(stored), np.uint8).reshape(-1, UNDO_BLOCK_BYTES)
        base = piece.place // UNDO_BLOCK_BYTES - piece.first
        low, high = int(piece.ids[0]), int(piece.ids[-1])
        together = high - low == len(piece.ids) - 1
        found.append(content[base + low : base + high + 1] if together else content[piece.ids + base])
    return found


def select(
    record: UndoRecord, wanted: SavedBlocks, *, present: bool
) -> Iterator[tuple[int, Blocks, npt.NDArray[np.uint8]]]:
    """(disk, block ids, contents) of the record's blocks that are (``present``) or are not in the set ``wanted``.

    Raises UndoDamagedError before anything is given.
    """
    pieces = pieces_of(record, wanted, present=present)
    for piece, content in zip(pieces, contents_of(record, pieces), strict=True):
        whole = np.zeros((len(piece.ids), UNDO_BLOCK_BYTES), np.uint8) if content is None else content
        yield piece.disk, piece.ids, whole
