"""Everything that reads bytes from outside, as functions from bytes to nothing: what Hypothesis and atheris attack.

A target may raise errors of :mod:`failback.errors` and nothing else, whatever the bytes are. ``seeds`` gives inputs that are
right, to begin from. Formats with checksums have a ``repair``, which makes the checksums of a mutated input true again:
without it no mutation would come further than the first check. ``attack`` runs an input as it is and repaired.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fuzz_seeds
import xxhash
from journal_driver import MACHINE, SIZES

from failback.block import vmdk
from failback.block.raw import RawDevice
from failback.cli import settings
from failback.configuration_server import config as server_config
from failback.configuration_server.api.arm import filters
from failback.errors import FailbackError
from failback.fabric.kvm import xml
from failback.journal import format as journal_format
from failback.journal import last_write
from failback.journal.applier import payload_of
from failback.journal.journal import Journal
from failback.journal.redo import RedoLog
from failback.journal.undo import SavedBlocks, UndoFile, read_records, select
from failback.master_target import volumes, witness
from failback.master_target.config import MasterTargetConfig
from failback.mobility import config as mobility_config
from failback.mobility import memory, mounts
from failback.model.ids import MachineId
from failback.process_server.config import ProcessServerConfig
from failback.process_server.spool import Spool, SpoolReader
from failback.protocol import layout
from failback.protocol.connection import Conversation, End
from failback.protocol.frames import Decoder
from failback.protocol.items import RawItem, checksum
from failback.protocol.messages import Batch, Hello, Welcome
from failback.runtime import config as configuration
from failback.runtime import records
from failback.transport import identity


@dataclass(frozen=True)
class Target:
    """``cheap``: runs thousands of times a second; the others make files."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    repair: Callable[[bytes], bytes] | None = None
    cheap: bool = True


def attack(target: Target, data: bytes) -> None:
    """Raises whatever must not come out of a parser."""
    for each in {data, target.repair(data) if target.repair is not None else data}:
        with contextlib.suppress(FailbackError):
            target.run(each)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    place = tempfile.mkdtemp(prefix="failback-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    try:
        yield Path(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


# --- the protocol -----------------------------------------------------------------------------------------------------


def _link(data: bytes) -> None:
    """Both directions of a link: decoder and conversation, in pieces of a length that the data chooses."""
    step = 1 + (data[0] if data else 0) * 7
    for own, raw in ((End.RECEIVING, True), (End.SENDING, False)):
        with contextlib.suppress(FailbackError):
            decoder, conversation = Decoder(raw_items=raw), Conversation(own)
            if own is End.SENDING:
                conversation.sent(Hello(MACHINE, 3, "fuzz", 1, 1, ()))
            for start in range(0, len(data), step):
                for message in decoder.feed(data[start : start + step]):
                    conversation.received(message)
                    if isinstance(message, Hello):
                        conversation.sent(Welcome(1, "fuzz", message.epoch, 0, 0, 0, 0, ""))


def _item(data: bytes) -> None:
    """What a master target does with an item, up to the pieces that it would write."""
    item = RawItem.from_buffer(data)
    item.verify()
    message = item.decode()
    if isinstance(message, Batch):
        last_write.check(message.extents, SIZES, message.payload_raw_bytes)
        payload = payload_of(message)
        for pieces in last_write.resolve([last_write.extent_table(message.extents)]).values():
            assert not len(pieces.length) or int(pieces.end.max()) <= max(SIZES.values())
        assert len(payload) == message.payload_raw_bytes


def true_frames(data: bytes) -> bytes:
    """The frames that begin at the data's start, each with true lengths where they are short, and true checksums."""
    fixed = bytearray(data)
    place = 0
    while place + layout.FRAME_HEADER_BYTES <= len(fixed):
        place = _true_frame(fixed, place)
    return bytes(fixed)


def _true_frame(fixed: bytearray, place: int) -> int:
    head = fixed[place : place + layout.FRAME_HEADER_BYTES]
    struct_of = layout.TYPED_HEADERS.get(head[5])  # type: ignore[call-overload]  # an IntEnum's keys are numbers
    if struct_of is None or head[:4] != layout.MAGIC:
        return len(fixed)
    body_at = place + layout.FRAME_HEADER_BYTES + struct_of.size
    body_bytes = min(int.from_bytes(head[16:24], "little"), max(len(fixed) - body_at, 0))
    typed = bytearray(fixed[place + layout.FRAME_HEADER_BYTES : body_at].ljust(struct_of.size, b"\0"))
    body = bytes(fixed[body_at : body_at + body_bytes])
    _true_body_sums(head[5], typed, body)
    fixed[place + layout.FRAME_HEADER_BYTES : body_at] = typed
    fixed[place + 8 : place + 12] = struct_of.size.to_bytes(4, "little")
    fixed[place + 16 : place + 24] = len(body).to_bytes(8, "little")
    digest = xxhash.xxh3_64_intdigest(bytes(fixed[place : place + layout.CHECKED_BYTES]) + bytes(typed))
    fixed[place + 24 : place + 32] = digest.to_bytes(8, "little")
    return body_at + len(body)


def _true_body_sums(kind: int, typed: bytearray, body: bytes) -> None:
    if kind in (layout.FrameType.HELLO, layout.FrameType.WELCOME, layout.FrameType.REFUSAL):
        typed[:16] = checksum(body)
    elif kind == layout.FrameType.BATCH:
        extents = int.from_bytes(typed[100:104], "little") * 16
        if extents > len(body):
            extents = len(body) // 16 * 16
            typed[100:104] = (extents // 16).to_bytes(4, "little")
        typed[116:132], typed[132:148] = checksum(body[:extents]), checksum(body[extents:])
    elif kind in (layout.FrameType.DIGESTS, layout.FrameType.DIGEST_REPLY):
        typed[-16:] = checksum(body)


# --- files of the journal and the spool -------------------------------------------------------------------------------


def _redo(data: bytes) -> None:
    with _folder() as folder:
        (folder / f"{1:020d}.redo").write_bytes(data)
        log = RedoLog(folder, MACHINE, fuzz_seeds.INCARNATION, reserve_bytes=0)
        try:
            for record in log.read_after(0):
                record.item.verify()
            log.last()
        finally:
            log.close()


def true_redo(data: bytes) -> bytes:
    fixed = bytearray(data)
    _sign(fixed, 0, journal_format.FILE_HEADER_BYTES)
    place = journal_format.FILE_HEADER_BYTES
    while place + journal_format.REDO_RECORD_BYTES < len(fixed):
        _sign(fixed, place, journal_format.REDO_RECORD_BYTES)
        frame_at = place + journal_format.REDO_RECORD_BYTES
        length = int.from_bytes(fixed[place + 8 : place + 12], "little")
        frame = true_frames(bytes(fixed[frame_at : frame_at + length]))
        fixed[frame_at : frame_at + len(frame)] = frame
        place = frame_at + max(length, 1)
    return bytes(fixed)


def _sign(fixed: bytearray, place: int, length: int) -> None:
    if place + length <= len(fixed):
        body = bytes(fixed[place : place + length - 8])
        fixed[place + length - 8 : place + length] = xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def _undo(data: bytes) -> None:
    with _folder() as folder:
        path = folder / "000000000001.undo"
        path.write_bytes(data)
        file = UndoFile(path, MACHINE, fuzz_seeds.INCARNATION, 1)
        try:
            for record in read_records(path, file.durable):
                content = record.load()
                for _, ids, blocks in select(record, SavedBlocks(), present=False):
                    assert len(ids) == len(blocks)
                assert len(content) == record.header.raw_bytes
        finally:
            file.close()


def true_undo(data: bytes) -> bytes:
    fixed = bytearray(data)
    _sign(fixed, 0, journal_format.FILE_HEADER_BYTES)
    place, size = journal_format.FILE_HEADER_BYTES, journal_format.UNDO_RECORD_BYTES
    while place + size <= len(fixed):
        runs, stored = struct.unpack_from("<II", fixed, place + 8)
        table = bytes(fixed[place + size : place + size + min(runs * 16, len(fixed))])
        body = bytes(fixed[place + size : place + size + min(runs * 16 + stored, len(fixed))])
        fixed[place + 32 : place + 48] = journal_format.body_checksum(body)
        fixed[place + 48 : place + 56] = journal_format.table_checksum(table)
        _sign(fixed, place, size)
        place += size + len(body)
    return bytes(fixed)


def _spool(data: bytes) -> None:
    """A length, a state file of that length, and a segment."""
    state_bytes = int.from_bytes(data[:2], "little")
    with _folder() as folder:
        place = folder / "1"
        place.mkdir()
        if state_bytes:
            (place / "state.json").write_bytes(data[2 : 2 + state_bytes])
        (place / f"{1:020d}.items").write_bytes(data[2 + state_bytes :])
        spool = Spool.open(place, MachineId(MACHINE), 1)
        try:
            reader = SpoolReader(spool, spool.state.landed_sequence)
            while reader.read_some(1 << 16):
                continue
        finally:
            spool.close()


def true_spool(data: bytes) -> bytes:
    cut = 2 + int.from_bytes(data[:2], "little")
    return data[:cut] + true_frames(data[cut:])


def _catalogue(data: bytes) -> None:
    """A journal whose catalogue is these bytes, opened, read and applied."""
    _journal_with(lambda folder: (folder / "journal/catalogue.sqlite").write_bytes(data))


def _catalogue_values(data: bytes) -> None:
    """A journal with values of its catalogue replaced: JSON ``[[table, column, row, value], ...]``."""
    try:
        changes = json.loads(data)
    except (ValueError, RecursionError):
        return

    def change(folder: Path) -> None:
        with contextlib.closing(sqlite3.connect(folder / "journal/catalogue.sqlite")) as database:
            for entry in changes if isinstance(changes, list) else ():
                with contextlib.suppress(sqlite3.Error, TypeError, ValueError, OverflowError, UnicodeError):
                    table, column, row, value = entry
                    key = {"facts": "key", "undo_files": "file"}.get(table)
                    where = f"{key} = ?" if key else "rowid = ?"
                    database.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE {where}', (value, row))
            database.commit()

    _journal_with(change)


@cache
def _template() -> Path:
    place = Path(tempfile.mkdtemp(prefix="failback-fuzz-template-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    fuzz_seeds.make_journal(place)
    return place


def _journal_with(change: Callable[[Path], Any]) -> None:
    with _folder() as folder:
        shutil.copytree(_template(), folder, dirs_exist_ok=True)
        change(folder)
        journal = Journal.open(folder / "journal")
        devices = {index: RawDevice(folder / f"{index}.img") for index in SIZES}
        try:
            journal.start(devices, lambda _reply: None)
            for _ in range(60):
                if not journal.apply_step():
                    break
            journal.points()
            journal.replies()
            _ = (journal.witness, journal.catalogue.gaps(), journal.catalogue.disks, journal.damage)
            journal.stop()
        finally:
            journal.close()
            for device in devices.values():
                device.close()


# --- texts ------------------------------------------------------------------------------------------------------------


def _records(data: bytes) -> None:
    """JSON as every message of the control plane; the first byte chooses which."""
    kinds = fuzz_seeds.RECORD_KINDS
    try:
        table = json.loads(data[1:])
    except (ValueError, RecursionError):
        return
    kind = kinds[(data[0] if data else 0) % len(kinds)]
    decoded = records.decode(table, kind, "fuzz")
    json.dumps(records.encode(decoded))


def _toml(data: bytes) -> None:
    """One text as the configuration file of each role, and of the command line."""
    with _folder() as folder:
        path = folder / "fuzz.toml"
        path.write_bytes(data)
        for load in (
            server_config.load,
            mobility_config.load,
            lambda found: configuration.load(found, ProcessServerConfig),
            lambda found: configuration.load(found, MasterTargetConfig),
            lambda found: settings.find({}, {"FAILBACK_CONFIG": str(found)}),
        ):
            with contextlib.suppress(FailbackError):
                load(path)


def _stored(data: bytes) -> None:
    """One text as each file in which a role remembers something."""
    with _folder() as folder:
        for name in ("component.json", "stream.json", "witness"):
            (folder / name).write_bytes(data)
        with contextlib.suppress(FailbackError):
            identity.load(folder)
        _ = memory.MemoryFile(folder).value
        witness.WitnessFile(folder / "witness").read()


def _texts(data: bytes) -> None:
    """What hypervisors, kernels and callers say in words."""
    text = data.decode("utf-8", "replace")
    for parse in (
        lambda: vmdk.parse(text, "fuzz"),
        lambda: filters(text)("jobStatus"),
        lambda: volumes.parse_mounts(text),
        lambda: mounts.parse_mountinfo(text),
        lambda: xml.parse(text),
    ):
        with contextlib.suppress(FailbackError):
            parse()


TARGETS = (
    Target("link", _link, fuzz_seeds.links, true_frames),
    Target("item", _item, fuzz_seeds.items, true_frames),
    Target("redo", _redo, fuzz_seeds.redo, true_redo, cheap=False),
    Target("undo", _undo, fuzz_seeds.undo, true_undo, cheap=False),
    Target("spool", _spool, fuzz_seeds.spools, true_spool, cheap=False),
    Target("catalogue", _catalogue, lambda: fuzz_seeds.catalogue(_template()), cheap=False),
    Target("catalogue_values", _catalogue_values, fuzz_seeds.catalogue_changes, cheap=False),
    Target("records", _records, fuzz_seeds.messages),
    Target("toml", _toml, fuzz_seeds.configurations, cheap=False),
    Target("stored", _stored, fuzz_seeds.stored, cheap=False),
    Target("texts", _texts, fuzz_seeds.texts),
)
BY_NAME = {target.name: target for target in TARGETS}
