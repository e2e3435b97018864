"""What a rollback overwrote cannot be read any more: the disks stay at the chosen point, and what came after it is compared anew.

There is no way to the applied place but through the return file (re-read data may never have been in redo). So the disks
are made exactly the point again, whatever was half given back; that place becomes the applied one; newer points are
abandoned; and the journal declares damage behind it, which a comparison by hash under a higher epoch cures (``damage``). When the
undo towards the point is damaged too, no place is known: then every point is abandoned, and only the comparison is left.

One transaction decides; until it is done everything may be repeated, also after a crash.
"""

from __future__ import annotations

from failback.journal import lost_undo
from failback.journal.applier import Target
from failback.journal.catalogue import Applied, Catalogue, CataloguedPoint, Interval
from failback.journal.damage import REDO_DAMAGED, Damage
from failback.journal.overwriting import RETURN_FILE
from failback.journal.rollback import Destination
from failback.journal.undo import (
    EMPTY,
    SavedBlocks,
    UndoDamagedError,
    UndoFolder,
    add_ids,
    read_records,
    select,
    write_blocks,
)
from failback.runtime import faults, logs, records

log = logs.get(__name__)


def concerns(folder: UndoFolder, error: UndoDamagedError) -> bool:
    return error.path == folder.path(RETURN_FILE)


def stay(folder: UndoFolder, catalogue: Catalogue, target: Target, error: UndoDamagedError, epoch: int) -> Damage:
    """Make the chosen point the applied place; returns the damage, which the caller declares."""
    destination = records.decode(catalogue.get("rollback_destination"), Destination)
    base = next((one for one in catalogue.points() if one.ordinal == destination.base_ordinal), None)
    try:
        if base is None:
            raise error
        _to_point(folder, catalogue, target, base.ordinal)
    except UndoDamagedError as other:
        lost_undo.note(folder, catalogue, other)
        log.exception("neither the way back nor the point can be reached", machine=folder.machine_id)
        base = None
    reason = f"the disks cannot be brought back from the chosen point: {error.message}"
    ordinal = catalogue.applied.ordinal if base is None else base.ordinal
    damage = Damage(epoch, ordinal + 1, REDO_DAMAGED, reason)
    _settle(folder, catalogue, base, damage)
    return damage


def _to_point(folder: UndoFolder, catalogue: Catalogue, target: Target, ordinal: int) -> None:
    """Write the oldest content of every block that was saved since the point. Writing it twice changes nothing."""
    done = SavedBlocks()
    for interval in catalogue.intervals():
        if interval.first_ordinal < ordinal:
            continue
        for record in read_records(folder.path(interval.file), interval.durable):
            for disk, ids, content in select(record, done, present=False):
                add_ids(done, disk, ids)
                write_blocks(target.devices[disk], ids, content)
    target.flush()
    faults.point("lost_return.at_point")


def _settle(folder: UndoFolder, catalogue: Catalogue, base: CataloguedPoint | None, damage: Damage) -> None:
    known = catalogue.applied
    if base is None:
        applied, kept = known, -1
    else:
        point = base.point
        applied = Applied(base.ordinal, point.epoch, point.sequence, point.ring, point.wall_ns, known.gap)
        kept = base.ordinal
    number = catalogue.newest_interval() + 1
    fresh = Interval(number, applied.ordinal, f"undo/{number:012d}.undo", EMPTY)
    folder.path(fresh.file).unlink(missing_ok=True)
    folder.open(fresh.file, fresh.interval_id).close()
    gone = [one for one in catalogue.intervals() if base is None or one.first_ordinal >= base.ordinal]
    with catalogue.transaction():
        catalogue.abandon_after(kept)
        for interval in gone:
            catalogue.remove_interval(interval.interval_id)
        catalogue.put_interval(fresh)
        catalogue.set_applied(applied)
        catalogue.set("after_pass", True)
        catalogue.set("damage", records.encode(damage))
        catalogue.set("rollback_phase", "")
        catalogue.set("rollback_destination", None)
        catalogue.forget_durable(RETURN_FILE)
    for name in (RETURN_FILE, *(interval.file for interval in gone)):
        folder.path(name).unlink(missing_ok=True)
