"""Which mounted file systems lie on which disks, and in which order they have to be frozen.

A file system counts once however often it is mounted. Layers are followed downwards through partitions, device mapper, md
and loop devices (a loop device's file lies on another file system), so that an image file's file system is frozen before the
one that holds the image. ``order`` is pure; the rest reads /proc and sysfs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Mount:
    device: str
    """``major:minor`` of the superblock; anonymous (``0:n``) for btrfs and memory file systems."""
    mount_point: str
    filesystem: str
    source: str
    writable: bool


@dataclass(frozen=True, slots=True)
class BlockMount:
    """A mounted file system on block devices: ``disks`` are kernel names of the whole disks, ``depth`` its loop level."""

    mount_point: str
    filesystem: str
    disks: frozenset[str]
    depth: int


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """/proc/self/mountinfo; the first mount of each superblock only (proc(5))."""
    seen: dict[str, Mount] = {}
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, more = left.split(), right.split()
        if not separator or len(fields) < 6 or len(more) < 3:
            continue
        mount = Mount(
            device=fields[2], mount_point=_unescape(fields[4]), filesystem=more[0], source=_unescape(more[1]),
            writable="rw" in more[2].split(","),
        )  # fmt: skip
        seen.setdefault(mount.device, mount)
    return tuple(seen.values())


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def order(found: list[BlockMount]) -> list[BlockMount]:
    """Freezing order: nested file systems before those that hold them, longer paths before shorter, the root last."""
    return sorted(found, key=lambda item: (item.mount_point == "/", -item.depth, -len(item.mount_point)))


def mounted() -> tuple[Mount, ...]:
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))


def writable_on(disks: frozenset[str]) -> list[BlockMount]:
    """Writable file systems that lie, wholly or in part, on the named whole disks; in freezing order."""
    found = []
    for mount in mounted():
        if not mount.writable:
            continue
        number = _block_number(mount)
        if number is None:
            continue
        below, depth = _layers(number, 0)
        if below & disks:
            found.append(BlockMount(mount.mount_point, mount.filesystem, frozenset(below), depth))
    return order(found)


def base_disks_of_mount(path: str) -> frozenset[str]:
    """Kernel names of the whole disks under the file system that holds ``path``."""
    mount = _mount_of(os.path.realpath(path))
    number = _block_number(mount) if mount else None
    return frozenset(_layers(number, 0)[0]) if number else frozenset()


def swaps_on(disks: frozenset[str]) -> list[str]:
    """Swap devices and files of /proc/swaps that lie on the disks."""
    found = []
    for line in Path("/proc/swaps").read_text(encoding="utf-8").splitlines()[1:]:
        path = line.split()[0]
        if path.startswith("/dev/"):
            below, _ = _layers(_number_of_device(path) or "", 0)
        else:
            below = set(base_disks_of_mount(path))
        if below & disks:
            found.append(path)
    return found


def raw_users_on(disks: frozenset[str], ignore: frozenset[int]) -> list[str]:
    """Processes that hold a block device of the disks open for writing (a database on a raw partition)."""
    found = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) in ignore:
            continue
        try:
            descriptors = list((process / "fd").iterdir())
        except OSError:
            continue
        for descriptor in descriptors:
            device = _written_device(process, descriptor.name)
            if device and _layers(_number_of_device(device) or "", 0)[0] & disks:
                name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                found.add(f"{name}[{process.name}] on {device}")
    return sorted(found)


def _written_device(process: Path, descriptor: str) -> str:
    """The block device that a descriptor writes to, or an empty text."""
    try:
        target = os.readlink(process / "fd" / descriptor)
        if not target.startswith("/dev/") or target.startswith(("/dev/pts", "/dev/null", "/dev/shm")):
            return ""
        information = (process / "fdinfo" / descriptor).read_text(encoding="ascii")
    except OSError:
        return ""
    flags = next((line.split()[1] for line in information.splitlines() if line.startswith("flags:")), "0")
    writes = int(flags, 8) & (os.O_WRONLY | os.O_RDWR)
    return target if writes and _number_of_device(target) else ""


def _mount_of(path: str) -> Mount | None:
    best: Mount | None = None
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    for line in text.splitlines():
        for mount in parse_mountinfo(line):
            inside = mount.mount_point in ("/", path) or path.startswith(mount.mount_point + "/")
            if inside and (best is None or len(mount.mount_point) >= len(best.mount_point)):
                best = mount
    return best


def _block_number(mount: Mount) -> str | None:
    """``major:minor`` of the block device under a mount; None for memory and network file systems."""
    if not mount.device.startswith("0:"):
        return mount.device if Path("/sys/dev/block", mount.device).exists() else None
    return _number_of_device(mount.source) if mount.source.startswith("/dev/") else None


def _number_of_device(path: str) -> str | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return number if Path("/sys/dev/block", number).exists() else None


def _layers(number: str, depth: int) -> tuple[set[str], int]:
    """Whole disks under a block device and the deepest loop level on the way; a loop device counts as a disk too."""
    node = Path("/sys/dev/block", number)
    if not number or depth > _DEEPEST or not node.exists():
        return set(), depth
    real = node.resolve()
    if (real / "partition").exists():
        real = real.parent
    slaves = real / "slaves"
    below = (
        [(slave / "dev").read_text(encoding="ascii").strip() for slave in slaves.iterdir()] if slaves.is_dir() else []
    )
    found: set[str] = set() if below else {real.name}
    deepest = depth
    for slave in below:
        more, level = _layers(slave, depth)
        found |= more
        deepest = max(deepest, level)
    backing = real / "loop" / "backing_file"
    if backing.exists():
        holder = _mount_of(backing.read_text(encoding="utf-8", errors="surrogateescape").strip())
        under = _block_number(holder) if holder else None
        more, deepest = _layers(under or "", depth + 1)
        found |= more
    return found, deepest
