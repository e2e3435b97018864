"""What a retention volume or a datastore is fit for (the preconditions of Azure Site Recovery's retention drive).

A *problem* keeps a place from being chosen: not there, not a directory, read-only, FAT, without capacity. What is merely
unwise (the same file system as a datastore, or as the master target's own state) is logged once at the start.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from failback.errors import PreconditionError
from failback.master_target.config import MasterTargetConfig, NamedPlace
from failback.model.components import VolumeFacts
from failback.model.points import ReplicaDisk
from failback.runtime import logs

log = logs.get(__name__)

_FAT = frozenset({"vfat", "msdos", "exfat", "fat"})


_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    point: Path
    filesystem: str
    read_only: bool


def parse_mounts(text: str) -> list[Mount]:
    """proc(5), mountinfo; octal escapes in mount points are undone."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) < 6 or not rest:
            continue
        point = _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4])
        options = {*fields[5].split(","), *(rest[2].split(",") if len(rest) > 2 else ())}
        mounts.append(Mount(Path(point), rest[0], "ro" in options))
    return mounts


def mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """The mount that holds the path: the longest mount point above it, the last one mounted there."""
    above = [mount for mount in mounts if path == mount.point or path.is_relative_to(mount.point)]
    return max(enumerate(above), key=lambda pair: (len(pair[1].point.parts), pair[0]))[1] if above else None


def facts(place: NamedPlace, mounts: list[Mount]) -> VolumeFacts:
    """Look at the place now."""
    mount = mount_of(place.path.resolve(), mounts)
    filesystem = mount.filesystem if mount else ""

    def with_problem(problem: str, capacity: int = 0, free: int = 0) -> VolumeFacts:
        return VolumeFacts(place.name, str(place.path), filesystem, capacity, free, problem)

    try:
        if not place.path.is_dir():
            return with_problem("it is not there" if not place.path.exists() else "it is not a directory")
        measured = os.statvfs(place.path)
    except OSError as error:
        return with_problem(f"it cannot be read: {error.strerror}")
    capacity, free = measured.f_blocks * measured.f_frsize, measured.f_bavail * measured.f_frsize
    if capacity == 0:
        return with_problem("its capacity is zero")
    if filesystem in _FAT:
        return with_problem(f"its file system is {filesystem}; ext4, xfs or btrfs is needed", capacity, free)
    if (mount is not None and mount.read_only) or not os.access(place.path, os.W_OK):
        return with_problem("it is mounted read-only", capacity, free)
    return with_problem("", capacity, free)


def all_facts(places: tuple[NamedPlace, ...]) -> tuple[VolumeFacts, ...]:
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    return tuple(facts(place, mounts) for place in places)


def check_disks(disks: tuple[ReplicaDisk, ...], datastores: tuple[NamedPlace, ...]) -> None:
    """Refuse what does not lie in a configured datastore: an order must not lead this process, which is root, elsewhere.

    A file is looked at where it really lies. A kernel block device counts by its name (a datastore ``/dev/vg0`` holds
    ``/dev/vg0/ledger``). Raises PreconditionError.
    """
    for disk in disks:
        path = Path(os.path.normpath(disk.path))
        is_device = path.is_relative_to("/dev") and path.is_block_device()
        stores = [store.path if is_device else store.path.resolve() for store in datastores]
        lies = path if is_device else path.resolve()
        if not path.is_absolute() or not any(store in lies.parents for store in stores):
            known = ", ".join(f"{store.name} ({store.path})" for store in datastores) or "(none)"
            raise PreconditionError(
                f"the disk {disk.path} lies in no datastore of this master target",
                code="DiskOutsideDatastores",
                possible_causes="its directory is not configured here, or it is a link to somewhere else",
                remedy=f"add its directory to [[datastores]] of the master target; configured: {known}",
            )


def warn_of_neighbours(config: MasterTargetConfig) -> None:
    """Say at the start which retention volumes share a file system with something that can fill or lose it."""
    others = [(f"the datastore {store.name}", store.path) for store in config.datastores]
    others.append(("the master target's own state", config.state_directory))
    for volume in config.retention_volumes:
        for name, path in others:
            if volume.path.exists() and path.exists() and volume.path.stat().st_dev == path.stat().st_dev:
                log.warning(
                    "a retention volume should be a volume of its own", retention_volume=volume.name, shares_with=name
                )
