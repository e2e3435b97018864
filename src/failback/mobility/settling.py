"""What acknowledgements allow (D5): the ring's room goes back, re-reads are no longer pending, blocks leave the unlanded map."""

from __future__ import annotations

from failback.mobility.capture.source import Source
from failback.mobility.outstanding import Landed, Spooled, generation_of
from failback.runtime import faults


def settle(session: Source, spooled: Spooled | None, landed: Landed | None) -> None:
    """Carry out what :class:`failback.mobility.outstanding.Outstanding` decided. Runs in the capture's thread; idempotent."""
    if spooled is not None:
        faults.point("mobility.before_release")
        session.release(spooled.release_position)
        for reread in spooled.rereads:
            session.reread_durable(reread)
        faults.point("mobility.after_release")
    if landed is not None:
        for item in landed.items:
            if item.extents:
                session.clear_unlanded(item.extents, generation_of(item.sequence))
        low, high = landed.forgotten
        if low <= high:
            session.clear_unlanded_generations(generation_of(low), generation_of(high))
