"""Where the kernel keeps struct page and the memory behind it: vmemmap_base and page_offset_base, moved by KASLR at boot.

Three ways, as they are available (docs/capture.md): the symbols, read by the capture program itself; the direct map's base
from the program headers of /proc/kcore; and calibration: an O_DIRECT write of a page whose frame number /proc/self/pagemap
tells, which shows its struct page to the program, and a search for the page's content in steps of 1 GiB. Whatever
was found is proved by the self-test before anybody relies on it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path

from failback.errors import NotSupportedError

Calibrate = Callable[[mmap.mmap], int]
"""Writes the page to a captured device with O_DIRECT; returns the address of its struct page that the program saw."""
Search = Callable[[int, int, int, int], int]
"""(physical address, first candidate, first word, second word) -> page_offset_base or 0."""

_SEARCH_STEP = 1 << 47  # one call of the program covers 2**17 candidates of 1 GiB
_DEFAULT_4_LEVEL = (0xFFFF_EA00_0000_0000, 0xFFFF_8880_0000_0000)
_DEFAULT_5_LEVEL = (0xFFD4_0000_0000_0000, 0xFF11_0000_0000_0000)


def has_five_levels() -> bool:
    """Whether page tables may have five levels (LA57); then the bases lie in another range."""
    return " la57" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")


def default_bases() -> tuple[int, int]:
    """(vmemmap_base, page_offset_base) of a kernel without memory randomization."""
    return _DEFAULT_5_LEVEL if has_five_levels() else _DEFAULT_4_LEVEL


def direct_map_base() -> int:
    """page_offset_base by /proc/kcore: virtual minus physical address of a RAM segment; 0 when that is not to be had."""
    try:
        with open("/proc/kcore", "rb", buffering=0) as core:
            head = core.read(64)
            (start,) = struct.unpack_from("<Q", head, 32)
            (number,) = struct.unpack_from("<H", head, 56)
            core.seek(start)
            table = core.read(56 * number)
    except OSError:
        return 0
    bases: set[int] = set()
    for index in range(len(table) // 56):
        kind, _, _, virtual, physical, _, _, _ = struct.unpack_from("<IIQQQQQQ", table, index * 56)
        if kind == 1 and physical not in (0, 0xFFFF_FFFF_FFFF_FFFF) and virtual < 0xFFFF_FFFF_8000_0000:
            bases.add(virtual - physical)
    return bases.pop() if len(bases) == 1 else 0


def calibrated_bases(calibrate: Calibrate, search: Search, page_struct_bytes: int) -> tuple[int, int]:
    """Both bases without symbols. Raises NotSupportedError when a way is closed (no pagemap, nothing found)."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[:] = os.urandom(mmap.PAGESIZE)
    frame = _frame_of(page)
    address = calibrate(page)
    if not address:
        raise NotSupportedError("the calibration write was not seen", code="CaptureCalibrationFailed",
                                remedy="boot a kernel whose symbols vmemmap_base and page_offset_base are readable")  # fmt: skip
    offset = direct_map_base()
    first, second = struct.unpack_from("<QQ", page, 0)
    if not offset:
        five = has_five_levels()
        low, high = (
            (0xFF11_0000_0000_0000, 0xFF91_0000_0000_0000) if five else (0xFFFF_8880_0000_0000, 0xFFFF_C880_0000_0000)
        )
        for candidate in range(low, high, _SEARCH_STEP):
            offset = search(frame << 12, candidate, first, second)
            if offset:
                break
    if not offset:
        raise NotSupportedError("page_offset_base was not found", code="CaptureCalibrationFailed",
                                remedy="boot a kernel whose symbols vmemmap_base and page_offset_base are readable")  # fmt: skip
    return address - frame * page_struct_bytes, offset


def _frame_of(page: mmap.mmap) -> int:
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    with open("/proc/self/pagemap", "rb", buffering=0) as table:
        table.seek(address // mmap.PAGESIZE * 8)
        (entry,) = struct.unpack("<Q", table.read(8))
    frame = int(entry) & ((1 << 55) - 1)
    if not entry >> 63 or not frame:
        raise NotSupportedError("/proc/self/pagemap does not tell frame numbers", code="CaptureCalibrationFailed",
                                remedy="run the mobility service as root with CAP_SYS_ADMIN")  # fmt: skip
    return frame
