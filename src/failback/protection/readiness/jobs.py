"""Rows 68-80: what is chosen for a reprotect, groups and plans, and what a job does to the on-premises machine."""

from __future__ import annotations

from failback.protection.operations import Operation
from failback.protection.readiness.facts import ReadinessFacts
from failback.protection.readiness.finding import Check, failed, judged, passed, skipped
from failback.protection.readiness.rows import BOTH, FAILBACK, Place, Row


def on_premises_machine_off(facts: ReadinessFacts) -> list[Check]:
    subject = facts.on_premises_machine
    if not facts.has_on_premises_origin or facts.alternate_location:
        return skipped(subject, "There is no on-premises machine.")
    if facts.on_premises_fabric_problem or not facts.on_premises_power:
        return skipped(subject, "Cannot be checked: the machine was not found, or its fabric does not answer.")
    power = facts.on_premises_power
    no = f"The on-premises machine is not off (power state {power}); its disks must be ours."
    return judged(power == "Off", subject, "The on-premises machine is powered off.", no)


def policy_chosen(facts: ReadinessFacts) -> list[Check]:
    no = "There is no failback policy that could be chosen by itself."
    return judged(bool(facts.policy_name), facts.item_name, f"The policy {facts.policy_name} is chosen by itself.", no)


def downtime(facts: ReadinessFacts) -> list[Check]:
    """Row 80: a failback is an outage; what it will be like is said before."""
    if facts.operation is not Operation.FAILOVER:
        return skipped(facts.item_name, "A reprotect does not interrupt the machine.")
    if facts.source_lost:
        return passed(facts.item_name, "The cloud machine is off: the outage lasts already.")
    rate, backlog = facts.transfer.measured_bytes_per_second, facts.transfer.backlog_bytes
    last = facts.transfer.last_downtime_seconds
    spoken = f"; the last failback took {last:.0f} s" if last is not None else ""
    if rate and backlog / rate > 600:
        sentence = (
            f"{backlog} bytes have not arrived yet, {backlog / rate:.0f} s at the measured rate: the freeze would end."
        )
        return failed(facts.item_name, sentence)
    return passed(facts.item_name, f"The machine stops while the rest of {backlog} bytes arrives and it boots{spoken}.")


_CONSOLE = "a step of the portal's pages; the command is `failback reprotect NAME`"
_REPROTECT = "failback.configuration_server.workflows.reprotect"

ROWS = (
    Row("68", "U", "where it is started", "portal", "none", Place.DOCUMENTED, reason=_CONSOLE),
    Row("69", "U", "direction preselected", "input", "none", Place.DOCUMENTED,
        reason="the direction follows from the item; any other is refused (506)"),
    Row("70", "P", "process server and master target chosen", "input", "refused (506 when a field is missing)", Place.INPUT,
        by=("failback.configuration_server.api.inputs:check_reprotect",)),
    Row("72", "P", "failback policy chosen by itself", "input", "none", check=policy_chosen, code="78253",
        remedy="restart the configuration server: it makes the policy at its start",
        by=(f"{_REPROTECT}:get_requirements",)),
    Row("73", "I", "failback policy", "policy", "made with the server, associated with it, not editable", Place.DOCUMENTED,
        reason="kept as it is: failback.protection.policy_rules refuses an edit"),
    Row("74", "U", "the job can be followed", "job", "none", Place.DOCUMENTED,
        reason="`failback job show`, and the portal's page"),
    Row("75", "P", "values for each machine of a plan", "recovery plan", "missing values of a machine are refused",
        Place.INPUT,
        by=("failback.configuration_server.api.inputs:check_reprotect",)),
    Row("76", "P", "members of a group together", "replication group", "a common point needs all of them", Place.RUNTIME_GUARD,
        by=("failback.configuration_server.workflows.group_point:GroupPoints",)),
    Row("77", "R", "on-premises machine off", "on-premises machine", "its disks could not be replicated to",
        check=on_premises_machine_off, operations=BOTH, code="OnPremisesMachineOn", remedy="power it off: it is the older twin",
        by=(f"{_REPROTECT}:get_requirements",)),
    Row("78", "R", "on-premises machine stays off", "on-premises machine", "it would corrupt the replica",
        Place.RUNTIME_GUARD, by=("failback.configuration_server.monitors.replica_guard:ReplicaGuard",)),
    Row("79", "R", "protected afterwards", "item", "then failback is allowed", Place.RUNTIME_GUARD,
        by=("failback.configuration_server.workflows.finalize:IR_COMPLETION", "failback.protection.states:TABLE")),
    Row("80", "R", "expected downtime", "item", "the machine is down while it moves", check=downtime, operations=FAILBACK,
        code="BacklogTooLong", remedy="wait until the backlog has arrived, then fail back"),
)  # fmt: skip
