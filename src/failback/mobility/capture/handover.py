"""From programs that run to others beside them, without a write unseen: an upgrade of the service, or other disks (D11).

::

    pins DIRECTORY: earlier programs, capturing        pins DIRECTORY-next: new programs, attached and capturing
        |  what the earlier ring still holds, dirty, pending  ──────>  dirty
        |  unlanded  ──────────────────────────────────────────────>  unlanded
        |                                                              stamped: complete
        removed                                                        renamed to DIRECTORY

Why nothing is lost, whatever the moment: a write whose submission the new programs see is theirs. Of any other write the
earlier program put the record into its ring, or its block into dirty, before the write was passed on, and
that is read after the new ones are attached; or the earlier program runs just now, and then the write's *completion* comes
after the new ones are attached, which see a completion without a submission and mark its blocks dirty. The order in which
blocks were written is not handed over: what is dirty is read again, in a gap of the time that this takes, and
no disk is compared by hash.

The earlier pins count until they are removed: a process that dies before begins again, one that dies after finds only the new.
A disk is carried over when device number, index and the kernel's disk sequence number are the same: ``carried_disks`` says
which, ``predecessor_ring`` from which ring, so that the stream knows what it may rely on.
"""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from failback.errors import StorageError
from failback.mobility.capture import block_maps, libbpf, pins
from failback.mobility.capture.layout import BLOCKS_PER_PAGE, DISK, PAGE_BYTES, READABLE_LAYOUTS, SEQUENCE_MASK
from failback.mobility.capture.pins import DiskPlace, KernelParts
from failback.mobility.capture.ring import Ring
from failback.model.stream import BLOCK_BYTES
from failback.runtime import faults, logs

log = logs.get(__name__)

BUSY_SECONDS = 5.0
_NUMBER_BYTES = 4


@dataclass(frozen=True, slots=True)
class EarlierPlace:
    """Where a disk lies in the earlier maps: ``blocks`` is the room it has there, at least what it needs."""

    number: int
    index: int
    base_block: int
    blocks: int
    sequence: int

    def is_same(self, place: DiskPlace) -> bool:
        """The same device, not another one that took its number."""
        told = self.sequence and place.sequence
        return (self.number, self.index) == (place.number, place.disk.index) and (
            not told or self.sequence == place.sequence & SEQUENCE_MASK
        )


def take_over(
    directory: Path, disk_places: Sequence[DiskPlace],
    load: Callable[[Path, Callable[[KernelParts], None]], KernelParts],
) -> KernelParts | None:  # fmt: skip
    """Load beside the programs that are pinned in ``directory``, carry over what they know, and remove them.

    None when nothing complete is there, or when what it knows cannot be relied on (it missed writes): the caller begins anew.
    """
    earlier = pins.reopen(directory, None)
    if earlier is None:
        return None
    try:
        if earlier.control.get("layout_version") not in READABLE_LAYOUTS or _missed(earlier):
            return None
        began = time.monotonic()
        beside = pins.beside(directory)
        pins.remove(beside)
        pins.ensure_bpffs(beside)
        parts = load(beside, lambda new: _carry(earlier, new, disk_places))
    except StorageError as error:
        log.warning("what the earlier capture knew cannot be carried over", reason=error.message)
        return None
    finally:
        earlier.close()
    faults.point("capture.carried_over")
    pins.remove_only(directory)
    faults.point("capture.earlier_removed")
    beside.rename(directory)
    log.info("capture handed over", carried_disks=f"{parts.control.get('carried_disks'):b}",
             milliseconds=round((time.monotonic() - began) * 1000, 1))  # fmt: skip
    return parts


def settle(directory: Path) -> None:
    """After a crash in the middle: the earlier pins count while they are complete, else the new ones do."""
    beside = pins.beside(directory)
    if not beside.is_dir():
        return
    for place, keep in ((directory, False), (beside, True)):
        found = pins.reopen(place, None)
        if found is None:
            continue
        complete = found.control.get("layout_version") in READABLE_LAYOUTS
        found.close()
        if complete:
            if keep:
                pins.remove_only(directory)
                beside.rename(directory)
                return
            break
    pins.remove_only(beside)


def _missed(earlier: KernelParts) -> int:
    names = (pins.QUEUE_PROGRAM, *pins.COMPLETION_PROGRAMS)
    misses = sum(libbpf.recursion_misses(earlier.programs[name]) for name in names)
    return misses + earlier.control.get("unsupported") - earlier.control.get("acknowledged_missed")


def _earlier_places(earlier: KernelParts) -> list[EarlierPlace]:
    found = []
    for key, value in libbpf.hash_elements(earlier.maps["disks"], _NUMBER_BYTES, DISK.size):
        base_block, index, sequence = DISK.unpack(value)
        found.append((base_block, index, int.from_bytes(key, "little"), sequence))
    found.sort()
    end = libbpf.map_entries(earlier.maps["dirty"]) * BLOCKS_PER_PAGE
    bounds = [base for base, _, _, _ in found[1:]] + [end]
    return [
        EarlierPlace(number, index, base, bound - base, sequence)
        for (base, index, number, sequence), bound in zip(found, bounds, strict=True)
    ]


def _carry(earlier: KernelParts, new: KernelParts, disk_places: Sequence[DiskPlace]) -> None:
    """The new programs are attached and capture. May be repeated: it only adds."""
    pairs = [(old, place) for old in _earlier_places(earlier) for place in disk_places if old.is_same(place)]
    new.control.set("degraded", 1)  # before the first byte: writes to what is marked are only marked
    marked = _carry_ring(earlier, new, {old.index: place for old, place in pairs})
    with contextlib.ExitStack() as stack:
        old_maps = {name: stack.enter_context(_map(earlier, name)) for name in ("dirty", "pending", "unlanded")}
        new_maps = {name: stack.enter_context(_map(new, name)) for name in ("dirty", "unlanded")}
        target = block_maps.ByteMap(new_maps["dirty"])
        for old, place in pairs:
            count = min(old.blocks, place.blocks)
            shift = place.base_block - old.base_block
            for name in ("dirty", "pending"):
                for first, blocks in block_maps.ByteMap(old_maps[name]).runs(old.base_block, count, count):
                    target.set_run(first + shift, blocks)
                    marked += blocks
            begin, end = old.base_block * 2, (old.base_block + count) * 2
            new_maps["unlanded"][begin + 2 * shift : end + 2 * shift] = old_maps["unlanded"][begin:end]
    new.control.set("predecessor_ring", libbpf.map_id(earlier.maps["ring"]))
    new.control.set("carried_disks", sum(1 << place.disk.index for _, place in pairs))
    log.info("the earlier capture's knowledge is carried over", disks=len(pairs), blocks=marked)


def _carry_ring(earlier: KernelParts, new: KernelParts, places: dict[int, DiskPlace]) -> int:
    """Blocks of the records that were not released: they count as dirty. Returns how many."""
    marked = 0
    ring = Ring(earlier.maps["ring"], libbpf.map_entries(earlier.maps["ring"]))
    try:
        with _map(new, "dirty") as memory:
            dirty = block_maps.ByteMap(memory)
            for disk, offset, length in _records(ring):
                place = places.get(disk)
                if place is None or not length:
                    continue
                first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
                count = min(last + 1, place.blocks) - first
                if count > 0:
                    dirty.set_run(place.base_block + first, count)
                    marked += count
    finally:
        ring.close()
    return marked


def _records(ring: Ring) -> Iterator[tuple[int, int, int]]:
    """(disk, offset, length) of everything from the consumer's position to where the producer is now."""
    end, position = ring.produced(), ring.consumed()
    deadline = time.monotonic() + BUSY_SECONDS
    while position < end:
        try:
            position, found = ring.extents_from(position, end)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StorageError(f"the earlier ring has an unfinished record for {BUSY_SECONDS:g} s") from None
            time.sleep(0.0005)
            continue
        yield from found


@contextlib.contextmanager
def _map(parts: KernelParts, name: str) -> Iterator[mmap.mmap]:
    size = libbpf.map_entries(parts.maps[name]) * PAGE_BYTES
    with libbpf.map_memory(parts.maps[name], size, writable=True) as memory:
        yield memory
