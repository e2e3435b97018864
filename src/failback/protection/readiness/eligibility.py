"""Rows 1-10: whether the item can be brought home at all, whatever the servers are like."""

from __future__ import annotations

from failback.protection.operations import Direction, Operation
from failback.protection.readiness.facts import ReadinessFacts
from failback.protection.readiness.finding import Check, failed, judged, passed, skipped
from failback.protection.readiness.rows import BOTH, FAILBACK, Row
from failback.protection.readiness.support_matrix import FAMILIES, refusal
from failback.protection.states import State, why_not


def migration_not_completed(facts: ReadinessFacts) -> list[Check]:
    return judged(
        not facts.migration_completed,
        facts.item_name,
        "The migration was not completed.",
        "The migration of this machine was completed: its way home was given up for good.",
    )


def not_moved(facts: ReadinessFacts) -> list[Check]:
    if facts.azure is None:
        return skipped(facts.cloud_machine, f"The fabric {facts.cloud_fabric} has no resource groups.")
    before, now = facts.azure.protected_resource_group, facts.azure.resource_group
    return judged(
        before.lower() == now.lower(),
        facts.cloud_machine,
        f"The cloud machine is in its resource group {before}.",
        f"The cloud machine was moved from resource group {before} to {now}.",
    )


def not_deleted(facts: ReadinessFacts) -> list[Check]:
    if facts.cloud_fabric_problem:
        return skipped(facts.cloud_machine, "Cannot be checked while its fabric does not answer.")
    if facts.source_lost:
        return skipped(facts.cloud_machine, "The cloud machine was named as lost.")
    return judged(
        bool(facts.cloud_power),
        facts.cloud_machine,
        "The cloud machine is there.",
        "The cloud machine was not found in its fabric: it was deleted.",
    )


def protection_not_disabled(facts: ReadinessFacts) -> list[Check]:
    return judged(
        facts.state is not State.DISABLED,
        facts.item_name,
        "The protection is in force.",
        "The protection was disabled: the item is only kept for its history.",
    )


def has_origin(facts: ReadinessFacts) -> list[Check]:
    return judged(
        facts.has_on_premises_origin,
        facts.item_name,
        f"The machine came from {facts.on_premises_machine or 'on premises'}.",
        "The machine was born in the cloud: there is no on-premises machine to bring it back to.",
    )


def failed_over(facts: ReadinessFacts) -> list[Check]:
    if facts.state is State.DISABLED:
        return skipped(facts.item_name, "The protection was disabled.")
    reason = why_not(Operation.REPROTECT, facts.state, facts.direction)
    return judged(not reason, facts.item_name, "The item failed over and may be reprotected.", reason)


def replicating(facts: ReadinessFacts) -> list[Check]:
    if facts.state is State.DISABLED:
        return skipped(facts.item_name, "The protection was disabled.")
    reason = why_not(Operation.FAILOVER, facts.state, facts.direction, source_lost=facts.source_lost)
    if not reason and facts.direction is not Direction.TO_ON_PREMISES:
        reason = "The item does not replicate to on premises."
    if not reason and not facts.recovery_points:
        reason = "There is no recovery point to go back to."
    return judged(not reason, facts.item_name, f"Protected, with {facts.recovery_points} recovery points.", reason)


def source_kind(facts: ReadinessFacts) -> list[Check]:
    return judged(
        facts.source_kind in ("virtual", "physical"),
        facts.item_name,
        f"It was protected as a {facts.source_kind} machine.",
        f"It was protected as {facts.source_kind!r}; virtual and physical machines are brought home.",
    )


def _refused(facts: ReadinessFacts, row: str) -> list[Check]:
    version = facts.agent.os_version if facts.agent else ""
    if not version:
        return skipped(facts.item_name, "The mobility service has not told the operating system yet.")
    reason = refusal(version, facts.source_kind, row)
    return judged(not reason, facts.item_name, f"{version} is accepted.", f"{version} is not: {reason}.")


def not_2008_physical(facts: ReadinessFacts) -> list[Check]:
    return _refused(facts, "9")


def os_supported(facts: ReadinessFacts) -> list[Check]:
    family = facts.os_family.lower()
    if family and family not in FAMILIES:
        return failed(facts.item_name, f"Machines that run {facts.os_family} are not brought home.")
    return _refused(facts, "10")


def no_other_job(facts: ReadinessFacts) -> list[Check]:
    if facts.running_job:
        return failed(facts.item_name, f"{facts.running_job} is working on the item.")
    return passed(facts.item_name, "No other job is working on the item.")


ROWS = (
    Row("6", "P", "item state", "item", "cannot be reprotected", check=failed_over, code="OperationNotAllowed",
        remedy="look at `failback item show`"),
    Row("7", "F", "item replicates", "item", "failback is not offered", check=replicating, operations=FAILBACK,
        code="OperationNotAllowed", remedy="wait until the synchronisation is over; `failback item show` says how far it is"),
    Row("X1", "X", "no other job", "item", "the operation is refused", check=no_other_job, operations=BOTH,
        code="JobInProgress", remedy="wait for the job or cancel it"),
    Row("1", "B", "migration not completed", "item", "no failback, for good", check=migration_not_completed,
        operations=BOTH, code="MigrationCompleted", remedy="protect the machine anew from where it runs"),
    Row("2", "B", "resource group unchanged", "cloud machine", "no failback while it is moved", check=not_moved,
        code="MachineMoved", remedy="move the machine back to the resource group in which it failed over"),
    Row("3", "B", "cloud machine not deleted", "cloud machine", "no reprotect; a failback only to what has arrived",
        check=not_deleted, operations=BOTH, code="CloudMachineDeleted",
        remedy="a deleted machine cannot be reprotected; with recovery points: failback failback NAME --source-lost"),
    Row("4", "B", "protection not disabled", "item", "no failback, for good", check=protection_not_disabled,
        operations=BOTH, code="ProtectionDisabled", remedy="import the machine anew"),
    Row("5", "B", "on-premises origin", "item", "cannot be reprotected; refused at import as well", check=has_origin,
        operations=BOTH, code="NoOnPremisesOrigin", remedy="protect it as a cloud machine instead",
        by=("failback.configuration_server.api.import_item:no_origin",)),
    Row("8", "B", "source kind", "item", "out of scope", check=source_kind, operations=BOTH, code="SourceKindNotSupported",
        remedy="protect it as what it is: a virtual or a physical machine"),
    Row("9", "B", "not Windows Server 2008 R2 SP1 as physical", "item (system and source kind)", "failback is impossible",
        check=not_2008_physical, operations=BOTH, code="OsNotSupportedAsPhysical",
        remedy="there is no way back for this system: upgrade it in the cloud, or keep it there"),
    Row("10", "P", "operating system supported", "item (system)", "protection could not be applied", check=os_supported,
        code="78052", remedy="see the matrix in docs/readiness.md"),
)  # fmt: skip
