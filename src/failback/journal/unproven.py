"""Whether the disks may hold more than the applied place says, and until where they may (D13).

A process writes what has landed before it declares it applied. After a start the disks are therefore a mixture until everything
that had landed is written again; and a tail of the redo that was cut may have been durable once and written too. The source
sends that again, perhaps with other borders, so the bound is a record *and*, where the cut tail still tells it, a place in the
ring of that epoch. The bound outlives further starts: only passing it, or a comparison of the disks, ends it. No point is made
before it.
"""

from __future__ import annotations

from failback.journal.catalogue import Applied, Catalogue
from failback.journal.torn_tail import Bound

UNTIL = "unproven_until"
"""Before this record is applied no place is proven."""
RING = "unproven_ring"
"""[epoch, ring]: in that epoch no place before this one is proven either."""


def is_unproven(catalogue: Catalogue, place: Applied) -> bool:
    bound = _known(catalogue)
    return place.ordinal < bound.ordinal or (place.epoch == bound.epoch and place.ring < bound.ring)


def begin(catalogue: Catalogue, synced_ordinal: int, cut: Bound) -> None:
    """At a start: the life before may have written everything that landed, and what was cut."""
    bound = Bound(synced_ordinal).or_later(cut)
    if is_unproven(catalogue, catalogue.applied):
        bound = bound.or_later(_known(catalogue))
    with catalogue.transaction():
        _keep(catalogue, bound)


def forget(catalogue: Catalogue) -> None:
    """The disks will be compared. In the caller's transaction."""
    _keep(catalogue, Bound())


def _known(catalogue: Catalogue) -> Bound:
    epoch, ring = catalogue.get(RING) or (0, 0)
    return Bound(int(catalogue.get(UNTIL) or 0), int(epoch), int(ring))


def _keep(catalogue: Catalogue, bound: Bound) -> None:
    catalogue.set(UNTIL, bound.ordinal)
    catalogue.set(RING, [bound.epoch, bound.ring])
