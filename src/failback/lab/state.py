"""What a lab has started, in one file that is replaced atomically after each step: ``down`` needs nothing else.

One lock file per lab keeps two ``up`` or ``down`` from running at once.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from failback.errors import ConflictError
from failback.lab.layout import Layout
from failback.lab.processes import Recorded
from failback.runtime import records


@dataclass(frozen=True, slots=True)
class LabState:
    """``ready``: ``up`` came to its end. ``ports``: role -> TCP port on the host's loopback."""

    ready: bool = False
    started_wall_ns: int = 0
    ports: dict[str, int] | None = None
    processes: tuple[Recorded, ...] = ()

    def process(self, name: str) -> Recorded | None:
        return next((found for found in self.processes if found.name == name), None)

    def with_process(self, recorded: Recorded) -> LabState:
        others = tuple(found for found in self.processes if found.name != recorded.name)
        return replace(self, processes=(*others, recorded))


def load(layout: Layout) -> LabState | None:
    """None when there is no lab in the directory."""
    if not layout.state_file.exists():
        return None
    table = json.loads(layout.state_file.read_text(encoding="utf-8"))
    return records.decode(table, LabState, str(layout.state_file))


def save(layout: Layout, state: LabState) -> None:
    layout.directory.mkdir(parents=True, exist_ok=True)
    partial = layout.state_file.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(records.encode(state), stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(layout.state_file)


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Raises ConflictError while another command works on this lab."""
    layout.lock_file.parent.mkdir(parents=True, exist_ok=True)
    with Path(layout.lock_file).open("w", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConflictError(
                f"another command works on the lab in {layout.directory}", remedy="wait for it, or stop it"
            ) from None
        yield
