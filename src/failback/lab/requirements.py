"""What this machine lacks for a lab: each shortage as what is missing, why it is needed and what to do."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from failback.errors import ConfigurationError
from failback.lab.layout import Layout

_FREE_BYTES = 6 << 30
_MEMORY_BYTES = 2 << 30
_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "libvirtd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "mmdebstrap": "mmdebstrap",
    "debugfs": "e2fsprogs",
    "mke2fs": "e2fsprogs",
    "unshare": "util-linux",
}


@dataclass(frozen=True, slots=True)
class Shortage:
    what: str
    why: str
    remedy: str


def shortages(layout: Layout) -> list[Shortage]:
    """Everything that is missing at once, so that nobody has to try again and again."""
    found: list[Shortage] = []
    if os.geteuid() != 0:
        found.append(Shortage("root", "libvirt, mount namespaces and the guest image need it", "run it with sudo"))
    if not Path("/sys/kernel/btf/vmlinux").exists():
        why = "the capture program is relocated against the kernel's own types"
        found.append(Shortage("BTF (/sys/kernel/btf/vmlinux)", why, "boot a distribution kernel of 5.17 or newer"))
    for program, package in _PROGRAMS.items():
        if shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
            found.append(Shortage(program, "the lab runs it", f"apt-get install {package}"))
    free = shutil.disk_usage(_existing(layout.directory)).free
    if free < _FREE_BYTES:
        have = f"{free / 2**30:.1f} GiB free below {layout.directory}"
        found.append(Shortage("disk space", f"6 GiB are needed, there are {have}", "free space or use --directory"))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory < _MEMORY_BYTES:
        found.append(Shortage("memory", "guest and servers need 2 GiB", "use a larger machine"))
    return found


def require(layout: Layout) -> None:
    """Raises ConfigurationError that names all shortages."""
    found = shortages(layout)
    if found:
        lines = "; ".join(f"{shortage.what} ({shortage.why})" for shortage in found)
        remedy = "; ".join(dict.fromkeys(shortage.remedy for shortage in found))
        raise ConfigurationError(f"the lab cannot run here, missing: {lines}", code="LabRequirements", remedy=remedy)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
