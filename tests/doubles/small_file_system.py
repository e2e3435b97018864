"""A real, small ext4 on a loop device, for full disks: everything on it really ends."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SmallFileSystem:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def free_bytes(self) -> int:
        facts = os.statvfs(self.path)
        return facts.f_bavail * facts.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Take the room but for so much; 0: down to the last block."""
        with self._filler.open("ab") as stream:
            while (room := self.free_bytes() - leave_bytes) > 0:
                try:
                    stream.write(bytes(min(room, 1 << 20)))
                    stream.flush()
                except OSError:
                    break
            os.fsync(stream.fileno())

    def release(self) -> None:
        self._filler.unlink(missing_ok=True)
        os.sync()


@contextmanager
def mounted(directory: Path, megabytes: int) -> Iterator[SmallFileSystem]:
    image, point = directory / "small.img", directory / "small"
    with image.open("wb") as stream:
        stream.truncate(megabytes << 20)
    point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-F", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    try:
        yield SmallFileSystem(point)
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)
        image.unlink()
