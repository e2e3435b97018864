"""One batch out of the capture, in the capture's own thread (D3, D5, D8, D9).

A plain batch takes what lies in the ring, up to a limit. A batch with a re-read holds the records up to p0, what was
read, and the records from p0 to a place at or after the ring position sampled when the last read returned: so the
re-read makes no gap of its own. The end is fixed first; the counters are read afterwards; the unlanded map is set
before anything is sent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from failback.errors import StorageError
from failback.mobility.capture.source import Source
from failback.mobility.capture.values import Collected, Counters, Differing, Reread
from failback.mobility.outstanding import generation_of
from failback.runtime import faults, logs

log = logs.get(__name__)

BUSY_SECONDS = 5.0
BUSY_PAUSE_SECONDS = 0.0005


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the batch shall hold. ``reread_blocks`` 0: no re-read."""

    sequence: int
    limit_bytes: int
    reread_blocks: int = 0
    differing: Sequence[Differing] = ()
    """Blocks of which the pieces that differ are read."""
    up_to: int | None = None
    """Take everything to this position, whatever the limit says."""


@dataclass(slots=True)
class Assembled:
    """A batch's content and what the capture said after its end was fixed."""

    first_position: int
    end_position: int
    counters: Counters
    dirty_blocks: int
    payload: Sequence[memoryview | bytes]
    """Views into the ring (until ``release``) and into ``reread.memory``."""
    payload_bytes: int
    extents: bytes
    captured_bytes: int
    oldest_ktime_ns: int
    newest_ktime_ns: int
    as_of_ns: int
    """CLOCK_MONOTONIC of a moment before which every write lies in this batch or an earlier one; 0 when none is known."""
    reread: Reread | None
    refused: str = ""
    """Why a wanted re-read could not be done now; its blocks stay dirty."""


@dataclass(slots=True)
class _Content:
    extents: list[bytes] = field(default_factory=list)
    payload: list[memoryview | bytes] = field(default_factory=list)
    payload_bytes: int = 0
    captured_bytes: int = 0
    oldest_ktime_ns: int = 0

    def add(self, part: Collected) -> None:
        self.extents.append(part.extents)
        self.payload.extend(part.payload)
        self.payload_bytes += part.payload_bytes
        self.captured_bytes += part.payload_bytes
        if part.oldest_ktime_ns and not self.oldest_ktime_ns:
            self.oldest_ktime_ns = part.oldest_ktime_ns

    def add_reread(self, reread: Reread) -> None:
        self.extents.append(reread.extents)
        self.payload.extend(reread.payload)
        self.payload_bytes += reread.payload_bytes


def assemble(session: Source, wanted: Wanted) -> Assembled:
    """Collect one batch. Blocks for disk reads and a grace wait of at most 2 s. Raises StorageError when a record in the ring is
    never finished."""
    first = session.cursor()
    content = _Content()
    reread, refused = None, ""
    if wanted.reread_blocks or wanted.differing:
        reread, refused = _reread(session, wanted)
    if reread is not None:
        _take(session, content, reread.p0)
        content.add_reread(reread)
        _take(session, content, reread.end_position)
        faults.point("mobility.after_reread")
    elif wanted.up_to is not None:
        _take(session, content, wanted.up_to)
    else:
        part = session.collect(wanted.limit_bytes)
        if part is not None:
            content.add(part)
    newest = time.monotonic_ns()
    end = session.cursor()
    as_of_ns = session.as_of_ns() or content.oldest_ktime_ns
    counters = session.counters()
    dirty_blocks = session.dirty_blocks()
    extents = b"".join(content.extents)
    if extents:
        session.set_unlanded(extents, generation_of(wanted.sequence))
    faults.point("mobility.after_collect")
    return Assembled(
        first_position=first, end_position=end, counters=counters, dirty_blocks=dirty_blocks,
        payload=content.payload, payload_bytes=content.payload_bytes, extents=extents,
        captured_bytes=content.captured_bytes, oldest_ktime_ns=content.oldest_ktime_ns, newest_ktime_ns=newest,
        as_of_ns=as_of_ns, reread=reread, refused=refused,
    )  # fmt: skip


def skip(session: Source, position: int) -> None:
    """What lies before ``position`` is spooled already, by an agent that died before it released it (D11)."""
    _take(session, _Content(), position)
    session.release(position)


def _reread(session: Source, wanted: Wanted) -> tuple[Reread | None, str]:
    reread = session.reread_differing(wanted.differing) if wanted.differing else session.reread(wanted.reread_blocks)
    if reread is None:
        return None, ""
    if not reread.ok:
        log.info("a re-read has to wait", reason=reread.reason, blocks=len(reread.blocks) + len(reread.compared))
        return None, reread.reason
    for disk, offset, length in reread.unreadable:
        log.error("the source disk cannot read a range: it stays as it is on the replica", disk=disk, offset=offset,
                  length=length)  # fmt: skip
    return reread, ""


def _take(session: Source, content: _Content, up_to: int) -> None:
    """Everything to ``up_to``, waiting for records that another processor is still filling."""
    deadline = time.monotonic() + BUSY_SECONDS
    while session.cursor() < up_to:
        part = session.collect(1 << 30, up_to=up_to)
        if part is not None:
            content.add(part)
        elif time.monotonic() > deadline:
            raise StorageError(
                f"the capture ring has an unfinished record at {session.cursor()} for {BUSY_SECONDS:g} s",
                remedy="restart the mobility service; its disks are compared by hash then",
            )
        else:
            time.sleep(BUSY_PAUSE_SECONDS)
