"""Which control groups hold a machine's programs, and stopping them with the cgroup v2 freezer (D19).

Frozen are all groups of the version 2 hierarchy but those that hold init, this service or another spared one: a group that
contains a spared one is opened and its other children are frozen. Programs that live directly in an opened group (the root
cannot be frozen) are *outside* of a hold: ``outside`` names them, kernel threads excepted. Freezing a group freezes what it
starts meanwhile; a process is stopped when it leaves the kernel, so nothing of it holds a kernel lock.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from failback.errors import FreezeError

_KERNEL_THREAD = 0x00200000
"""PF_KTHREAD in the flags of /proc/PID/stat."""
_LOOK_SECONDS = 0.0003


@dataclass(frozen=True, slots=True)
class Chosen:
    """Paths below the hierarchy's root, such as ``/system.slice``. ``opened``: groups that stay, as does what is in them."""

    frozen: tuple[str, ...]
    opened: tuple[str, ...]


def choose(children: Callable[[str], Iterable[str]], spared: frozenset[str]) -> Chosen:
    """Pure: ``children`` names the groups directly below one (the root is the empty text)."""
    frozen: list[str] = []
    opened: list[str] = []

    def walk(path: str) -> None:
        opened.append(path)
        for child in children(path):
            if child in spared:
                continue
            if any(each.startswith(f"{child}/") for each in spared):
                walk(child)
            else:
                frozen.append(child)

    walk("")
    return Chosen(tuple(sorted(frozen)), tuple(opened))


def hierarchy(mountinfo: str) -> Path:
    """Where the version 2 hierarchy is mounted, from /proc/self/mountinfo. Raises FreezeError when it is not."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 ") and left.split()[3] == "/":
            return Path(left.split()[4])
    raise FreezeError(
        "this machine has no cgroup v2 hierarchy: it cannot be held still for a replication group",
        code="HoldNotPossible",
        remedy="boot with systemd.unified_cgroup_hierarchy=1",
    )


def group_of(process: int | str) -> str:
    """The process's group in the version 2 hierarchy; the root is the empty text."""
    text = Path(f"/proc/{process}/cgroup").read_text(encoding="ascii")
    paths = [line[3:] for line in text.splitlines() if line.startswith("0::")]
    return paths[0].rstrip("/") if paths else ""


class Hierarchy:
    """The mounted hierarchy."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or hierarchy(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
        self._kernel_threads: frozenset[str] = frozenset()

    def children(self, path: str) -> list[str]:
        try:
            with os.scandir(f"{self.root}{path}") as entries:
                return [f"{path}/{entry.name}" for entry in entries if entry.is_dir()]
        except FileNotFoundError:
            return []

    def has(self, path: str) -> bool:
        """Whether the group exists and can be frozen."""
        return os.path.exists(f"{self.root}{path}/cgroup.freeze")

    def choose(self, named: tuple[str, ...]) -> Chosen:
        """The groups that a hold freezes now: ``named`` ones if any are named, else all but init's and our own."""
        if named:
            return Chosen(tuple(sorted(f"/{path.strip('/')}" for path in named)), ())
        spared = frozenset(path for path in (group_of(1), group_of("self")) if path)
        return choose(self.children, spared)

    def outside(self, chosen: Chosen, spared: frozenset[int]) -> list[str]:
        """Programs in groups that stay unfrozen: ``name (pid)``. Blocking; a few reads of /proc."""
        found: list[str] = []
        kernel_threads: set[str] = set()
        for path in chosen.opened:
            try:
                members = Path(f"{self.root}{path}/cgroup.procs").read_text(encoding="ascii").split()
            except OSError:
                continue
            for member in members:
                if member in self._kernel_threads or _is_kernel_thread(member):
                    kernel_threads.add(member)
                elif int(member) not in spared and member != "0":
                    found.append(_describe(member))
        self._kernel_threads = frozenset(kernel_threads)
        return [each for each in found if each]

    def freeze(self, paths: Iterable[str], limit_seconds: float) -> None:
        """Stop everything in the groups; returns when it is stopped. Raises FreezeError, then nothing is undone yet."""
        deadline = time.monotonic() + limit_seconds
        waiting = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # ended since it was listed
                _write(f"{self.root}{path}/cgroup.freeze", b"1")
                waiting.append(path)
        while waiting := [path for path in waiting if not self.is_frozen(path)]:
            if time.monotonic() >= deadline:
                raise FreezeError(
                    f"the programs in {', '.join(waiting)} did not stop within {limit_seconds * 1000:.0f} ms",
                    code="HoldNotPossible",
                    possible_causes="a program waits in the kernel for a disk or a network file system",
                    remedy="look for processes in state D",
                    retryable=True,
                )
            time.sleep(_LOOK_SECONDS)

    def is_frozen(self, path: str) -> bool:
        """Whether everything in the group stands still now; a group that is gone does."""
        try:
            return b"frozen 1" in _read(f"{self.root}{path}/cgroup.events")
        except FileNotFoundError:
            return True

    def is_asked_to_freeze(self, path: str) -> bool:
        """Whether nobody thawed it behind our back; a group that is gone counts."""
        try:
            return _read(f"{self.root}{path}/cgroup.freeze").startswith(b"1")
        except FileNotFoundError:
            return True


def _is_kernel_thread(process: str) -> bool:
    try:
        fields = _read(f"/proc/{process}/stat").rsplit(b")", 1)[1].split()
    except OSError:
        return True  # ended: nothing to hold
    return bool(int(fields[6]) & _KERNEL_THREAD)


def _describe(process: str) -> str:
    try:
        return f"{_read(f'/proc/{process}/comm').decode(errors='replace').strip()} ({process})"
    except OSError:
        return ""


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def _write(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
