"""Rows 11-15, L1, L2, L9, L12 and the fabrics: what the machine is brought back to, and the account that does it.

The vSphere rules are finished and are not applicable where another fabric stands on premises. A different vCenter is
allowed when it and the master target are discovered (row 15), not refused (L12): see docs/decisions/0030.
"""

from __future__ import annotations

from failback.protection.readiness.facts import ReadinessFacts
from failback.protection.readiness.finding import Check, failed, judged, passed, skipped
from failback.protection.readiness.rows import BOTH, FAILBACK, Place, Row
from failback.protection.readiness.support_matrix import ORIGINAL_TARGETS


def not_vsphere(facts: ReadinessFacts, subject: str = "") -> list[Check]:
    driver = ORIGINAL_TARGETS.get(facts.on_premises_driver, facts.on_premises_driver or "another hypervisor")
    return skipped(subject or facts.on_premises_fabric, f"The on-premises side is {driver}, not vSphere.")


def fabrics_answer(facts: ReadinessFacts) -> list[Check]:
    found: list[Check] = []
    sides = (
        (facts.cloud_fabric, facts.cloud_fabric_problem),
        (facts.on_premises_fabric, facts.on_premises_fabric_problem),
    )
    for fabric, problem in dict.fromkeys(sides):
        no = f"The fabric {fabric} does not answer: {problem}"
        found += judged(not problem, fabric, f"The fabric {fabric} answers.", no)
    return found


def target_platform(facts: ReadinessFacts) -> list[Check]:
    subject = facts.on_premises_fabric
    if facts.vsphere is not None:
        spoken = f"{facts.vsphere.hypervisor} {facts.vsphere.hypervisor_version}".strip()
        return judged(
            facts.vsphere.hypervisor == "ESXi",
            subject,
            f"The target is {spoken}.",
            f"The target is {spoken}: vSphere machines come back to ESXi only.",
        )
    known = ORIGINAL_TARGETS.get(facts.on_premises_driver)
    if known is None and not facts.on_premises_driver:
        return skipped(subject, "The on-premises fabric is not configured here.")
    no = f"There is no way back to a fabric of the kind {facts.on_premises_driver!r}."
    return judged(known is not None, subject, f"The target is {known}.", no)


def licence(facts: ReadinessFacts) -> list[Check]:
    if facts.vsphere is None:
        return not_vsphere(facts)
    host = facts.vsphere.master_target_host
    return judged(
        facts.vsphere.licence.lower() != "free",
        host,
        f"The host has the licence {facts.vsphere.licence}.",
        "The host has the free edition of the hypervisor: failover works with it, failback does not.",
    )


def privileges(facts: ReadinessFacts) -> list[Check]:
    if facts.vsphere is None:
        return not_vsphere(facts)
    missing = ", ".join(facts.vsphere.missing_privileges)
    return judged(
        not missing,
        facts.vsphere.vcenter,
        "The account has all privileges.",
        f"The account lacks privileges: {missing}.",
    )


def not_read_only(facts: ReadinessFacts) -> list[Check]:
    if facts.vsphere is None:
        return not_vsphere(facts)
    return judged(
        not facts.vsphere.account_read_only,
        facts.vsphere.vcenter,
        "The account may change what it sees.",
        "The account is read-only: datastores are not discovered and a reprotect fails.",
    )


def same_vcenter(facts: ReadinessFacts) -> list[Check]:
    if facts.vsphere is None:
        return not_vsphere(facts)
    now, before = facts.vsphere.vcenter, facts.vsphere.original_vcenter
    if not before or now == before:
        return passed(now, "The machine goes back to the vCenter that it came from.")
    found = facts.vsphere.vcenter_connected and bool(facts.vsphere.master_target_host)
    return judged(
        found,
        now,
        f"It goes to the vCenter {now} instead of {before}; that one and the master target are discovered.",
        f"It would go to the vCenter {now} instead of {before}; that one or the master target is not discovered.",
    )


def vcenter_connected(facts: ReadinessFacts) -> list[Check]:
    if facts.vsphere is None:
        return not_vsphere(facts)
    vcenter = facts.vsphere.vcenter
    return judged(
        facts.vsphere.vcenter_connected,
        vcenter,
        f"The vCenter {vcenter} is connected.",
        f"The vCenter {vcenter} is not connected: disks could be neither attached nor detached.",
    )


def physical_comes_back_virtual(facts: ReadinessFacts) -> list[Check]:
    if facts.source_kind != "physical":
        return passed(facts.item_name, "The machine was protected as a virtual machine.")
    if facts.vsphere is None:
        known = bool(facts.on_premises_power)
        return judged(
            known,
            facts.item_name,
            f"The physical machine comes back as the virtual machine {facts.on_premises_machine}.",
            "A physical machine comes back as a virtual machine, and none is named for it.",
        )
    return judged(
        bool(facts.vsphere.master_target_host),
        facts.item_name,
        f"The physical machine comes back as a new machine on {facts.vsphere.master_target_host}.",
        "A physical machine comes back as a new machine on the master target's host, which is not discovered.",
    )


def firmware_fits(facts: ReadinessFacts) -> list[Check]:
    """Contradiction 6 of the catalogue: UEFI is brought home, to a machine with the same firmware."""
    source, target = facts.source_firmware, facts.on_premises_firmware
    if not source or not target:
        return skipped(facts.item_name, "The firmware of one side is not known.")
    if source != target:
        sentence = (
            f"The machine boots by {source.upper()} in the cloud, the on-premises machine is set to {target.upper()}."
        )
        return failed(facts.on_premises_machine, sentence)
    return passed(facts.item_name, f"Both sides boot by {source.upper()}.")


ROWS = (
    Row("X2", "X", "fabric reachable", "fabric", "cannot proceed", check=fabrics_answer, operations=BOTH,
        code="FabricUnreachable", remedy="check the fabric's address, credentials and service, then try again"),
    Row("11", "P/F", "target platform", "target host", "reprotect and failback are not supported", check=target_platform,
        operations=BOTH, code="TargetPlatformNotSupported", remedy="choose a host of a supported kind (docs/readiness.md)"),
    Row("12", "F", "hypervisor licence", "target host", "failover works, failback does not", check=licence,
        operations=BOTH, code="FreeHypervisorLicence", remedy="give the host an evaluation or paid licence"),
    Row("13", "P", "vCenter privileges", "vCenter account", "machines are not discovered", check=privileges,
        code="VCenterPrivilegesMissing", remedy="grant the privileges to the account, then refresh the provider"),
    Row("14", "P", "vCenter account may write", "vCenter account", "reprotect fails; datastores are not listed",
        check=not_read_only, code="VCenterAccountReadOnly",
        remedy="update the credentials with a sufficient account, then retry"),
    Row("15", "P", "vCenter of origin", "vCenter, master target", "datastores are inaccessible or invisible",
        check=same_vcenter, code="VCenterNotDiscovered",
        remedy="discover the new vCenter and the master target, then refresh the provider"),
    Row("L1", "L", "vCenter connected", "vCenter", "disks can be neither attached nor detached", check=vcenter_connected,
        operations=BOTH, code="VCenterNotConnected", remedy="check the vCenter's address, credentials and certificate"),
    Row("L2", "L", "physical machine comes back virtual", "item", "there is nothing to come back to",
        check=physical_comes_back_virtual, code="AlternateLocationNeedsHost",
        remedy="discover the master target's host, or create a virtual machine for it"),
    Row("L12", "L", "same configuration server and vCenter", "vCenter", "decided otherwise: row 15 is followed",
        Place.DOCUMENTED, reason="contradicts row 15; decided in docs/decisions/0030"),
    Row("X9", "X", "firmware", "on-premises machine", "the machine would not boot", check=firmware_fits, operations=BOTH,
        code="FirmwareMismatch", remedy="set the on-premises machine to the same firmware"),
)  # fmt: skip

__all__ = ["FAILBACK", "ROWS", "not_vsphere"]
