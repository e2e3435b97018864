"""Whether the disks may hold more than the applied place says, and until where they may (D13).

A process writes what has landed before it declares it applied. After a start the disks are therefore a mixture until everything
that had landed is written again. Points inside that stretch are made by replaying the same decisions (the pace between points
changes only outside of it), each is where the life before would have made it.

A tail of the redo that was cut may have been durable once and written too. The source sends that again, perhaps with other
borders and other marks: nothing before its end is a point. The end is a record *and*, where the cut tail still tells it, a place
in the ring of that epoch. It outlives further starts: only passing it, or a comparison of the disks, ends it.
"""

from __future__ import annotations

from failback.journal.catalogue import Applied, Catalogue
from failback.journal.torn_tail import Bound

UNTIL = "unproven_until"
"""Before this record is applied no place is proven."""
CUT = "unproven_cut"
"""[record, epoch, ring] that a cut tail reached."""
PACE = "pace_seconds"
"""Between crash-consistent points, as it was when what is not durable yet was written."""


def is_unproven(catalogue: Catalogue, place: Applied) -> bool:
    until = int(catalogue.get(UNTIL) or 0)
    return place.ordinal < until or _covers(cut(catalogue), place)


def cut(catalogue: Catalogue) -> Bound:
    """No point is made that this covers."""
    return Bound(*(catalogue.get(CUT) or ()))


def begin(catalogue: Catalogue, synced_ordinal: int, cut_now: Bound) -> None:
    """At a start: the life before may have written everything that landed, and what is cut now or was before."""
    known = cut(catalogue)
    if _covers(known, catalogue.applied):
        cut_now = cut_now.or_later(known)
    with catalogue.transaction():
        _keep(catalogue, synced_ordinal, cut_now)


def forget(catalogue: Catalogue) -> None:
    """The disks will be compared. In the caller's transaction."""
    _keep(catalogue, 0, Bound())


def _covers(bound: Bound, place: Applied) -> bool:
    return bound.covers(place.ordinal, place.epoch, place.ring)


def _keep(catalogue: Catalogue, until: int, bound: Bound) -> None:
    catalogue.set(UNTIL, until if bound.epoch else max(until, bound.ordinal))
    catalogue.set(CUT, [bound.ordinal, bound.epoch, bound.ring])
