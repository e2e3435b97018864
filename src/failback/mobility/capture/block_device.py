"""The block devices themselves: number, size, what may be captured, O_DIRECT reads, throw-away loop devices.

Reads never go through the page cache: a cached page may be older or newer than the device. A span that cannot be read is
tried again sector by sector, so that one bad sector costs one sector.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from failback.errors import ConfigurationError, NotSupportedError, StorageError
from failback.mobility.capture.values import CaptureDisk

SECTOR_BYTES = 512
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CLR_FD = 0x4C01
_LOOP_CONFIG_BYTES = 304
_LOOP_FLAGS_OFFSET = 60
"""Of lo_flags in struct loop_config."""
_LOOP_AUTOCLEAR = 4
_LOOP_ATTEMPTS = 20


def device_number(path: str) -> int:
    """The kernel's own encoding (major << 20 | minor). Raises ConfigurationError when it is no block device."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise ConfigurationError(f"disk {path}: {error.strerror}", remedy="correct the list of disks") from error
    if not stat.S_ISBLK(status.st_mode):
        raise ConfigurationError(f"{path} is not a block device", remedy="name whole disks, such as /dev/vda")
    return (os.major(status.st_rdev) << 20) | os.minor(status.st_rdev)


def device_bytes(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def _attributes(number: int) -> Path:
    return Path(f"/sys/dev/block/{number >> 20}:{number & 0xFFFFF}")


def check_disk(disk: CaptureDisk) -> int:
    """The disk's device number. Raises ConfigurationError (partition, size) and NotSupportedError (zoned, stacked)."""
    number = device_number(disk.device)
    attributes = _attributes(number)
    if (attributes / "partition").exists():
        raise ConfigurationError(f"{disk.device} is a partition", remedy="name the whole disk that contains it")
    size = device_bytes(disk.device)
    if size < disk.size_bytes:  # one that grew is captured as it was, until it is assigned its new size
        raise ConfigurationError(f"{disk.device} has {size} bytes, not {disk.size_bytes}", remedy="read the size again")
    zoned = attributes / "queue" / "zoned"
    if zoned.exists() and zoned.read_text().strip() != "none":
        raise NotSupportedError(f"{disk.device} is a zoned disk", code="DiskNotCapturable",
                                remedy="exclude it: where a zone append lands is not known when it is submitted")  # fmt: skip
    if attributes.exists() and not (attributes / "mq").exists():
        raise NotSupportedError(f"{disk.device} is a stacked device", code="DiskNotCapturable",
                                remedy="name the disks underneath it (lsblk -s); they are captured together")  # fmt: skip
    return number


def device_sequence(number: int) -> int:
    """The kernel's count of devices when this one appeared (``diskseq``, Linux 5.15); 0 where it does not say."""
    try:
        return int((_attributes(number) / "diskseq").read_text())
    except (OSError, ValueError):
        return 0


def writes_in_flight(number: int) -> int:
    """Requests with the driver right now, as the kernel shows them; 0 where it does not say."""
    try:
        return int((_attributes(number) / "inflight").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def read_direct(descriptor: int, buffer: memoryview, offset: int) -> list[tuple[int, int]]:
    """Fill ``buffer`` from ``offset``; returns the (offset, length) that the device could not read, left zero in the buffer."""
    done = 0
    unreadable: list[tuple[int, int]] = []
    while done < len(buffer):
        try:
            got = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EREMOTEIO):
                raise StorageError(f"reading at {offset + done}: {error.strerror}", code="DiskReadFailed") from error
            unreadable += _read_sectors(descriptor, buffer[done:], offset + done)
            return unreadable
        if got <= 0:
            raise StorageError(
                f"the disk ended at {offset + done}", code="DiskReadFailed", remedy="was it made smaller?"
            )
        done += got
    return unreadable


def _read_sectors(descriptor: int, buffer: memoryview, offset: int) -> list[tuple[int, int]]:
    unreadable: list[tuple[int, int]] = []
    step = mmap.PAGESIZE
    for at in range(0, len(buffer), step):
        part = buffer[at : at + step]
        try:
            os.preadv(descriptor, [part], offset + at)
        except OSError:
            part[:] = bytes(len(part))
            if unreadable and sum(unreadable[-1]) == offset + at:
                unreadable[-1] = (unreadable[-1][0], unreadable[-1][1] + len(part))
            else:
                unreadable.append((offset + at, len(part)))
    return unreadable


@contextlib.contextmanager
def loop_device(size_bytes: int) -> Iterator[str]:
    """A loop device over memory for the time of the context; the kernel removes it when the process dies.
    Raises NotSupportedError where there are no loop devices."""
    backing = os.memfd_create("failback-self-test")
    try:
        os.ftruncate(backing, size_bytes)
        path, descriptor = _bind_loop(backing)
    finally:
        os.close(backing)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, _LOOP_CLR_FD, 0)
        os.close(descriptor)


def _bind_loop(backing: int) -> tuple[str, int]:
    """The device's path and the open descriptor that keeps it."""
    flags = struct.pack("<I", _LOOP_AUTOCLEAR).rjust(_LOOP_FLAGS_OFFSET + 4 - 8, b"\0")
    configuration = (struct.pack("<II", backing, 0) + flags).ljust(_LOOP_CONFIG_BYTES, b"\0")
    try:
        control = os.open("/dev/loop-control", os.O_RDWR)
    except OSError as error:
        raise NotSupportedError("no loop devices for the self-test", remedy="modprobe loop, or name a scratch directory on a "
                                "captured disk") from error  # fmt: skip
    try:
        for _ in range(_LOOP_ATTEMPTS):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            path = f"/dev/loop{number}"
            if not os.path.exists(path):
                os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(7, number))
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.ioctl(descriptor, _LOOP_CONFIGURE, configuration)
            except OSError as error:
                os.close(descriptor)
                if error.errno != errno.EBUSY:  # EBUSY: another process was faster
                    raise
            else:
                return path, descriptor
    finally:
        os.close(control)
    raise StorageError("no free loop device for the self-test", retryable=True)
