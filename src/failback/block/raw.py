"""A raw image file (sparse, holes kept and punched) or a kernel block device, by pread and pwrite.

Zeroing punches a hole where the file system can and BLKZEROOUTs a block device; where neither works zeroes are
written. Discard punches a hole in a file and is BLKZEROOUT or ignored on a block device (D17).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from failback.block.device import Buffer, check_range
from failback.block.direct import DirectWriter
from failback.errors import OutOfSpaceError, StorageError

_BLKGETSIZE64 = 0x80081272
_BLKZEROOUT = 0x127F
_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL)
_ZEROES = bytes(1 << 20)
_HOLE_STEP_BYTES = 256 << 10
"""Holes are found at this granularity: a shorter one behind data counts as data."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class RawDevice:
    """Opened read-write (or read-only) for its whole life; ``fileno`` carries the locks (:mod:`failback.block.locks`)."""

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        try:
            self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as error:
            raise storage_error(f"cannot open {path}", error) from error
        status = os.fstat(self._fd)
        self._is_block = stat.S_ISBLK(status.st_mode)
        if self._is_block:
            answer = fcntl.ioctl(self._fd, _BLKGETSIZE64, bytes(8))
            self._size_bytes: int = struct.unpack("<Q", answer)[0]
        else:
            self._size_bytes = status.st_size
        self._direct = DirectWriter(path) if writable else None

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def fileno(self) -> int:
        return self._fd

    def read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(self._size_bytes, offset, len(buffer), str(self.path))
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise storage_error(f"cannot read {self.path} at {offset + done}", error) from error
            if count == 0:
                raise StorageError(f"{self.path} ends at {offset + done}, before its size of {self._size_bytes} bytes")
            done += count

    def write(self, offset: int, data: Buffer) -> None:
        check_range(self._size_bytes, offset, len(data), str(self.path))
        view = memoryview(data)
        done = 0
        try:
            if self._direct is not None:
                done = self._direct.write(offset, view)
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], offset + done)
        except OSError as error:
            raise storage_error(f"cannot write {self.path} at {offset + done}", error) from error

    def zero(self, offset: int, length: int) -> None:
        check_range(self._size_bytes, offset, length, str(self.path))
        if length and not self._deallocate(offset, length):
            for start in range(offset, offset + length, len(_ZEROES)):
                self.write(start, memoryview(_ZEROES)[: min(len(_ZEROES), offset + length - start)])

    def discard(self, offset: int, length: int) -> None:
        check_range(self._size_bytes, offset, length, str(self.path))
        if length:
            self._deallocate(offset, length)

    def _deallocate(self, offset: int, length: int) -> bool:
        """True when the kernel made the range read as zeroes."""
        if self._is_block:
            try:
                fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("<QQ", offset, length))
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    return False
                raise storage_error(f"cannot zero {self.path} at {offset}", error) from error
            return True
        while True:
            if _libc.fallocate(self._fd, _KEEP_SIZE_PUNCH_HOLE, offset, length) == 0:
                return True
            number = ctypes.get_errno()
            if number == errno.EINTR:
                continue
            if number in _UNSUPPORTED:
                return False
            raise storage_error(f"cannot zero {self.path} at {offset}", OSError(number, os.strerror(number)))

    def flush(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise storage_error(f"cannot flush {self.path}", error) from error

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        check_range(self._size_bytes, offset, length, str(self.path))
        end = offset + length
        if self._is_block:
            if length:
                yield offset, length
            return
        found = place = offset
        while place < end:
            start = min(self._next_data(place), end)
            if start > place:
                if place > found:
                    yield found, place - found
                found = start
            place = min((start // _HOLE_STEP_BYTES + 1) * _HOLE_STEP_BYTES, end)
        if place > found:
            yield found, place - found

    def _next_data(self, place: int) -> int:
        """Where the next data begins, or the end of the disk. SEEK_DATA stops at the first page that it finds; its opposite,
        SEEK_HOLE, walks a tmpfs page by page through all data behind ``place`` (15 ms in each full GiB), so it is not used."""
        try:
            return os.lseek(self._fd, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self._size_bytes
            raise storage_error(f"cannot find the holes of {self.path}", error) from error

    def close(self) -> None:
        if self._direct is not None:
            self._direct.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def create_sparse(path: Path, size_bytes: int) -> None:
    """Make a sparse file of that size, durable with its name. Raises StorageError when it exists."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(path.parent)
    except OSError as error:
        raise storage_error(f"cannot create {path}", error) from error


def sync_directory(directory: Path) -> None:
    """Make created, renamed and removed names in the directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(what: str, error: OSError) -> StorageError:
    """The tree's error for an errno: a full volume is OutOfSpaceError, everything else StorageError."""
    sentence = f"{what}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpaceError(sentence, remedy="make room on the volume; what was acknowledged is safe")
    return StorageError(sentence, remedy="check the disk and the kernel's log")
