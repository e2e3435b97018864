"""What a role tells the configuration server (heartbeat) and is told by it (assignment, orders).

Control is level-triggered: the *assignment* is the whole of what a component should be doing, sent whenever its
generation changed; a component that was killed asks again and goes on. What has to happen once (freeze, roll back,
release) is an *order*: it has an id, is repeated until its result arrived, and is idempotent.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from failback.model.bandwidth import NO_LIMIT, BandwidthFigures, BandwidthLimit
from failback.model.ids import ComponentId, DiskId, GroupId, MachineId, OrderId, PassId
from failback.model.points import Gap, RecoveryPoint, ReplicaDisk
from failback.model.policy import ReplicationPolicy
from failback.model.traffic import StreamFigures


class Role(enum.Enum):
    CONFIGURATION_SERVER = "configuration-server"
    PROCESS_SERVER = "process-server"
    MASTER_TARGET = "master-target"
    MOBILITY = "mobility"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Request body of ``POST /components/v1/enrol``. The private key never leaves the component."""

    role: Role
    hostname: str
    csr_pem: str
    hardware_id: str
    """SMBIOS UUID, lower case; what tells a cloned or failed-back disk from the machine that was enrolled (D2)."""
    version: str
    passphrase: str = ""
    token: str = ""
    addresses: tuple[str, ...] = ()
    """Names and addresses under which others reach a server role; they become the certificate's SANs."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    component_id: ComponentId
    certificate_pem: str
    ca_pem: str


@dataclass(frozen=True, slots=True)
class Renewal:
    """Request body of ``POST /components/v1/renew``, with the client certificate that is to be followed by another one.

    The answer is an :class:`Enrolled`. The certificate of before stays valid until it ends by itself.
    """

    hostname: str
    csr_pem: str
    hardware_id: str
    version: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeniedCertificates:
    """Certificates that were revoked and have not expired, by serial number (hexadecimal, lower case), and components."""

    digest: str = ""
    serials: tuple[str, ...] = ()
    components: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a data-plane server listens and whose certificate it must show."""

    host: str
    port: int
    component_id: ComponentId


# --- assignments: what a component should be doing ------------------------------------------------------------------


class SyncMode(enum.Enum):
    NONE = "none"
    """The replica is known to be in step: only changes travel."""
    COMPARE = "compare"
    """Compare by hash, send what differs."""
    FULL = "full"
    """The replica's disk is new: send all that is not zero."""


@dataclass(frozen=True, slots=True)
class SourceDisk:
    """A disk to capture. ``device_match`` is what the agent reported as ``DiskFacts.device_match``."""

    disk_id: DiskId
    index: int
    device_match: str
    size_bytes: int
    sync: SyncMode
    sync_from_bytes: int = 0
    """FULL: the replica is in step before this place (a disk that grew); an agent that does not know it sends all."""


@dataclass(frozen=True, slots=True)
class MobilityAssignment:
    """``active`` False: capture and send nothing (also the answer to a twin on other hardware, D2)."""

    active: bool
    machine_id: MachineId
    epoch: int = 0
    group_id: GroupId = GroupId("")
    pass_id: PassId = PassId("")
    """The sync pass to run under this epoch; a new id asks for a new pass. Empty: none."""
    process_server: Endpoint | None = None
    disks: tuple[SourceDisk, ...] = ()
    batch_milliseconds: int = 250
    batch_bytes: int = 8 << 20
    bandwidth: BandwidthLimit = NO_LIMIT
    comparison_seconds: int = 0
    """Above 0: compare the disks so often, and do not capture (a machine whose kernel cannot be captured)."""


@dataclass(frozen=True, slots=True)
class RoutedMachine:
    machine_id: MachineId
    epoch: int
    master_target: Endpoint
    bandwidth: BandwidthLimit = NO_LIMIT


@dataclass(frozen=True, slots=True)
class ProcessServerAssignment:
    """A machine that is not listed is refused and its spool deleted."""

    machines: tuple[RoutedMachine, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplicaAssignment:
    """A stream that the master target accepts: only this epoch, only from this process server."""

    machine_id: MachineId
    epoch: int
    process_server_id: ComponentId
    policy: ReplicationPolicy


@dataclass(frozen=True, slots=True)
class MasterTargetAssignment:
    replicas: tuple[ReplicaAssignment, ...] = ()


# --- status: what a component sees ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DiskFacts:
    device: str
    device_match: str
    """Stable across boots and sides: serial, wwn or by-path name; the kernel name is the last resort."""
    size_bytes: int
    is_system: bool


@dataclass(frozen=True, slots=True)
class SyncProgress:
    disk_id: DiskId
    bytes_total: int
    bytes_compared: int
    bytes_differing: int
    bytes_sent: int
    done: bool


@dataclass(frozen=True, slots=True)
class ScrubFinding:
    """A stretch that was wrong on the replica; the source's content is on its way there."""

    disk_index: int
    offset_bytes: int
    length_bytes: int
    found_wall_ns: int


@dataclass(frozen=True, slots=True)
class ScrubStatus:
    """The running scrub, or the last one. ``findings`` are the first ones; ``repaired_bytes`` counts all."""

    scrub_id: str
    state: str
    """running | finished | interrupted"""
    started_wall_ns: int
    finished_wall_ns: int = 0
    bytes_total: int = 0
    bytes_compared: int = 0
    findings: tuple[ScrubFinding, ...] = ()
    repaired_bytes: int = 0
    discarded_bytes: int = 0
    """Brought in step where the machine had discarded: different, and nothing wrong."""


@dataclass(frozen=True, slots=True)
class ComparisonStatus:
    """Of a machine that is replicated by periodic comparison. ``smeared``: comparisons since the last consistent place during
    which the machine wrote, so that no recovery point came of them."""

    every_seconds: int
    running: bool = False
    seconds: float = 0.0
    """How long the last one took; 0 while the first one runs."""
    finished_wall_ns: int = 0
    consistent_wall_ns: int = 0
    """The newest moment that the replica held exactly, in this life of the agent; 0: none yet."""
    smeared: int = 0


@dataclass(frozen=True, slots=True)
class LagFigures:
    """Submit-to-landed lag of bytes, milliseconds, on the agent's own monotonic clock; since the epoch began."""

    p50: float
    p99: float
    maximum: float
    samples: int


@dataclass(frozen=True, slots=True)
class BootKernel:
    """A kernel that the boot loader may start. ``drivers``: in its initramfs or built in; None: it could not be read."""

    version: str
    drivers: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What the agent finds on its machine that decides whether it boots and is reached on other hardware."""

    service_start: str = ""
    """Start type of the mobility service: enabled | disabled; empty: no service manager was found."""
    kernels: tuple[BootKernel, ...] = ()
    unstable_names: tuple[str, ...] = ()
    """Lines of fstab and of the boot loader that name a disk by the kernel's name (``/dev/sda1``)."""
    efi_fallback: bool = False
    """UEFI: the removable-media path holds a boot loader, so a machine without boot entries starts it."""
    network_renderer: str = ""
    """networkmanager | networkd | ifupdown | netplan | wicked; empty: none was found."""
    static_addresses: tuple[str, ...] = ()
    """``INTERFACE ADDRESS/PREFIX`` as the machine's own configuration says."""
    dhcp_interfaces: tuple[str, ...] = ()
    bound_to_hardware: tuple[str, ...] = ()
    """Network configuration that names a hardware address: it does not fit another network card."""


@dataclass(frozen=True, slots=True)
class MobilityStatus:
    capture: str = "idle"
    """idle | starting | capturing | comparing | failed; comparing: by periodic comparison, without capture"""
    capture_reason: str = ""
    self_test: str = "not-run"
    """not-run | passed | failed"""
    disks: tuple[DiskFacts, ...] = ()
    epoch: int = 0
    pass_id: PassId = PassId("")
    sync_done: bool = False
    """The pass ``pass_id`` is over and its last re-read has landed: the replica is consistent."""
    sync: tuple[SyncProgress, ...] = ()
    sent_sequence: int = 0
    spooled_sequence: int = 0
    landed_sequence: int = 0
    landed_ring: int = 0
    backlog_bytes: int = 0
    bytes_changed: int = 0
    """Bytes written on the captured disks since the epoch began."""
    bytes_sent: int = 0
    """Bytes put on the wire since the epoch began."""
    bandwidth: BandwidthFigures | None = None
    figures: StreamFigures | None = None
    lag: LagFigures | None = None
    gap: str = ""
    comparison: ComparisonStatus | None = None
    """Only of a machine that is replicated by periodic comparison."""
    freeze: str = ""
    """Empty, or ``frozen`` while a lease is held."""
    scrub: ScrubStatus | None = None
    linked: bool = False
    """The process server is connected."""
    firmware: str = ""
    machine: MachineFacts | None = None
    problem: str = ""
    """``CODE: sentence`` when the stream of ``epoch`` ended for good (see protection.repair_rules); empty while it goes on."""


@dataclass(frozen=True, slots=True)
class SpooledMachine:
    machine_id: MachineId
    epoch: int
    agent_connected: bool
    master_target_connected: bool
    spooled_sequence: int
    landed_sequence: int
    pending_bytes: int
    problem: str = ""
    """Why the stream does not flow (the master target is away, or ``JournalReplaced: ...``); empty while it does."""


@dataclass(frozen=True, slots=True)
class ProcessServerStatus:
    listen_port: int = 0
    spool_capacity_bytes: int = 0
    spool_free_bytes: int = 0
    machines: tuple[SpooledMachine, ...] = ()


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """A retention volume or a datastore on a master target, as it is; ``problem`` says why it may not be used.

    The fields after it are what readiness judges by itself; an older master target leaves them empty.
    """

    name: str
    path: str
    filesystem: str
    capacity_bytes: int
    free_bytes: int
    problem: str = ""
    mount_point: str = ""
    """Where its file system is mounted."""
    read_only: bool = False
    locked: bool = False
    """Another process holds it."""
    holds: tuple[str, ...] = ()
    """What else of this product lies in it (or it in that): ``the datastore store``, ``the installation`` ..."""
    shares_with: tuple[str, ...] = ()
    """What else of this product is on the same file system."""


POINTS_LOST = "older recovery points cannot be reached"


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    machine_id: MachineId
    state: str
    """attached | rolled-back | released"""
    epoch: int
    incarnation: str
    landed_sequence: int
    landed_ring: int
    applied_sequence: int
    consistent: bool
    gap: str = ""
    gaps: tuple[Gap, ...] = ()
    points: tuple[RecoveryPoint, ...] = ()
    disks: tuple[ReplicaDisk, ...] = ()
    journal_bytes: int = 0
    undo_proven_wall_ns: int = 0
    """When all closed undo was read and matched its checksums, or was told as damaged; 0: not yet."""
    problem: str = ""
    """Why nothing lands or is applied; begins with ``CODE:`` when only a new epoch helps, with ``POINTS_LOST`` when older
    points are not offered any more and all else goes on."""

    @property
    def stands_still(self) -> bool:
        return bool(self.problem) and not self.problem.startswith(POINTS_LOST)


@dataclass(frozen=True, slots=True)
class ViewExport:
    """One disk of an open view; ``uri`` is for clients on the master target itself."""

    disk_id: DiskId
    index: int
    size_bytes: int
    uri: str


@dataclass(frozen=True, slots=True)
class ViewStatus:
    """A recovery point that is served by NBD. ``remote_port`` 0: on the master target's host only."""

    view_id: str
    machine_id: MachineId
    point: RecoveryPoint
    writable: bool
    opened_wall_ns: int
    expires_wall_ns: int
    exports: tuple[ViewExport, ...]
    remote_port: int = 0
    quota_bytes: int = 0
    layer_bytes: int = 0
    connections: int = 0
    ended: str = ""
    """Why it is not served any more; empty while it is."""


@dataclass(frozen=True, slots=True)
class MasterTargetStatus:
    listen_port: int = 0
    retention_volumes: tuple[VolumeFacts, ...] = ()
    datastores: tuple[VolumeFacts, ...] = ()
    replicas: tuple[ReplicaStatus, ...] = ()
    views: tuple[ViewStatus, ...] = ()
    disk_ids: tuple[str, ...] = ()
    """Identities of its own disks, as agents tell theirs (``serial:...``, ``wwid:...``)."""
    root_on_lvm: bool | None = None
    """Whether its own system lies on LVM; None: it does not say."""


# --- heartbeat ------------------------------------------------------------------------------------------------------


class OrderState(enum.Enum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Order:
    """``generation`` is that of the job that gave it: a component refuses one older than the newest it has seen."""

    order_id: OrderId
    kind: str
    generation: int
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class OrderReport:
    order_id: OrderId
    state: OrderState
    result: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] | None = None
    bytes_done: int = 0
    bytes_total: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Request body of ``POST /components/v1/heartbeat``; the answer is held up to ``wait_seconds`` for news."""

    role: Role
    hostname: str
    version: str
    hardware_id: str
    boot_id: str
    os_family: str
    os_version: str
    kernel: str
    wall_ns: int
    monotonic: float
    addresses: tuple[str, ...]
    status: dict[str, Any]
    """The encoded status dataclass of the role."""
    reports: tuple[OrderReport, ...] = ()
    assignment_generation: int = 0
    """The newest assignment that the component has taken; 0 after its start."""
    wait_seconds: float = 0.0
    denied_digest: str | None = None
    """Digest of the newest :class:`DeniedCertificates` that the component has; None from one that knows no such list."""


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    wall_ns: int
    """The configuration server's wall time: for the clock-skew check."""
    assignment_generation: int
    assignment: dict[str, Any] | None = None
    """The encoded assignment dataclass of the role when its generation is news; None otherwise."""
    orders: tuple[Order, ...] = ()
    """All orders of this component that are not finished, oldest first."""
    known_as: str = "expected"
    """``expected``, or ``other-hardware``: the certificate is right but the hardware is not that of the live side (D2)."""
    denied: DeniedCertificates | None = None
    """The whole list when it is another than the component has; None otherwise."""
