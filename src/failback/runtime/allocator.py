"""glibc's allocator told to give large buffers back, so that a role's memory stays what its budgets say.

By itself glibc keeps an arena for every thread, and raises the size above which a block is mapped of its own with every
large block that is freed: after a burst of 4 MiB batches hundreds of megabytes stay resident in holes (``mallopt(3)``,
M_MMAP_THRESHOLD). Fixed values end both. Another C library ignores this.
"""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MAPPED_FROM_BYTES = 512 << 10
_KEPT_BYTES = 1 << 20
_ARENAS = 2


def give_back_large_buffers() -> None:
    """For the whole process; called once before its threads begin."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
