"""Rows 81-83 and our own: will the machine boot on premises, and be reached as before (beyond the documentation).

The facts are the agent's (``MachineFacts``): drivers in every kernel's initramfs, names in fstab and boot loader, network
configuration as it stands. A machine that would not boot warns before a reprotect, because the remedy can be done while
it replicates; without a driver for the disk it fails before a failback. Names that may change only warn: whether they do
depends on the controllers of both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

from failback.model.components import BootKernel, MachineFacts
from failback.protection.operations import Operation
from failback.protection.readiness.facts import ReadinessFacts
from failback.protection.readiness.finding import Check, failed, passed, skipped, warned
from failback.protection.readiness.rows import BOTH, Row


@dataclass(frozen=True, slots=True)
class TargetHardware:
    """Drivers of which one has to be there to reach the disk, and one to reach the network."""

    disk: tuple[str, ...]
    network: tuple[str, ...]


TARGET_HARDWARE = {
    "kvm": TargetHardware(("virtio_blk", "virtio_scsi"), ("virtio_net", "e1000", "e1000e")),
    "vsphere": TargetHardware(("mptspi", "vmw_pvscsi"), ("vmxnet3", "e1000", "e1000e")),
}
"""By the driver of the on-premises fabric. Network drivers may come from the root file system: they only warn."""


def _worst(facts: ReadinessFacts, subject: str, sentence: str) -> list[Check]:
    return failed(subject, sentence) if facts.operation is Operation.FAILOVER else warned(subject, sentence)


def _machine(facts: ReadinessFacts) -> MachineFacts | None:
    return facts.source_machine if facts.agent is not None else None


def _unknown(facts: ReadinessFacts) -> list[Check]:
    return skipped(facts.item_name, "The mobility service has not told how the machine boots.")


def _lacks(kernels: tuple[BootKernel, ...], drivers: tuple[str, ...]) -> list[str]:
    return [each.version for each in kernels if each.drivers is not None and not set(drivers) & set(each.drivers)]


def boots_from_target_disk(facts: ReadinessFacts) -> list[Check]:
    machine, hardware = _machine(facts), TARGET_HARDWARE.get(facts.on_premises_driver)
    if machine is None or hardware is None or not machine.kernels:
        return _unknown(facts)
    unread = [each.version for each in machine.kernels if each.drivers is None]
    lacking = _lacks(machine.kernels, hardware.disk)
    spoken = " or ".join(hardware.disk)
    if lacking:
        return _worst(facts, facts.item_name, f"The initramfs of {', '.join(lacking)} has no driver {spoken}.")
    if unread:
        return warned(facts.item_name, f"The initramfs of {', '.join(unread)} could not be read.")
    return passed(facts.item_name, f"Every bootable kernel ({len(machine.kernels)}) has {spoken} in its initramfs.")


def stable_names(facts: ReadinessFacts) -> list[Check]:
    machine = _machine(facts)
    if machine is None:
        return _unknown(facts)
    if machine.unstable_names:
        named = "; ".join(machine.unstable_names[:3])
        return warned(
            facts.item_name, f"Disks are named by the kernel's name, which changes with the hardware: {named}"
        )
    return passed(facts.item_name, "fstab and boot loader name disks by UUID or label.")


def efi_finds_a_loader(facts: ReadinessFacts) -> list[Check]:
    machine = _machine(facts)
    if machine is None or facts.source_firmware != "uefi":
        return skipped(facts.item_name, "The machine does not boot by UEFI, or does not say.")
    if not machine.efi_fallback:
        return warned(
            facts.item_name, "The removable-media path holds no boot loader: other firmware does not find it."
        )
    return passed(facts.item_name, "The removable-media path of its EFI partition holds a boot loader.")


def network_manager_kept(facts: ReadinessFacts) -> list[Check]:
    machine = _machine(facts)
    if machine is None or facts.os_family.lower() != "linux":
        return skipped(facts.item_name, "The machine is not a Linux machine, or does not say.")
    if not machine.network_renderer:
        return warned(
            facts.item_name, "No service that configures the network was found: it may have been removed in the cloud."
        )
    return passed(facts.item_name, f"{machine.network_renderer} configures the network, and comes home with the disk.")


def static_address(facts: ReadinessFacts) -> list[Check]:
    """Row 82: what was static before the machine went to the cloud is not known here; what is DHCP now stays DHCP."""
    machine = _machine(facts)
    if machine is None or facts.os_family.lower() != "linux":
        return skipped(facts.item_name, "The machine is not a Linux machine, or does not say.")
    if machine.dhcp_interfaces:
        names = ", ".join(machine.dhcp_interfaces)
        return warned(facts.item_name, f"{names} is configured by DHCP in the cloud, and will be so on premises.")
    statics = ", ".join(machine.static_addresses) or "none"
    return passed(facts.item_name, f"No interface is configured by DHCP (static: {statics}).")


def not_bound_to_hardware(facts: ReadinessFacts) -> list[Check]:
    machine = _machine(facts)
    if machine is None:
        return _unknown(facts)
    if machine.bound_to_hardware:
        named = "; ".join(machine.bound_to_hardware[:3])
        return warned(facts.item_name, f"Network configuration is bound to the cloud's network card: {named}")
    return passed(facts.item_name, "No network configuration is bound to a network card.")


def windows_address(facts: ReadinessFacts) -> list[Check]:
    if facts.os_family.lower() != "windows":
        return skipped(facts.item_name, "The machine is not a Windows machine.")
    return passed(facts.item_name, "A Windows machine gets its static address back by itself.")


_REBUILD = (
    "add the driver to the initramfs "
    "(/etc/initramfs-tools/modules, then update-initramfs -u -k all; or dracut --regenerate-all --force --add-drivers)"
)

ROWS = (
    Row("X10", "X", "boots from the target's disk", "initramfs of the machine", "the machine would not boot",
        check=boots_from_target_disk, operations=BOTH, code="DiskDriverMissing", remedy=_REBUILD),
    Row("X11", "X", "disks named by UUID", "fstab and boot loader", "the machine would not boot", check=stable_names,
        operations=BOTH, code="UnstableDiskNames", remedy="name disks by UUID= or LABEL= in /etc/fstab and the boot loader"),
    Row("X12", "X", "boot loader found by other firmware", "EFI partition", "the firmware would find no loader",
        check=efi_finds_a_loader, operations=BOTH, code="EfiFallbackMissing", remedy="grub-install --removable"),
    Row("81", "R", "network service present", "Linux machine", "NetworkManager is missing after the cloud", operations=BOTH,
        check=network_manager_kept, code="NetworkServiceMissing",
        remedy="install the machine's network service again before the failback"),
    Row("82", "R", "static address", "Linux machine", "an address that became DHCP stays DHCP", operations=BOTH,
        check=static_address, code="AddressByDhcp",
        remedy="set the static address before the failback, or reserve it at the DHCP server"),
    Row("83", "R", "Windows address", "Windows machine", "gets its static address back", operations=BOTH, check=windows_address),
    Row("X13", "X", "network not bound to a card", "network configuration", "the new card would stay unconfigured",
        check=not_bound_to_hardware, operations=BOTH, code="NetworkBoundToCard",
        remedy="match interfaces by name instead of by hardware address before the failback"),
)  # fmt: skip
