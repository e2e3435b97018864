"""What a process can say of the machine it runs on: identity of the hardware, operating system, addresses."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_PRODUCT_UUID = Path("/sys/class/dmi/id/product_uuid")
_MACHINE_ID = Path("/etc/machine-id")
SYS = Path("/sys")


@dataclass(frozen=True, slots=True)
class HostFacts:
    hostname: str
    hardware_id: str
    os_family: str
    os_version: str
    kernel: str


def hardware_id() -> str:
    """The SMBIOS UUID, lower case: what stays with the hardware when a disk is cloned or fails over (D2).

    A machine without SMBIOS (a container, some boards) is known by ``/etc/machine-id`` instead, prefixed so that the
    two never compare equal. ``FAILBACK_HARDWARE_ID`` overrides both for several roles of one kind on one host.
    """
    override = os.environ.get("FAILBACK_HARDWARE_ID")
    if override:
        return override.lower()
    try:
        return _PRODUCT_UUID.read_text(encoding="ascii").strip().lower()
    except OSError:
        return "machine-id-" + _MACHINE_ID.read_text(encoding="ascii").strip()


def gather() -> HostFacts:
    """Read the facts now (a few small files; no process is started)."""
    release = os_release()
    return HostFacts(
        hostname=socket.gethostname(),
        hardware_id=hardware_id(),
        os_family="Linux",
        os_version=f"{release.get('ID', 'linux')} {release.get('VERSION_ID', '')}".strip(),
        kernel=os.uname().release,
    )


def os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """The fields of os-release(5); empty when there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {key: value.strip().strip('"') for key, value in pairs}


def text_of(path: Path) -> str:
    """A sysfs file's text, stripped; empty when it is absent or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().strip("\0").strip()
    except OSError:
        return ""


def disk_identity(name: str, sys: Path = SYS) -> str:
    """``serial:...`` or ``wwid:...`` of the disk ``name`` (without /dev/); empty when it has neither."""
    block = sys / "block" / name
    serial = text_of(block / "serial") or text_of(block / "device/serial")
    if not serial:
        serial = _vital_product_serial(block / "device/vpd_pg80")
    if serial:
        return f"serial:{serial}"
    wwid = text_of(block / "wwid") or text_of(block / "device/wwid")
    return f"wwid:{' '.join(wwid.split())}" if wwid else ""


def _vital_product_serial(page: Path) -> str:
    """SCSI unit serial number page: four bytes of header, then the text."""
    try:
        return page.read_bytes()[4:].decode("ascii", "replace").strip("\0 ")
    except OSError:
        return ""


def disk_identities(sys: Path = SYS) -> tuple[str, ...]:
    """Of all disks of this machine that have one."""
    try:
        names = sorted(block.name for block in (sys / "block").iterdir())
    except OSError:
        return ()
    return tuple(found for found in (disk_identity(name, sys) for name in names) if found)


def root_on_lvm(sys: Path = SYS, root: Path = Path("/")) -> bool | None:
    """Whether the system lies on a logical volume; None where its file system shows no device (an overlay)."""
    device = root.stat().st_dev
    block = sys / "dev/block" / f"{os.major(device)}:{os.minor(device)}"
    if not block.exists():
        return None
    return text_of(block / "dm/uuid").startswith("LVM-")
