"""The bound on what all journals of one retention volume may hold together; beside it the file system's own end counts.

Redo counts as it grows; what undo holds is looked up twice a second, so a quota may be passed by the undo of that time: it
keeps a shared volume from being filled, it is no edge to the byte.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

from failback.master_target.config import NamedPlace
from failback.model.components import VolumeFacts

_LOOK_SECONDS = 0.5


class VolumeQuota:
    """``redo`` and ``undo`` give their bytes of all journals on the volume. Called from landing threads and the event loop."""

    def __init__(self, place: NamedPlace, redo: Callable[[], int], undo: Callable[[], int]) -> None:
        self._place = place
        self._redo = redo
        self._undo = undo
        self._known_bytes = 0
        self._looked = float("-inf")

    @property
    def used_bytes(self) -> int:
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._known_bytes, self._looked = self._undo(), now
        return self._known_bytes + self._redo()

    def free_bytes(self) -> int:
        """What may still be written: the rest of the quota, or less when the file system has less. Raises OSError."""
        measured = os.statvfs(self._place.path)
        free = measured.f_bavail * measured.f_frsize
        if not self._place.quota_bytes:
            return free
        return max(0, min(free, self._place.quota_bytes - self.used_bytes))

    def shown(self, facts: VolumeFacts) -> VolumeFacts:
        """The volume as large as the quota lets it be."""
        quota = self._place.quota_bytes
        if not quota or facts.problem:
            return facts
        free = max(0, min(facts.free_bytes, quota - self.used_bytes))
        return replace(facts, capacity_bytes=min(facts.capacity_bytes, quota), free_bytes=free)
