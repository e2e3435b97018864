"""Where everything of a lab lies. One directory holds all that ``down`` removes; a second one, the cache, is kept.

Addresses: the guests have QEMU's user network, in which the host's loopback is 10.0.2.2. The servers listen on
127.0.0.1 only, so nothing of a lab can be reached from outside the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MACHINE_NAME = "ledger"
HOST_AS_SEEN_BY_GUESTS = "10.0.2.2"
HOST = "127.0.0.1"
SYSTEM_SERIAL = "ledger-system"
DATA_SERIAL = "ledger-data"
ONPREM_UUID = "0a0f3d5e-5d1c-4b52-8f3e-6c1e5ed9e001"
CLOUD_UUID = "0a0f3d5e-5d1c-4b52-8f3e-6c1e5ed9e002"
ONPREM_URI = "qemu:///system"

DEFAULT_DIRECTORY = Path("/var/lib/failback-lab")
DEFAULT_CACHE = Path("/var/cache/failback-lab")


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one lab. ``socket_directory`` is short: a Unix socket's path has 107 bytes at most."""

    directory: Path = DEFAULT_DIRECTORY
    cache: Path = DEFAULT_CACHE

    @property
    def state_file(self) -> Path:
        return self.directory / "lab.json"

    @property
    def lock_file(self) -> Path:
        return self.directory.with_name(self.directory.name + ".lock")

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def cloud_site(self) -> Path:
        return self.directory / "cloud-site"

    @property
    def socket_directory(self) -> Path:
        return Path("/run") / self.directory.name

    @property
    def cloud_uri(self) -> str:
        return f"qemu+unix:///system?socket={self.socket_directory}/libvirt-sock"

    @property
    def boot(self) -> Path:
        """Kernel and initial RAM disk of the guests (direct boot)."""
        return self.directory / "boot"

    @property
    def onprem_datastore(self) -> Path:
        return self.directory / "onprem"

    @property
    def cloud_datastore(self) -> Path:
        return self.directory / "cloud"

    @property
    def onprem_system_disk(self) -> Path:
        """The descriptor of the flat VMDK."""
        return self.onprem_datastore / "ledger-system.vmdk"

    @property
    def onprem_system_extent(self) -> Path:
        return self.onprem_datastore / "ledger-system-flat.vmdk"

    @property
    def onprem_data_disk(self) -> Path:
        return self.onprem_datastore / "ledger-data.raw"

    @property
    def cloud_system_disk(self) -> Path:
        return self.cloud_datastore / "ledger-system.raw"

    @property
    def cloud_data_disk(self) -> Path:
        return self.cloud_datastore / "ledger-data.raw"

    @property
    def retention_volume(self) -> Path:
        return self.directory / "retention"

    @property
    def witness_file(self) -> Path:
        return self.directory / "witness.jsonl"

    @property
    def drill_file(self) -> Path:
        """A word in it is carried out inside the guest, once (tests only; see ``witness``)."""
        return self.directory / "drill"

    def role_directory(self, role: str) -> Path:
        return self.directory / role

    def console(self, site: str) -> Path:
        return self.logs / f"console-{site}.log"
