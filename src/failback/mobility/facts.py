"""The disks that can be captured and the firmware, read from sysfs without any tool.

A disk is matched across boots and sides by ``device_match``: its serial number, else its world-wide name, else its path on
the bus, else the kernel's name.
"""

from __future__ import annotations

import os
from pathlib import Path

from failback.mobility import mounts
from failback.model.components import DiskFacts
from failback.runtime.host import SYS, disk_identity, text_of

SECTOR_BYTES = 512
_NEVER = ("ram", "zram", "sr", "fd", "dm-", "md", "nbd")


def firmware() -> str:
    return "uefi" if (SYS / "firmware/efi").is_dir() else "bios"


def device_match(name: str) -> str:
    """``serial:...``, ``wwid:...``, ``path:...`` or ``name:...`` of the disk ``name`` (without /dev/)."""
    identity = disk_identity(name)
    if identity:
        return identity
    by_path = Path("/dev/disk/by-path")
    if by_path.is_dir():
        for link in sorted(by_path.iterdir()):
            if os.path.realpath(link) == f"/dev/{name}":
                return f"path:{link.name}"
    return f"name:{name}"


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
