"""What an agent does under a new epoch, without an agent: digests of all its blocks, then the blocks that differ, then a batch
outside the gap. Run it: ``comparing_source.py FOLDER SEED COUNT`` repairs the journal of ``journal_driver`` in FOLDER."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import journal_driver as driver
import xxhash

from failback.errors import IntegrityError
from failback.journal import format as layout
from failback.journal.journal import Journal
from failback.model.ids import NO_GROUP, MarkId, PassId
from failback.model.stream import Codec, GapCause, MarkKind, Operation
from failback.protocol.extents import EXTENT
from failback.protocol.messages import Batch, DigestReply, Digests

BLOCK = 65536
KEY = 17
SEGMENT_BYTES = 1 << 14


class Source:
    """A machine that holds ``content`` and does not write any more; ``begin`` it before anything else of the epoch."""

    def __init__(self, epoch: int, content: Mapping[int, bytes], wall_ns: int) -> None:
        self.epoch = epoch
        self.content = content
        self.sequence = 0
        self.wall_ns = wall_ns

    def batch(self, gap: GapCause, blocks: list[tuple[int, int]] | None = None) -> Batch:
        """The next batch; ``blocks`` are (disk, block) read again."""
        self.sequence += 1
        self.wall_ns += 1_000_000_000
        extents, payload = [], []
        for disk, block in blocks or []:
            piece = self.content[disk][block * BLOCK : (block + 1) * BLOCK]
            extents.append(EXTENT.pack(disk, Operation.DATA, 1, len(piece), block * BLOCK))
            payload.append(piece)
        raw = b"".join(payload)
        return Batch(
            machine_id=driver.MACHINE, group_id=NO_GROUP, epoch=self.epoch, sequence=self.sequence,
            first_position=self.sequence * 1000, end_position=self.sequence * 1000, wall_ns=self.wall_ns, oldest_ns=0,
            gap=gap, mark_kind=MarkKind.NONE, mark_id=MarkId(""), codec=Codec.RAW, payload_raw_bytes=len(raw),
            extents=b"".join(extents), payload=raw,
        )  # fmt: skip

    def tables(self) -> Iterator[Digests]:
        """Digests of every block of every disk."""
        for disk, content in self.content.items():
            self.sequence += 1
            pieces = [content[place : place + BLOCK] for place in range(0, len(content), BLOCK)]
            table = b"".join(xxhash.xxh3_128_digest(piece, KEY) for piece in pieces)
            yield Digests(
                driver.MACHINE, self.epoch, self.sequence, self.sequence * 1000, PassId(str(uuid.UUID(int=5))), disk,
                BLOCK, 0, KEY, table,
            )  # fmt: skip


def differing(replies: list[DigestReply]) -> list[tuple[int, int]]:
    found = []
    for reply in replies:
        bits = int.from_bytes(reply.differing, "little")
        found += [(reply.disk_index, reply.first_block + n) for n in range(reply.count) if bits >> n & 1]
    return found


def damage(journal_directory: Path, ordinal: int, *, header: bool = False) -> None:
    """Flip one byte of a redo record on disk: in its record header, or in the last byte of its frame."""
    for segment in sorted((journal_directory / "redo").glob("*.redo")):
        with segment.open("rb+") as stream:
            stream.seek(layout.FILE_HEADER_BYTES)
            while (record := layout.parse_redo_record(stream.read(layout.REDO_RECORD_BYTES))) is not None:
                end = stream.tell() + record[1]
                if record[0] == ordinal:
                    place = stream.tell() - 4 if header else end - 1
                    stream.seek(place)
                    byte = stream.read(1)[0]
                    stream.seek(place)
                    stream.write(bytes([byte ^ 0x40]))
                    return
                stream.seek(end)
    raise AssertionError(f"there is no redo record {ordinal}")


def repair(journal: Journal, content: Mapping[int, bytes], epoch: int) -> int:
    """A pass under a higher epoch; returns how many blocks differed."""
    replies: list[DigestReply] = journal.replies()
    journal.begin_epoch(epoch)
    source = Source(epoch, content, driver.START_NS + (100 + epoch) * 1_000_000_000_000)
    journal.append(driver.frame(source.batch(GapCause.SYNC)))
    journal.sync()
    for table in source.tables():
        journal.append(driver.frame(table))  # type: ignore[arg-type]
    journal.sync()
    apply_all(journal)
    journal.settle()
    replies = journal.replies()
    blocks = differing(replies)
    journal.append(driver.frame(source.batch(GapCause.SYNC, blocks)))
    journal.append(driver.frame(source.batch(GapCause.NONE)))
    journal.sync()
    apply_all(journal)
    return len(blocks)


def apply_all(journal: Journal) -> None:
    """Until nothing is left or the redo turns out damaged."""
    try:
        while journal.apply_step():
            pass
    except IntegrityError as error:
        if error.code != "RedoDamaged":
            raise


def run(folder: Path, seed: int, count: int) -> None:
    layout.REDO_SEGMENT_BYTES = SEGMENT_BYTES
    journal, devices = driver.open_world(folder, seed)
    journal.start(devices, lambda reply: None)
    apply_all(journal)
    content = driver.Model(seed, driver.initial(seed)).advance(count)
    repair(journal, content, journal.epoch + 1)
    journal.stop()
    journal.close()


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
