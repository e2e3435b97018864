"""Dropping a recovery point: its interval's undo joins the one before it, which keeps the older value of a block (D13).

What the earlier file lacks is appended to it: a block that was not overwritten in the earlier interval had the same
content at both points, so that the appended records are true for the earlier point even before the catalogue knows of
the merge, and a torn tail is cut as after any crash. One transaction then removes point and interval; the file goes
afterwards (or when the journal is opened: what no interval names is removed).
"""

from __future__ import annotations

from failback.errors import ConflictError, NotFoundError
from failback.journal.catalogue import Catalogue, Interval
from failback.journal.undo import UndoFolder, pack_record, read_records, select
from failback.runtime import faults


def drop_point(folder: UndoFolder, catalogue: Catalogue, point_id: str) -> None:
    """Remove the point. Raises NotFoundError, and ConflictError for the newest one."""
    entry = next((known for known in catalogue.points() if known.point.point_id == point_id), None)
    if entry is None:
        raise NotFoundError(f"there is no recovery point {point_id}")
    intervals = catalogue.intervals()
    index = next((i for i, interval in enumerate(intervals) if interval.first_ordinal == entry.ordinal), None)
    if index is None or index == len(intervals) - 1:
        raise ConflictError(f"recovery point {point_id} is the newest and stays")
    own = intervals[index]
    if index == 0:
        with catalogue.transaction():
            catalogue.remove_point(point_id)
            catalogue.remove_interval(own.interval_id)
        folder.path(own.file).unlink(missing_ok=True)
        return
    before = intervals[index - 1]
    _append_missing(folder, before, own)
    faults.point("merge.before_commit")
    with catalogue.transaction():
        catalogue.remove_point(point_id)
        catalogue.remove_interval(own.interval_id)
    faults.point("merge.after_commit")
    folder.path(own.file).unlink(missing_ok=True)


def _append_missing(folder: UndoFolder, before: Interval, own: Interval) -> None:
    target = folder.open(before.file, before.interval_id)
    try:
        for record in read_records(folder.path(own.file)):
            for disk, ids, content in select(record, target.saved, present=False):
                target.append(pack_record(disk, ids, content, before.interval_id)[0])
        target.sync()
    except BaseException:
        target.cut_back()
        raise
    finally:
        target.close()
