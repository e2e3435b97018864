"""Rows 16-19, 22-24, L4, L8: the configuration server, and whether machine and servers are heard from and fit together."""

from __future__ import annotations

from failback.protection.readiness.facts import ComponentFacts, ReadinessFacts
from failback.protection.readiness.finding import Check, failed, judged, passed, skipped, version_key, warned
from failback.protection.readiness.rows import BOTH, Place, Row

CLOCK_SKEW_LIMIT_SECONDS = 900.0
CLOCK_SKEW_WARNING_SECONDS = 5.0
BACKUP_WARNING_SECONDS = 7 * 86_400.0


def heartbeat(component: ComponentFacts, alarm_seconds: float) -> list[Check]:
    age = component.seconds_since_heartbeat
    if age is None:
        return failed(component.hostname, f"{component.hostname} has never been heard from.")
    if age > alarm_seconds:
        sentence = f"{component.hostname} was heard from {age:.0f} s ago; the limit is {alarm_seconds:.0f} s."
        return failed(component.hostname, sentence)
    return passed(component.hostname, f"{component.hostname} was heard from {age:.0f} s ago.")


def backed_up(facts: ReadinessFacts) -> list[Check]:
    subject = "the configuration server"
    if not facts.backups_known:
        return skipped(subject, "This server does not know of its backups.")
    if facts.seconds_since_backup is None:
        return warned(subject, "The configuration server was never backed up.")
    days = facts.seconds_since_backup / 86_400
    if facts.seconds_since_backup > BACKUP_WARNING_SECONDS:
        return warned(subject, f"The last backup of the configuration server is {days:.0f} days old.")
    return passed(subject, f"The configuration server was backed up {days:.1f} days ago.")


def agent_heard(facts: ReadinessFacts) -> list[Check]:
    if facts.source_lost:
        return skipped(facts.item_name, "The cloud machine was named as lost.")
    if facts.agent is None:
        return failed(facts.item_name, "No mobility service of this machine is registered.")
    return heartbeat(facts.agent, facts.heartbeat_alarm_seconds)


def agent_on_cloud_hardware(facts: ReadinessFacts) -> list[Check]:
    """The heartbeats that count come from the machine in the cloud, not from the twin that was there before."""
    agent = facts.agent
    if facts.source_lost or agent is None:
        return skipped(facts.item_name, "No mobility service of the cloud machine is known.")
    return judged(
        not facts.agent_heard_elsewhere,
        agent.hostname,
        "The mobility service has registered from the cloud machine.",
        f"The mobility service was heard from last on other hardware ({facts.agent_heard_elsewhere}).",
    )


def service_enabled(facts: ReadinessFacts) -> list[Check]:
    if facts.agent is None or not facts.source_service:
        return skipped(facts.item_name, "The machine does not say how its mobility service is started.")
    return judged(
        facts.source_service == "enabled",
        facts.agent.hostname,
        "The service failback-mobility runs and starts by itself.",
        f"The service failback-mobility does not start by itself ({facts.source_service}): it is gone after a restart.",
    )


def cloud_machine_running(facts: ReadinessFacts) -> list[Check]:
    if facts.source_lost:
        return skipped(facts.cloud_machine, "The cloud machine was named as lost.")
    if facts.cloud_fabric_problem or not facts.cloud_power:
        return skipped(
            facts.cloud_machine, "Cannot be checked: the machine was not found, or its fabric does not answer."
        )
    return judged(
        facts.cloud_power == "On",
        facts.cloud_machine,
        "The cloud machine is powered on.",
        f"The cloud machine is not running (power state {facts.cloud_power}).",
    )


def self_test(facts: ReadinessFacts) -> list[Check]:
    if facts.source_lost or facts.agent is None or not facts.agent.alive(facts.heartbeat_alarm_seconds):
        return skipped(facts.item_name, "Cannot be checked without a heartbeat of the agent.")
    subject = facts.agent.hostname
    if facts.comparison_minutes:
        total = sum(disk.source_size_bytes for disk in facts.disks) / (1 << 30)
        sentence = (
            f"Periodic comparison every {facts.comparison_minutes} min instead of capture: recovery points come only of "
            "comparisons during which the machine does not write, and a failback or an app-consistent point holds it still "
            f"while all of its {total:.1f} GiB are read once."
        )
        return passed(subject, sentence)
    if facts.agent_self_test == "passed":
        return passed(subject, "The capture of writes was tested on this kernel and works.")
    if facts.agent_self_test == "failed":
        return failed(
            subject, f"The capture of writes does not work on this kernel: {facts.agent_problem or 'no reason given'}"
        )
    return failed(subject, "The capture of writes has not been tested on this machine yet.")


def _system(os_version: str) -> tuple[str, tuple[int, ...]]:
    name, _, version = os_version.strip().lower().rpartition(" ")
    return name, version_key(version)


def versions(facts: ReadinessFacts) -> list[Check]:
    """Master target <= process server <= configuration server, agent <= process server; the target's system not older."""
    own = facts.configuration_server_version
    chain: list[tuple[str, str, str, str]] = []
    if facts.process_server:
        chain.append(("process server", facts.process_server.version, "configuration server", own))
    if facts.master_target and facts.process_server:
        chain.append(("master target", facts.master_target.version, "process server", facts.process_server.version))
    if facts.agent and facts.process_server:
        chain.append(("mobility service", facts.agent.version, "process server", facts.process_server.version))
    if not chain:
        return skipped(facts.item_name, "No process server was chosen.")
    for lower, lower_version, upper, upper_version in chain:
        if version_key(lower_version) > version_key(upper_version):
            sentence = f"The {lower} ({lower_version}) is newer than the {upper} ({upper_version})."
            return failed(lower, sentence, f"upgrade the {upper} first")
    if facts.agent and facts.master_target:
        (name, source), (other, target) = _system(facts.agent.os_version), _system(facts.master_target.os_version)
        if name and name == other and source > target:
            return warned(
                facts.master_target.hostname,
                f"The machine runs {facts.agent.os_version}, the master target the older {facts.master_target.os_version}.",
                "upgrade the master target's system: it should be as new as the machines that it serves",
                "MasterTargetSystemOlder",
            )
    return passed(facts.item_name, "Master target and agent are not newer than the servers above them.")


def clock_skew(facts: ReadinessFacts) -> list[Check]:
    measured = [
        component
        for component in (facts.agent, facts.process_server, facts.master_target)
        if component is not None and component.clock_skew_seconds is not None
    ]
    if not measured:
        return skipped(facts.item_name, "No component has been measured yet.")
    worst = max(measured, key=lambda component: abs(component.clock_skew_seconds or 0.0))
    skew = abs(worst.clock_skew_seconds or 0.0)
    if skew > CLOCK_SKEW_LIMIT_SECONDS:
        limit = f"{CLOCK_SKEW_LIMIT_SECONDS:.0f} s are allowed"
        return failed(worst.hostname, f"The clock of {worst.hostname} differs by {skew:.0f} s; {limit}.")
    if skew > CLOCK_SKEW_WARNING_SECONDS:
        return warned(worst.hostname, f"The clock of {worst.hostname} differs by {skew:.1f} s; points carry its time.")
    return passed(worst.hostname, f"The largest difference is {skew:.1f} s.")


def two_cards_for_kept_addresses(facts: ReadinessFacts) -> list[Check]:
    """With the same addresses in the cloud as on premises the server needs one card for each of the two networks."""
    subject = "the configuration server"
    home = facts.vsphere.machine.addresses if facts.vsphere is not None and facts.vsphere.machine else ()
    away = facts.azure.addresses if facts.azure is not None else ()
    if not home or not away:
        return skipped(subject, "The machine's addresses on both sides are not known.")
    kept = sorted(set(home) & set(away))
    if not kept:
        return passed(subject, "The machine has other addresses in the cloud than on premises.")
    if facts.configuration_server_nics is None:
        return skipped(subject, "The network cards of this server are not known.")
    return judged(
        facts.configuration_server_nics >= 2,
        subject,
        f"The machine kept the address {kept[0]}, and the server has {facts.configuration_server_nics} network cards.",
        f"The machine kept the address {kept[0]} in the cloud, and the server has only one network card.",
    )


_REACH = (
    "check that the cloud machine reaches the configuration server (VPN or private link) and that the service "
    "failback-mobility runs and starts by itself; after a start in the cloud wait up to 15 minutes"
)

ROWS = (
    Row("16", "P/F", "configuration server up all along", "configuration server", "nothing goes on until it is back",
        Place.RUNTIME_GUARD, by=("failback.configuration_server.jobs.engine:JobEngine",), operations=BOTH),
    Row("17", "F", "item is in the database", "configuration server's database", "failback fails: no such item",
        Place.INPUT, by=("failback.configuration_server.database.items:named",), operations=BOTH),
    Row("18", "A", "configuration server backed up", "configuration server", "after a disaster nothing can be failed back",
        check=backed_up, operations=BOTH, code="BackupOld",
        remedy="back it up regularly, and restore it under the same name or address"),
    Row("24", "P", "cloud machine running", "cloud machine", "the job fails", check=cloud_machine_running, operations=BOTH,
        code="78093", remedy="start the machine, wait until its agent is heard from, then restart the job"),
    Row("22", "P", "agent heartbeat", "cloud machine to configuration server", "the machine cannot be discovered",
        check=agent_heard, operations=BOTH, code="95226", remedy=_REACH),
    Row("19", "P", "agent registered from the cloud", "agent", "'agent not installed'", check=agent_on_cloud_hardware,
        operations=BOTH, code="95226", remedy="wait some minutes after the start in the cloud (at most 15), then retry"),
    Row("23", "P", "mobility service starts by itself", "service on the cloud machine", "the machine cannot be discovered",
        check=service_enabled, code="95226", remedy="systemctl enable --now failback-mobility"),
    Row("X4", "X", "capture self-test", "agent", "writes could be missed", check=self_test, operations=BOTH,
        code="CaptureSelfTest", remedy="read `journalctl -u failback-mobility`; a kernel of 5.17 or newer with BTF is needed. "
        "Where that cannot be had: --periodic-comparison compares the disks again and again, with far fewer recovery points"),
    Row("L4", "L", "versions", "servers and agent", "messages of a newer version are not understood", check=versions,
        operations=BOTH, code="VersionTooNew", remedy="upgrade the configuration server first, the agents last"),
    Row("X7", "X", "clock skew", "clocks", "tokens are refused; points carry wrong times", check=clock_skew, operations=BOTH,
        code="ACS50008", remedy="set up time synchronisation on it"),
    Row("L8", "L", "network cards of the configuration server", "configuration server", "one of both sides is not reached",
        check=two_cards_for_kept_addresses, code="SecondNetworkCardNeeded",
        remedy="give the server a second network card: one for each side"),
)  # fmt: skip
