"""A file system that keeps its word and nothing more: what was not synced may be lost at a power cut.

The files are real ones in a tmpfs, the calls of :mod:`os` are watched while a world lives. What is modelled: bytes of a
file behind its last sync are cut at a random place and may be garbled; names made, replaced or removed since the last sync of
their directory are taken back from a random one on, in order (as a metadata journal does). SQLite's own files count as
durable at each commit. A dead process can change nothing any more.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from failback.sim.loop import CURRENT, check_alive

_WATCHED = ("open", "close", "write", "pwrite", "fsync", "fdatasync", "ftruncate", "truncate", "unlink", "rename", "replace",
            "rmdir", "mkdir")  # fmt: skip


@dataclass(slots=True)
class _Name:
    """A change of a directory that is not durable: how to take it back."""

    take_back: Callable[[], None]


@dataclass(slots=True)
class Files:
    root: Path
    chance: random.Random
    fail_sync: int = 0
    """So many of the next syncs fail with EIO."""
    _synced: dict[int, int] = field(default_factory=dict)
    _names: dict[int, list[_Name]] = field(default_factory=dict)
    _real: dict[str, Any] = field(default_factory=dict)
    _kept: int = 0

    # --- watching ---------------------------------------------------------------------------------------------------

    @contextmanager
    def watched(self) -> Iterator[None]:
        self._real = {name: getattr(os, name) for name in _WATCHED}
        (self.root / "removed").mkdir(parents=True)
        try:
            for name in _WATCHED:
                setattr(os, name, getattr(self, f"_{name}"))
            yield
        finally:
            for name, function in self._real.items():
                setattr(os, name, function)

    def _is_ours(self, path: Any) -> bool:
        return not isinstance(path, int) and os.fspath(path).startswith(str(self.root))

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None or not self._is_ours(path):
            return int(self._real["open"](path, flags, mode, dir_fd=dir_fd))
        check_alive()
        fresh = bool(flags & os.O_CREAT) and not os.path.exists(path)
        descriptor = int(self._real["open"](path, flags, mode))
        if fresh:
            self._note(path, lambda: self._remove(path))
        if flags & os.O_TRUNC:
            self._synced[os.fstat(descriptor).st_ino] = 0
        process = CURRENT.get()
        if process is not None:
            process.descriptors.add(descriptor)
        return descriptor

    def _close(self, descriptor: int) -> None:
        process = CURRENT.get()
        if process is not None:
            if not process.alive:  # closed when it died
                return
            process.descriptors.discard(descriptor)
        self._real["close"](descriptor)

    def _write(self, descriptor: int, data: Any) -> int:
        check_alive()
        return int(self._real["write"](descriptor, data))

    def _pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        check_alive()
        return int(self._real["pwrite"](descriptor, data, offset))

    def _fsync(self, descriptor: int) -> None:
        check_alive()
        if self.fail_sync > 0:
            self.fail_sync -= 1
            raise OSError(errno.EIO, "simulated failure of a sync")
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._names.pop(status.st_ino, None)
        else:
            self._synced[status.st_ino] = status.st_size

    _fdatasync = _fsync

    def _ftruncate(self, descriptor: int, length: int) -> None:
        check_alive()
        self._real["ftruncate"](descriptor, length)
        self._shorter(os.fstat(descriptor))

    def _truncate(self, path: Any, length: int) -> None:
        check_alive()
        self._real["truncate"](path, length)
        self._shorter(os.stat(path))

    def _shorter(self, status: os.stat_result) -> None:
        if self._synced.get(status.st_ino, 0) > status.st_size:
            self._synced[status.st_ino] = status.st_size

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None or not self._is_ours(path):
            check_alive()
            self._real["unlink"](path, dir_fd=dir_fd)
            return
        check_alive()
        kept = self._keep(path)
        self._real["unlink"](path)
        if kept is not None:
            self._note(path, lambda: self._bring_back(kept, path))

    def _replace(self, source: Any, target: Any, **_: Any) -> None:
        check_alive()
        kept = self._keep(target) if self._is_ours(target) else None
        self._real["replace"](source, target)
        if self._is_ours(target) and os.path.isfile(target):
            self._note(target, lambda: self._bring_back(kept, target) if kept else self._remove(target))

    def _rename(self, source: Any, target: Any, **_: Any) -> None:
        self._replace(source, target)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        check_alive()
        self._real["rmdir"](path, dir_fd=dir_fd)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        check_alive()
        self._real["mkdir"](path, mode, dir_fd=dir_fd)

    # --- remembering ------------------------------------------------------------------------------------------------

    def _note(self, path: Any, take_back: Callable[[], None]) -> None:
        if "sqlite" in os.fspath(path):
            return
        directory = os.stat(os.path.dirname(os.fspath(path))).st_ino
        self._names.setdefault(directory, []).append(_Name(take_back))

    def _keep(self, path: Any) -> str | None:
        if not os.path.isfile(path):
            return None
        self._kept += 1
        kept = str(self.root / "removed" / str(self._kept))
        os.link(path, kept)
        return kept

    def _remove(self, path: Any) -> None:
        if os.path.isfile(path):
            self._real["unlink"](path)

    def _bring_back(self, kept: str, path: Any) -> None:
        if os.path.isdir(os.path.dirname(os.fspath(path))):
            self._real["rename"](kept, path)

    # --- the end of a process or a machine --------------------------------------------------------------------------

    def process_died(self, descriptors: set[int]) -> None:
        for descriptor in descriptors:
            self._real["close"](descriptor)
        descriptors.clear()

    def is_durable(self, directory: Path) -> None:
        """All that lies there came with the disk that was put in."""
        for folder, _, found in os.walk(directory):
            self._names.pop(os.stat(folder).st_ino, None)
            for status in (os.stat(os.path.join(folder, name)) for name in found):
                self._synced[status.st_ino] = status.st_size

    def power_cut(self, directory: Path) -> None:
        """Everything below the directory that was not durable may be lost."""
        for folder, _, _ in os.walk(directory):
            names = self._names.pop(os.stat(folder).st_ino, [])
            for name in reversed(names[self.chance.randint(0, len(names)) :]):
                name.take_back()
        for folder, _, found in os.walk(directory):
            for path in (os.path.join(folder, name) for name in sorted(found) if "sqlite" not in name):
                self._tear(path)

    def _tear(self, path: str) -> None:
        status = os.stat(path)
        durable = min(self._synced.get(status.st_ino, 0), status.st_size)
        if status.st_size > durable:
            keep = self.chance.choice((durable, status.st_size, self.chance.randint(durable, status.st_size)))
            self._real["truncate"](path, keep)
            if keep > durable and self.chance.random() < 0.5:
                self._garble(path, durable, keep)
        self._synced[status.st_ino] = os.stat(path).st_size

    def _garble(self, path: str, begin: int, end: int) -> None:
        first = self.chance.randint(begin, end - 1)
        descriptor = self._real["open"](path, os.O_WRONLY)
        self._real["pwrite"](descriptor, bytes(min(end - first, 4096)), first)
        self._real["close"](descriptor)
