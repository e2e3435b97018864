"""What the agent remembers over its own restart and forgets at the machine's: a small JSON file in the runtime directory.

The runtime directory is a tmpfs (/run/failback): nothing is written to a captured disk, and after a reboot nothing is
remembered, which is exactly what D11 wants. The boot id is stored too, for a runtime directory that is not a tmpfs.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from failback.errors import ConfigurationError
from failback.model.ids import MarkId, PassId
from failback.runtime import logs, records
from failback.runtime.clock import boot_id

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class StreamMemory:
    """``position_base`` is added to ring positions, so that positions never repeat within an epoch when a ring was new."""

    boot_id: str = ""
    epoch: int = 0
    pass_id: PassId = PassId("")
    pass_done: bool = False
    full_marked: tuple[int, ...] = ()
    """Indexes of FULL disks whose blocks were all marked dirty already (the marks are pinned)."""
    compared_blocks: dict[str, int] = field(default_factory=dict)
    compare_all: bool = False
    """A comparison by hash is due or running although the assignment's pass is done (a reboot, missed writes)."""
    self_test: str = "not-run"
    """passed | failed | not-run, in this boot."""
    position_base: int = 0
    others_spooled: bool = False
    """The process server holds other items of this epoch than were sent from this ring (a lost spool, a journal ahead of it)."""
    ring_id: int = 0
    """The ring for which it was decided what has to be compared; of any other ring nothing is known (D11)."""
    incarnation: str = ""
    """Of the journal that this epoch's items landed in (D7)."""
    newest_incarnation: str = ""
    """Of the journal that was heard of last, whatever the epoch: most likely the one that remembers digests."""
    lease_marks: tuple[MarkId, ...] = ()
    """Marks of freeze leases that were begun: none is ever begun twice (D20)."""
    compared_at: float = 0.0
    """Wall time, seconds, when the disks were last compared as a whole; 0: not known."""
    post_script_owed: str = ""
    """The occasion of a post-script whose pre-script was begun: whoever dies in between, the next life runs it."""


class MemoryFile:
    """Loads once; ``update`` replaces fields and writes when something changed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / "stream.json"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._boot_id = boot_id()
        self.value = self._load()

    def _load(self) -> StreamMemory:
        fresh = StreamMemory(boot_id=self._boot_id)
        try:
            table: Any = records.parse_json(self._path.read_text(encoding="utf-8"))
            stored = records.decode(table, StreamMemory, str(self._path))
        except FileNotFoundError:
            return fresh
        except (OSError, ValueError, ConfigurationError) as error:
            log.warning("the runtime memory cannot be read: the disks will be compared", reason=str(error))
            return fresh
        return stored if stored.boot_id == self._boot_id else fresh

    def update(self, **changes: Any) -> None:
        changed = replace(self.value, **changes)
        if changed == self.value:
            return
        self.value = changed
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(records.encode(changed)), encoding="utf-8")
        os.replace(partial, self._path)
