"""Freezing the file systems of the captured disks, under a limit that nobody can overrun (D18, D20).

::

    async with ... :                    Frozen
      hold = await freeze(plan, limit)    watchdog ready -> memory locked -> logging off -> FIFREEZE in order
      ...                                 only the network and the runtime directory (tmpfs) may be written
      await hold.thaw()                   FITHAW, logging on again

While frozen, anything that writes to a file system blocks for ever: no log line, no import (it may write a .pyc), no child
process. ``hold.ended`` fires when the hold is over for any reason; ``hold.lost`` then tells why when it was not our thaw.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from failback.errors import FreezeError
from failback.mobility import mounts, watchdog
from failback.runtime import logs
from failback.runtime.clock import SystemClock

log = logs.get(__name__)

READY_SECONDS = 20.0
_clock = SystemClock()


@dataclass(frozen=True, slots=True)
class FreezePlan:
    """What is to be frozen, in this order, and what can only be synced or named (D20)."""

    mount_points: tuple[str, ...]
    not_freezable: tuple[str, ...] = ()


def plan_for(devices: tuple[str, ...]) -> FreezePlan:
    """The plan for whole-disk devices such as ``/dev/vda``. Blocking; a few reads of /proc."""
    disks = frozenset(os.path.realpath(device).removeprefix("/dev/") for device in devices)
    freezable: list[str] = []
    other: list[str] = []
    for found in mounts.writable_on(disks):
        if found.filesystem in ("vfat", "msdos", "exfat", "ntfs3", "udf"):
            other.append(f"{found.mount_point} ({found.filesystem})")
        else:
            freezable.append(found.mount_point)
    other += [f"swap {path}" for path in mounts.swaps_on(disks)]
    other += [f"raw writer {user}" for user in mounts.raw_users_on(disks, frozenset({os.getpid()}))]
    return FreezePlan(tuple(freezable), tuple(other))


class Frozen:
    """A hold. Made by :func:`freeze`; ``thaw`` may be called any number of times, from anywhere."""

    def __init__(self, descriptors: list[int], channel: socket.socket, watchdog_pid: int, limit_seconds: float) -> None:
        self.watchdog_pid = watchdog_pid
        self.lost = ""
        self.unsupported: tuple[str, ...] = ()
        """Mount points of the plan whose file system knows no freeze: synced only."""
        self.ended = asyncio.Event()
        self.frozen_seconds = 0.0
        self._descriptors = descriptors
        self._channel = channel
        self._began = _clock.monotonic()
        self._deadline = self._began + limit_seconds
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(limit_seconds, self._overdue)
        self._loop.add_reader(channel.fileno(), self._watchdog_gone)

    @property
    def seconds_left(self) -> float:
        return 0.0 if self.ended.is_set() else max(0.0, self._deadline - _clock.monotonic())

    def _overdue(self) -> None:
        self._end("the time limit is over")

    def _watchdog_gone(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            if self._channel.recv(64):
                return
        self._end("the thaw watchdog ended (killed, or its time limit came first)")

    def _end(self, reason: str) -> None:
        """Thaw at once. FITHAW does not wait for anything but the file system's own lock: fit for the event loop."""
        if self.ended.is_set():
            return
        self._timer.cancel()
        self._loop.remove_reader(self._channel.fileno())
        watchdog.thaw(list(reversed(self._descriptors)))
        self.frozen_seconds = _clock.monotonic() - self._began
        with contextlib.suppress(OSError):
            self._channel.sendall(b"done\n")
        self._channel.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self.lost = reason
        watchdog.unlock_memory()
        logging.disable(logging.NOTSET)
        self.ended.set()
        log.info("file systems are thawed", seconds=round(self.frozen_seconds, 3), reason=reason or "asked")

    async def thaw(self) -> None:
        self._end("")

    def check(self) -> None:
        """Raises FreezeError when the hold is over."""
        if self.ended.is_set():
            raise FreezeError(
                f"the freeze was lost: {self.lost or 'it was thawed'}",
                code="FreezeLeaseLost",
                remedy="run the operation again; the machine goes on in the meantime",
                retryable=True,
            )


async def freeze(plan: FreezePlan, limit_seconds: float) -> Frozen:
    """Freeze everything of the plan. Raises FreezeError, then nothing stays frozen.

    The limit runs from here on, the time that freezing itself takes included.
    """
    began = _clock.monotonic()
    channel, pid = await asyncio.to_thread(start_watchdog, plan.mount_points)
    try:
        descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in plan.mount_points]
    except OSError as error:
        channel.close()
        raise FreezeError(f"cannot open a mount point: {error}", remedy="see whether it is still mounted") from error
    log.info("freezing", file_systems=len(descriptors), limit_seconds=limit_seconds)
    logging.disable(logging.CRITICAL)
    try:
        watchdog.lock_memory()
        channel.sendall(f"limit {limit_seconds}\n".encode("ascii"))
        unsupported = await asyncio.to_thread(freeze_all, plan.mount_points, descriptors)
    except (OSError, FreezeError, asyncio.CancelledError) as error:
        _undo(descriptors, channel)
        if isinstance(error, OSError):
            raise FreezeError(f"cannot freeze: {error}", remedy="see possible causes", retryable=True) from error
        raise
    left = limit_seconds - (_clock.monotonic() - began)
    if left <= 0:
        _undo(descriptors, channel)
        raise FreezeError(
            f"freezing took longer than its limit of {limit_seconds:g} s and was undone",
            possible_causes="much unwritten data in the page cache, a slow disk",
            remedy="try again, or allow more time",
            retryable=True,
        )
    hold = Frozen(descriptors, channel, pid, left)
    hold.unsupported = unsupported
    return hold


def _undo(descriptors: list[int], channel: socket.socket) -> None:
    watchdog.thaw(list(reversed(descriptors)))
    with contextlib.suppress(OSError):
        channel.sendall(b"done\n")
    channel.close()
    for descriptor in descriptors:
        os.close(descriptor)
    watchdog.unlock_memory()
    logging.disable(logging.NOTSET)


def freeze_all(mount_points: tuple[str, ...], descriptors: list[int]) -> tuple[str, ...]:
    """FIFREEZE once per superblock; returns those that know no freeze, synced. The first failure raises; the caller thaws."""
    unsupported: list[str] = []
    for path, descriptor in zip(mount_points, descriptors, strict=True):
        try:
            fcntl.ioctl(descriptor, watchdog.FIFREEZE, 0)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                _sync_file_system(descriptor)
                unsupported.append(path)
                continue
            busy = error.errno == errno.EBUSY
            raise FreezeError(
                f"{path} cannot be frozen: {error.strerror}",
                possible_causes="another program (a backup, a snapshot) has frozen it" if busy else "",
                remedy="wait until it is thawed, then try again" if busy else "see the kernel's log",
                retryable=busy,
            ) from error
    return tuple(unsupported)


def sync_other(paths: tuple[str, ...]) -> None:
    """syncfs of what cannot be frozen. Blocking."""
    for entry in paths:
        path = entry.rsplit(" (", 1)[0]
        if path.startswith("/") and os.path.isdir(path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                _sync_file_system(descriptor)
            finally:
                os.close(descriptor)


def _sync_file_system(descriptor: int) -> None:
    ctypes.CDLL(None).syncfs(descriptor)


def start_watchdog(mount_points: tuple[str, ...]) -> tuple[socket.socket, int]:
    """Returns our end of the channel and the watchdog's process id, once it is ready. Blocking."""
    ours, theirs = socket.socketpair()
    script = str(Path(watchdog.__file__))
    with theirs:
        starter = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", script, str(theirs.fileno()), *mount_points],
            pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd="/",
        )  # fmt: skip
    starter.wait(READY_SECONDS)
    ours.settimeout(READY_SECONDS)
    started = time.monotonic()
    try:
        said = ours.recv(64)
    except OSError:
        said = b""
    if not said.startswith(b"ready "):
        ours.close()
        raise FreezeError(
            f"the thaw watchdog did not start within {time.monotonic() - started:.0f} s",
            possible_causes="no memory may be locked (LimitMEMLOCK), a mount point vanished",
            remedy="see the unit file deploy/failback-mobility.service",
            retryable=True,
        )
    ours.setblocking(False)
    return ours, int(said.split()[1])


async def run_script(script: str, *arguments: str, limit_seconds: float) -> None:
    """Run a pre- or post-script of the administrator. Raises FreezeError when it fails or takes too long."""
    if not script:
        return
    try:
        process = await asyncio.create_subprocess_exec(
            script, *arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise FreezeError(f"{script} cannot be started: {error.strerror}", code="ScriptFailed",
                          remedy="check the path and its execute permission") from error  # fmt: skip
    try:
        async with asyncio.timeout(limit_seconds):
            status = await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise FreezeError(f"{script} took longer than {limit_seconds:g} s and was killed", code="ScriptFailed",
                          remedy="make it faster, or raise script_timeout_seconds", retryable=True) from None  # fmt: skip
    if status:
        raise FreezeError(f"{script} {' '.join(arguments)} ended with status {status}", code="ScriptFailed",
                          remedy="run it by hand to see why", retryable=True)  # fmt: skip
