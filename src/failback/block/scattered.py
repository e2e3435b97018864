"""Many small pieces of one device in one call: C loops for raw devices, one call after the other for every other one.

Pieces are columns of 64-bit integers: offset on the device, length, address in memory. Each range is proven here before C sees
it; whatever is not as it should be goes the ordinary way, which says what is wrong. Failures raise StorageError.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from failback.block.device import BlockDevice, Buffer
from failback.block.raw import RawDevice, storage_error
from failback.errors import StorageError
from failback.runtime import native

SMALL_BYTES = 64 << 10
"""A larger piece is worth a call of its own (which may go past the page cache)."""
Int64s = npt.NDArray[np.int64]


class Memory:
    """Buffers addressed as if they were joined."""

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self._parts = [np.frombuffer(part, np.uint8) for part in parts if len(part)]
        sizes = [len(part) for part in self._parts]
        self._ends: Int64s = np.cumsum(np.array(sizes, np.int64)) if sizes else np.zeros(0, np.int64)
        self._starts: Int64s = self._ends - np.array(sizes, np.int64)
        self._addresses: Int64s = np.array([part.ctypes.data for part in self._parts], np.int64)

    def addresses(self, source: Int64s, length: Int64s) -> Int64s | None:
        """Where the pieces lie; None when one is not inside one buffer."""
        index = np.searchsorted(self._starts, source, side="right") - 1
        if not len(source) or int(index.min()) < 0 or bool((source + length > self._ends[index]).any()):
            return None
        found: Int64s = self._addresses[index] + source - self._starts[index]
        return found


def can(device: BlockDevice) -> bool:
    """Whether :func:`write` and :func:`read` may be used for the device."""
    return isinstance(device, RawDevice) and native.library() is not None


def are_small(length: Int64s) -> npt.NDArray[np.bool_]:
    """Which pieces gain by being written together."""
    return length < SMALL_BYTES


def fits(device: BlockDevice, offset: Int64s, length: Int64s) -> bool:
    """Whether every piece lies inside the device."""
    return bool((offset >= 0).all() and (length >= 0).all() and (offset + length <= device.size_bytes).all())


def write(device: BlockDevice, offset: Int64s, length: Int64s, address: Int64s) -> None:
    """The memory at each address to its offset, in order. The caller has asked :func:`can` and :func:`fits`."""
    done, number = _call("failback_write_pieces", device, offset, length, address)
    if done < len(offset):
        path, place = _where(device, offset, done)
        raise storage_error(f"cannot write {path} at {place}", OSError(number, os.strerror(number)))


def read(device: BlockDevice, offset: Int64s, length: Int64s, address: Int64s) -> None:
    """Fill the memory at each address from its offset. As :func:`write`."""
    done, number = _call("failback_read_pieces", device, offset, length, address)
    if done < len(offset):
        path, place = _where(device, offset, done)
        if not number:
            raise StorageError(f"{path} ends at {place}, before its size of {device.size_bytes} bytes")
        raise storage_error(f"cannot read {path} at {place}", OSError(number, os.strerror(number)))


def _call(name: str, device: BlockDevice, offset: Int64s, length: Int64s, address: Int64s) -> tuple[int, int]:
    """(pieces that were done whole, errno)"""
    library = native.library()
    assert library is not None
    assert isinstance(device, RawDevice)
    columns = [np.ascontiguousarray(column, np.int64) for column in (offset, length, address)]
    ctypes.set_errno(0)
    done = getattr(library, name)(device.fileno(), len(offset), *(column.ctypes.data for column in columns))
    return int(done), ctypes.get_errno()


def _where(device: BlockDevice, offset: Int64s, done: int) -> tuple[str, int]:
    return (str(device.path) if isinstance(device, RawDevice) else "the disk"), int(offset[done])
