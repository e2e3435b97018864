"""The optional C library (native/native.c) that does the inner loops of small writes, by ctypes.

``library()`` is None where it was not built, does not load on this machine, or ``FAILBACK_NATIVE=off`` is set: then callers do
the same in Python. Arguments are addresses of arrays of 64-bit integers and of memory; whoever calls has proven every range
and keeps the memory alive. A call releases the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

PATH = Path(__file__).with_name("_native.so")
_ARRAY = ctypes.c_void_p


@functools.cache
def library() -> ctypes.CDLL | None:
    if os.environ.get("FAILBACK_NATIVE") == "off":
        return None
    try:
        found = ctypes.CDLL(str(PATH), use_errno=True)
        for function in (found.failback_write_pieces, found.failback_read_pieces):
            function.argtypes = [ctypes.c_int, ctypes.c_int64, _ARRAY, _ARRAY, _ARRAY]
            function.restype = ctypes.c_int64
    except (OSError, AttributeError):  # not built here, another architecture, or of an earlier version
        return None
    return found
