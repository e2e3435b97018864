"""A throw-away layer above a view: what was written lies in an unnamed sparse file on the retention volume, up to a quota.

The file has no name from its first moment, so whatever ends the process gives the space back. A range counts as written
from the moment its bytes are in the file; blocks are those of undo (4 KiB).
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from failback.block.raw import storage_error
from failback.errors import OutOfSpaceError
from failback.journal.format import UNDO_BLOCK_BYTES
from failback.journal.undo import REGION_BLOCKS

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)

Mask = npt.NDArray[np.bool_]


class Room:
    """What the layers of one view may use together, and what they leave free on the volume."""

    def __init__(self, directory: Path, quota_bytes: int, reserve_bytes: int) -> None:
        self.directory = directory
        self.quota_bytes = quota_bytes
        self._reserve_bytes = reserve_bytes
        self._layers: list[Layer] = []

    def layer(self) -> Layer:
        layer = Layer(self)
        self._layers.append(layer)
        return layer

    @property
    def used_bytes(self) -> int:
        return sum(layer.used_bytes for layer in self._layers)

    def check(self, more_bytes: int) -> None:
        """Raises OutOfSpaceError when ``more_bytes`` do not fit any more."""
        if self.used_bytes + more_bytes > self.quota_bytes:
            raise OutOfSpaceError(
                f"the view's layer has reached its quota of {self.quota_bytes >> 20} MiB", code="ViewQuotaReached",
                remedy="open the view with a larger quota",
            )  # fmt: skip
        facts = os.statvfs(self.directory)
        if facts.f_bavail * facts.f_frsize < more_bytes + self._reserve_bytes:
            raise OutOfSpaceError(
                f"the retention volume of {self.directory} is nearly full: the view's layer takes no more of it",
                code="ViewVolumeFull", remedy="extend the retention volume; replication comes first",
            )  # fmt: skip


class Layer:
    """One disk's layer. Reads may come from several threads; the caller lets one write at a time."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._file = tempfile.TemporaryFile(dir=room.directory, buffering=0)  # noqa: SIM115
        self._regions: dict[int, Mask] = {}

    def written(self, begin: int, stop: int) -> Mask:
        """Which of the blocks [begin, stop) the layer holds."""
        mask = np.zeros(stop - begin, np.bool_)
        for region in range(begin // REGION_BLOCKS, (stop - 1) // REGION_BLOCKS + 1):
            bits = self._regions.get(region)
            if bits is not None:
                low, high = max(begin, region * REGION_BLOCKS), min(stop, (region + 1) * REGION_BLOCKS)
                start = region * REGION_BLOCKS
                mask[low - begin : high - begin] = bits[low - start : high - start]
        return mask

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Zeroes behind what was ever written."""
        count = 0
        while count < len(buffer):
            got = os.preadv(self._file.fileno(), [buffer[count:]], offset + count)
            if got == 0:
                buffer[count:] = bytes(len(buffer) - count)
                return
            count += got

    def write(self, offset: int, data: memoryview) -> None:
        """Whole blocks (or up to the disk's end). Raises OutOfSpaceError, StorageError: then the layer is as it was, or
        holds some of the blocks."""
        self._room.check(len(data))
        count = 0
        try:
            while count < len(data):
                count += os.pwrite(self._file.fileno(), data[count:], offset + count)
        except OSError as error:
            raise storage_error("cannot write the view's layer", error) from error
        self._mark(offset, len(data))

    def zero(self, offset: int, length: int) -> None:
        """Whole blocks; takes no room."""
        if length:
            done = _libc.fallocate(
                self._file.fileno(), _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)
            )
            if done != 0:
                number = ctypes.get_errno()
                raise storage_error("cannot zero the view's layer", OSError(number, os.strerror(number)))
            self._mark(offset, length)

    def _mark(self, offset: int, length: int) -> None:
        begin, stop = offset // UNDO_BLOCK_BYTES, -(-(offset + length) // UNDO_BLOCK_BYTES)
        for region in range(begin // REGION_BLOCKS, (stop - 1) // REGION_BLOCKS + 1):
            bits = self._regions.setdefault(region, np.zeros(REGION_BLOCKS, np.bool_))
            start = region * REGION_BLOCKS
            bits[max(begin - start, 0) : min(stop - start, REGION_BLOCKS)] = True

    @property
    def used_bytes(self) -> int:
        return 0 if self._file.closed else os.fstat(self._file.fileno()).st_blocks * 512

    def close(self) -> None:
        self._file.close()
