"""QEMU's image locks, taken by us: a hypervisor on this host refuses a disk that is a replica (D22).

QEMU marks what a process does with an image by OFD read locks on single bytes of the file: 100 + n "I use permission n",
200 + n "nobody else may use permission n" (block/file-posix.c, RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE). We hold 100
(consistent read), 101 (write) and 201 (write not shared): then ``virsh start``, ``<shareable/>`` included, and
``qemu-img`` fail with "Failed to get ... lock". The lock goes with the descriptor, so the ``.replica`` name is the durable fence.
"""

from __future__ import annotations

import fcntl
import struct

from failback.errors import ConflictError

_F_OFD_GETLK = 36
_F_OFD_SETLK = 37
_FLOCK = struct.Struct("hhqqi4x")

CONSISTENT_READ, WRITE, WRITE_NOT_SHARED = 100, 101, 201
HELD_BYTES = (CONSISTENT_READ, WRITE, WRITE_NOT_SHARED)
_CONFLICTING_BYTES = (101, 103, 200, 201)


def take(descriptor: int, name: str) -> None:
    """Hold the image as its only writer; a second call on the same descriptor changes nothing.

    Raises ConflictError when a hypervisor or another master target uses the image.
    """
    for byte in _CONFLICTING_BYTES:
        if _locked_by_other(descriptor, byte):
            raise ConflictError(
                f"{name} is in use by a hypervisor or another master target",
                code="DiskInUse",
                possible_causes="the on-premises machine is running, or another process has the image open",
                remedy="power the on-premises machine off and try again",
            )
    for byte in HELD_BYTES:
        fcntl.fcntl(descriptor, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0))


def drop(descriptor: int) -> None:
    for byte in HELD_BYTES:
        fcntl.fcntl(descriptor, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, 0, byte, 1, 0))


def _locked_by_other(descriptor: int, byte: int) -> bool:
    answer = fcntl.fcntl(descriptor, _F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK
