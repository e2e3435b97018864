"""Holding a whole machine still for some milliseconds, under a limit that nobody can overrun (D19).

::

    hold = MachineHold(plan_hold(devices, named), memory)      the watchdog starts; nothing is held yet
    hold.enter(limit_seconds)                                  every program but this service is stopped
    hold.check()                                               raises when it is not held any more
    times = hold.leave()                                       everything runs; raises when the hold was broken meanwhile
    hold.close()

Everything here blocks and belongs to one thread. The watchdog, outside of every frozen group, lets the machine go when this
process dies or the limit is over; what a process of an earlier life left frozen, after both were killed, is let go by
``release_left_over`` at the next start. Nothing is logged while held: the log's reader may be held too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from failback.errors import FreezeError
from failback.mobility import freeze, kernel_servers, watchdog
from failback.mobility.cgroups import Hierarchy
from failback.runtime import logs

log = logs.get(__name__)

ENTER_SECONDS = 0.25
"""For all programs to stop: milliseconds, unless one waits in the kernel."""
MEMORY_FILE = "held-groups"


@dataclass(frozen=True, slots=True)
class HoldPlan:
    """``named``: the control groups to freeze instead of all. ``mount_points``: file systems of kernel servers."""

    named: tuple[str, ...] = ()
    mount_points: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HoldTimes:
    enter_milliseconds: float
    held_milliseconds: float
    """From the beginning of the freeze to the end of the thaw."""


def plan_hold(devices: tuple[str, ...], named: tuple[str, ...]) -> HoldPlan:
    """Blocking; a few reads of /proc. Raises FreezeError when something that writes cannot be held."""
    servers = kernel_servers.running()
    if not servers:
        return HoldPlan(named)
    unheld = kernel_servers.not_held(devices)
    if unheld:
        raise _not_possible("; ".join(unheld), "take the machine out of its replication group, or stop that server")
    return HoldPlan(named, freeze.plan_for(devices).mount_points)


def _not_possible(sentence: str, remedy: str) -> FreezeError:
    return FreezeError(
        f"this machine cannot be held still: {sentence}", code="HoldNotPossible", remedy=remedy, retryable=True
    )


def release_left_over(runtime_directory: Path) -> int:
    """Let go what an earlier life of this service left frozen; returns how many groups it had noted."""
    note = runtime_directory / MEMORY_FILE
    try:
        files = note.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    watchdog.unfreeze(files)
    note.unlink()
    log.warning("a hold of an earlier life of this service was ended", groups=len(files))
    return len(files)


class MachineHold:
    """See the module. ``lost`` says why it can be used no more; make a new one then."""

    def __init__(self, plan: HoldPlan, runtime_directory: Path, hierarchy: Hierarchy | None = None) -> None:
        """Raises FreezeError when the machine cannot be held."""
        self.plan = plan
        self.lost = ""
        self._note = runtime_directory / MEMORY_FILE
        self._noted: tuple[str, ...] = ()
        self._hierarchy = hierarchy or Hierarchy()
        self._held: tuple[str, ...] = ()
        self._began = self._entered = self._deadline = self._beginning = 0.0
        self._channel, self.watchdog_pid = freeze.start_watchdog(plan.mount_points)
        self._descriptors: list[int] = []
        try:
            self._descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in plan.mount_points]
            self.look()
        except (OSError, FreezeError) as error:
            self.close()
            if isinstance(error, OSError):
                raise _not_possible(str(error), "see whether its file systems are still mounted") from error
            raise

    @property
    def held(self) -> bool:
        return bool(self._began)

    def look(self) -> None:
        """What a hold would freeze. Raises FreezeError when a program would go on."""
        chosen = self._hierarchy.choose(self.plan.named)
        absent = [path for path in chosen.frozen if self.plan.named and not self._hierarchy.has(path)]
        if absent:  # a wrong name would hold nothing and call it held
            raise _not_possible(f"there is no control group {', '.join(absent)}", "correct hold_groups")
        if not chosen.frozen:
            raise _not_possible("there is no control group that can be frozen", "let systemd start its programs")
        if not self.plan.named:
            outside = self._hierarchy.outside(chosen, frozenset({1, os.getpid(), self.watchdog_pid}))
            if outside:
                raise _not_possible(
                    f"{', '.join(outside[:5])} run outside of every control group that can be frozen",
                    "let systemd start them as services, or name the groups to hold in hold_groups",
                )
        self._held = chosen.frozen
        files = tuple(self._freezer(path) for path in self._held)
        if files != self._noted:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._note.write_text("\n".join(files), encoding="utf-8")
            self._noted = files
        if self._channel_ended():
            self._lose("the thaw watchdog ended")

    def enter(self, limit_seconds: float) -> None:
        """Stop the machine. Raises FreezeError, then it runs."""
        if self.lost:
            raise self._broken()
        lines = b"".join(b"freezer %s\n" % os.fsencode(file) for file in self._noted)
        logging.disable(logging.CRITICAL)
        try:
            if self._descriptors:
                watchdog.lock_memory()
            self._channel.setblocking(True)
            self._channel.sendall(lines + b"limit %.3f\n" % limit_seconds)
            self._channel.setblocking(False)
            self._began = time.monotonic()
            self._deadline = self._began + limit_seconds
            self._hierarchy.freeze(self._held, min(ENTER_SECONDS, limit_seconds))
            if self._descriptors:
                freeze.freeze_all(self.plan.mount_points, self._descriptors)
            self._entered = time.monotonic()
        except OSError as error:
            self._let_go()
            raise _not_possible(str(error), "see the kernel's log") from error
        except FreezeError:
            self._let_go()
            raise

    def check(self) -> None:
        """Raises FreezeError when the hold is over or was broken."""
        if self.lost:
            raise self._broken()
        if not self.held:
            raise FreezeError("the machine is not held", code="HoldLost", retryable=True)
        if time.monotonic() >= self._deadline:
            self._lose("its time limit was over")
        elif self._channel_ended():
            self._lose("the thaw watchdog ended, or its time limit came first")
        if self.lost:
            raise self._broken()

    def leave(self) -> HoldTimes:
        """Let everything run. Raises FreezeError when it was not held from ``enter`` until now."""
        try:
            self.check()
            for path in self._held:
                if not (self._hierarchy.is_asked_to_freeze(path) and self._hierarchy.is_frozen(path)):
                    self._lose(f"{path} was thawed by somebody else")
            if self._hierarchy.choose(self.plan.named).frozen != self._held:
                self._lose("a control group came or went")
            self.check()
        finally:
            self._let_go()
        ended = time.monotonic()
        return HoldTimes(round((self._entered - self._beginning) * 1000, 3), round((ended - self._beginning) * 1000, 3))

    def _let_go(self) -> None:
        """Harmless when nothing is held."""
        watchdog.thaw(list(reversed(self._descriptors)))
        watchdog.unfreeze(list(self._noted))
        if self._descriptors:
            watchdog.unlock_memory()
        self._beginning, self._began = self._began, 0.0
        with contextlib.suppress(OSError):
            self._channel.sendall(b"rest\n")
        logging.disable(logging.NOTSET)

    def _lose(self, reason: str) -> None:
        self.lost = self.lost or reason

    def _broken(self) -> FreezeError:
        return FreezeError(
            f"the hold was broken: {self.lost}", code="HoldLost", retryable=True,
            remedy="none: the common mark is void, and the next one is tried by itself",
        )  # fmt: skip

    def _channel_ended(self) -> bool:
        try:
            self._channel.setblocking(False)
            return not self._channel.recv(64)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _freezer(self, path: str) -> str:
        return f"{self._hierarchy.root}{path}/cgroup.freeze"

    def close(self) -> None:
        """Let go and end the watchdog."""
        if self.held:
            self._let_go()
        with contextlib.suppress(OSError):
            self._channel.sendall(b"done\n")
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._channel.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        with contextlib.suppress(OSError):
            self._note.unlink()
