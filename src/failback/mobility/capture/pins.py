"""What outlives the process (D11): maps, programs and links under one directory of bpffs, and how they are found again.

``load`` makes all of it and stamps the control block last, so a process killed in the middle leaves pins that the next one
recognises as unfinished and removes. ``reopen`` uses only bpf_obj_get: the running programs go on untouched. The stamp is the
layout version and a fingerprint of disks and ring size; a reboot empties bpffs by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from failback.errors import StorageError
from failback.mobility.capture import libbpf
from failback.mobility.capture.block_maps import pages_for
from failback.mobility.capture.layout import (
    BLOCKS_PER_PAGE,
    CONTROL_WORD,
    DISK,
    FINGERPRINT_WORDS,
    LAYOUT_VERSION,
    PAGE_BYTES,
    SELF_TEST_BLOCKS,
    SEQUENCE_MASK,
)
from failback.mobility.capture.values import CaptureDisk
from failback.model.stream import BLOCK_BYTES
from failback.runtime import faults

MAPS = ("ring", "disks", "dirty", "pending", "unlanded", "inflight")
_CONTROL_MAP = ".bss"
COMPLETION_PROGRAMS = ("on_split", "on_bio_complete", "on_request_complete")
QUEUE_PROGRAM = "on_queue"
CALL_PROGRAM = "on_call"
_BPF_FS_MAGIC = 0xCAFE4A11


@dataclass(frozen=True, slots=True)
class DiskPlace:
    """A disk and its place in the block maps."""

    disk: CaptureDisk
    number: int
    base_block: int
    blocks: int
    sequence: int = 0
    """The kernel's number of this very device, which another one under the same name and number does not have; 0: not told."""


def places(disks: Sequence[CaptureDisk], numbers: Sequence[int], sequences: Sequence[int]) -> list[DiskPlace]:
    found: list[DiskPlace] = []
    base = 0
    for disk, number, sequence in zip(disks, numbers, sequences, strict=True):
        blocks = (disk.size_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES
        found.append(DiskPlace(disk, number, base, blocks, sequence))
        base += pages_for(blocks) * BLOCKS_PER_PAGE
    return found


def fingerprint(disk_places: Sequence[DiskPlace], ring_bytes: int) -> bytes:
    digest = hashlib.sha256(struct.pack("<QQ", LAYOUT_VERSION, ring_bytes))
    for place in disk_places:
        digest.update(struct.pack("<IQQQ", place.disk.index, place.number, place.disk.size_bytes, place.sequence))
    return digest.digest()


class Control:
    """The control block, shared with the programs: 64-bit words by name."""

    def __init__(self, descriptor: int) -> None:
        self._memory = libbpf.map_memory(descriptor, PAGE_BYTES, writable=True)
        self._words = memoryview(self._memory).cast("Q")

    def get(self, name: str) -> int:
        return self._words[CONTROL_WORD[name]]

    def set(self, name: str, value: int) -> None:
        self._words[CONTROL_WORD[name]] = value

    def slots(self, name: str, count: int) -> list[int]:
        at = CONTROL_WORD[name]
        return self._words[at : at + count].tolist()

    def stamped(self) -> bytes:
        """The fingerprint when the layout version is ours, else nothing."""
        if self.get("layout_version") != LAYOUT_VERSION:
            return b""
        at = CONTROL_WORD["fingerprint"]
        return self._words[at : at + FINGERPRINT_WORDS].tobytes()

    def stamp(self, value: bytes) -> None:
        at = CONTROL_WORD["fingerprint"]
        self._words[at : at + FINGERPRINT_WORDS] = memoryview(value).cast("Q")
        self.set("layout_version", LAYOUT_VERSION)

    def close(self) -> None:
        self._words.release()
        self._memory.close()


@dataclass(slots=True)
class KernelParts:
    """Open descriptors of the maps and programs; the links are only pinned."""

    maps: dict[str, int]
    programs: dict[str, int]
    control: Control

    def close(self) -> None:
        self.control.close()
        for descriptor in (*self.maps.values(), *self.programs.values()):
            os.close(descriptor)


def ensure_bpffs(directory: Path) -> None:
    """Make the pin directory, mounting bpffs at /sys/fs/bpf when nothing is mounted there yet."""
    root = Path("/sys/fs/bpf")
    if directory.is_relative_to(root) and not _is_bpffs(root):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"bpf", os.fsencode(root), b"bpf", 0, b"mode=0700"):
            raise StorageError(f"cannot mount bpffs at {root}: {os.strerror(ctypes.get_errno())}", code="CaptureFailed",
                               remedy="mount -t bpf bpf /sys/fs/bpf")  # fmt: skip
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_bpffs(directory):
        raise StorageError(
            f"{directory} is not on a bpffs", code="CaptureFailed", remedy="choose a directory in /sys/fs/bpf"
        )


def _is_bpffs(path: Path) -> bool:
    buffer = ctypes.create_string_buffer(512)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), buffer):
        return False
    return int(struct.unpack_from("<q", buffer, 0)[0]) == _BPF_FS_MAGIC


def beside(directory: Path) -> Path:
    """Where the pins of programs lie that are to follow those in ``directory``."""
    return directory.with_name(directory.name + "-next")


def reopen(directory: Path, wanted: bytes | None) -> KernelParts | None:
    """The pinned parts when they are complete and carry the wanted fingerprint (None: whatever they carry, of whatever layout
    version but not of a load that did not finish); None otherwise."""
    maps: dict[str, int] = {}
    programs: dict[str, int] = {}
    control: Control | None = None
    links = [f"link_{name}" for name in (*COMPLETION_PROGRAMS, QUEUE_PROGRAM)]
    try:
        if not all((directory / name).exists() for name in links):
            return None
        for name in MAPS:
            maps[name] = libbpf.open_pin(directory / name)
        maps["control"] = libbpf.open_pin(directory / "control")
        for name in (*COMPLETION_PROGRAMS, QUEUE_PROGRAM, CALL_PROGRAM):
            programs[name] = libbpf.open_pin(directory / name)
        control = Control(maps["control"])
        if control.stamped() == wanted or (wanted is None and control.get("layout_version")):
            return KernelParts(maps, programs, control)
    except StorageError:  # a pin is missing: another version's, or a load that did not finish
        control = None
    if control is not None:
        control.close()
    for descriptor in (*maps.values(), *programs.values()):
        os.close(descriptor)
    return None


def load(
    directory: Path, object_path: Path, disk_places: Sequence[DiskPlace], ring_bytes: int,
    prepare: Callable[[KernelParts], None], *, complete: Callable[[KernelParts], None] = lambda parts: None,
) -> KernelParts:  # fmt: skip
    """Load the object with maps of the right size, pin and attach everything, ``prepare`` it (addresses), add the disks,
    ``complete`` it (what earlier programs knew), and stamp it."""
    pages = sum(pages_for(place.blocks) for place in disk_places) + pages_for(SELF_TEST_BLOCKS)
    program = libbpf.BpfObject(object_path)
    try:
        program.set_map_entries("ring", ring_bytes)
        for name, entries in (("dirty", pages), ("pending", pages), ("unlanded", 2 * pages)):
            program.set_map_entries(name, entries)
        program.load()
        for name in MAPS:
            libbpf.pin(program.map_descriptor(name), directory / name)
        libbpf.pin(program.map_descriptor(_CONTROL_MAP), directory / "control")
        faults.point("capture.pinned_maps")
        for name in (*COMPLETION_PROGRAMS, QUEUE_PROGRAM, CALL_PROGRAM):
            libbpf.pin(program.program_descriptor(name), directory / name)
        parts = KernelParts(
            {name: libbpf.open_pin(directory / name) for name in (*MAPS, "control")},
            {name: libbpf.open_pin(directory / name) for name in (*COMPLETION_PROGRAMS, QUEUE_PROGRAM, CALL_PROGRAM)},
            Control(program.map_descriptor(_CONTROL_MAP)),
        )
        # Completions first: a write whose submission is seen must not complete unseen.
        for name in (*COMPLETION_PROGRAMS, QUEUE_PROGRAM):
            libbpf.pin(program.attach(name), directory / f"link_{name}")
        prepare(parts)
        for place in disk_places:
            add_disk(parts, place)
        faults.point("capture.attached")
        complete(parts)
        parts.control.stamp(fingerprint(disk_places, ring_bytes))
    finally:
        program.close()
    return parts


def add_disk(parts: KernelParts, place: DiskPlace) -> None:
    value = DISK.pack(place.base_block, place.disk.index, place.sequence & SEQUENCE_MASK)
    libbpf.update_element(parts.maps["disks"], place.number.to_bytes(4, "little"), value)


def remove_disk(parts: KernelParts, place: DiskPlace) -> None:
    libbpf.delete_element(parts.maps["disks"], place.number.to_bytes(4, "little"))


def remove(directory: Path) -> None:
    """Unpin everything, what was being loaded beside it too; programs detach when the last descriptor of their links is gone."""
    remove_only(beside(directory))
    remove_only(directory)


def remove_only(directory: Path) -> None:
    """Links first."""
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir(), key=lambda path: not path.name.startswith("link_")):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    directory.rmdir()
