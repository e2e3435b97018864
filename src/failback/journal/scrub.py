"""Proving closed undo files in the background: what rotted is found before somebody needs it.

Every record of every closed interval is read and compared with its checksum; the open interval's file is proven when the
journal is opened, redo before it is applied. A file that does not match is looked at once more under the lock that keeps
merges away, so that one which joined another meanwhile is not taken for damaged; then its points are not offered any more
(``lost_undo``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from failback.journal import lost_undo
from failback.journal.catalogue import Catalogue, Interval
from failback.journal.undo import UndoDamagedError, UndoFolder, read_records


@dataclass(frozen=True, slots=True)
class Proven:
    """``whole`` False: it was stopped before the end."""

    read_bytes: int
    damaged: tuple[str, ...]
    whole: bool


def prove(
    folder: UndoFolder, catalogue: Catalogue, lock: threading.RLock, go_on: Callable[[int], bool]
) -> Proven:  # fmt: skip
    """``go_on`` is called with the bytes of each record and keeps the pace; False ends it. Raises StorageError."""
    total = 0
    damaged: list[str] = []
    for interval in catalogue.intervals()[:-1]:
        if interval.damage:
            continue
        try:
            for record in read_records(folder.path(interval.file), interval.durable):
                record.verify()
                total += record.total_bytes
                if not go_on(record.total_bytes):
                    return Proven(total, tuple(damaged), False)
        except (UndoDamagedError, FileNotFoundError):
            with lock:
                error = _damage(folder, catalogue, interval)
                if error is not None:
                    lost_undo.note(folder, catalogue, error)
                    damaged.append(error.message)
    return Proven(total, tuple(damaged), True)


def _damage(folder: UndoFolder, catalogue: Catalogue, interval: Interval) -> UndoDamagedError | None:
    """Why the file as it is now cannot be read; None when it can, or is no closed interval's any more."""
    now = next((one for one in catalogue.intervals()[:-1] if one.interval_id == interval.interval_id), None)
    if now is None:
        return None
    try:
        for record in read_records(folder.path(now.file), now.durable):
            record.verify()
    except UndoDamagedError as error:
        return error
    return None
