"""The peers of ``points``: a chain of qcow2 overlays and btrfs snapshots of the same kind of disk under the same kind of churn.

A *view* is opened at a point and the first MiB at a random place read from it; *rolling back* makes that point the disk that is
written. Both peers only give up what came later, so their rolling back is a matter of names and metadata; neither keeps the
way back that ours keeps until the commit, and neither lies at another place than the machine's own disk.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

from bench.ground import MEBIBYTE, Ground, run
from bench.history import EXTENT_BYTES


@dataclass(frozen=True)
class Kind:
    """The disk as it is found, how many points, how much is written before each, how many views are opened."""

    base: Path
    size_bytes: int
    points: int
    churn_bytes: int
    views: int

    def places(self, chance: random.Random) -> list[int]:
        blocks = self.size_bytes // EXTENT_BYTES
        return [chance.randrange(blocks) * EXTENT_BYTES for _ in range(self.churn_bytes // EXTENT_BYTES)]


def qcow2_overlays(ground: Ground, kind: Kind) -> dict[str, float]:
    directory = ground.on_disk / "overlays"
    directory.mkdir()
    chance = random.Random(5)
    names = [kind.base]
    for number in range(kind.points):
        overlay = directory / f"{number:04d}.qcow2"
        backing = ("-b", str(names[-1]), "-F", "raw" if number == 0 else "qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", *backing, str(overlay), str(kind.size_bytes))
        writes = [f"write -q -P {chance.randrange(1, 255)} {place} {EXTENT_BYTES}" for place in kind.places(chance)]
        run("qemu-io", "-f", "qcow2", *[part for write in writes for part in ("-c", write)], str(overlay))
        names.append(overlay)
    seconds = []
    for name in chance.sample(names[1:], min(kind.views, kind.points)):
        began = time.monotonic()
        run("qemu-io", "-r", "-f", "qcow2", "-c", f"read -q {chance.randrange(kind.size_bytes // MEBIBYTE)}M 1M", str(name))
        seconds.append(time.monotonic() - began)
    began = time.monotonic()
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(names[1]), "-F", "qcow2", str(directory / "live.qcow2"))
    return {"qcow2_view_seconds": round(max(seconds), 3), "qcow2_roll_back_seconds": round(time.monotonic() - began, 3)}


def btrfs_snapshots(ground: Ground, kind: Kind) -> dict[str, float]:
    image = ground.on_disk / "btrfs.image"
    with image.open("wb") as stream:
        stream.truncate(3 * kind.size_bytes + 2 * kind.points * kind.churn_bytes)
    device = ground.loop(image)
    run("mkfs.btrfs", "-q", device)
    root = ground.on_disk / "btrfs"
    root.mkdir()
    run("mount", device, str(root))
    try:
        run("btrfs", "subvolume", "create", str(root / "live"))
        run("cp", "--sparse=always", str(kind.base), str(root / "live" / "disk.img"))
        chance = random.Random(5)
        for number in range(kind.points):
            with (root / "live" / "disk.img").open("r+b") as disk:
                for place in kind.places(chance):
                    os.pwrite(disk.fileno(), os.urandom(EXTENT_BYTES), place)
                os.fsync(disk.fileno())
            run("btrfs", "subvolume", "snapshot", "-r", str(root / "live"), str(root / f"{number:04d}"))
        seconds = []
        for number in chance.sample(range(kind.points), min(kind.views, kind.points)):
            began = time.monotonic()
            with (root / f"{number:04d}" / "disk.img").open("rb") as disk:
                os.pread(disk.fileno(), MEBIBYTE, chance.randrange(kind.size_bytes // MEBIBYTE) * MEBIBYTE)
            seconds.append(time.monotonic() - began)
        began = time.monotonic()
        run("btrfs", "subvolume", "snapshot", str(root / "0000"), str(root / "again"))
        run("btrfs", "filesystem", "sync", str(root))
        return {"btrfs_view_seconds": round(max(seconds), 4), "btrfs_roll_back_seconds": round(time.monotonic() - began, 3)}
    finally:
        run("umount", "-l", str(root), check=False)
        image.unlink()
