"""What a master target remembers of each journal in its own state directory (D7).

A retention volume that was restored from an old copy looks whole, but the disks hold more than it knows. The file says how far
the journal was: it is durable before the first overwrite of a new interval and after a start, and follows the applied
position every few seconds. A journal that offers less is an old copy, and is refused even when every process server has
forgotten it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

from failback.block.raw import storage_error, sync_directory
from failback.errors import FailbackError
from failback.journal.damage import Witness
from failback.runtime import logs, records

log = logs.get(__name__)

_EVERY_SECONDS = 5.0


class WitnessFile:
    """``keep`` before each step of the applier; it writes seldom."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: Witness | None = None
        self._kept_at = 0.0
        self._lock = threading.Lock()

    def read(self) -> Witness | None:
        """None when there is none, or none that can be read (then the journal is taken as it is)."""
        try:
            return records.decode(records.parse_json(self._path.read_text(encoding="utf-8")), Witness, str(self._path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, FailbackError) as error:
            log.error("the witness of a journal cannot be read", path=str(self._path), reason=str(error))
            return None

    def keep(self, witness: Witness, *, now: bool = False) -> None:
        """Store it durably when it is news that cannot wait, or some seconds passed. Raises StorageError."""
        with self._lock:
            kept = self._kept
            if kept is not None and kept.incarnation == witness.incarnation:
                witness = replace(witness, epoch=max(kept.epoch, witness.epoch))
            if witness == kept:
                return
            waiting = kept is not None and replace(kept, ordinal=witness.ordinal) == witness
            if not waiting or now or time.monotonic() - self._kept_at >= _EVERY_SECONDS:
                self._store(witness)

    def expect_epoch(self, epoch: int) -> None:
        """Before the journal takes a higher epoch: an old copy of it takes none below (D6). Raises StorageError."""
        with self._lock:
            if self._kept is not None and self._kept.epoch < epoch:
                self._store(replace(self._kept, epoch=epoch))

    def _store(self, witness: Witness) -> None:
        partial = self._path.with_name(f"{self._path.name}.partial")
        try:
            with partial.open("w", encoding="utf-8") as stream:
                json.dump(records.encode(witness), stream)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(self._path)
            sync_directory(self._path.parent)
        except OSError as error:
            raise storage_error(f"cannot write {self._path}", error) from error
        self._kept, self._kept_at = witness, time.monotonic()

    def forget(self) -> None:
        """The journal was put away: what follows under this name is another one."""
        self._path.unlink(missing_ok=True)
        self._kept = None
