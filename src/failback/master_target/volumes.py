"""What a retention volume or a datastore is fit for (the preconditions of Azure Site Recovery's retention drive).

A *problem* keeps a place from being chosen: not there, not a directory, read-only, FAT, without capacity. What is merely
unwise (the same file system as a datastore, or as the master target's own state) is logged once at the start.
"""

from __future__ import annotations

import fcntl
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from failback.errors import PreconditionError
from failback.master_target.config import MasterTargetConfig, NamedPlace
from failback.model.components import VolumeFacts
from failback.model.points import ReplicaDisk
from failback.protection.readiness.retention import INSTALLATION, problem_of
from failback.runtime import logs

log = logs.get(__name__)

CLAIM_FILE = ".failback-master-target"
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


@dataclass(frozen=True, slots=True)
class Surrounding:
    """What else of the product is on this machine: name (``the datastore store``) and path, and held volumes."""

    others: tuple[tuple[str, Path], ...] = ()
    locked: frozenset[Path] = frozenset()


NOTHING = Surrounding()


def facts(place: NamedPlace, mounts: list[Mount], around: Surrounding = NOTHING) -> VolumeFacts:
    """Look at the place now."""
    found = _measured(place, mounts)
    lies = place.path.resolve()
    device = _device(lies)
    others = [(name, path.resolve()) for name, path in around.others]
    holds = tuple(name for name, path in others if path.is_relative_to(lies) or lies.is_relative_to(path))
    shares = tuple(
        name for name, path in others if name not in holds and device is not None and _device(path) == device
    )
    full = replace(found, holds=holds, shares_with=shares, locked=place.path in around.locked)
    _, problem = problem_of(full)
    return replace(full, problem=problem)


def _device(path: Path) -> int | None:
    try:
        return path.stat().st_dev
    except OSError:
        return None


def _measured(place: NamedPlace, mounts: list[Mount]) -> VolumeFacts:
    mount = mount_of(place.path.resolve(), mounts)
    filesystem, point = (mount.filesystem, str(mount.point)) if mount else ("", "")
    unknown = VolumeFacts(place.name, str(place.path), filesystem, 0, 0, mount_point=point)
    try:
        if not place.path.is_dir():
            return replace(unknown, problem="it is not there" if not place.path.exists() else "it is not a directory")
        measured = os.statvfs(place.path)
    except OSError as error:
        return replace(unknown, problem=f"it cannot be read: {error.strerror}")
    return replace(
        unknown,
        capacity_bytes=measured.f_blocks * measured.f_frsize,
        free_bytes=measured.f_bavail * measured.f_frsize,
        read_only=(mount is not None and mount.read_only) or not os.access(place.path, os.W_OK),
    )


def all_facts(places: tuple[NamedPlace, ...], around: Surrounding = NOTHING) -> tuple[VolumeFacts, ...]:
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    return tuple(facts(place, mounts, around) for place in places)


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


def neighbours_of(config: MasterTargetConfig) -> tuple[tuple[str, Path], ...]:
    """What a retention volume should not share a place with: datastores, and the product's own files."""
    return (
        *((f"the datastore {store.name}", store.path) for store in config.datastores),
        (f"{INSTALLATION} (the master target's state)", config.state_directory),
        (f"{INSTALLATION} (its program)", Path(__file__).parents[1]),
    )


class VolumeClaims:
    """Holds the retention volumes of this process, so that a second master target does not write there.

    A POSIX lock on a file in each volume: gone with the process, whatever ends it. A volume that is not there yet is
    claimed when it appears; ``locked`` are those that another process holds.
    """

    def __init__(self, places: tuple[NamedPlace, ...]) -> None:
        self._paths = tuple(place.path for place in places)
        self._held: dict[Path, int] = {}

    def locked(self) -> frozenset[Path]:
        return frozenset(path for path in self._paths if not self._claim(path))

    def _claim(self, path: Path) -> bool:
        """False when another process holds it; a place that cannot be written is nobody's."""
        if path in self._held or not path.is_dir():
            return True
        try:
            descriptor = os.open(path / CLAIM_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return True
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._held[path] = descriptor
        return True

    def close(self) -> None:
        while self._held:
            os.close(self._held.popitem()[1])


def warn_of_neighbours(config: MasterTargetConfig) -> None:
    """Say at the start which retention volumes share a file system with something that can fill or lose it."""
    others = neighbours_of(config)
    for volume in config.retention_volumes:
        for name, path in others:
            if volume.path.exists() and path.exists() and volume.path.stat().st_dev == path.stat().st_dev:
                log.warning(
                    "a retention volume should be a volume of its own", retention_volume=volume.name, shares_with=name
                )
