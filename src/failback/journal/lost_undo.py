"""Undo that was durable and cannot be read any more: what is lost is told, and nothing else stands still.

A point needs the undo of every interval that begins at it or after it. So a damaged file takes the points up to its
interval's begin (``Catalogue.lost_until``); newer points, the disks and the stream do not need it. The catalogue keeps the
reason with the file until its interval is dropped, then with the interval before it, as long as an older point is there.
"""

from __future__ import annotations

from dataclasses import replace

from failback.journal.catalogue import Catalogue, Interval
from failback.journal.undo import EMPTY, UndoDamagedError, UndoFolder
from failback.runtime import faults, logs

log = logs.get(__name__)


def note(folder: UndoFolder, catalogue: Catalogue, error: UndoDamagedError) -> bool:
    """Remember that the file is damaged; False when it is no interval's."""
    for interval in catalogue.intervals():
        if folder.path(interval.file) == error.path:
            if not interval.damage:
                catalogue.put_interval(replace(interval, damage=error.message))
                log.error("recovery points are lost: undo is damaged", machine=folder.machine_id, reason=error.message,
                          up_to_ordinal=interval.first_ordinal)  # fmt: skip
            return True
    return False


def begin_after(folder: UndoFolder, catalogue: Catalogue, error: UndoDamagedError) -> Interval:
    """The open interval's file is damaged: go on with a fresh interval. No point begins it, so what it saves first may be
    newer than the applied place."""
    number = catalogue.newest_interval() + 1
    fresh = Interval(number, catalogue.applied.ordinal, f"undo/{number:012d}.undo", EMPTY)
    folder.path(fresh.file).unlink(missing_ok=True)
    folder.open(fresh.file, fresh.interval_id).close()
    faults.point("undo.before_fresh")
    with catalogue.transaction():
        note(folder, catalogue, error)
        catalogue.put_interval(fresh)
    return fresh


def find_cut(folder: UndoFolder, catalogue: Catalogue) -> None:
    """A look at the sizes when the journal is opened: closed files that are missing or shorter than they were."""
    for interval in catalogue.intervals()[:-1]:
        path = folder.path(interval.file)
        size_bytes = path.stat().st_size if path.exists() else 0
        if size_bytes < interval.durable.size_bytes and not interval.damage:
            reason = f"the file ends here, and {interval.durable.size_bytes} bytes were durable"
            note(folder, catalogue, UndoDamagedError(path, size_bytes, reason))
