"""libbpf.so.1 by ctypes: load an object, pin and re-open its parts, call a program. No compiler, no other package.

Descriptors are plain ints; whoever opened one closes it. Every failure is a :class:`StorageError` or, where the kernel
refuses the program, a :class:`NotSupportedError` that carries the end of libbpf's own log.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import struct
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from failback.errors import NotSupportedError, StorageError

_SIGNATURES: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
    ("bpf_object__open_file", c_void_p, (c_char_p, c_void_p)),
    ("bpf_object__load", c_int, (c_void_p,)),
    ("bpf_object__close", None, (c_void_p,)),
    ("bpf_object__find_map_by_name", c_void_p, (c_void_p, c_char_p)),
    ("bpf_object__find_program_by_name", c_void_p, (c_void_p, c_char_p)),
    ("bpf_map__fd", c_int, (c_void_p,)),
    ("bpf_map__set_max_entries", c_int, (c_void_p, c_uint32)),
    ("bpf_program__fd", c_int, (c_void_p,)),
    ("bpf_program__attach", c_void_p, (c_void_p,)),
    ("bpf_link__fd", c_int, (c_void_p,)),
    ("bpf_link__destroy", c_int, (c_void_p,)),
    ("bpf_obj_pin", c_int, (c_int, c_char_p)),
    ("bpf_obj_get", c_int, (c_char_p,)),
    ("bpf_obj_get_info_by_fd", c_int, (c_int, c_void_p, c_void_p)),
    ("bpf_map_update_elem", c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    ("bpf_map_delete_elem", c_int, (c_int, c_void_p)),
    ("bpf_map_lookup_batch", c_int, (c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)),
    ("bpf_prog_test_run_opts", c_int, (c_int, c_void_p)),
    ("libbpf_set_print", c_void_p, (c_void_p,)),
)
_LOG_LINES = 12
_LOG_BYTES = 1 << 20
_MAP_ID_OFFSET = 4
_MAP_MAX_ENTRIES_OFFSET = 16
_PROGRAM_RECURSION_MISSES_OFFSET = 208

_log: list[str] = []


class _TestRun(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t), ("data_in", c_void_p), ("data_out", c_void_p), ("data_size_in", c_uint32),
        ("data_size_out", c_uint32), ("ctx_in", c_void_p), ("ctx_out", c_void_p), ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32), ("retval", c_uint32), ("repeat", c_int), ("duration", c_uint32), ("flags", c_uint32),
        ("cpu", c_uint32), ("batch_size", c_uint32),
    )  # fmt: skip


def _keep_log(level: int, text: bytes, arguments: int) -> int:
    if level < 2:  # warnings (the verifier's log is one) and information; not debugging
        buffer = ctypes.create_string_buffer(_LOG_BYTES)
        ctypes.CDLL(None).vsnprintf(buffer, c_size_t(_LOG_BYTES), c_char_p(text), c_void_p(arguments))
        _log.extend(line for line in buffer.value.decode(errors="replace").splitlines() if line.strip())
        del _log[:-_LOG_LINES]
    return 0


_LOG_CALLBACK = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)(_keep_log)


@functools.cache
def library() -> Any:
    """The shared library with its signatures set. Raises NotSupportedError when it is not installed."""
    try:
        loaded = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise NotSupportedError(
            "libbpf.so.1 is not installed", code="LibbpfMissing", remedy="install it: apt-get install libbpf1, dnf install libbpf"
        ) from error  # fmt: skip
    for name, result, arguments in _SIGNATURES:
        function = getattr(loaded, name)
        function.restype = result
        function.argtypes = arguments
    loaded.libbpf_set_print(ctypes.cast(_LOG_CALLBACK, c_void_p))
    return loaded


def last_log() -> str:
    return "; ".join(_log)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno() or -result
        raise StorageError(f"{what}: {os.strerror(code)}", code="CaptureFailed", possible_causes=last_log())
    return result


class BpfObject:
    """A compiled object between open and close. Programs and maps stay in the kernel only while pinned or open."""

    def __init__(self, path: Path) -> None:
        self._library = library()
        if not path.exists():
            raise NotSupportedError(f"the capture program {path} is missing", code="CaptureObjectMissing",
                                    remedy="install failback from a wheel, or run build_capture.py in a checkout")  # fmt: skip
        self._handle = self._library.bpf_object__open_file(os.fsencode(path), None)
        if not self._handle:
            raise NotSupportedError(
                f"libbpf cannot read {path}", possible_causes=last_log(), remedy="install failback again"
            )
        self._links: list[int] = []

    def _map(self, name: str) -> int:
        handle = self._library.bpf_object__find_map_by_name(self._handle, name.encode())
        if not handle:
            raise NotSupportedError(f"the capture program has no map {name}", remedy="install failback again")
        return int(handle)

    def _program(self, name: str) -> int:
        handle = self._library.bpf_object__find_program_by_name(self._handle, name.encode())
        if not handle:
            raise NotSupportedError(f"the capture program has no program {name}", remedy="install failback again")
        return int(handle)

    def set_map_entries(self, name: str, entries: int) -> None:
        _check(self._library.bpf_map__set_max_entries(self._map(name), entries), f"size of map {name}")

    def load(self) -> None:
        """Raises NotSupportedError when the kernel's verifier or its features refuse the programs."""
        result = self._library.bpf_object__load(self._handle)
        if result:
            raise NotSupportedError(
                f"the kernel refuses the capture program: {os.strerror(-result)}", code="CaptureProgramRefused",
                possible_causes=last_log() or "no BTF, kernel lockdown, or a kernel older than 5.17",
                remedy="boot a kernel of 5.17 or newer with CONFIG_DEBUG_INFO_BTF and without lockdown=confidentiality",
            )  # fmt: skip

    def map_descriptor(self, name: str) -> int:
        return int(self._library.bpf_map__fd(self._map(name)))

    def program_descriptor(self, name: str) -> int:
        return int(self._library.bpf_program__fd(self._program(name)))

    def attach(self, name: str) -> int:
        """Attach a tracing program; returns the link's descriptor, which lives until ``close``."""
        link = self._library.bpf_program__attach(self._program(name))
        if not link:
            raise NotSupportedError(f"cannot attach {name}: {os.strerror(ctypes.get_errno())}", code="CaptureAttachFailed",
                                    possible_causes=last_log(), remedy="the kernel needs BTF tracepoints (tp_btf)")  # fmt: skip
        self._links.append(link)
        return int(self._library.bpf_link__fd(link))

    def close(self) -> None:
        while self._links:
            self._library.bpf_link__destroy(self._links.pop())
        if self._handle:
            self._library.bpf_object__close(self._handle)
            self._handle = None


def pin(descriptor: int, path: Path) -> None:
    _check(library().bpf_obj_pin(descriptor, os.fsencode(path)), f"cannot pin {path}")


def open_pin(path: Path) -> int:
    return _check(library().bpf_obj_get(os.fsencode(path)), f"cannot open the pin {path}")


def _information(descriptor: int) -> bytes:
    buffer = ctypes.create_string_buffer(256)
    size = c_uint32(256)
    _check(library().bpf_obj_get_info_by_fd(descriptor, buffer, ctypes.byref(size)), "bpf_obj_get_info_by_fd")
    return buffer.raw


def map_entries(descriptor: int) -> int:
    return int(struct.unpack_from("<I", _information(descriptor), _MAP_MAX_ENTRIES_OFFSET)[0])


def map_id(descriptor: int) -> int:
    """The kernel's number of the map, given once in a boot."""
    return int(struct.unpack_from("<I", _information(descriptor), _MAP_ID_OFFSET)[0])


def recursion_misses(program_descriptor: int) -> int:
    """How often the kernel skipped a run of the program because it was running already on that processor."""
    return int(struct.unpack_from("<Q", _information(program_descriptor), _PROGRAM_RECURSION_MISSES_OFFSET)[0])


def update_element(descriptor: int, key: bytes, value: bytes) -> None:
    _check(library().bpf_map_update_elem(descriptor, key, value, 0), "bpf_map_update_elem")


def delete_element(descriptor: int, key: bytes) -> None:
    library().bpf_map_delete_elem(descriptor, key)


def hash_elements(descriptor: int, key_bytes: int, value_bytes: int) -> list[tuple[bytes, bytes]]:
    """All (key, value) of a hash map; those that exist during the whole call are all in it."""
    room = map_entries(descriptor)
    keys = ctypes.create_string_buffer(key_bytes * room)
    values = ctypes.create_string_buffer(value_bytes * room)
    found: list[tuple[bytes, bytes]] = []
    token = ctypes.create_string_buffer(64)
    begin: Any = None
    while True:
        count = c_uint32(room)
        result = library().bpf_map_lookup_batch(descriptor, begin, token, keys, values, ctypes.byref(count), None)
        if result < 0 and ctypes.get_errno() != 2:  # ENOENT: the end, with the last elements
            _check(result, "bpf_map_lookup_batch")
        number = count.value
        raw_keys, raw_values = keys.raw, values.raw
        found.extend(
            (raw_keys[i * key_bytes : (i + 1) * key_bytes], raw_values[i * value_bytes : (i + 1) * value_bytes])
            for i in range(number)
        )
        if result < 0:
            return found
        begin = token


def call(program_descriptor: int, context: bytes) -> bytes:
    """Run a SEC("syscall") program once with this context; returns the context as the program left it."""
    buffer = ctypes.create_string_buffer(context, len(context))
    options = _TestRun(sz=ctypes.sizeof(_TestRun), ctx_in=ctypes.addressof(buffer), ctx_size_in=len(context))
    _check(library().bpf_prog_test_run_opts(program_descriptor, ctypes.byref(options)), "bpf_prog_test_run")
    return buffer.raw


def map_memory(descriptor: int, length: int, *, writable: bool, offset: int = 0) -> mmap.mmap:
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return mmap.mmap(descriptor, length, flags=mmap.MAP_SHARED, prot=access, offset=offset)
