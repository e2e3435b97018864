"""What is sent and not yet safe: the book that turns two acknowledgements into releases (D5, D6). Pure.

An item is *spooled* when the process server has it durably: then its ring range may be released and its re-read is no
longer pending. It is *landed* when the master target's journal has it: then its blocks leave the unlanded map. Extent tables are
kept for that only up to ``EXTENT_BYTES``; a long outage costs one pass over the map later instead of memory now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from failback.errors import ProtocolError
from failback.mobility.capture.values import Reread

EXTENT_BYTES = 8 << 20
GENERATIONS = 65535
FULL_INTERVAL_ITEMS = 10_000
MOST_UNLANDED_ITEMS = 60_000


def generation_of(sequence: int) -> int:
    """1 to 65535: the name of an item in the unlanded map."""
    return 1 + sequence % GENERATIONS


@dataclass(slots=True)
class Sent:
    """An item on its way. ``extents`` empty: none, or no longer kept (then ``forgotten``)."""

    sequence: int
    end_position: int
    wire_bytes: int
    captured_bytes: int = 0
    oldest_ktime_ns: int = 0
    newest_ktime_ns: int = 0
    extents: bytes = b""
    forgotten: bool = False
    reread: Reread | None = None
    consistent: bool = False
    wall_ns: int = 0
    ends_pass: bool = False
    """All that a pass found is in the items up to this one (always so of a consistent item under a pass that has read)."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """What to do now that items are durable at the process server."""

    release_position: int
    rereads: Sequence[Reread]


@dataclass(frozen=True, slots=True)
class Landed:
    """What to do now that items are durable in the journal. ``forgotten``: a range of sequences, both included, whose
    extents are unknown; (0, -1) for none."""

    items: Sequence[Sent]
    forgotten: tuple[int, int] = (0, -1)


@dataclass(slots=True)
class Outstanding:
    """``spooled_sequence`` and ``landed_sequence`` start where the Welcome said; items after them are added in order.
    ``spooled_position``: where in the ring the last spooled item ends."""

    spooled_sequence: int
    landed_sequence: int
    spooled_position: int = 0
    unspooled_bytes: int = 0
    _extent_bytes: int = 0
    _first_known: int = 0
    _unspooled: deque[Sent] = field(default_factory=deque)
    _unlanded: deque[Sent] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._first_known = self.spooled_sequence + 1

    @property
    def next_sequence(self) -> int:
        return (
            self._unlanded[-1].sequence if self._unlanded else max(self.spooled_sequence, self._first_known - 1)
        ) + 1

    @property
    def unlanded_items(self) -> int:
        return self.next_sequence - 1 - self.landed_sequence

    def add(self, item: Sent) -> None:
        if item.sequence != self.next_sequence:
            raise ValueError(f"item {item.sequence} after {self.next_sequence - 1}")
        if self._extent_bytes + len(item.extents) > EXTENT_BYTES:
            item.extents, item.forgotten = b"", True
        self._extent_bytes += len(item.extents)
        self.unspooled_bytes += item.wire_bytes
        self._unspooled.append(item)
        self._unlanded.append(item)

    def packed(self, item: Sent, wire_bytes: int) -> None:
        """The item's size is known now; it was added with a greater one."""
        self.unspooled_bytes -= item.wire_bytes - wire_bytes
        item.wire_bytes = wire_bytes

    def contradicts(self, sequence: int, position: int) -> bool:
        """Whether a process server that holds items up to ``sequence``, ending at ``position``, holds others than were sent
        here: the items of an earlier process, or what a journal had when a spool was lost. Nothing may be released for them."""
        index = sequence - self.spooled_sequence - 1
        if index == -1:
            return position != self.spooled_position
        return not 0 <= index < len(self._unspooled) or self._unspooled[index].end_position != position

    def spooled(self, sequence: int) -> Spooled | None:
        """An acknowledgement up to ``sequence``; None when it is no news."""
        position, rereads, news = 0, [], False
        while self._unspooled and self._unspooled[0].sequence <= sequence:
            item = self._unspooled.popleft()
            self.unspooled_bytes -= item.wire_bytes
            position, news = max(position, item.end_position), True
            if item.reread is not None:
                rereads.append(item.reread)
                item.reread = None
        self.spooled_sequence = max(self.spooled_sequence, sequence)
        self.spooled_position = max(self.spooled_position, position)
        return Spooled(position, rereads) if news else None

    def landed(self, sequence: int) -> Landed | None:
        """An acknowledgement up to ``sequence``; None when it is no news. Items from before a restart count as forgotten."""
        if sequence <= self.landed_sequence:
            return None
        before, items = self.landed_sequence, []
        while self._unlanded and self._unlanded[0].sequence <= sequence:
            item = self._unlanded.popleft()
            self._extent_bytes -= len(item.extents)
            items.append(item)
        self.landed_sequence = sequence
        unknown = [item.sequence for item in items if item.forgotten]
        low, high = (unknown[0], unknown[-1]) if unknown else (0, -1)
        if before + 1 < self._first_known:
            low, high = before + 1, max(high, min(sequence, self._first_known - 1))
        return Landed(items, (low, high))


def interval_seconds(batch_milliseconds: int, unlanded_items: int) -> float:
    """Batches grow longer while many are unlanded, so that generations (16 bits) never run round."""
    interval = batch_milliseconds / 1000
    if unlanded_items < FULL_INTERVAL_ITEMS:
        return interval
    return max(interval, 5.0)


def spool_lost(sequence: int) -> ProtocolError:
    """The process server stands before what it had acknowledged and what was released here for that (D5, D6)."""
    return ProtocolError(
        f"the process server holds items up to {sequence} and lacks some that it had acknowledged",
        code="ItemsMissing",
        possible_causes="its spool was lost, or restored from an old copy",
        remedy="a new epoch re-sends the blocks that have not landed",
    )


def spool_differs(sequence: int) -> ProtocolError:
    """The cure is to begin anew behind what is really held there."""
    return ProtocolError(
        f"the process server holds other items up to {sequence} than were sent to it",
        code="SpoolDiffers",
        retryable=True,
    )
