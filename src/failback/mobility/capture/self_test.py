"""The proof that the capture sees exactly what is written; it must pass before protection is declared (capture.md rule 5).

Known random content is written with O_DIRECT, once page-aligned and once from unaligned memory, and looked for in the ring.
That proves at once the programs' attachment, the addresses of struct page and of the memory behind it, and the copy loops.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
import time
from pathlib import Path

from failback.mobility.capture.ring import Ring
from failback.mobility.capture.values import SelfTest

CONTENT_BYTES = 96 << 10
_UNALIGNED_BYTES = 512
_WAIT_SECONDS = 2.0


def write_to_file(directory: Path, page: mmap.mmap) -> str:
    """Write the content to a new file of the directory with O_DIRECT and remove it; returns why it was impossible, or ''."""
    descriptor, name = tempfile.mkstemp(prefix=".failback-self-test-", dir=directory)
    os.close(descriptor)
    try:
        return write_to(name, page)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def write_to(path: str, page: mmap.mmap) -> str:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        return f"{path} does not take O_DIRECT: {error.strerror}"
    try:
        half = CONTENT_BYTES // 2
        view = memoryview(page)
        os.pwrite(descriptor, view[:half], 0)
        try:
            os.pwrite(descriptor, view[half + _UNALIGNED_BYTES : half + _UNALIGNED_BYTES + half], half)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            os.pwrite(descriptor, view[half : 2 * half], half)  # 4 KiB sectors
    except OSError as error:
        return f"{path}: {error.strerror}"
    finally:
        os.close(descriptor)
    return ""


def content() -> mmap.mmap:
    page = mmap.mmap(-1, CONTENT_BYTES + mmap.PAGESIZE)
    page[:] = os.urandom(len(page))
    return page


def judge(ring: Ring, position: int, page: mmap.mmap) -> SelfTest:
    """Whether records after ``position`` hold the content: every record that begins with a part of it must go on with it."""
    whole = bytes(page)
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        records = ring.find(position, whole)
        seen = sum(len(data) for _, data in records)
        wrong = [at for at, data in records if whole[at : at + len(data)] != data]
        if wrong:
            return SelfTest(False, f"captured content differs from what was written, {wrong[0]} bytes into it")
        if seen >= CONTENT_BYTES:
            return SelfTest(True, f"{seen} bytes of random content were captured exactly, in {len(records)} records")
        if time.monotonic() > deadline:
            return SelfTest(False, f"{seen} of {CONTENT_BYTES} bytes written were seen in the ring")
        time.sleep(0.01)
