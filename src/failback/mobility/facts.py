"""The disks that can be captured and the firmware, read from sysfs without any tool.

A disk is matched across boots and sides by ``device_match``: its serial number, else its world-wide name, else its path on
the bus, else the kernel's name.
"""

from __future__ import annotations

import os
from pathlib import Path

from failback.mobility import mounts
from failback.model.components import DiskFacts

SYS = Path("/sys")
SECTOR_BYTES = 512
_NEVER = ("ram", "zram", "sr", "fd", "dm-", "md", "nbd")


def text_of(path: Path) -> str:
    """A sysfs file's text, stripped; empty when it is absent or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().strip("\0").strip()
    except OSError:
        return ""


def firmware() -> str:
    return "uefi" if (SYS / "firmware/efi").is_dir() else "bios"


def device_match(name: str) -> str:
    """``serial:...``, ``wwid:...``, ``path:...`` or ``name:...`` of the disk ``name`` (without /dev/)."""
    block = SYS / "block" / name
    serial = text_of(block / "serial") or text_of(block / "device/serial")
    if not serial:
        serial = _vital_product_serial(block / "device/vpd_pg80")
    if serial:
        return f"serial:{serial}"
    wwid = text_of(block / "wwid") or text_of(block / "device/wwid")
    if wwid:
        return f"wwid:{' '.join(wwid.split())}"
    by_path = Path("/dev/disk/by-path")
    if by_path.is_dir():
        for link in sorted(by_path.iterdir()):
            if os.path.realpath(link) == f"/dev/{name}":
                return f"path:{link.name}"
    return f"name:{name}"


def _vital_product_serial(page: Path) -> str:
    """SCSI unit serial number page: four bytes of header, then the text."""
    try:
        return page.read_bytes()[4:].decode("ascii", "replace").strip("\0 ")
    except OSError:
        return ""


def disks(only: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> tuple[DiskFacts, ...]:
    """Whole disks that can be captured. ``only`` restricts to named devices, and is the one way to name a loop device."""
    wanted = {os.path.realpath(device).removeprefix("/dev/") for device in only}
    unwanted = {os.path.realpath(device).removeprefix("/dev/") for device in exclude}
    system_disks = mounts.base_disks_of_mount("/")
    found = []
    for block in sorted((SYS / "block").iterdir()):
        name = block.name
        if name in unwanted or (wanted and name not in wanted):
            continue
        if not wanted and (name.startswith((*_NEVER, "loop")) or text_of(block / "removable") == "1"):
            continue
        size_bytes = int(text_of(block / "size") or 0) * SECTOR_BYTES
        if not size_bytes or (text_of(block / "ro") == "1"):
            continue
        found.append(
            DiskFacts(
                device=f"/dev/{name}", device_match=device_match(name), size_bytes=size_bytes,
                is_system=name in system_disks,
            )
        )  # fmt: skip
    return tuple(found)
