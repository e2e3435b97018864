"""The thaw watchdog (D18 to D20): a small process that thaws file systems and control groups when the agent dies or the time
is over.

Started by the agent before a freeze, with only the standard library, in the root cgroup (so that ending the agent's
unit does not end it, and no hold stops it) and in a session of its own; it locks its memory before it says ``ready``. It holds
one end of a socket pair: while both live, neither needs to act. End of file at either side means that the other is gone: the
watchdog thaws, the agent thaws.

::

    agent                    watchdog (python -I -S -B watchdog.py FD MOUNT...)
      <-- ready                 mounts opened, memory locked
      --> freezer FILE          a cgroup.freeze file that is to be written 0 as well (one line each; before the freeze)
      --> limit SECONDS         from now on a deadline runs (CLOCK_BOOTTIME)
      --> rest                  thawed by the agent: forget the freezer files and the deadline, stay for the next time
      --> done                  thawed by the agent: the watchdog ends without touching anything
      (end of file, deadline)   0 into every freezer file, FITHAW on every mount, last frozen first

Thawing what is not frozen is EINVAL and harmless, so acting twice is too.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import sys
import time

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
MCL_CURRENT = 1


def lock_memory() -> None:
    """Keep every page of this process resident. Raises OSError without CAP_IPC_LOCK."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(MCL_CURRENT):
        number = ctypes.get_errno()
        raise OSError(number, f"mlockall: {os.strerror(number)}")


def unlock_memory() -> None:
    ctypes.CDLL(None).munlockall()


def thaw(descriptors: list[int]) -> int:
    """FITHAW on each; returns how many were frozen until now."""
    thawed = 0
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # EINVAL: it was not frozen
            fcntl.ioctl(descriptor, FITHAW, 0)
            thawed += 1
    return thawed


def unfreeze(files: list[str]) -> None:
    """Let the programs of these groups run; a file that is gone is no group any more."""
    for path in files:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY)
            try:
                os.write(descriptor, b"0")
            finally:
                os.close(descriptor)


def leave_cgroup() -> None:
    """Move this process to the root of every cgroup hierarchy; where that is refused it stays and still works."""
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"):
        with contextlib.suppress(OSError), open(f"{root}/cgroup.procs", "w", encoding="ascii") as stream:
            stream.write(str(os.getpid()))


def seconds() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def watch(channel: socket.socket, descriptors: list[int]) -> None:
    """Returns after ``done``, or after it had to thaw."""
    deadline: float | None = None
    freezers: list[str] = []
    received = b""
    while True:
        left = None if deadline is None else max(0.0, deadline - seconds())
        readable, _, _ = select.select([channel], [], [], left)
        if not readable:
            unfreeze(freezers)
            thaw(descriptors)
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_WR)  # tells the agent
            deadline = None  # stay until it is gone or done: a freeze that was still under way is thawed then
            continue
        try:
            chunk = channel.recv(4096)
        except OSError:
            chunk = b""
        if not chunk:
            unfreeze(freezers)
            thaw(descriptors)
            return
        received += chunk
        while b"\n" in received:
            line, _, received = received.partition(b"\n")
            if line == b"done":
                return
            if line == b"rest":
                deadline, freezers = None, []
            if line.startswith(b"freezer "):
                freezers.append(os.fsdecode(line[8:]))
            if line.startswith(b"limit "):
                deadline = seconds() + float(line[6:])


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    if os.fork():  # the first child ends at once: init adopts the watchdog
        os._exit(0)
    os.setsid()
    leave_cgroup()
    descriptors = [os.open(path, os.O_RDONLY) for path in sys.argv[2:]]
    lock_memory()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:
        stream.write("-1000")
    channel.sendall(b"ready %d\n" % os.getpid())
    watch(channel, list(reversed(descriptors)))


if __name__ == "__main__":
    main()
