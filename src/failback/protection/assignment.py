"""From protected items to what each component should be doing. Pure: the same items always give the same assignment.

An assignment is the whole of a component's work (level-triggered). A machine's stream is wanted when the item replicates and
its epoch is not below the item's floor; only then does any of the three parts get it. The *fingerprint* of an assignment
contains the live side's hardware as well, so that a change of side is news even when the words stay the same (D2).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from failback.model.bandwidth import NO_LIMIT, BandwidthLimit
from failback.model.components import (
    DiskFacts,
    Endpoint,
    MasterTargetAssignment,
    MobilityAssignment,
    ProcessServerAssignment,
    ReplicaAssignment,
    RoutedMachine,
    SourceDisk,
)
from failback.model.ids import ComponentId, DiskId, GroupId, MachineId, PassId
from failback.model.policy import ReplicationPolicy
from failback.runtime import records

VIRTIO_SERIAL_BYTES = 20

Assignment = MobilityAssignment | ProcessServerAssignment | MasterTargetAssignment


@dataclass(frozen=True, slots=True)
class ProtectedMachine:
    """What an item says about its stream. ``process_server`` and ``master_target`` are None while unknown or away."""

    machine_id: MachineId
    live_hardware_id: str
    replicating: bool
    epoch: int
    epoch_floor: int
    group_id: GroupId
    pass_id: PassId
    process_server_id: ComponentId
    master_target_id: ComponentId
    process_server: Endpoint | None
    master_target: Endpoint | None
    policy: ReplicationPolicy
    disks: tuple[SourceDisk, ...]
    bandwidth: BandwidthLimit = NO_LIMIT
    comparison_seconds: int = 0

    def wanted(self) -> bool:
        """Whether its stream may flow at all."""
        return self.replicating and self.epoch > 0 and self.epoch >= self.epoch_floor


def mobility_assignment(machine_id: MachineId, machine: ProtectedMachine | None) -> MobilityAssignment:
    """For the agent on the live side; an agent without an item, or whose stream is not wanted, stays silent."""
    if machine is None or not machine.wanted():
        return silent(machine_id)
    return MobilityAssignment(
        active=True,
        machine_id=machine_id,
        epoch=machine.epoch,
        group_id=machine.group_id,
        pass_id=machine.pass_id,
        process_server=machine.process_server,
        disks=machine.disks,
        bandwidth=machine.bandwidth,
        comparison_seconds=machine.comparison_seconds,
    )


def silent(machine_id: MachineId) -> MobilityAssignment:
    """Capture and send nothing: also the answer to a twin on other hardware (D2)."""
    return MobilityAssignment(active=False, machine_id=machine_id)


def process_server_assignment(
    component_id: ComponentId, machines: Iterable[ProtectedMachine]
) -> ProcessServerAssignment:
    """The machines that stream through this process server; one without a reachable master target waits outside."""
    routed = [
        RoutedMachine(machine.machine_id, machine.epoch, machine.master_target, machine.bandwidth)
        for machine in machines
        if machine.wanted() and machine.process_server_id == component_id and machine.master_target is not None
    ]
    return ProcessServerAssignment(tuple(sorted(routed, key=lambda one: one.machine_id)))


def master_target_assignment(component_id: ComponentId, machines: Iterable[ProtectedMachine]) -> MasterTargetAssignment:
    """The streams that this master target accepts, each under one epoch and from one process server."""
    replicas = [
        ReplicaAssignment(machine.machine_id, machine.epoch, machine.process_server_id, machine.policy)
        for machine in machines
        if machine.wanted() and machine.master_target_id == component_id
    ]
    return MasterTargetAssignment(tuple(sorted(replicas, key=lambda one: one.machine_id)))


def fingerprint(assignment: Assignment, live_hardware_id: str = "") -> str:
    """Changes exactly when the component has to be told anew."""
    content = json.dumps([live_hardware_id, records.encode(assignment)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode("utf-8")).hexdigest()


@dataclass(frozen=True, slots=True)
class KnownDisk:
    """A disk of an item that has to be found among those which its agent reports."""

    disk_id: DiskId
    index: int
    serial: str
    size_bytes: int
    is_system: bool


def match_disks(known: Iterable[KnownDisk], reported: Iterable[DiskFacts]) -> dict[DiskId, str]:
    """``disk id -> device_match``: by serial first, then the system disk, then the only disk of that size.

    A disk for which none of these names exactly one candidate stays out: a guess here would overwrite the wrong disk.
    """
    left = list(reported)
    found: dict[DiskId, str] = {}
    waiting = sorted(known, key=lambda disk: disk.index)
    rules: tuple[Callable[[KnownDisk, DiskFacts], bool], ...] = (_same_serial, _both_system, _same_size)
    for rule in rules:
        for disk in list(waiting):
            candidates = [facts for facts in left if rule(disk, facts)]
            rivals = [other for other in waiting if other is not disk and candidates and rule(other, candidates[0])]
            if len(candidates) == 1 and not rivals:
                found[disk.disk_id] = candidates[0].device_match
                left.remove(candidates[0])
                waiting.remove(disk)
    return found


def _same_serial(disk: KnownDisk, facts: DiskFacts) -> bool:
    """Exactly, or as far as virtio tells it (20 bytes); a world-wide name or path may contain it."""
    serial, match = disk.serial.lower(), facts.device_match.lower()
    if not serial:
        return False
    if match.startswith("serial:"):
        return match.removeprefix("serial:") in (serial, serial[:VIRTIO_SERIAL_BYTES])
    return serial in match


def _both_system(disk: KnownDisk, facts: DiskFacts) -> bool:
    return disk.is_system and facts.is_system


def _same_size(disk: KnownDisk, facts: DiskFacts) -> bool:
    return disk.size_bytes == facts.size_bytes and not facts.is_system
