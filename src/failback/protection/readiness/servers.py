"""Rows 28, 31, 34-43, 51: process server and master target, which of them is chosen, and what they can take."""

from __future__ import annotations

from failback.protection.readiness.control import heartbeat
from failback.protection.readiness.facts import ReadinessFacts
from failback.protection.readiness.finding import Check, failed, judged, passed, skipped, spoken_size, warned
from failback.protection.readiness.rows import BOTH, Place, Row

MASTER_TARGET_DISK_LIMIT = 60
MACHINES_ON_A_SHARED_HOST = 8
"""Above so many machines a master target should not share its host with another server role (advice of row 36)."""


def _missing(what: str, asked: str, option: str) -> list[Check]:
    if asked:
        return failed(asked, f"No {what} {asked!r} is registered.", "see `failback component list`")
    return failed(asked, f"No {what} was chosen and none is registered.", f"enrol one, then name it with {option}")


def process_server_chosen(facts: ReadinessFacts) -> list[Check]:
    if facts.source_lost:
        return skipped(facts.process_server_asked, "Nothing more comes from a lost machine.")
    if facts.process_server is None:
        return _missing("process server", facts.process_server_asked, "--process-server")
    return passed(facts.process_server.hostname, "It receives from the cloud machine and sends on premises.")


def process_server_heard(facts: ReadinessFacts) -> list[Check]:
    if facts.process_server is None or facts.source_lost:
        return skipped(facts.process_server_asked, "No process server was chosen, or none is needed.")
    return heartbeat(facts.process_server, facts.heartbeat_alarm_seconds)


def master_target_heard(facts: ReadinessFacts) -> list[Check]:
    if facts.master_target is None:
        return _missing("master target", facts.master_target_asked, "--master-target")
    return heartbeat(facts.master_target, facts.heartbeat_alarm_seconds)


def master_target_of_its_own(facts: ReadinessFacts) -> list[Check]:
    target = facts.master_target
    if target is None:
        return skipped(facts.master_target_asked, "No master target was chosen.")
    shared = ", ".join(facts.master_target_shares_host_with)
    after = facts.master_target_machines + 1
    if shared and after > MACHINES_ON_A_SHARED_HOST:
        return warned(
            target.hostname, f"{after} machines would replicate to it, and it shares its host with: {shared}."
        )
    beside = f"beside: {shared}" if shared else "on a host of its own"
    return passed(target.hostname, f"{after} machines would replicate to it, {beside}.")


def os_family(facts: ReadinessFacts) -> list[Check]:
    source = facts.os_family
    target = facts.master_target.os_family if facts.master_target else ""
    if not source or not target:
        return skipped(facts.item_name, "The family of the machine or of the master target is not known yet.")
    if source.lower() != target.lower():
        sentence = f"The machine runs {source}, the master target {target}."
        return failed(facts.item_name, sentence, f"choose a master target that runs {source}")
    return passed(facts.item_name, f"Machine and master target both run {source}.")


def group_one_system(facts: ReadinessFacts) -> list[Check]:
    if not facts.group:
        return skipped(facts.item_name, "The machine is in no replication group.")
    own = facts.os_family
    for member in facts.group_members:
        if own and member.os_family and own.lower() != member.os_family.lower():
            where = f"{member.name} of group {facts.group} runs {member.os_family}"
            return failed(facts.group, f"{facts.item_name} runs {own}, {where}.", _leave(facts))
    return passed(facts.group, f"The members of {facts.group} run one family of systems.")


def group_one_master_target(facts: ReadinessFacts) -> list[Check]:
    if not facts.group or facts.master_target is None:
        return skipped(facts.item_name, "The machine is in no replication group, or no master target was chosen.")
    for member in facts.group_members:
        if member.replicating and member.master_target_id not in ("", facts.master_target.component_id):
            sentence = f"{member.name} of group {facts.group} replicates to another master target."
            return failed(facts.group, sentence, _leave(facts))
    return passed(facts.group, f"The members of {facts.group} replicate to one master target.")


def _leave(facts: ReadinessFacts) -> str:
    return f"choose the group's master target, or: failback group remove {facts.group} {facts.item_name}"


def no_clash_with_master_target(facts: ReadinessFacts) -> list[Check]:
    if facts.master_target is None:
        return skipped(facts.master_target_asked, "No master target was chosen.")
    theirs = set(facts.master_target_disk_ids)
    if facts.vsphere is not None and facts.vsphere.master_target is not None:
        theirs |= set(facts.vsphere.master_target.disk_ids)
    own = {disk.match for disk in facts.disks if disk.match}
    if facts.vsphere is not None and facts.vsphere.machine is not None:
        own |= set(facts.vsphere.machine.disk_ids)
    if not theirs or not own:
        return skipped(facts.master_target.hostname, "The disks of one side have no identity that can be compared.")
    clash = sorted(own & theirs)
    return judged(
        not clash,
        facts.master_target.hostname,
        "No disk of the machine has the identity of one of the master target's own.",
        f"The master target itself has a disk with the identity {clash[0] if clash else ''}: both come from one template.",
    )


def own_disk_ids(facts: ReadinessFacts) -> list[Check]:
    own = {disk.match for disk in facts.disks if disk.match}
    if not own:
        return skipped(facts.item_name, "The disks have no identities that can be compared.")
    for machine, match in facts.other_machines_disks:
        if match in own:
            return warned(facts.item_name, f"{machine} has a disk with the same identity ({match}).")
    return passed(facts.item_name, "No other machine has a disk with the same identity.")


def no_same_named_machine(facts: ReadinessFacts) -> list[Check]:
    """It matters where a machine has to be created; elsewhere it is confusing, no more."""
    name = facts.on_premises_machine
    if facts.vsphere is not None:
        clash = facts.alternate_location and name in facts.vsphere.names_on_host
        host = facts.vsphere.master_target_host
        no = f"A machine called {name} is on {host} already; the new one cannot be created there."
        return judged(not clash, host, f"No other machine called {name} is in the way.", no)
    if facts.on_premises_fabric_problem:
        return skipped(name, "Cannot be checked while its fabric does not answer.")
    return judged(
        not facts.same_named_machines,
        facts.on_premises_fabric,
        f"No other machine is called {name}.",
        f"Another machine of {facts.on_premises_fabric} is called {name}, too.",
    )


def disk_slots(facts: ReadinessFacts) -> list[Check]:
    if facts.master_target is None:
        return skipped(facts.item_name, "No master target was chosen.")
    after = facts.master_target_disks + len(facts.disks)
    sentence = f"{after} of {MASTER_TARGET_DISK_LIMIT} disks would be attached to the master target"
    total = spoken_size(sum(disk.source_size_bytes for disk in facts.disks))
    return judged(
        after <= MASTER_TARGET_DISK_LIMIT,
        facts.master_target.hostname,
        f"{sentence}, jobs in flight included ({total} of this machine).",
        f"{sentence}, jobs in flight included.",
    )


ROWS = (
    Row("31", "P", "process server", "process server", "cannot proceed", check=process_server_chosen, operations=BOTH,
        code="806"),
    Row("28", "P", "process server heartbeat", "process server", "not usable", check=process_server_heard, operations=BOTH,
        code="806", remedy="start the service failback-process-server and check its way to the configuration server"),
    Row("34", "I", "process server of the failover", "process server", "none: it may be used again, or a new one",
        Place.DOCUMENTED, reason="a freedom, not a condition: any registered process server may be named"),
    Row("35", "P", "master target heartbeat", "master target", "cannot proceed", check=master_target_heard, operations=BOTH,
        code="78022", remedy="start the service failback-master-target and check its way to the configuration server"),
    Row("36", "A", "master target of its own", "master target", "capacity", check=master_target_of_its_own,
        code="MasterTargetShared", remedy="add a master target on a host of its own"),
    Row("37", "P", "Linux master target for Linux", "master target and system of the machine", "reprotect is impossible",
        with_row="38"),
    Row("38", "P", "operating system family", "master target and system of the machine", "reprotect is impossible",
        check=os_family, code="OsFamilyMismatch"),
    Row("39", "P", "replication group: one system", "replication group", "reprotect and failback are refused",
        check=group_one_system, code="GroupNeedsOneOperatingSystem"),
    Row("40", "P", "replication group: one master target", "replication group", "there would be no common point in time",
        check=group_one_master_target, code="GroupNeedsOneMasterTarget"),
    Row("41", "P", "disk identities clash with none", "master target and machine", "reprotect fails",
        check=no_clash_with_master_target, code="DiskIdentityClash",
        remedy="deploy a master target that was not made from the machine's template"),
    Row("42", "A", "disk identities are its own", "machine", "disks of two machines could be taken for each other",
        check=own_disk_ids, code="DiskIdentityShared",
        remedy="give every machine that is made from a template its own disk identities"),
    Row("43", "P", "no machine of the same name", "host of the master target", "the machine cannot be created",
        check=no_same_named_machine, code="78052",
        remedy="rename the other machine, or choose a master target on another host"),
    Row("51", "P", "master target disk slots", "master target", "further reprotects fail", check=disk_slots,
        code="TooManyDisks", remedy="choose another master target or add one",
        by=("failback.configuration_server.workflows.reprotect:check_prerequisites",)),
)  # fmt: skip
