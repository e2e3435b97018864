"""What stood in a tail of the redo log that was cut because it was not whole (D13). Pure.

A tail is torn because its sync never ended, or damaged after it was durable, acknowledged and written to the disks. Nothing tells
which, so whoever cuts it asks how far it may have reached: headers that are whole behind the damage still say it.
"""

from __future__ import annotations

from dataclasses import dataclass

from failback.errors import FailbackError
from failback.journal import format as layout
from failback.protocol.items import parse_item_header


@dataclass(frozen=True, slots=True)
class Bound:
    """A record's number, and a place in the ring of an epoch: what follows a tail is behind it when it is behind both."""

    ordinal: int = 0
    epoch: int = 0
    ring: int = 0

    def covers(self, ordinal: int, epoch: int, ring: int) -> bool:
        """A later epoch begins in a gap that ends when all that had not landed was read again, so nothing of the tail is left."""
        if self.epoch and epoch > self.epoch:
            return False
        return ordinal < self.ordinal or (epoch == self.epoch and ring < self.ring)

    def or_later(self, other: Bound) -> Bound:
        epoch, ring = max((self.epoch, self.ring), (other.epoch, other.ring))
        return Bound(max(self.ordinal, other.ordinal), epoch, ring)


def bound_of_tail(tail: bytes, last_whole: int) -> Bound:
    """What a tail that is cut behind the record ``last_whole`` may have held: one record, or as far as headers in it say."""
    bound = Bound(last_whole + 1)
    at = tail.find(layout.REDO_RECORD_MAGIC)
    while at >= 0:
        frame = at + layout.REDO_RECORD_BYTES
        try:
            record = layout.parse_redo_record(tail[at:frame])
            if record is not None and record[0] > last_whole:
                bound = bound.or_later(Bound(record[0]))
                header = parse_item_header(memoryview(tail)[frame:])
                bound = bound.or_later(Bound(record[0], header.epoch, header.end_position))
        except FailbackError:
            pass  # what cannot be read says nothing
        at = tail.find(layout.REDO_RECORD_MAGIC, at + 1)
    return bound
