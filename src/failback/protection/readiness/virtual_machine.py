"""Rows 44-50, 52, L5, L6, L10, L11: how the master target is set up, and snapshots of the machine that comes home."""

from __future__ import annotations

from failback.protection.readiness.facts import ReadinessFacts, VSphereMachine
from failback.protection.readiness.finding import Check, failed, judged, passed, skipped, warned
from failback.protection.readiness.platform import not_vsphere
from failback.protection.readiness.rows import BOTH, Place, Row


def _target(facts: ReadinessFacts) -> VSphereMachine | None:
    return facts.vsphere.master_target if facts.vsphere is not None else None


def _unknown(facts: ReadinessFacts) -> list[Check]:
    if facts.vsphere is None:
        return not_vsphere(facts, facts.master_target_asked)
    return skipped(facts.master_target_asked, "The master target was not found in vSphere.")


def enable_uuid(facts: ReadinessFacts) -> list[Check]:
    target = _target(facts)
    if target is None:
        return _unknown(facts)
    no = "disk.EnableUUID is not set to true: disks cannot be told apart and are mounted wrongly."
    return judged(target.disk_enable_uuid, target.name, "disk.EnableUUID is true.", no)


def excluded_from_storage_vmotion(facts: ReadinessFacts) -> list[Check]:
    target = _target(facts)
    if target is None:
        return _unknown(facts)
    no = "The master target is not excluded from Storage vMotion: disks attached to it could be moved away."
    return judged(target.storage_vmotion_excluded, target.name, "It is excluded from Storage vMotion.", no)


def tools(facts: ReadinessFacts) -> list[Check]:
    target = _target(facts)
    if target is None:
        return _unknown(facts)
    return judged(
        target.tools in ("vmware-tools", "open-vm-tools"),
        target.name,
        f"{target.tools} runs on it.",
        "Neither VMware Tools nor open-vm-tools runs on it: the datastores of its host are not detected.",
    )


def vmfs_datastore(facts: ReadinessFacts) -> list[Check]:
    """'Attached to the master target' means: to its host (contradiction 4)."""
    if facts.vsphere is None:
        return not_vsphere(facts, facts.master_target_asked)
    found = [store.name for store in facts.vsphere.datastores if store.on_host and store.kind in ("VMFS", "vSAN")]
    host = facts.vsphere.master_target_host
    return judged(
        bool(found),
        host,
        f"{host} has {', '.join(found)}.",
        f"{host} has neither a VMFS nor a vSAN datastore: none can be chosen.",
    )


def no_snapshots(facts: ReadinessFacts) -> list[Check]:
    target = _target(facts)
    if target is None:
        return _unknown(facts)
    no = f"The master target has {target.snapshots} snapshots: reprotect and failback fail with them."
    return judged(target.snapshots == 0, target.name, "It has no snapshots.", no)


def scsi_controller(facts: ReadinessFacts) -> list[Check]:
    target = _target(facts)
    if target is None:
        return _unknown(facts)
    wrong = sorted({kind for kind in target.scsi_controllers if not kind.lower().startswith("lsilogic")})
    no = f"It has a SCSI controller of the kind {', '.join(wrong)}; LSI Logic is needed."
    return judged(not wrong, target.name, "Its SCSI controllers are LSI Logic.", no)


def snapshots_of_machine(facts: ReadinessFacts) -> list[Check]:
    """Contradiction 1: snapshots are merged; only what cannot be merged fails. Elsewhere a disk with a backing file does."""
    subject = facts.on_premises_machine
    if facts.vsphere is None:
        layered = [disk.name for disk in facts.disks if disk.backing]
        no = f"{', '.join(layered)}: the disk is a snapshot's layer over another file."
        return judged(not layered, subject, "No disk is a snapshot's layer.", no)
    machine = facts.vsphere.machine
    if machine is None or not machine.snapshots:
        return passed(subject, "The machine has no snapshots.")
    count = f"{machine.snapshots} snapshots"
    no = f"The machine has {count} that vSphere cannot consolidate."
    return judged(machine.snapshots_consolidate, subject, f"The job will merge its {count}.", no)


def not_on_lvm(facts: ReadinessFacts) -> list[Check]:
    """A replica's volume groups would stand beside those of the master target, under the same names."""
    target = facts.master_target
    if target is None or facts.master_target_on_lvm is None:
        return skipped(facts.master_target_asked, "The master target does not say what its system lies on.")
    if not facts.master_target_on_lvm:
        return passed(target.hostname, "Its system does not lie on LVM.")
    no = "The system of the master target lies on LVM: volume groups of machines could clash with its own."
    if facts.vsphere is not None:
        return failed(target.hostname, no)
    return warned(target.hostname, f"{no} Here disks of machines are files: see that nothing scans them.")


def enable_uuid_of_machine(facts: ReadinessFacts) -> list[Check]:
    if facts.vsphere is None:
        return not_vsphere(facts, facts.on_premises_machine)
    machine = facts.vsphere.machine
    if machine is None:
        return skipped(facts.on_premises_machine, "A new machine will be created, with disk.EnableUUID.")
    no = "disk.EnableUUID is not true on the machine: an extra disk would appear."
    return judged(machine.disk_enable_uuid, machine.name, "disk.EnableUUID is true on the machine.", no)


ROWS = (
    Row("44", "P", "master target: disk.EnableUUID", "master target's virtual machine", "disks are mounted wrongly",
        check=enable_uuid, code="DiskUuidNotEnabled", remedy="set disk.EnableUUID=true in its parameters while it is off"),
    Row("45", "P", "master target: no Storage vMotion", "master target's virtual machine", "disks are missing at failback",
        check=excluded_from_storage_vmotion, code="StorageVmotionNotExcluded",
        remedy="exclude it from Storage vMotion (DRS rule)"),
    Row("46", "R", "storage of the master target moved", "disks attached to the master target", "detaching fails",
        Place.RUNTIME_GUARD, by=("failback.block.replica_disk:moved_away",)),
    Row("47", "P", "master target: VMware Tools", "master target's virtual machine", "datastores are not detected",
        check=tools, code="VMwareToolsMissing", remedy="install VMware Tools or open-vm-tools"),
    Row("L6", "L", "open-vm-tools are accepted", "master target's virtual machine", "as row 47", with_row="47"),
    Row("48", "P", "VMFS or vSAN datastore on the host", "host of the master target", "no datastore can be chosen",
        check=vmfs_datastore, code="NoUsableDatastore", remedy="attach a VMFS or vSAN datastore to the master target's host"),
    Row("49", "P/F", "master target: no snapshots", "master target's virtual machine", "reprotect and failback fail",
        check=no_snapshots, operations=BOTH, code="MasterTargetHasSnapshots", remedy="delete its snapshots"),
    Row("L11", "L", "no snapshots before failback either", "master target's virtual machine", "as row 49", with_row="49",
        operations=BOTH),
    Row("50", "P", "master target: SCSI controller", "master target's virtual machine", "reprotect fails",
        check=scsi_controller, code="ScsiControllerNotSupported", remedy="replace the controller by LSI Logic"),
    Row("52", "I", "snapshots of the machine", "on-premises machine", "merged; what cannot be merged fails",
        check=snapshots_of_machine, code="SnapshotsNotMergeable", remedy="merge the snapshots at the hypervisor, then retry"),
    Row("L5", "L", "master target not on LVM", "master target", "volume groups clash", check=not_on_lvm,
        code="MasterTargetOnLvm", remedy="install the master target without LVM"),
    Row("L10", "L", "machine: disk.EnableUUID", "on-premises machine", "an extra disk appears",
        check=enable_uuid_of_machine, code="MachineDiskUuidNotEnabled", remedy="set disk.EnableUUID=true while it is off"),
)  # fmt: skip
