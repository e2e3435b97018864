"""Replacing small files so that a crash leaves the old content or the new one, never a mixture.

The new content is written beside the file, synced, renamed over it, and the directory synced. The mode counts from the
first byte on: a private key is never readable by others, not even for a moment. Running it twice is harmless.
"""

from __future__ import annotations

import os
from pathlib import Path

PRIVATE, PUBLIC = 0o600, 0o644


def replace_file(path: Path, content: bytes, mode: int = PRIVATE) -> None:
    """Durable when this returns. Raises OSError; the file is then as it was."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except BaseException:
        partial.unlink(missing_ok=True)  # a full disk gets its bytes back
        raise
    finally:
        os.close(descriptor)
    partial.replace(path)
    sync_directory(path.parent)


def rename_file(path: Path, target: Path) -> None:
    """Durable when this returns."""
    path.replace(target)
    sync_directory(target.parent)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
