"""Domain definition and disks of the lab's machine on either side.

On premises: the system disk is a flat VMDK, given to QEMU as its extent (libvirt relabels only the file it is given),
the data disk is raw. In the cloud both are raw. Both sides discard with ``unmap``, so that the disks can be compared
byte by byte (D17). QEMU runs as root under a static label: the replicas belong to root too.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import libvirt

from failback.errors import FabricError
from failback.lab import sites

MEMORY_MEBIBYTES = 768
SECTOR_BYTES = 512

_DOMAIN = """<domain type='{kind}'>
  <name>{name}</name><uuid>{uuid}</uuid><description>Failback lab, {site}</description>
  <memory unit='MiB'>{memory}</memory><vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd>
    <cmdline>root=LABEL=ledger-root rootfstype=ext4 rw console=ttyS0 quiet loglevel=4 net.ifnames=0 panic=-1 systemd.show_status=0 mitigations=off nowatchdog</cmdline></os>
  <features><acpi/></features>{processor}
  <clock offset='utc'/><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    {disks}
    <interface type='user'><model type='virtio'/></interface>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <serial type='file'><source path='{console}' append='on'/></serial>
    <memballoon model='none'/>
  </devices>
  <seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>
</domain>
"""  # noqa: E501
_EMULATED_PROCESSOR = "<cpu mode='maximum'><feature policy='disable' name='cx16'/></cpu>"
"""QEMU emulates cmpxchg16b (SLUB uses it) with a fault now and then on two processors: guests do without it."""
_DISK = """<disk type='file' device='disk'><driver name='qemu' type='raw' cache='writeback' discard='unmap'/>
      <source file='{path}'/><target dev='{target}' bus='virtio'/><serial>{serial}</serial></disk>"""


@dataclass(frozen=True, slots=True)
class Disk:
    path: Path
    target: str
    serial: str


def definition(
    *, name: str, uuid: str, site: str, disks: tuple[Disk, ...], kernel: Path, initial_ram_disk: Path, console: Path
) -> str:
    """The domain's XML, for KVM where it works and for TCG elsewhere."""
    accelerated = sites.hardware_virtualisation()
    processor = "<cpu mode='host-passthrough'/>" if accelerated else _EMULATED_PROCESSOR
    return _DOMAIN.format(
        kind="kvm" if accelerated else "qemu",
        name=escape(name),
        uuid=uuid,
        site=escape(site),
        memory=MEMORY_MEBIBYTES,
        kernel=escape(str(kernel)),
        initrd=escape(str(initial_ram_disk)),
        processor=processor,
        console=escape(str(console)),
        disks="\n    ".join(_DISK.format(path=d.path, target=d.target, serial=d.serial) for d in disks),
    )


def define(uri: str, text: str) -> None:
    """Define the domain, or redefine the one of the same UUID. Refuses a stranger's domain of the same name."""
    try:
        connection = libvirt.open(uri)
        try:
            connection.defineXML(text)
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        raise FabricError(
            f"the lab's machine could not be defined at {uri}: {error}",
            possible_causes="another virtual machine has the lab's name",
            remedy="rename that machine, or run the lab elsewhere",
        ) from error


def copy_sparse(source: Path, target: Path) -> None:
    """A copy with holes where the source has them or zeroes; complete or not there."""
    partial = target.with_name(target.name + ".partial")
    command = ["cp", "--sparse=always", "--reflink=auto", str(source), str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        raise FabricError(f"{source} could not be copied: {done.stderr.strip()}", remedy="free space and try again")
    partial.rename(target)


def write_vmdk_descriptor(descriptor: Path, extent: Path) -> None:
    """Describe a raw file as a monolithic flat VMDK (VMware's "Virtual Disk Format 5.0")."""
    sectors = extent.stat().st_size // SECTOR_BYTES
    cylinders = min(16383, max(1, sectors // (16 * 63)))
    descriptor.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
        'createType="monolithicFlat"\n\n# Extent description\n'
        f'RW {sectors} FLAT "{extent.name}" 0\n\n# The Disk Data Base\n#DDB\n\n'
        'ddb.virtualHWVersion = "4"\n'
        f'ddb.geometry.cylinders = "{cylinders}"\nddb.geometry.heads = "16"\nddb.geometry.sectors = "63"\n'
        'ddb.adapterType = "ide"\n'
    )
