"""The orders that a configuration server gives and the arguments and results they carry.

Every order is idempotent: executing it again after a crash gives the same result. ``KINDS`` lists who executes which.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from failback.model.components import Role
from failback.model.ids import MachineId, MarkId
from failback.model.points import PointChoice, RecoveryPoint, ReplicaDisk

PROBE = "probe"
SELF_TEST = "self-test"
APP_CONSISTENT_MARK = "app-consistent-mark"
FREEZE_LEASE = "freeze-lease"
THAW = "thaw"
ATTACH_REPLICA = "attach-replica"
PREPARE_POINT = "prepare-point"
RELEASE_REPLICA = "release-replica"
RESUME_REPLICA = "resume-replica"
COMMIT_POINT = "commit-point"
DETACH_REPLICA = "detach-replica"
OPEN_VIEW = "open-view"
CLOSE_VIEW = "close-view"
SCRUB = "scrub"

KINDS: dict[str, tuple[Role, ...]] = {
    PROBE: (Role.MOBILITY, Role.PROCESS_SERVER, Role.MASTER_TARGET),
    SELF_TEST: (Role.MOBILITY,),
    APP_CONSISTENT_MARK: (Role.MOBILITY,),
    FREEZE_LEASE: (Role.MOBILITY,),
    THAW: (Role.MOBILITY,),
    ATTACH_REPLICA: (Role.MASTER_TARGET,),
    PREPARE_POINT: (Role.MASTER_TARGET,),
    RELEASE_REPLICA: (Role.MASTER_TARGET,),
    RESUME_REPLICA: (Role.MASTER_TARGET,),
    COMMIT_POINT: (Role.MASTER_TARGET,),
    DETACH_REPLICA: (Role.MASTER_TARGET,),
    OPEN_VIEW: (Role.MASTER_TARGET,),
    CLOSE_VIEW: (Role.MASTER_TARGET,),
    SCRUB: (Role.MOBILITY, Role.MASTER_TARGET),
}


@dataclass(frozen=True, slots=True)
class Probe:
    """Connect by TCP to each ``host:port``; the result maps target to an empty text or the reason of failure."""

    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    failures: dict[str, str]
    milliseconds: dict[str, float] = field(default_factory=dict)
    """How long each connection took that worked; an older component does not say."""


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class AppConsistentMark:
    """Pre-script, freeze, mark, thaw, post-script (D18); scripts are those of the agent's own configuration."""

    mark_id: MarkId
    limit_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class FreezeLease:
    """Freeze for a failback and stay frozen until thawed or the lease ends (D20)."""

    mark_id: MarkId
    lease_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Marked:
    """Result of both: where the mark lies, how long it took, and what could not be frozen."""

    mark_id: MarkId
    epoch: int
    sequence: int
    ring: int
    frozen_milliseconds: float
    not_frozen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AttachReplica:
    """Take the disks as a replica: lock, rename, create what is missing, open or create the journal (D14, D22)."""

    machine_id: MachineId
    retention_volume: str
    disks: tuple[ReplicaDisk, ...]


@dataclass(frozen=True, slots=True)
class AttachedReplica:
    incarnation: str
    created: tuple[str, ...]
    """Ids of the disks that were created (they need SyncMode.FULL)."""


@dataclass(frozen=True, slots=True)
class PreparePoint:
    """Bring the disks exactly to a point: wait for ``after_mark`` to be applied, then undo (and redo) as needed (D15)."""

    machine_id: MachineId
    choice: PointChoice
    after_mark: MarkId = MarkId("")


@dataclass(frozen=True, slots=True)
class PreparedPoint:
    point: RecoveryPoint
    bytes_rolled_back: int
    disks: tuple[ReplicaDisk, ...] = ()
    """The disks that the machine had at the point, with their sizes then: a replica that grew since is larger, and reads as
    zeroes behind that size; a disk that joined since is not among them."""


@dataclass(frozen=True, slots=True)
class ReplicaOrder:
    """Arguments of release, resume, commit and detach.

    release: flush, stop taking the stream, drop the locks, give the disks their names back.
    resume: the opposite; rolls forward to landed first when a point was prepared (cancel of a failback).
    commit: abandon the points newer than the prepared one, close the journal for this direction.
    detach: forget the replica; disks stay as they are, released.
    """

    machine_id: MachineId


@dataclass(frozen=True, slots=True)
class OpenView:
    """Serve a point by NBD until closed or the lease is over; again with the same id: a new lease. Result: ViewStatus.

    No job owns it, so it is not fenced by the machine's generation (which goes by an argument ``machine_id``).
    """

    view_id: str
    replica_of: MachineId
    choice: PointChoice
    writable: bool = False
    lease_seconds: float = 14400.0
    quota_bytes: int = 0
    """Of the throw-away layer; 0: a part of what is free."""


@dataclass(frozen=True, slots=True)
class CloseView:
    view_id: str


@dataclass(frozen=True, slots=True)
class Scrub:
    """Agent: compare the disks with the replica in the background; what becomes of it stands in its status. Master target:
    read the undo of ``replica_of`` and prove its checksums.

    No job owns it (see OpenView). The same id again changes nothing.
    """

    scrub_id: str
    bytes_per_second: float = 0.0
    """0: the component's own rate."""
    replica_of: MachineId = MachineId("")
