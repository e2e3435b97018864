"""The frozen snapshot that the readiness checks look at: ages instead of clocks, units in the names.

Who gathers it asks the database, heartbeats, fabrics and components (probe orders). What only a vSphere or an Azure
fabric can tell is None where another fabric stands: the checks of it are then not applicable, and say so.
"""

from __future__ import annotations

from dataclasses import dataclass

from failback.model.components import MachineFacts, Role, VolumeFacts
from failback.protection.group_rules import MemberFacts
from failback.protection.operations import Direction, Operation
from failback.protection.states import State

HEARTBEAT_ALARM_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class ComponentFacts:
    """A registered component as its heartbeats show it. None means: never heard."""

    component_id: str
    hostname: str
    role: Role
    version: str
    os_family: str = ""
    os_version: str = ""
    kernel: str = ""
    seconds_since_heartbeat: float | None = None
    clock_skew_seconds: float | None = None
    side: str = ""
    """``cloud`` or ``onprem`` where the inventory of a fabric shows its hardware; empty where none does."""

    def alive(self, alarm_seconds: float) -> bool:
        return self.seconds_since_heartbeat is not None and self.seconds_since_heartbeat <= alarm_seconds


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """One disk of the item on both sides. ``target_size_bytes`` 0 with ``target_missing``: it will be created.

    ``seen_by_agent``: whether the agent reports a device that matches it; None while there is no agent to ask.
    """

    name: str
    source_size_bytes: int
    target_size_bytes: int
    target_missing: bool = False
    seen_by_agent: bool | None = None
    match: str = ""
    """``serial:...`` or ``wwid:...`` as the agent reports it; empty when it has no identity of its own."""
    path: str = ""
    """Where it lies on premises; empty when the fabric has no files."""
    backing: bool = False
    """It is a snapshot's layer over another file."""


@dataclass(frozen=True, slots=True)
class ProbedEdge:
    """A connection tried by a component. ``failure`` empty: it worked; None: it could not be tried."""

    source: str
    target: str
    purpose: str
    failure: str | None
    code: str = ""
    round_trip_milliseconds: float | None = None


@dataclass(frozen=True, slots=True)
class VSphereDatastore:
    """``kind``: VMFS, vSAN, NFS or vVol. ``on_host``: mounted on the host of the master target."""

    name: str
    kind: str
    on_host: bool = True
    read_write: bool = True


@dataclass(frozen=True, slots=True)
class VSphereMachine:
    """A virtual machine's settings in vSphere that matter to a failback."""

    name: str
    disk_enable_uuid: bool = True
    tools: str = "vmware-tools"
    """vmware-tools, open-vm-tools, or empty when neither runs."""
    snapshots: int = 0
    snapshots_consolidate: bool = True
    """vSphere says that they can be merged (no consolidation failed before)."""
    scsi_controllers: tuple[str, ...] = ("lsilogic",)
    disk_ids: tuple[str, ...] = ()
    datastores: tuple[str, ...] = ()
    raw_device_mappings: int = 0
    storage_vmotion_excluded: bool = True
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VSphereFacts:
    """The on-premises side when a vSphere fabric serves it. ``machine`` None: it was deleted (alternate location)."""

    hypervisor: str
    hypervisor_version: str
    licence: str
    vcenter: str
    vcenter_connected: bool
    master_target_host: str
    """Empty while the host is not discovered."""
    master_target: VSphereMachine | None
    machine: VSphereMachine | None
    datastores: tuple[VSphereDatastore, ...] = ()
    missing_privileges: tuple[str, ...] = ()
    account_read_only: bool = False
    original_vcenter: str = ""
    """The vCenter that managed the machine when it was protected; empty: not known."""
    names_on_host: tuple[str, ...] = ()
    """Names of the machines on the master target's host."""
    duplicate_instance_ids: tuple[str, ...] = ()
    """Machines that have the same vCenter instance UUID as this one: only one of them is ever listed."""


@dataclass(frozen=True, slots=True)
class AzureFacts:
    """The cloud side when an Azure fabric serves it. ``path_home``: vpn, expressroute-private or empty (none)."""

    resource_group: str
    protected_resource_group: str
    path_home: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TransferFacts:
    """What a reprotect moves and how fast it went before. None: never measured."""

    bytes_at_most: int = 0
    """All of the disks: what is sent when nothing on premises is like it any more."""
    measured_bytes_per_second: float | None = None
    measured_by: str = ""
    changed_bytes_per_second: float | None = None
    last_downtime_seconds: float | None = None
    backlog_bytes: int = 0
    standstill_seconds: float = 0.0
    """Of a machine under periodic comparison: the last mark holds it still for about so long."""
    sent_share: float | None = None
    """Of the bytes compared in the last synchronisation: the share that had to be sent."""


@dataclass(frozen=True, slots=True)
class ReadinessFacts:
    """What the checks look at. Power is ``On``, ``Off``, ``Unknown`` or empty where the machine was not found."""

    item_name: str
    state: State
    direction: Direction
    operation: Operation = Operation.REPROTECT
    source_lost: bool = False
    """Failback without the cloud machine, asked for by name."""
    migration_completed: bool = False
    running_job: str = ""
    source_kind: str = "virtual"
    """virtual or physical, as it was protected."""
    has_on_premises_origin: bool = True
    cloud_machine: str = ""
    cloud_fabric: str = ""
    cloud_fabric_problem: str = ""
    cloud_power: str = ""
    on_premises_machine: str = ""
    on_premises_fabric: str = ""
    on_premises_driver: str = ""
    on_premises_fabric_problem: str = ""
    on_premises_power: str = ""
    on_premises_firmware: str = ""
    same_named_machines: tuple[str, ...] = ()
    """Other machines of the on-premises fabric that have the machine's name."""
    disks: tuple[DiskFacts, ...] = ()
    other_machines_disks: tuple[tuple[str, str], ...] = ()
    """(machine, match) of disks that agents of other machines report."""
    source_os_family: str = ""
    source_firmware: str = ""
    source_service: str = ""
    """Start type of the mobility service on the machine: enabled, disabled, or empty when it does not say."""
    source_machine: MachineFacts | None = None
    agent: ComponentFacts | None = None
    agent_heard_elsewhere: str = ""
    """Hardware, other than the live side's, from which the agent was heard last."""
    agent_self_test: str = "not-run"
    agent_problem: str = ""
    comparison_minutes: int = 0
    """Above 0: periodic comparison is asked for (failback: is in force) instead of capture."""
    recovery_points: int = 0
    process_server: ComponentFacts | None = None
    process_server_asked: str = ""
    master_target: ComponentFacts | None = None
    master_target_asked: str = ""
    master_target_disks: int = 0
    """Disks of other machines that are attached to the master target, or will be by jobs in flight."""
    master_target_machines: int = 0
    """Other machines that replicate to it."""
    master_target_shares_host_with: tuple[str, ...] = ()
    """Other server roles on its hardware."""
    master_target_disk_ids: tuple[str, ...] = ()
    master_target_on_lvm: bool | None = None
    retention_volume_asked: str = ""
    retention_volume: VolumeFacts | None = None
    retention_volumes: tuple[VolumeFacts, ...] = ()
    datastore_asked: str = ""
    datastore: VolumeFacts | None = None
    datastores: tuple[VolumeFacts, ...] = ()
    """All that the master target reports, also those that may not be used."""
    inventory_age_seconds: float | None = None
    group: str = ""
    """The replication group that the machine is in, and the other members as they replicate now."""
    group_members: tuple[MemberFacts, ...] = ()
    probes: tuple[ProbedEdge, ...] = ()
    policy_name: str = ""
    configuration_server_version: str = ""
    configuration_server_nics: int | None = None
    seconds_since_backup: float | None = None
    backups_known: bool = False
    """Whether this server can tell when it was last backed up."""
    vsphere: VSphereFacts | None = None
    azure: AzureFacts | None = None
    transfer: TransferFacts = TransferFacts()
    heartbeat_alarm_seconds: float = HEARTBEAT_ALARM_SECONDS

    @property
    def alternate_location(self) -> bool:
        """A new machine has to be created (seed: ALR)."""
        return self.vsphere is not None and self.vsphere.machine is None

    @property
    def os_family(self) -> str:
        return self.source_os_family or (self.agent.os_family if self.agent else "")
