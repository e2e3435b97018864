"""What workflows need of a hypervisor or a cloud, as small capabilities. A driver may offer some and lack others.

All calls block (drivers run in bounded threads), are idempotent, and raise FabricError, NotFoundError or NotSupportedError.
A creating call is find-or-create by the caller's ``key``: the same key twice gives the same object.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from failback.protection.readiness.facts import AzureFacts, VSphereFacts

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


class PowerState(enum.Enum):
    ON = "On"
    OFF = "Off"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class FabricDisk:
    """``format``: raw, vmdk-flat or qcow2; ``path`` empty where the fabric has no files (a cloud)."""

    index: int
    target: str
    serial: str
    path: str
    format: str
    size_bytes: int
    """0 when the disk's file is missing."""
    missing: bool = False
    backing: bool = False
    """It is a snapshot's layer over another file."""


@dataclass(frozen=True, slots=True)
class FabricMachine:
    fabric_id: str
    name: str
    hardware_id: str
    """SMBIOS UUID that the guest sees, lower case."""
    power: PowerState
    firmware: str
    """``bios`` or ``uefi``."""
    disks: tuple[FabricDisk, ...]
    kind: str = "virtual"
    """``physical`` where the fabric stands for machines without a hypervisor."""


@dataclass(frozen=True, slots=True)
class Datastore:
    name: str
    path: str
    kind: str
    capacity_bytes: int
    free_bytes: int


class Inventory(Protocol):
    def probe(self) -> str:
        """Empty when the fabric answers, else the reason why it does not."""
        ...

    def machines(self) -> tuple[FabricMachine, ...]: ...

    def machine(self, name_or_id: str) -> FabricMachine: ...

    def datastores(self) -> tuple[Datastore, ...]: ...


class Power(Protocol):
    def power_state(self, fabric_id: str) -> PowerState:
        """Read from the fabric now, never remembered (D20)."""
        ...

    def power_on(self, fabric_id: str) -> None: ...

    def power_off(self, fabric_id: str) -> None:
        """Hard: as if the plug were pulled; returns when the fabric accepted it (read the state back)."""
        ...


class DisposableLayer(Protocol):
    """Running on a layer above the disks that a cancel throws away and a commit merges (D21)."""

    def lay(self, fabric_id: str, key: str) -> None:
        """Put a layer over each disk of the powered-off machine and make the machine use it."""
        ...

    def merge(self, fabric_id: str, key: str, progress: Progress) -> None:
        """Merge the layers down while the machine runs (or is off); afterwards it uses its own disks again."""
        ...

    def discard(self, fabric_id: str, key: str) -> None:
        """Drop the layers of the powered-off machine; it uses its own disks again, untouched."""
        ...

    def layered(self, fabric_id: str, key: str) -> bool: ...


@runtime_checkable
class AddsDisks(Protocol):
    """Where the definition of a machine can be given another disk: one that joined it in the cloud."""

    def add_disk(self, fabric_id: str, path: str, file_format: str, serial: str) -> str:
        """Give the powered-off machine the disk file, unless it has it; returns its target."""
        ...


@runtime_checkable
class DescribesVSphere(Protocol):
    """What only a vSphere fabric can tell; readiness has not-applicable rows where a fabric lacks this."""

    def vsphere(self, fabric_id: str, master_target_hardware_id: str) -> VSphereFacts:
        """Of the machine and of the master target's machine, which is found by its SMBIOS UUID."""
        ...


@runtime_checkable
class DescribesAzure(Protocol):
    """What only an Azure fabric can tell."""

    def azure(self, fabric_id: str) -> AzureFacts: ...


class Fabric(Inventory, Power, DisposableLayer, Protocol):
    """A fabric that can be both sides of a failback."""
