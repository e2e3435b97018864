"""Readiness: everything that has to hold before a reprotect, checked before anything is touched.

``evaluate(facts) -> list[Check]`` is pure: the caller gathers the facts (database, heartbeats, fabrics, probe orders)
and passes ages instead of clocks. Each check is one small function in ``CHECKS``; it says pass, fail or not-applicable in one
sentence that names the object it looked at, with a remedy when it fails. A check whose subject is missing is
not-applicable when another check already fails for that reason, so that one cause shows once. Codes are those that
Azure Site Recovery prints for the same condition (asr.md section 13); the others are ours, in words.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from failback.errors import PreconditionError
from failback.model.components import Role, VolumeFacts
from failback.protection.group_rules import MemberFacts
from failback.protection.operations import Direction, Operation
from failback.protection.states import State, why_not

HEARTBEAT_ALARM_SECONDS = 900.0
CLOCK_SKEW_LIMIT_SECONDS = 900.0
CLOCK_SKEW_WARNING_SECONDS = 5.0
MASTER_TARGET_DISK_LIMIT = 60
RETENTION_FREE_MINIMUM_BYTES = 256 << 20
RETENTION_FREE_SHARE = 0.02
"""Free space that a retention volume needs to begin with: this share of the machine's disks, never below the minimum."""


class Verdict(enum.Enum):
    PASS = "pass"
    FAIL = "fail"
    NOT_APPLICABLE = "not-applicable"


CONNECTIVITY = "connectivity"
"""The names of all checks of a way between two components begin with it."""


@dataclass(frozen=True, slots=True)
class Check:
    """``subject`` is the object that was looked at; ``remedy`` and ``code`` are empty unless the verdict is FAIL."""

    name: str
    subject: str
    verdict: Verdict
    sentence: str
    remedy: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class ComponentFacts:
    """A registered component as its heartbeats show it. None means: never heard."""

    component_id: str
    hostname: str
    role: Role
    version: str
    os_family: str = ""
    seconds_since_heartbeat: float | None = None
    clock_skew_seconds: float | None = None


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


@dataclass(frozen=True, slots=True)
class ProbedEdge:
    """A connection tried by a component. ``failure`` empty: it worked; None: it could not be tried."""

    source: str
    target: str
    purpose: str
    failure: str | None
    code: str = ""


@dataclass(frozen=True, slots=True)
class ReadinessFacts:
    """What ``evaluate`` looks at. Power is ``On``, ``Off``, ``Unknown`` or empty where the machine was not found."""

    item_name: str
    state: State
    direction: Direction
    running_job: str = ""
    has_on_premises_origin: bool = True
    cloud_machine: str = ""
    cloud_fabric: str = ""
    cloud_fabric_problem: str = ""
    cloud_power: str = ""
    on_premises_machine: str = ""
    on_premises_fabric: str = ""
    on_premises_fabric_problem: str = ""
    on_premises_power: str = ""
    disks: tuple[DiskFacts, ...] = ()
    source_os_family: str = ""
    agent: ComponentFacts | None = None
    agent_self_test: str = "not-run"
    agent_problem: str = ""
    process_server: ComponentFacts | None = None
    process_server_asked: str = ""
    master_target: ComponentFacts | None = None
    master_target_asked: str = ""
    master_target_disks: int = 0
    """Disks of other machines that are attached to the master target already."""
    retention_volume_asked: str = ""
    retention_volume: VolumeFacts | None = None
    datastore_asked: str = ""
    datastore: VolumeFacts | None = None
    group: str = ""
    """The replication group that the machine is in, and the other members as they replicate now."""
    group_members: tuple[MemberFacts, ...] = ()
    probes: tuple[ProbedEdge, ...] = ()
    configuration_server_version: str = ""
    heartbeat_alarm_seconds: float = HEARTBEAT_ALARM_SECONDS


def evaluate(facts: ReadinessFacts) -> list[Check]:
    """All checks in the order in which a person would work through them."""
    return [check for rule in CHECKS for check in rule(facts)]


def ready(checks: Iterable[Check]) -> bool:
    return all(check.verdict is not Verdict.FAIL for check in checks)


def first_failure(checks: Iterable[Check]) -> PreconditionError | None:
    """The first failed check as an error whose code is the check's; None when nothing failed."""
    failed = [check for check in checks if check.verdict is Verdict.FAIL]
    if not failed:
        return None
    first = failed[0]
    more = f" ({len(failed) - 1} more checks failed)" if len(failed) > 1 else ""
    return PreconditionError(
        first.sentence + more,
        code=first.code or PreconditionError.code,
        remedy=first.remedy,
        possible_causes="; ".join(check.sentence for check in failed[1:]),
        retryable=True,
    )


def may_pass_soon(checks: Iterable[Check]) -> bool:
    """Whether all that failed are ways between components: one end may only be starting again."""
    failed = [check for check in checks if check.verdict is Verdict.FAIL]
    return bool(failed) and all(check.name.startswith(CONNECTIVITY) for check in failed)


def _passed(name: str, subject: str, sentence: str) -> list[Check]:
    return [Check(name, subject, Verdict.PASS, sentence)]


def _failed(name: str, subject: str, sentence: str, remedy: str, code: str) -> list[Check]:
    return [Check(name, subject, Verdict.FAIL, sentence, remedy, code)]


def _skipped(name: str, subject: str, sentence: str) -> list[Check]:
    return [Check(name, subject, Verdict.NOT_APPLICABLE, sentence)]


def _item_state(facts: ReadinessFacts) -> list[Check]:
    name = "item state"
    reason = why_not(Operation.REPROTECT, facts.state, facts.direction)
    if reason:
        return _failed(name, facts.item_name, reason, "look at `failback item show`", "OperationNotAllowed")
    return _passed(name, facts.item_name, "The item failed over and may be reprotected.")


def _no_other_job(facts: ReadinessFacts) -> list[Check]:
    name = "no other job"
    if facts.running_job:
        sentence = f"{facts.running_job} is working on the item."
        return _failed(name, facts.item_name, sentence, "wait for the job or cancel it", "JobInProgress")
    return _passed(name, facts.item_name, "No other job is working on the item.")


def _origin(facts: ReadinessFacts) -> list[Check]:
    name = "on-premises origin"
    if not facts.has_on_premises_origin:
        sentence = "The machine was born in the cloud: there is no on-premises machine to bring it back to."
        return _failed(name, facts.item_name, sentence, "protect it as a cloud machine instead", "NoOnPremisesOrigin")
    return _passed(name, facts.item_name, f"The machine came from {facts.on_premises_machine or 'on premises'}.")


def _fabrics(facts: ReadinessFacts) -> list[Check]:
    found: list[Check] = []
    sides = (
        (facts.cloud_fabric, facts.cloud_fabric_problem),
        (facts.on_premises_fabric, facts.on_premises_fabric_problem),
    )
    for fabric, problem in dict.fromkeys(sides):
        if problem:
            sentence = f"The fabric {fabric} does not answer: {problem}"
            remedy = "check the fabric's address, credentials and service, then try again"
            found += _failed("fabric reachable", fabric, sentence, remedy, "FabricUnreachable")
        else:
            found += _passed("fabric reachable", fabric, f"The fabric {fabric} answers.")
    return found


def _cloud_machine_running(facts: ReadinessFacts) -> list[Check]:
    name, subject = "cloud machine running", facts.cloud_machine
    if facts.cloud_fabric_problem:
        return _skipped(name, subject, "Cannot be checked while its fabric does not answer.")
    if facts.cloud_power == "On":
        return _passed(name, subject, "The cloud machine is powered on.")
    if not facts.cloud_power:
        sentence, remedy = "The cloud machine was not found in its fabric.", "a deleted machine cannot be brought home"
    else:
        sentence = f"The cloud machine is not running (power state {facts.cloud_power})."
        remedy = "start the machine, wait until its agent is heard from, then restart the job"
    return _failed(name, subject, sentence, remedy, "78093")


def _on_premises_machine_off(facts: ReadinessFacts) -> list[Check]:
    name, subject = "on-premises machine off", facts.on_premises_machine
    if not facts.has_on_premises_origin:
        return _skipped(name, subject, "There is no on-premises machine.")
    if facts.on_premises_fabric_problem:
        return _skipped(name, subject, "Cannot be checked while its fabric does not answer.")
    if facts.on_premises_power == "Off":
        return _passed(name, subject, "The on-premises machine is powered off.")
    if not facts.on_premises_power:
        sentence = "The on-premises machine was not found in its fabric."
        return _failed(name, subject, sentence, "register the machine in the fabric again", "OnPremisesMachineMissing")
    sentence = f"The on-premises machine is not off (power state {facts.on_premises_power}); its disks must be ours."
    return _failed(name, subject, sentence, "power it off: it is the older twin", "OnPremisesMachineOn")


def _disks(facts: ReadinessFacts) -> list[Check]:
    name = "disks match"
    if not facts.has_on_premises_origin or facts.on_premises_fabric_problem or not facts.disks:
        return _skipped(name, facts.item_name, "No on-premises disks are known.")
    found: list[Check] = []
    for disk in facts.disks:
        if disk.seen_by_agent is False:
            sentence = "The agent sees no device that matches this disk."
            found += _failed(name, disk.name, sentence, "check that the disk is attached to the machine", "DiskNotSeen")
        elif disk.target_missing:
            sentence = f"The on-premises disk is missing and will be created with {_size(disk.source_size_bytes)}."
            found += _passed(name, disk.name, sentence)
        elif disk.source_size_bytes != disk.target_size_bytes:
            sentence = (
                f"The cloud disk has {disk.source_size_bytes} bytes, "
                f"the on-premises disk {disk.target_size_bytes} bytes."
            )
            remedy = "resize the on-premises disk to the cloud disk's size, or remove it so that it is created anew"
            found += _failed(name, disk.name, sentence, remedy, "DiskSizeMismatch")
        else:
            found += _passed(name, disk.name, f"Both sides have {_size(disk.source_size_bytes)}.")
    return found


def _agent(facts: ReadinessFacts) -> list[Check]:
    name = "agent heartbeat"
    remedy = (
        "check that the cloud machine reaches the configuration server (VPN or private link) and that the service "
        "failback-mobility runs and starts by itself"
    )
    if facts.agent is None:
        sentence = "No mobility service of this machine is registered."
        return _failed(name, facts.item_name, sentence, remedy, "95226")
    return _heartbeat(name, facts.agent, facts.heartbeat_alarm_seconds, remedy, "95226")


def _self_test(facts: ReadinessFacts) -> list[Check]:
    name = "capture self-test"
    if facts.agent is None or not _alive(facts.agent, facts.heartbeat_alarm_seconds):
        return _skipped(name, facts.item_name, "Cannot be checked without a heartbeat of the agent.")
    subject = facts.agent.hostname
    if facts.agent_self_test == "passed":
        return _passed(name, subject, "The capture of writes was tested on this kernel and works.")
    if facts.agent_self_test == "failed":
        sentence = f"The capture of writes does not work on this kernel: {facts.agent_problem or 'no reason given'}"
    else:
        sentence = "The capture of writes has not been tested on this machine yet."
    remedy = "read `journalctl -u failback-mobility`; a kernel of 5.8 or newer with BTF is needed"
    return _failed(name, subject, sentence, remedy, "CaptureSelfTest")


def _process_server(facts: ReadinessFacts) -> list[Check]:
    name = "process server heartbeat"
    if facts.process_server is None:
        return _missing(name, "process server", facts.process_server_asked, "--process-server", "806")
    remedy = "start the service failback-process-server and check its way to the configuration server"
    return _heartbeat(name, facts.process_server, facts.heartbeat_alarm_seconds, remedy, "806")


def _master_target(facts: ReadinessFacts) -> list[Check]:
    name = "master target heartbeat"
    if facts.master_target is None:
        return _missing(name, "master target", facts.master_target_asked, "--master-target", "78022")
    remedy = "start the service failback-master-target and check its way to the configuration server"
    return _heartbeat(name, facts.master_target, facts.heartbeat_alarm_seconds, remedy, "78022")


def _os_family(facts: ReadinessFacts) -> list[Check]:
    name = "operating system family"
    source = facts.source_os_family or (facts.agent.os_family if facts.agent else "")
    target = facts.master_target.os_family if facts.master_target else ""
    if not source or not target:
        return _skipped(name, facts.item_name, "The family of the machine or of the master target is not known yet.")
    if source != target:
        sentence = f"The machine runs {source}, the master target {target}."
        remedy = f"choose a master target that runs {source}"
        return _failed(name, facts.item_name, sentence, remedy, "OsFamilyMismatch")
    return _passed(name, facts.item_name, f"Machine and master target both run {source}.")


def _disk_slots(facts: ReadinessFacts) -> list[Check]:
    name = "master target disk slots"
    if facts.master_target is None:
        return _skipped(name, facts.item_name, "No master target was chosen.")
    after = facts.master_target_disks + len(facts.disks)
    sentence = f"{after} of {MASTER_TARGET_DISK_LIMIT} disks would be attached to the master target."
    if after > MASTER_TARGET_DISK_LIMIT:
        remedy = "choose another master target or add one"
        return _failed(name, facts.master_target.hostname, sentence, remedy, "TooManyDisks")
    return _passed(name, facts.master_target.hostname, sentence)


def _retention_volume(facts: ReadinessFacts) -> list[Check]:
    name = "retention volume suitable"
    if facts.master_target is None:
        return _skipped(name, facts.retention_volume_asked, "No master target was chosen.")
    volume = facts.retention_volume
    if volume is None:
        asked = facts.retention_volume_asked
        sentence = (
            f"The master target reports no retention volume {asked!r}." if asked else "No retention volume was chosen."
        )
        remedy = "add and format a volume for retention on the master target and name it in its configuration"
        return _failed(name, asked, sentence, remedy, "RetentionVolumeMissing")
    if volume.problem:
        return _failed(name, volume.name, volume.problem, "choose another volume", "RetentionVolumeUnsuitable")
    return _passed(name, volume.name, f"The volume may hold the journal ({volume.filesystem}).")


def _retention_capacity(facts: ReadinessFacts) -> list[Check]:
    name = "retention capacity"
    volume = facts.retention_volume
    if volume is None:
        return _skipped(name, facts.retention_volume_asked, "There is no retention volume to measure.")
    protected = sum(disk.source_size_bytes for disk in facts.disks)
    needed = max(RETENTION_FREE_MINIMUM_BYTES, int(protected * RETENTION_FREE_SHARE))
    sentence = f"{_size(volume.free_bytes)} are free; at least {_size(needed)} are needed to begin."
    if volume.free_bytes < needed:
        remedy = "free space on the volume or choose a larger one"
        return _failed(name, volume.name, sentence, remedy, "RetentionVolumeFull")
    return _passed(name, volume.name, sentence)


def _datastore(facts: ReadinessFacts) -> list[Check]:
    name = "datastore accessible"
    if facts.master_target is None:
        return _skipped(name, facts.datastore_asked, "No master target was chosen.")
    if not facts.datastore_asked:
        if any(disk.target_missing for disk in facts.disks):
            sentence = "No datastore was named, and on-premises disks have to be created."
            return _failed(name, "", sentence, "name one with --datastore", "8061")
        return _skipped(name, "", "No datastore was named; the disks stay where they are.")
    store = facts.datastore
    if store is None:
        sentence = f"The master target does not reach a datastore {facts.datastore_asked!r}."
        remedy = "mount the datastore read/write on the master target's host and name it in its configuration"
        return _failed(name, facts.datastore_asked, sentence, remedy, "8061")
    if store.problem:
        return _failed(name, store.name, store.problem, "choose another datastore", "8061")
    return _passed(name, store.name, "The master target reaches the datastore.")


def _datastore_capacity(facts: ReadinessFacts) -> list[Check]:
    name = "datastore capacity"
    store = facts.datastore
    needed = sum(disk.source_size_bytes for disk in facts.disks if disk.target_missing)
    if store is None or not needed:
        return _skipped(name, facts.datastore_asked, "No disk has to be created.")
    sentence = f"{_size(store.free_bytes)} are free; the disks to create need up to {_size(needed)}."
    if store.free_bytes < needed:
        return _failed(name, store.name, sentence, "free space or choose another datastore", "DatastoreFull")
    return _passed(name, store.name, sentence)


def _versions(facts: ReadinessFacts) -> list[Check]:
    """Master target <= process server <= configuration server (seed of asr.md 7.12 L4); agent <= process server."""
    name = "versions"
    own = facts.configuration_server_version
    chain: list[tuple[str, str, str, str]] = []
    if facts.process_server:
        chain.append(("process server", facts.process_server.version, "configuration server", own))
    if facts.master_target and facts.process_server:
        chain.append(("master target", facts.master_target.version, "process server", facts.process_server.version))
    if facts.agent and facts.process_server:
        chain.append(("mobility service", facts.agent.version, "process server", facts.process_server.version))
    if not chain:
        return _skipped(name, facts.item_name, "No process server was chosen.")
    for lower, lower_version, upper, upper_version in chain:
        if version_key(lower_version) > version_key(upper_version):
            sentence = f"The {lower} ({lower_version}) is newer than the {upper} ({upper_version})."
            return _failed(name, lower, sentence, f"upgrade the {upper} first", "VersionTooNew")
    return _passed(name, facts.item_name, "Master target and agent are not newer than the servers above them.")


def _clock_skew(facts: ReadinessFacts) -> list[Check]:
    name = "clock skew"
    measured = [
        component
        for component in (facts.agent, facts.process_server, facts.master_target)
        if component is not None and component.clock_skew_seconds is not None
    ]
    if not measured:
        return _skipped(name, facts.item_name, "No component has been measured yet.")
    worst = max(measured, key=lambda component: abs(component.clock_skew_seconds or 0.0))
    skew = abs(worst.clock_skew_seconds or 0.0)
    if skew > CLOCK_SKEW_LIMIT_SECONDS:
        sentence = (
            f"The clock of {worst.hostname} differs by {skew:.0f} s; {CLOCK_SKEW_LIMIT_SECONDS:.0f} s are allowed."
        )
        return _failed(name, worst.hostname, sentence, "set up time synchronisation on it", "ACS50008")
    advice = "; points will carry that machine's time" if skew > CLOCK_SKEW_WARNING_SECONDS else ""
    return _passed(name, worst.hostname, f"The largest difference is {skew:.1f} s{advice}.")


def _probes(facts: ReadinessFacts) -> list[Check]:
    found: list[Check] = []
    for edge in facts.probes:
        name, subject = f"{CONNECTIVITY}: {edge.purpose}", f"{edge.source} -> {edge.target}"
        if edge.failure is None:
            found += _skipped(name, subject, f"{edge.source} cannot be asked to try it now.")
        elif edge.failure:
            remedy = f"open TCP from {edge.source} to {edge.target} (VPN, firewall, address)"
            sentence = f"{edge.source} cannot connect to {edge.target}: {edge.failure}"
            found += _failed(name, subject, sentence, remedy, edge.code or "Unreachable")
        else:
            found += _passed(name, subject, f"{edge.source} connects to {edge.target}.")
    return found


Rule = Callable[[ReadinessFacts], list[Check]]


def _replication_group(facts: ReadinessFacts) -> list[Check]:
    """Rows 39 and 40: one operating system family, one master target; else there is no common point in time."""
    name = "replication group"
    if not facts.group:
        return _skipped(name, facts.item_name, "The machine is in no replication group.")
    remedy = f"choose the group's master target, or: failback group remove {facts.group} {facts.item_name}"
    own_family = facts.source_os_family or (facts.agent.os_family if facts.agent else "")
    for member in facts.group_members:
        if own_family and member.os_family and own_family.lower() != member.os_family.lower():
            sentence = (
                f"{facts.item_name} runs {own_family}, {member.name} of group {facts.group} runs {member.os_family}."
            )
            return _failed(name, facts.group, sentence, remedy, "GroupNeedsOneOperatingSystem")
        other = member.replicating and member.master_target_id
        if other and facts.master_target is not None and other != facts.master_target.component_id:
            sentence = f"{member.name} of group {facts.group} replicates to another master target."
            return _failed(name, facts.group, sentence, remedy, "GroupNeedsOneMasterTarget")
    return _passed(name, facts.group, f"The members of {facts.group} fit together.")


CHECKS: tuple[Rule, ...] = (
    _item_state,
    _no_other_job,
    _origin,
    _fabrics,
    _cloud_machine_running,
    _on_premises_machine_off,
    _disks,
    _agent,
    _self_test,
    _process_server,
    _master_target,
    _os_family,
    _replication_group,
    _disk_slots,
    _retention_volume,
    _retention_capacity,
    _datastore,
    _datastore_capacity,
    _versions,
    _clock_skew,
    _probes,
)


def version_key(version: str) -> tuple[int, ...]:
    """``0.10.2.dev1`` -> (0, 10, 2): the leading numbers; what follows them does not order versions."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _alive(component: ComponentFacts, alarm_seconds: float) -> bool:
    return component.seconds_since_heartbeat is not None and component.seconds_since_heartbeat <= alarm_seconds


def _heartbeat(name: str, component: ComponentFacts, alarm_seconds: float, remedy: str, code: str) -> list[Check]:
    age = component.seconds_since_heartbeat
    if age is None:
        return _failed(name, component.hostname, f"{component.hostname} has never been heard from.", remedy, code)
    if age > alarm_seconds:
        sentence = f"{component.hostname} was heard from {age:.0f} s ago; the limit is {alarm_seconds:.0f} s."
        return _failed(name, component.hostname, sentence, remedy, code)
    return _passed(name, component.hostname, f"{component.hostname} was heard from {age:.0f} s ago.")


def _missing(name: str, what: str, asked: str, option: str, code: str) -> list[Check]:
    if asked:
        sentence, remedy = f"No {what} {asked!r} is registered.", "see `failback component list`"
    else:
        sentence, remedy = f"No {what} was chosen and none is registered.", f"enrol one, then name it with {option}"
    return _failed(name, asked, sentence, remedy, code)


def _size(count: int) -> str:
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
