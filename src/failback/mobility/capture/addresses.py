"""What must be known of the kernel before a real disk is captured: its addresses, and whether it can do this at all.

While the addresses are found, only a throw-away loop device is captured, so wrong ones never reach a real disk's records.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from failback.errors import NotSupportedError
from failback.mobility.capture import kernel_address, libbpf, pins, probing
from failback.mobility.capture.block_device import check_disk, device_number, loop_device
from failback.mobility.capture.layout import (
    BLOCKS_PER_PAGE,
    CALL,
    CALL_SEARCH,
    CALL_SYMBOLS,
    SELF_TEST_BLOCKS,
    SELF_TEST_DISK,
)
from failback.mobility.capture.pins import DiskPlace, KernelParts
from failback.mobility.capture.values import CaptureDisk
from failback.model.stream import BLOCK_BYTES
from failback.runtime import logs

log = logs.get(__name__)


def probe(disks: Sequence[CaptureDisk], object_path: Path) -> None:
    """Look for every feature and load the programs for a trial. Raises NotSupportedError, ConfigurationError (disks)."""
    obstacle = probing.obstacle()
    if obstacle is not None:
        raise obstacle.error()
    for disk in disks:
        check_disk(disk)
    trial = libbpf.BpfObject(object_path)
    try:
        trial.set_map_entries("ring", mmap.PAGESIZE)
        trial.load()
    finally:
        trial.close()


@contextlib.contextmanager
def captured(parts: KernelParts, disk_places: Sequence[DiskPlace], device: str) -> Iterator[DiskPlace]:
    """Capture a self-test device for the time of the context, in the spare page of the block maps."""
    pages = libbpf.map_entries(parts.maps["dirty"])
    disk = CaptureDisk(SELF_TEST_DISK, device, SELF_TEST_BLOCKS * BLOCK_BYTES)
    place = DiskPlace(disk, device_number(device), (pages - 1) * BLOCKS_PER_PAGE, SELF_TEST_BLOCKS)
    if any(known.number == place.number for known in disk_places):
        raise NotSupportedError("the self-test's loop device is a captured disk", remedy="remove the stale loop device")
    with libbpf.map_memory(
        parts.maps["dirty"], mmap.PAGESIZE, writable=True, offset=(pages - 1) * mmap.PAGESIZE
    ) as dirty:
        dirty[:] = bytes(len(dirty))  # of an earlier test that failed
    pins.add_disk(parts, place)
    try:
        yield place
    finally:
        pins.remove_disk(parts, place)


def set_addresses(parts: KernelParts, disk_places: Sequence[DiskPlace]) -> None:
    """Find vmemmap_base and page_offset_base, by symbols where they can be read, else by calibration."""
    call = parts.programs[pins.CALL_PROGRAM]
    _, _, _, vmemmap, page_offset, page_struct_bytes = CALL.unpack(
        libbpf.call(call, CALL.pack(CALL_SYMBOLS, 0, 0, 0, 0, 0))
    )
    way = "symbols"
    if not vmemmap or not page_offset:

        def calibrate(page: mmap.mmap) -> int:
            return _calibrate(parts, disk_places, page)

        def search(physical: int, candidate: int, first: int, second: int) -> int:
            answer = libbpf.call(call, CALL.pack(CALL_SEARCH, physical, 0, candidate, first, second))
            return int(CALL.unpack(answer)[2])

        vmemmap, page_offset = kernel_address.calibrated_bases(calibrate, search, page_struct_bytes)
        way = "calibration"
    parts.control.set("vmemmap_base", vmemmap)
    parts.control.set("page_offset_base", page_offset)
    log.info("kernel addresses found", way=way, page_struct_bytes=page_struct_bytes)


def _calibrate(parts: KernelParts, disk_places: Sequence[DiskPlace], page: mmap.mmap) -> int:
    control = parts.control
    with loop_device(SELF_TEST_BLOCKS * BLOCK_BYTES) as device, captured(parts, disk_places, device):
        descriptor = os.open(device, os.O_RDWR | os.O_DIRECT)
        try:
            before = control.get("calibrated_count")
            control.set("calibrate_tgid", os.getpid())
            os.pwrite(descriptor, page, 0)
            control.set("calibrate_tgid", 0)
        finally:
            os.close(descriptor)
    return control.get("calibrated_page") if control.get("calibrated_count") != before else 0
