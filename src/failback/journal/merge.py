"""Dropping a recovery point: its interval's undo joins the one before it, which keeps the older value of a block (D13).

The merged file is written and durable under a new name before one catalogue transaction switches to it; the old files
are removed afterwards (and, after a crash in between, when the journal is opened: what no interval names is removed).
"""

from __future__ import annotations

import uuid

from failback.errors import ConflictError, NotFoundError
from failback.journal import format as layout
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
    merged = Interval(
        before.interval_id, before.first_ordinal, f"undo/{before.interval_id:012d}-{uuid.uuid4().hex[:8]}.undo"
    )
    _write_merged(folder, before, own, merged)
    faults.point("merge.before_commit")
    with catalogue.transaction():
        catalogue.remove_point(point_id)
        catalogue.remove_interval(own.interval_id)
        catalogue.put_interval(merged)
    faults.point("merge.after_commit")
    folder.path(before.file).unlink(missing_ok=True)
    folder.path(own.file).unlink(missing_ok=True)


def _write_merged(folder: UndoFolder, before: Interval, own: Interval, merged: Interval) -> None:
    target = folder.open(merged.file, merged.interval_id)
    try:
        path = folder.path(before.file)
        with path.open("rb") as stream:
            for record in read_records(path):
                stream.seek(record.offset)
                target.append(stream.read(layout.UNDO_RECORD_BYTES + record.header.body_bytes))
                target.saved.add_runs(record.runs)
        for record in read_records(folder.path(own.file)):
            for disk, ids, content in select(record, target.saved, present=False):
                target.append(pack_record(disk, ids, content, merged.interval_id)[0])
        target.sync()
    finally:
        target.close()
