"""Servers inside the kernel that write without a program: the cgroup freezer does not hold them (D19).

Where one runs, the file systems that it writes to are frozen as well. A server that writes to a captured disk below any file
system cannot be held: the machine then can be in no replication group, and is told which.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def running(root: Path = Path("/")) -> tuple[str, ...]:
    """Names of the kernel's servers that run now. A few reads of /proc and /sys."""
    found = []
    if _number(root / "proc/fs/nfsd/threads"):
        found.append("nfsd")
    if any((root / "sys/kernel/config/target/core").glob("*_[0-9]*/*/enable")):
        found.append("LIO")
    if "ns:" in _text(root / "proc/drbd") or any((root / "sys/kernel/debug/drbd/resources").glob("*")):
        found.append("DRBD")
    if any((root / "sys/class/ksmbd-control").glob("*")):
        found.append("ksmbd")
    return tuple(found)


def not_held(disks: Iterable[str], root: Path = Path("/")) -> tuple[str, ...]:
    """What writes to one of these disks (``/dev/vda``) from inside the kernel, below every file system."""
    names = {os.path.realpath(disk) for disk in disks}
    found = []
    for path in sorted((root / "sys/kernel/config/target/core").glob("*_[0-9]*/*/udev_path")):
        device = os.path.realpath(_text(path).strip() or "/")
        if any(device.startswith(name) for name in names):
            found.append(f"LIO serves {device}")
    if "ro:Secondary" in _text(root / "proc/drbd"):
        found.append("DRBD receives from its primary")
    return tuple(found)


def _number(path: Path) -> int:
    text = _text(path).strip()
    return int(text) if text.isdigit() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
