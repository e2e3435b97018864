"""Rows 62-67, 84, L3, L7, L9 and the disks: where the machine's disks lie or will lie on premises.

A datastore that is missing, read-only or not accessible has the documented code 8061. Without a datastore a reprotect goes
on when every disk is there (row 67: it would be ignored anyway); it is demanded when something has to be created.
"""

from __future__ import annotations

import posixpath

from failback.model.components import VolumeFacts
from failback.protection.readiness.facts import ReadinessFacts, VSphereDatastore
from failback.protection.readiness.finding import Check, failed, judged, passed, skipped, spoken_size, warned
from failback.protection.readiness.platform import not_vsphere
from failback.protection.readiness.rows import Row

NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p"})


def store_problem(store: VolumeFacts) -> str:
    """Why the datastore may not be used; empty when it may."""
    if store.filesystem.lower() in NETWORK_FILE_SYSTEMS:
        return f"its file system is {store.filesystem}: locks of replicas cannot be trusted there"
    if store.read_only:
        return "it is mounted read-only"
    return store.problem


def _creates(facts: ReadinessFacts) -> bool:
    return facts.alternate_location or any(disk.target_missing for disk in facts.disks)


def _vsphere_store(facts: ReadinessFacts) -> VSphereDatastore | None:
    stores = facts.vsphere.datastores if facts.vsphere is not None else ()
    return next((store for store in stores if store.name == facts.datastore_asked), None)


def kind(facts: ReadinessFacts) -> list[Check]:
    """vSAN is taken (contradiction 3); NFS is not, nor are file systems of the same nature elsewhere."""
    if facts.vsphere is not None:
        store = _vsphere_store(facts)
        if store is None:
            return skipped(facts.datastore_asked, "No datastore of vSphere was named.")
        no = f"{store.name} is {store.kind}; VMFS or vSAN is needed."
        return judged(store.kind in ("VMFS", "vSAN"), store.name, f"{store.name} is {store.kind}.", no)
    volume = facts.datastore
    if volume is None:
        return skipped(facts.datastore_asked, "No datastore was named.")
    wrong = volume.filesystem.lower() in NETWORK_FILE_SYSTEMS
    return judged(not wrong, volume.name, f"Its file system is {volume.filesystem}.", f"{store_problem(volume)}.")


def disks_reachable(facts: ReadinessFacts) -> list[Check]:
    """Original location: every disk lies where the master target may write."""
    if facts.master_target is None:
        return skipped(facts.item_name, "No master target was chosen.")
    if facts.vsphere is not None:
        machine = facts.vsphere.machine
        if machine is None:
            return skipped(facts.item_name, "The machine was deleted: row 64 applies.")
        usable = {store.name for store in facts.vsphere.datastores if store.on_host and store.read_write}
        away = sorted(set(machine.datastores) - usable)
        no = f"{', '.join(away)}: not mounted read/write on {facts.vsphere.master_target_host}."
        return judged(not away, machine.name, "Its datastores are mounted read/write on the master target's host.", no)
    return _files_reachable(facts)


def _files_reachable(facts: ReadinessFacts) -> list[Check]:
    placed = [disk for disk in facts.disks if disk.path and not disk.target_missing]
    if not placed:
        return skipped(facts.item_name, "No disk of the machine has a file on premises.")
    for disk in placed:
        store = _holding(facts.datastores, disk.path)
        if store is None:
            return failed(disk.name, f"{disk.path} lies in no datastore of the master target.")
        if store_problem(store):
            return failed(disk.name, f"{disk.path} lies in the datastore {store.name}: {store_problem(store)}.")
    return passed(facts.item_name, "Every disk lies in a datastore that the master target may write.")


def _holding(stores: tuple[VolumeFacts, ...], path: str) -> VolumeFacts | None:
    """The datastore with the longest path above the disk."""
    whole = posixpath.normpath(path)
    above = [each for each in stores if whole.startswith(posixpath.normpath(each.path).rstrip("/") + "/")]
    return max(above, key=lambda each: len(each.path), default=None)


def new_machine_on_host(facts: ReadinessFacts) -> list[Check]:
    """Alternate location: the new machine stands on the master target's host; deleting the old one beforehand is a way (L3)."""
    name = facts.on_premises_machine
    if facts.on_premises_fabric_problem or not facts.has_on_premises_origin:
        return skipped(name, "Cannot be checked while its fabric does not answer or no machine is known.")
    if facts.vsphere is None:
        no = f"The machine was not found in its fabric {facts.on_premises_fabric}, which cannot create one."
        return judged(bool(facts.on_premises_power), name, "The machine is there: its own disks are used.", no)
    if not facts.alternate_location:
        return passed(name, "The machine is there: its own disks are used.")
    host = facts.vsphere.master_target_host
    no = "The machine was deleted, and the host on which a new one is to be created is not discovered."
    return judged(bool(host), name, f"The machine was deleted: a new one will be created on {host}.", no)


def accessible(facts: ReadinessFacts) -> list[Check]:
    asked = facts.datastore_asked
    if facts.master_target is None:
        return skipped(asked, "No master target was chosen.")
    if not asked:
        if _creates(facts):
            return skipped("", "No datastore was named.")
        return passed("", "No datastore was named; the disks stay where they are.")
    if facts.vsphere is not None:
        store = _vsphere_store(facts)
        good = store is not None and store.on_host and store.read_write
        no = f"{asked} is not accessible from the host {facts.vsphere.master_target_host}."
        return judged(good, asked, f"{facts.vsphere.master_target_host} reaches the datastore.", no)
    return _volume_accessible(facts)


def _volume_accessible(facts: ReadinessFacts) -> list[Check]:
    asked, volume = facts.datastore_asked, facts.datastore
    if volume is None:
        return failed(
            asked, f"The master target does not reach a datastore {asked!r}. {why_no_datastore(facts)}".strip()
        )
    if volume.filesystem.lower() in NETWORK_FILE_SYSTEMS:
        return skipped(volume.name, "Row 62 says why it cannot be used.")
    problem = store_problem(volume)
    return judged(not problem, volume.name, "The master target reaches the datastore.", f"{volume.name}: {problem}.")


def new_disks_have_a_place(facts: ReadinessFacts) -> list[Check]:
    """Rows 66 and 67: a datastore is needed only for what has to be created."""
    if facts.master_target is None:
        return skipped(facts.item_name, "No master target was chosen.")
    if not _creates(facts):
        return passed(facts.item_name, "No disk has to be created.")
    no = "No datastore was named, and on-premises disks have to be created."
    return judged(bool(facts.datastore_asked), facts.item_name, f"New disks go to {facts.datastore_asked}.", no)


def why_no_datastore(facts: ReadinessFacts) -> str:
    """All the causes that are known of a list without datastores (row 84); empty when one can be chosen."""
    causes: list[str] = []
    if facts.vsphere is not None:
        host = facts.vsphere
        usable = [each for each in host.datastores if each.on_host and each.kind in ("VMFS", "vSAN")]
        if usable and not host.account_read_only and host.vcenter_connected:
            return ""
        if host.account_read_only or host.missing_privileges:
            causes.append("the account of the vCenter may not see them (rows 13, 14)")
        if not host.vcenter_connected:
            causes.append("the vCenter is not connected (rows 15, L1)")
        if host.master_target is not None and not host.master_target.tools:
            causes.append("no VMware Tools run on the master target (row 47)")
        if host.datastores and all(each.kind == "NFS" for each in host.datastores):
            causes.append("there are only NFS datastores (row 62)")
        elif not usable:
            causes.append("no VMFS or vSAN datastore is on the master target's host (row 48)")
    else:
        refused = [f"{each.name}: {store_problem(each)}" for each in facts.datastores if store_problem(each)]
        if len(refused) < len(facts.datastores):
            return ""
        causes += refused or ["the master target's configuration names no datastore"]
    return f"No datastore can be chosen: {'; '.join(causes)}."


def list_says_why(facts: ReadinessFacts) -> list[Check]:
    if facts.master_target is None:
        return skipped(facts.master_target_asked, "No master target was chosen.")
    reason = why_no_datastore(facts)
    subject = facts.master_target.hostname
    if reason and not _creates(facts):
        return warned(subject, f"{reason} None is needed now: no disk has to be created.")
    return judged(not reason, subject, "There are datastores to choose from.", reason)


def new_disk_reachable(facts: ReadinessFacts) -> list[Check]:
    if facts.vsphere is None:
        return not_vsphere(facts)
    if not facts.alternate_location:
        return skipped(facts.item_name, "The machine is there; no new one is created.")
    store = _vsphere_store(facts)
    no = f"The new machine's disk cannot lie on {facts.datastore_asked or 'no datastore'}: the host does not reach it."
    return judged(store is not None and store.on_host, facts.item_name, "Its host reaches the new machine's disk.", no)


def raw_mappings(facts: ReadinessFacts) -> list[Check]:
    """Raw device mappings and vSAN are fine in the original location; a new machine gets disks on VMFS or vSAN."""
    if facts.vsphere is None:
        return not_vsphere(facts, facts.on_premises_machine)
    machine = facts.vsphere.machine
    if machine is not None:
        spoken = (
            f"{machine.raw_device_mappings} raw device mappings" if machine.raw_device_mappings else "no raw mappings"
        )
        return passed(machine.name, f"The disks exist ({spoken}) and are used where they are.")
    store = _vsphere_store(facts)
    no = "A new machine needs a datastore of the kind VMFS or vSAN."
    return judged(store is not None and store.kind in ("VMFS", "vSAN"), facts.item_name, "It goes to VMFS or vSAN.", no)


def capacity(facts: ReadinessFacts) -> list[Check]:
    store = facts.datastore
    needed = sum(disk.source_size_bytes for disk in facts.disks if disk.target_missing)
    if store is None or not needed:
        return skipped(facts.datastore_asked, "No disk has to be created.")
    sentence = f"{spoken_size(store.free_bytes)} are free; the disks to create need up to {spoken_size(needed)}."
    return judged(store.free_bytes >= needed, store.name, sentence, sentence)


def disks_match(facts: ReadinessFacts) -> list[Check]:
    if not facts.has_on_premises_origin or facts.on_premises_fabric_problem or not facts.disks:
        return skipped(facts.item_name, "No on-premises disks are known.")
    found: list[Check] = []
    for disk in facts.disks:
        if disk.seen_by_agent is False:
            sentence = "The agent sees no device that matches this disk."
            found += failed(disk.name, sentence, "check that the disk is attached to the machine", "DiskNotSeen")
        elif disk.target_missing:
            size = spoken_size(disk.source_size_bytes)
            found += passed(disk.name, f"The on-premises disk is missing and will be created with {size}.")
        elif disk.source_size_bytes != disk.target_size_bytes:
            there, here = disk.source_size_bytes, disk.target_size_bytes
            found += failed(disk.name, f"The cloud disk has {there} bytes, the on-premises disk {here} bytes.")
        else:
            found += passed(disk.name, f"Both sides have {spoken_size(disk.source_size_bytes)}.")
    return found


_MOUNT = "mount the datastore read/write on the master target's host and name it in its configuration"

ROWS = (
    Row("X3", "X", "disks match", "disk", "the replica would not be the machine's disk", check=disks_match,
        code="DiskSizeMismatch",
        remedy="resize the on-premises disk to the cloud disk's size, or remove it so that it is created anew"),
    Row("62", "P/D", "datastore kind", "datastore", "the job fails; NFS is not listed", check=kind, code="DatastoreKind",
        remedy="use a VMFS or vSAN datastore (elsewhere: a local file system)"),
    Row("63", "P", "disks are reachable", "datastores of the machine's disks", "the job fails", check=disks_reachable,
        code="8061", remedy=_MOUNT),
    Row("64", "P", "on-premises machine found", "host of the master target", "a new machine is created there",
        check=new_machine_on_host, code="OnPremisesMachineMissing",
        remedy="register the machine in the fabric again, or discover the host on which a new one is to stand"),
    Row("L3", "L", "machine deleted on purpose", "on-premises machine", "a new one is created", with_row="64"),
    Row("65", "P", "datastore accessible", "datastore", "the job fails", check=accessible, code="8061", remedy=_MOUNT),
    Row("66", "P", "datastore for new disks", "input", "refused", check=new_disks_have_a_place, code="8061",
        remedy="name one with --datastore"),
    Row("67", "P", "datastore is named when it is needed", "input", "refused when something must be created", with_row="66"),
    Row("84", "D", "a list without datastores says why", "list of datastores", "the causes are named", check=list_says_why,
        code="NoDatastore", remedy="mend the causes that are named, then refresh"),
    Row("L7", "L", "new disk reachable by the host", "datastore", "the new machine could not be started",
        check=new_disk_reachable, code="8061", remedy=_MOUNT),
    Row("L9", "L", "raw mappings and vSAN", "disks", "fine where the disks exist", check=raw_mappings, code="DatastoreKind",
        remedy="choose a VMFS or vSAN datastore for the new machine"),
    Row("X6", "X", "datastore capacity", "datastore", "the disks could not be created", check=capacity, code="DatastoreFull",
        remedy="free space or choose another datastore"),
)  # fmt: skip
