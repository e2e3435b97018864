"""A journal that cannot go on with what it holds, and what makes it go on (D7). Pure.

*Damage* is a durable fact of a journal: from ``ordinal`` on its redo is not to be applied, and streams up to ``epoch`` are
refused with the reason. Two things lead there: redo that does not match its checksums (``RedoDamaged``; the points before it
are as good as ever), and a journal that is older than what its master target wrote to the disks (``JournalReplaced``: restored
from a copy; none of its points is true, because undo that belongs to them is missing).

Only a comparison of the disks by hash cures it: the first item of a higher epoch has to say that a pass is open. Then the
redo from ``ordinal`` on is dropped, and no point is published until the pass is over.
"""

from __future__ import annotations

from dataclasses import dataclass

from failback.errors import IntegrityError
from failback.model.stream import GapCause
from failback.protocol.items import ItemHeader
from failback.protocol.layout import FrameType

REDO_DAMAGED = "RedoDamaged"
JOURNAL_REPLACED = "JournalReplaced"
GAP = "DAMAGED"
"""Cause of the gap that begins with the damage and ends with the first item of the pass."""

_PASSES = (GapCause.SYNC, GapCause.MISSED)


@dataclass(frozen=True, slots=True)
class Damage:
    epoch: int
    ordinal: int
    code: str
    reason: str

    def refuses(self, epoch: int) -> bool:
        return epoch <= self.epoch

    def error(self) -> IntegrityError:
        return IntegrityError(
            self.reason,
            code=self.code,
            possible_causes="the retention volume lost or changed bytes, or was restored from an older copy",
            remedy="the machine's disks are compared by hash under a new epoch (failback resync NAME); check the volume",
        )


def opens_a_pass(header: ItemHeader) -> bool:
    """Whether the item belongs to a stream whose source compares or copies all disks."""
    return header.type is FrameType.DIGESTS or header.gap in _PASSES


@dataclass(frozen=True, slots=True)
class Witness:
    """What a master target remembers of a journal outside the retention volume: a journal that offers less is an old copy."""

    incarnation: str
    epoch: int
    interval_id: int
    ordinal: int
    life: int = 0
    """How often the journal was opened to be applied: a copy from before the last time lacks undo that was written since."""

    def contradicts(self, found: Witness) -> str:
        """Why the journal found cannot be the one that was written last; empty when it may be."""
        if found.incarnation != self.incarnation:
            return f"the journal is {found.incarnation}, but {self.incarnation} was written before"
        if (found.interval_id, found.ordinal) < (self.interval_id, self.ordinal):
            return f"the journal ends at record {found.ordinal} although {self.ordinal} was applied to the disks"
        if found.life < self.life:
            return f"the journal was opened {found.life} times, but disks were written after the {self.life}th"
        return ""
