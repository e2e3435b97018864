"""A replica's disk on this host: its fenced name, creating what is missing, opening it with QEMU's locks held (D22).

While it is a replica a disk lies under ``path + ".replica"``, so that after a crash or a reboot nobody finds it under the
name that the hypervisor knows. For a flat VMDK both files get the suffix and the descriptor keeps naming ``x-flat.vmdk``:
neither the descriptor's old name nor its content leads to the extent until the disk is released. A kernel block device
cannot be renamed; there only the lock guards. Each step may be repeated after a crash at any place.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from failback.block import locks, qcow2, vmdk
from failback.block.device import BlockDevice
from failback.block.raw import RawDevice, create_sparse, sync_directory
from failback.errors import ConflictError, NotFoundError, NotSupportedError, PreconditionError
from failback.model.points import ReplicaDisk
from failback.runtime import faults

SUFFIX = ".replica"
RAW, FLAT_VMDK, QCOW2 = "raw", "vmdk-flat", "qcow2"


def fenced(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _is_block_device(path: Path) -> bool:
    return path.exists() and stat.S_ISBLK(path.stat().st_mode)


def _files(disk: ReplicaDisk) -> tuple[Path, ...]:
    """The files that carry the disk, under their released names; the one with the data first."""
    path = Path(disk.path)
    if disk.format in (RAW, QCOW2):
        return (path,)
    if disk.format == FLAT_VMDK:
        for candidate in (path, fenced(path)):
            if candidate.exists():
                return (path.with_name(vmdk.read_descriptor(candidate).extent_name), path)
        return (path.with_name(f"{path.stem}-flat.vmdk"), path)
    raise NotSupportedError(
        f"disk format {disk.format!r} of {disk.path} is not known", remedy="raw, vmdk-flat or qcow2"
    )


def exists(disk: ReplicaDisk) -> bool:
    """True when the disk is there, under either name."""
    return all(file.exists() or fenced(file).exists() for file in _files(disk))


def create_if_missing(disk: ReplicaDisk) -> bool:
    """Create the disk, already under its fenced name. True when it was created by this call.

    Raises NotFoundError when it is missing and may not be created.
    """
    if exists(disk):
        return False
    if not disk.create:
        raise NotFoundError(f"the disk {disk.path} is not there", code="DiskMissing",
                            remedy="bring the disk back, or let reprotect create it on a datastore")  # fmt: skip
    files = _files(disk)
    files[0].parent.mkdir(parents=True, exist_ok=True)
    if disk.format == RAW:
        create_sparse(fenced(files[0]), disk.size_bytes)
    elif disk.format == QCOW2:
        qcow2.create(fenced(files[0]), disk.size_bytes)
    else:
        vmdk.create(fenced(files[1]), fenced(files[0]), files[0].name, disk.size_bytes)
    return True


def grow(disk: ReplicaDisk) -> None:
    """Make a fenced disk that is not open as large as ``size_bytes``; what is new reads as zeroes. May be repeated.

    Raises PreconditionError for a disk that is larger already, or a block device that is smaller.
    """
    data, descriptor = _files(disk)[0], _files(disk)[-1]
    present = data if data.exists() else fenced(data)
    if _is_block_device(present):
        return  # whoever gave it has to enlarge it; ``open_locked`` compares the sizes
    if disk.format == QCOW2:
        qcow2.grow(present, disk.size_bytes)
    elif disk.format == RAW:
        if present.stat().st_size < disk.size_bytes:
            os.truncate(present, disk.size_bytes)
    elif (
        present.stat().st_size < disk.size_bytes
        or vmdk.read_descriptor(fenced(descriptor)).size_bytes != disk.size_bytes
    ):
        vmdk.grow(fenced(descriptor), present, disk.size_bytes)
    faults.point("grow.done")


def fence(disk: ReplicaDisk) -> None:
    """Give the disk its replica name, durably. The caller has made sure that nobody uses it."""
    for file in _files(disk):
        if _is_block_device(file):
            continue
        if file.exists() and fenced(file).exists():
            raise ConflictError(
                f"both {file} and {fenced(file)} exist",
                possible_causes="somebody restored or created the disk under its old name while it was a replica",
                remedy=f"move {file} away",
            )
        if file.exists():
            file.rename(fenced(file))
            sync_directory(file.parent)
        faults.point("fence.mid")


def unfence(disk: ReplicaDisk) -> None:
    """Give the disk its own name back, durably."""
    for file in reversed(_files(disk)):
        if fenced(file).exists() and not file.exists():
            fenced(file).rename(file)
            sync_directory(file.parent)
        faults.point("unfence.mid")


def moved_away(disk: ReplicaDisk) -> bool:
    """Whether a disk that is open as a replica is not under its name any more: somebody moved or deleted its file.

    What is written still goes to the open file, wherever that is now; the machine would not find it.
    """
    path = Path(disk.path)
    return not fenced(path).exists() and not _is_block_device(path)


def is_lost(device: BlockDevice) -> bool:
    """Whether what serves the disk is gone, so that only opening it again helps."""
    return isinstance(device, qcow2.Qcow2Device) and device.lost


def open_locked(disk: ReplicaDisk, runtime_directory: Path) -> BlockDevice:
    """Fence and open the disk read-write with the image locks held until it is closed.

    Raises ConflictError when it is in use and PreconditionError when its size is not the protected disk's.
    """
    file = _files(disk)[0]
    present = file if file.exists() else fenced(file)
    device: BlockDevice
    if disk.format == QCOW2:
        if present == file:
            qcow2.Qcow2Device(file, runtime_directory).close()  # proves that no hypervisor uses it
        fence(disk)
        device = qcow2.Qcow2Device(fenced(file), runtime_directory)
    else:
        raw = RawDevice(present)
        try:
            locks.take(raw.fileno(), str(present))
            fence(disk)
        except BaseException:
            raw.close()
            raise
        device = raw
    if device.size_bytes != disk.size_bytes:
        found = device.size_bytes
        unfence(disk)
        device.close()
        raise PreconditionError(f"{disk.path} has {found} bytes, the protected disk has {disk.size_bytes}",
                                code="DiskSizeDiffers", remedy="resize the on-premises disk")  # fmt: skip
    return device
