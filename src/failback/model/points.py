"""Recovery points and the state of a replica, as the master target knows them (D13 to D15)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from failback.model.ids import DiskId, MachineId, PointId


class PointKind(enum.Enum):
    BEFORE_REPROTECT = "BeforeReprotect"
    """The on-premises disks as they were found (D14)."""
    CRASH_CONSISTENT = "CrashConsistent"
    GROUP_MARK = "GroupMark"
    """Crash-consistent, at a common mark of a replication group: its id is the mark's, on every member. Whether the mark holds
    for the whole group is known to the configuration server (D19)."""
    APP_CONSISTENT = "AppConsistent"
    FINAL = "Final"
    """The last mark of a failback."""


@dataclass(frozen=True, slots=True)
class RecoveryPoint:
    """``wall_ns`` is the source's wall time of the batch's end; epoch, sequence and ring place it in the stream."""

    point_id: PointId
    machine_id: MachineId
    kind: PointKind
    wall_ns: int
    epoch: int
    sequence: int
    ring: int
    abandoned: bool = False
    """True after a commit to an older point: listed, no longer reachable (D15)."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of the timeline without points, with its cause; ``ended_wall_ns`` 0 while it is open."""

    cause: str
    started_wall_ns: int
    ended_wall_ns: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaDisk:
    """One disk of a replica on the master target's host.

    ``format``: ``raw``, ``vmdk-flat`` (``path`` names the descriptor, the ``-flat`` extent is written) or ``qcow2``.
    ``path`` is the disk's name while it is *not* a replica; as a replica it lies under ``path + ".replica"`` (D22).
    """

    disk_id: DiskId
    index: int
    path: str
    format: str
    size_bytes: int
    create: bool = False
    """Create it sparse on the datastore when it is not there (a missing on-premises disk)."""
    removed: bool = False
    """The machine has it no more: nothing is written to it, and the points from before need it."""


class PointSelector(enum.Enum):
    LATEST = "latest"
    LATEST_APP_CONSISTENT = "latest-app-consistent"
    POINT = "point"
    """A point by id: ``value`` holds it."""
    TIME = "time"
    """The newest consistent batch end at or before ``value`` (wall nanoseconds as text)."""


@dataclass(frozen=True, slots=True)
class PointChoice:
    selector: PointSelector
    value: str = ""
