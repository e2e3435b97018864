"""What decides whether this machine boots and is reached on other hardware: read from files, no process is started.

Start type of the mobility service, names of disks in fstab and boot loader, the loader at UEFI's removable-media path, and the
network configuration as it stands. Everything may be absent; nothing is changed here. Drivers inside an initramfs are not
read (``kernels`` stays empty, and readiness says that it is not told).
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from failback.model.components import MachineFacts

FRESH_SECONDS = 300.0
SERVICE = "failback-mobility.service"
_KERNEL_NAME = re.compile(r"/dev/(?:sd[a-z]+|vd[a-z]+|xvd[a-z]+|hd[a-z]+|nvme\d+n\d+)(?:p?\d+)?\b")
_FALLBACK_LOADERS = ("bootx64.efi", "bootaa64.efi")
_RENDERERS = (
    ("netplan", "etc/netplan", "*.yaml"),
    ("networkmanager", "usr/sbin", "NetworkManager"),
    ("networkd", "etc/systemd/network", "*.network"),
    ("wicked", "etc/wicked", "*"),
    ("ifupdown", "etc/network", "interfaces"),
)


class BootFacts:
    """``now()`` reads again at most every five minutes; it is called with each heartbeat."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._read_at = -FRESH_SECONDS
        self._facts = MachineFacts()

    def now(self, *, may_read: bool = True) -> MachineFacts:
        """``may_read`` False: as read last (the file systems are held still)."""
        moment = time.monotonic()
        if may_read and moment - self._read_at >= FRESH_SECONDS:
            self._facts, self._read_at = read(self._root), moment
        return self._facts


def read(root: Path = Path("/")) -> MachineFacts:
    static, dynamic = _interfaces(root)
    return MachineFacts(
        service_start=_service_start(root),
        unstable_names=(*_unstable(root / "etc/fstab", root), *_unstable(root / "boot/grub/grub.cfg", root, "linux")),
        efi_fallback=_efi_fallback(root),
        network_renderer=_renderer(root),
        static_addresses=static,
        dhcp_interfaces=dynamic,
        bound_to_hardware=_bound(root),
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _names(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _service_start(root: Path) -> str:
    """By the link that ``systemctl enable`` makes; empty where there is no systemd or no such service."""
    units = [
        root / folder / SERVICE for folder in ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
    ]
    if not any(unit.exists() for unit in units):
        return ""
    wanted = root / "etc/systemd/system" / "multi-user.target.wants" / SERVICE
    return "enabled" if wanted.is_symlink() or wanted.exists() else "disabled"


def _unstable(path: Path, root: Path, begins: str = "") -> tuple[str, ...]:
    """Lines that name a disk as the kernel does; of a boot loader only those that start a kernel."""
    found = []
    for line in _lines(path):
        spoken = line.strip()
        if spoken.startswith("#") or not spoken.startswith(begins):
            continue
        name = _KERNEL_NAME.search(spoken)
        if name is not None and (begins or spoken.split()[0] == name[0]):
            found.append(f"/{path.relative_to(root)}: {name[0]}")
    return tuple(dict.fromkeys(found))


def _efi_fallback(root: Path) -> bool:
    for folder in _names(root / "boot/efi", "[Ee][Ff][Ii]/[Bb][Oo][Oo][Tt]"):
        if any(each.name.lower() in _FALLBACK_LOADERS for each in _names(folder, "*")):
            return True
    return False


def _renderer(root: Path) -> str:
    return next((name for name, folder, pattern in _RENDERERS if _names(root / folder, pattern)), "")


def _interfaces(root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(static, DHCP) of ifupdown, networkd, NetworkManager and netplan, as far as their files say it plainly."""
    static: list[str] = []
    dynamic: list[str] = []
    name = ""
    for path in (root / "etc/network/interfaces", *_names(root / "etc/network/interfaces.d", "*")):
        for line in _lines(path):
            words = line.split()
            if words[:1] == ["iface"] and len(words) >= 4:
                name = words[1]
                if words[3] == "dhcp":
                    dynamic.append(name)
            elif words[:1] == ["address"] and len(words) > 1 and name != "lo":
                static.append(f"{name} {words[1]}")
    for path in _names(root / "etc/systemd/network", "*.network"):
        _keyed(path, "=", static, dynamic)
    for path in _names(root / "etc/NetworkManager/system-connections", "*"):
        _keyed(path, "=", static, dynamic)
    for path in _names(root / "etc/netplan", "*.yaml"):
        _keyed(path, ":", static, dynamic)
    return tuple(dict.fromkeys(static)), tuple(dict.fromkeys(dynamic))


def _keyed(path: Path, mark: str, static: list[str], dynamic: list[str]) -> None:
    """``DHCP=yes``, ``method=auto``, ``dhcp4: true`` and ``Address=``, ``address1=``, ``addresses: [...]``."""
    section = ""
    for line in _lines(path):
        spoken = line.strip()
        if spoken.startswith("["):
            section = spoken.strip("[]").lower()
        key, _, value = (part.strip().lower() for part in spoken.partition(mark))
        by_lease = {"dhcp": ("yes", "ipv4"), "dhcp4": ("true", "yes"), "method": ("auto",) if section == "ipv4" else ()}
        if value in by_lease.get(key, ()):
            dynamic.append(path.stem)
        elif key in ("address", "address1", "addresses") and value and section != "ipv6":
            static.append(f"{path.stem} {value.strip('[]')}")


def _bound(root: Path) -> tuple[str, ...]:
    """Configuration that fits one network card only."""
    found = []
    places = (
        ("etc/udev/rules.d", "70-persistent-net.rules", ("address",)),
        ("etc/systemd/network", "*.network", ("macaddress=",)),
        ("etc/NetworkManager/system-connections", "*", ("mac-address=",)),
        ("etc/netplan", "*.yaml", ("macaddress:",)),
    )
    for folder, pattern, marks in places:
        for path in _names(root / folder, pattern):
            lines = [line.strip().lower() for line in _lines(path)]
            if any(mark in line for line in lines if not line.startswith("#") for mark in marks):
                found.append(f"/{path.relative_to(root)}")
    return tuple(found)
