"""Large aligned writes past the page cache: a first copy's data is written once and not read again soon.

Copying into fresh pages of the cache, and writing those back, was half of a master target's processor time (decision 0022).
:class:`DirectWriter` is a second descriptor of the file with O_DIRECT; ``write`` says how many bytes it took, and the caller
writes the rest in the ordinary way. What it wrote is durable after ``fdatasync`` on any descriptor of the file, as ever. A file
system that refuses gets ordinary writes from then on. The kernel keeps cached pages coherent with it.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

SMALLEST_BYTES = 256 << 10
"""A smaller write waits longer for the disk than the copy takes."""
ALIGNMENT_BYTES = 4096
"""Of place, length and memory: enough for every disk's sectors."""
_BUFFER_BYTES = 2 << 20
_MOST_KEPT = 4
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)


class _Buffers:
    """Page-aligned memory, used again; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[mmap.mmap] = []

    def take(self) -> mmap.mmap:
        with self._lock:
            return self._free.pop() if self._free else mmap.mmap(-1, _BUFFER_BYTES)

    def give_back(self, memory: mmap.mmap) -> None:
        with self._lock:
            if len(self._free) < _MOST_KEPT:
                self._free.append(memory)


_buffers = _Buffers()


class DirectWriter:
    """Of one file that exists. For several threads."""

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            self._fd = -1  # the other descriptor says what is wrong, if anything is

    def write(self, offset: int, data: memoryview) -> int:
        """Write the aligned part at the beginning of ``data``; returns how much, 0 when nothing is to be gained.

        Raises OSError; then nothing is known of what was to be written.
        """
        if self._fd < 0 or len(data) < SMALLEST_BYTES or offset % ALIGNMENT_BYTES:
            return 0
        wanted = len(data) - len(data) % ALIGNMENT_BYTES
        memory = _buffers.take()
        try:
            with memoryview(memory) as view:
                return self._write(offset, data[:wanted], view)
        finally:
            _buffers.give_back(memory)

    def _write(self, offset: int, data: memoryview, memory: memoryview) -> int:
        done = 0
        while done < len(data):
            size = min(len(memory), len(data) - done)
            memory[:size] = data[done : done + size]
            try:
                with memory[:size] as part:
                    count = os.pwrite(self._fd, part, offset + done)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                self.close()
                return done
            done += count
            if count < size:
                return done - done % ALIGNMENT_BYTES
        return done

    def close(self) -> None:
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)
