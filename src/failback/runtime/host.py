"""What a process can say of the machine it runs on: identity of the hardware, operating system, addresses."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_PRODUCT_UUID = Path("/sys/class/dmi/id/product_uuid")
_MACHINE_ID = Path("/etc/machine-id")


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
