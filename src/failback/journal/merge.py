"""Dropping a recovery point: its interval's undo joins the one before it, which keeps the older value of a block (D13).

What the earlier file lacks is appended to it: a block that was not overwritten in the earlier interval had the same
content at both points, so that the appended records are true for the earlier point even before the catalogue knows of
the merge, and a torn tail is cut as after any crash. One transaction then removes point and interval; the file goes
afterwards (or when the journal is opened: what no interval names is removed). The same transaction says how much of the
earlier file is durable now. Undo that is damaged joins nothing: the earlier interval takes over the reason.
"""

from __future__ import annotations

from dataclasses import replace

from failback.errors import ConflictError, NotFoundError
from failback.journal import lost_undo
from failback.journal.catalogue import Catalogue, Interval
from failback.journal.undo import Durable, UndoDamagedError, UndoFolder, read_records, select
from failback.journal.undo_packing import pack_record
from failback.runtime import faults


def drop_point(folder: UndoFolder, catalogue: Catalogue, point_id: str) -> None:
    """Remove the point. Raises NotFoundError, and ConflictError for the newest one."""
    entry = next((known for known in catalogue.points() if known.point.point_id == point_id), None)
    if entry is None:
        raise NotFoundError(f"there is no recovery point {point_id}")
    intervals = catalogue.intervals()
    lost_until = catalogue.lost_until()
    index = next((i for i, interval in enumerate(intervals) if interval.first_ordinal == entry.ordinal), None)
    if index is None or index == len(intervals) - 1:
        raise ConflictError(f"recovery point {point_id} is the newest and stays")
    older = [
        known.ordinal for known in catalogue.points() if known.ordinal < entry.ordinal and not known.point.abandoned
    ]
    dropped = intervals[: index + 1] if not older else [intervals[index]]
    grown: Interval | None = None
    if older and index > 0:
        before, own = intervals[index - 1], intervals[index]
        grown = _joined(folder, catalogue, before, own, needed=max(older) > lost_until)
    faults.point("merge.before_commit")
    with catalogue.transaction():
        if grown is not None:
            catalogue.put_interval(grown)
        catalogue.remove_point(point_id)
        for interval in dropped:
            catalogue.remove_interval(interval.interval_id)
    faults.point("merge.after_commit")
    for interval in dropped:
        folder.path(interval.file).unlink(missing_ok=True)


def _joined(folder: UndoFolder, catalogue: Catalogue, before: Interval, own: Interval, *, needed: bool) -> Interval:
    """The interval before, with what ``own`` held or with the reason why that is lost."""
    if needed:
        try:
            return replace(before, durable=_append_missing(folder, before, own))
        except UndoDamagedError as error:
            if not lost_undo.note(folder, catalogue, error):
                raise
            damage = error.message
    else:
        damage = own.damage
    return replace(before, damage=before.damage or damage)


def _append_missing(folder: UndoFolder, before: Interval, own: Interval) -> Durable:
    target = folder.open(before.file, before.interval_id, before.durable)
    try:
        for record in read_records(folder.path(own.file), own.durable):
            for disk, ids, content in select(record, target.saved, present=False):
                target.append(pack_record(disk, ids, content, before.interval_id)[0])
        target.sync()
        return target.durable
    except BaseException:
        target.cut_back()
        raise
    finally:
        target.close()
