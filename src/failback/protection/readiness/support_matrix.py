"""Which operating systems and platforms are brought home: data, changed here and nowhere else.

A system is refused when a row of ``REFUSED`` fits it; anything else of a family in ``FAMILIES`` is accepted. ``version`` is
a prefix of what the agent reports (``ID VERSION_ID`` of os-release; ``Windows Server 2008 R2 SP1`` on Windows).
"""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = ("linux", "windows")

ORIGINAL_TARGETS = {"kvm": "KVM/libvirt", "vsphere": "VMware ESXi"}
"""Drivers of fabrics that a machine can be brought back to, as a person calls them."""


@dataclass(frozen=True, slots=True)
class Refused:
    """``source_kind`` empty: virtual and physical. ``row``: the row of the catalogue that says so."""

    row: str
    version: str
    reason: str
    source_kind: str = ""


REFUSED: tuple[Refused, ...] = (
    Refused("9", "windows server 2008 r2 sp1", "it cannot be brought back when it was protected as physical", "physical"),
    Refused("10", "windows server 2003", "the mobility service does not run on it"),
    Refused("10", "rhel 5", "the mobility service does not run on its kernel"),
    Refused("10", "centos 5", "the mobility service does not run on its kernel"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Supported:
    """A system that is tried with this product; others of a family are accepted when the capture's self-test passes."""

    family: str
    name: str
    version: str


SUPPORTED: tuple[Supported, ...] = (
    Supported("linux", "Debian", "12"),
    Supported("linux", "Ubuntu", "24.04"),
)


def refusal(os_version: str, source_kind: str, row: str) -> str:
    """Why the row refuses this system; empty when it does not."""
    spoken = os_version.strip().lower()
    for entry in REFUSED:
        fits = spoken == entry.version or spoken.startswith((f"{entry.version} ", f"{entry.version}."))
        if entry.row == row and fits and entry.source_kind in ("", source_kind):
            return entry.reason
    return ""
