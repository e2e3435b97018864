"""The capture as the rest of the mobility service sees it: open, collect, release, re-read (D1, D5, D6, D8 to D11).

One worker thread uses a session; nothing here is asynchronous, and no call blocks longer than the 2 s of a grace wait
plus disk reads. All that must outlive the process is pinned in bpffs: ring, maps, programs and links. The order of calls
that loses nothing: ``collect`` -> spool -> ``set_unlanded`` -> ``release``; ``reread`` -> spool -> ``reread_durable``;
landed -> ``clear_unlanded``. A process that dies between any two of them gets the same again after ``open``.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from failback.errors import ConfigurationError, StorageError
from failback.mobility.capture import addresses, block_maps, handover, libbpf, pins, rereading, self_test
from failback.mobility.capture.block_device import (
    check_disk,
    device_sequence,
    loop_device,
    read_direct,
    writes_in_flight,
)
from failback.mobility.capture.layout import (
    CALL,
    CALL_MARK,
    CALL_SETTLE,
    PAGE_BYTES,
    SELF_TEST_BLOCKS,
)
from failback.mobility.capture.pins import Control, DiskPlace, KernelParts
from failback.mobility.capture.ring import Ring
from failback.mobility.capture.values import BlocksRead, CaptureDisk, Collected, Counters, Differing, Reread, SelfTest
from failback.model.stream import BLOCK_BYTES, MAXIMUM_DISKS
from failback.protocol.extents import SECTOR_BYTES
from failback.runtime import faults, logs

log = logs.get(__name__)

DEFAULT_PIN_DIRECTORY = Path("/sys/fs/bpf/failback")
DEFAULT_RING_BYTES = 64 << 20
OBJECT_PATH = Path(__file__).with_name("capture.bpf.o")
_WAKE_BYTES = 1 << 20
_IDLE_WINDOW_SECONDS = 0.02
_IDLE_SAMPLES = 10
_STUCK_SECONDS = 30.0


def is_capturable(disks: Sequence[CaptureDisk] = (), object_path: Path | None = None) -> None:
    """Probe the kernel's features (never its version) and the disks.

    Raises NotSupportedError with the reason and the remedy, ConfigurationError for a disk that is none.
    """
    addresses.probe(disks, object_path or OBJECT_PATH)


class CaptureSession:
    """See the module; made by :meth:`open`."""

    reattached: bool
    """True: programs and ring of an earlier process go on, positions continue, unreleased records come again. False: a new
    ring from position 0; nothing is known of the time before, so the disks need a comparison or a full copy."""

    def __init__(self, directory: Path, parts: KernelParts, disk_places: Sequence[DiskPlace], reattached: bool) -> None:
        self.reattached = reattached
        self._directory = directory
        self._parts = parts
        self._control: Control = parts.control
        self._places = list(disk_places)
        self._by_index = {place.disk.index: place for place in disk_places}
        self._bases = {place.disk.index: place.base_block for place in disk_places}
        sizes = {place.disk.index: place.disk.size_bytes for place in disk_places}
        self._ring = Ring(parts.maps["ring"], libbpf.map_entries(parts.maps["ring"]), sizes)
        size = libbpf.map_entries(parts.maps["dirty"]) * PAGE_BYTES
        self._memories = [libbpf.map_memory(parts.maps[name], size, writable=True) for name in ("dirty", "pending")]
        self._memories.append(libbpf.map_memory(parts.maps["unlanded"], 2 * size, writable=True))
        self._dirty = block_maps.ByteMap(self._memories[0])
        self._pending = block_maps.ByteMap(self._memories[1])
        self._unlanded = block_maps.GenerationMap(self._memories[2])
        self._readers = {
            place.disk.index: os.open(place.disk.device, os.O_RDONLY | os.O_DIRECT) for place in self._places
        }
        self._buffers = rereading.ReadBuffers()
        self._pending_owner: dict[int, int] = {}  # global block -> generation of the last round that took it
        self._stuck_since: dict[tuple[int, int], float] = {}
        self._fence = threading.Lock()
        self._poll = select.epoll()
        self._poll.register(parts.maps["ring"], select.EPOLLIN | select.EPOLLET)

    # ---- life -------------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls, disks: Sequence[CaptureDisk], *, ring_bytes: int = DEFAULT_RING_BYTES,
        pin_directory: Path = DEFAULT_PIN_DIRECTORY, object_path: Path | None = None,
    ) -> CaptureSession:  # fmt: skip
        """Re-attach to the pins when layout version, disks and ring size match; else load, attach, take over what programs that
        run already know (``predecessor_ring``), detach those.

        ``ring_bytes`` is rounded up to a power of two. Pending re-reads of a dead process become dirty blocks.
        Raises NotSupportedError, ConfigurationError (a partition, a wrong size), StorageError.
        """
        if (
            not disks
            or len({disk.index for disk in disks}) != len(disks)
            or max(d.index for d in disks) >= MAXIMUM_DISKS
        ):
            raise ConfigurationError(
                "the captured disks need different numbers below 64", remedy="correct the list of disks"
            )
        numbers = [check_disk(disk) for disk in disks]
        disk_places = pins.places(disks, numbers, [device_sequence(number) for number in numbers])
        if len({place.number for place in disk_places}) != len(disk_places):
            raise ConfigurationError("one disk is named twice", remedy="correct the list of disks")
        ring_bytes = 1 << (max(ring_bytes, PAGE_BYTES) - 1).bit_length()
        wanted = pins.fingerprint(disk_places, ring_bytes)
        pins.ensure_bpffs(pin_directory)
        handover.settle(pin_directory)
        parts = pins.reopen(pin_directory, wanted)
        if parts is not None:
            session = cls(pin_directory, parts, disk_places, True)
            session._recover_pending()
        else:

            def load(directory: Path, complete: Callable[[KernelParts], None]) -> KernelParts:
                return pins.load(directory, object_path or OBJECT_PATH, disk_places, ring_bytes,
                                 lambda new: addresses.set_addresses(new, disk_places), complete=complete)  # fmt: skip

            parts = handover.take_over(pin_directory, disk_places, load)
            if parts is None:
                pins.remove(pin_directory)
                pins.ensure_bpffs(pin_directory)
                parts = load(pin_directory, lambda new: None)
            session = cls(pin_directory, parts, disk_places, False)
        log.info("capture open", disks=len(disks), reattached=session.reattached, backlog_bytes=session.produced_position()
                 - session.consumed_position())  # fmt: skip
        return session

    def close(self) -> None:
        """Let go of mappings and descriptors; programs go on capturing into the pinned ring."""
        self._poll.close()
        self._ring.close()
        self._unlanded.close()
        for memory in self._memories:
            memory.close()
        for descriptor in self._readers.values():
            os.close(descriptor)
        self._readers = {}
        self._parts.close()

    def detach(self) -> None:
        """Stop capturing and remove the pins; then close."""
        pins.remove(self._directory)
        self.close()

    def self_test(self, scratch_directory: Path | None = None) -> SelfTest:
        """Write random content with O_DIRECT to a file in ``scratch_directory`` (on a captured disk) and find exactly it in
        the ring; without a usable directory, on a throw-away loop device that is captured for that moment. Must pass before
        protection is declared. Moves neither cursor nor consumer position; its own loop device's records are not emitted."""
        page = self_test.content()
        reason = ""
        if scratch_directory is not None:
            position = self.produced_position()
            reason = self_test.write_to_file(scratch_directory, page)
            if not reason:
                verdict = self_test.judge(self._ring, position, page)
                if verdict.passed:
                    return verdict
                reason = verdict.detail
        with (
            loop_device(SELF_TEST_BLOCKS * BLOCK_BYTES) as device,
            addresses.captured(self._parts, self._places, device),
        ):
            position = self.produced_position()
            impossible = self_test.write_to(device, page)
            if impossible:
                return SelfTest(False, impossible)
            verdict = self_test.judge(self._ring, position, page)
        note = f"; on a loop device, because in {scratch_directory}: {reason}" if reason else "; on a loop device"
        return SelfTest(verdict.passed, verdict.detail + note)

    # ---- the ring ---------------------------------------------------------------------------------------------------

    @property
    def ring_id(self) -> int:
        """Names the ring: the kernel gives a number once in a boot."""
        return libbpf.map_id(self._parts.maps["ring"])

    @property
    def predecessor_ring(self) -> int:
        """The ring whose knowledge this capture took over when it began; 0: none."""
        return self._control.get("predecessor_ring")

    def is_carried(self, disk_index: int) -> bool:
        """Whether the disk was captured by the predecessor: then every write that is not in this ring is marked dirty."""
        return bool(self._control.get("carried_disks") >> disk_index & 1)

    def replaced(self) -> list[str]:
        """Disks under whose name and number another device lies now: nothing is known of it. Reads sysfs."""
        return [place.disk.device for place in self._places if device_sequence(place.number) != place.sequence]

    @property
    def outgrown(self) -> bool:
        """Whether a disk is larger than it was assigned now: asked after a batch's end was fixed, no write of that batch can lie
        behind the assigned size without it. Without the new part no image is consistent."""
        return any(
            os.lseek(self._readers[place.disk.index], 0, os.SEEK_END) > place.disk.size_bytes for place in self._places
        )

    @property
    def ring_bytes(self) -> int:
        return self._ring.size

    def produced_position(self) -> int:
        return self._ring.produced()

    def as_of_ns(self) -> int:
        """CLOCK_MONOTONIC of a moment before which every write has been collected: now, or that of the next write in the ring; 0
        when that one is still being recorded."""
        now = time.monotonic_ns()
        following = self._ring.next_ktime_ns(self.cursor())
        return now if following is None else following

    def consumed_position(self) -> int:
        """What was released: the kernel may overwrite everything before it."""
        return self._ring.consumed()

    def cursor(self) -> int:
        """Where the next ``collect`` begins: at or after ``consumed_position``."""
        return self._ring.cursor

    def wait(self, seconds: float) -> bool:
        """Sleep until about a mebibyte lies beyond the cursor (True) or the time has passed (False)."""
        wanted = self._ring.cursor + min(_WAKE_BYTES, self._ring.size // 4)
        self._control.set("wake_position", wanted)
        deadline = time.monotonic() + seconds
        while self._ring.produced() < wanted:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._poll.poll(left)
        return True

    def collect(self, limit_bytes: int, *, up_to: int | None = None) -> Collected | None:
        """The writes from the cursor on, and move the cursor past them; None when there is nothing to take yet.

        Ends at the first of: a record still being filled, about ``limit_bytes`` of ring, ``up_to`` (a position that this
        session gave: ``p0``, ``end_position``, ``produced_position()``, a mark's), directly after a mark. A bio is not cut
        unless ``up_to`` or a mark cuts it. Ranges that hold only discarded records give a Collected without extents.
        """
        collected = self._ring.collect(limit_bytes, up_to)
        for disk_index, offset in self._ring.torn:
            self.mark_dirty(disk_index, offset // BLOCK_BYTES, 1)
        self._ring.torn.clear()
        return collected

    def release(self, position: int) -> None:
        """Everything before ``position`` is spooled (D5): give its room back to the kernel. Idempotent, never goes back."""
        faults.point("capture.before_release")
        self._ring.release(min(position, self._ring.cursor))

    def put_mark(self, number: int) -> int:
        """Put a mark record into the stream and return its position: writes submitted before the call lie before it.

        Writes to no disk, so it is safe while file systems are frozen. Raises StorageError (retryable) when the ring is full.
        """
        before = self._ring.produced()
        answer = CALL.unpack(self._call(CALL_MARK, number))
        if answer[2]:
            raise StorageError("the capture ring is full: no mark could be put", code="CaptureRingFull", retryable=True,
                               remedy="try again when the backlog is sent")  # fmt: skip
        return self._ring.find_mark(before, number)

    def counters(self) -> Counters:
        get = self._control.get
        return Counters(
            drops=get("drops"), bytes_dropped=get("bytes_dropped"), skipped=get("skipped"),
            unreadable_pages=get("unreadable_pages"), unsupported=get("unsupported"),
            recursion_misses=self._recursion_misses(), untracked=get("untracked"), write_errors=get("write_errors"),
            overlaps=get("overlaps"), unannounced=get("unannounced"), bios=get("bios"), bytes_written=get("bytes_written"),
            discards=get("discards"), barriers=get("barriers"), healed=get("healed"),
        )  # fmt: skip

    def missed(self) -> int:
        """Runs that the kernel skipped and writes that cannot be followed, since ``acknowledge_missed``, also while no process
        ran: above 0, every disk is due for a hash comparison (gap cause MISSED)."""
        return self._control.get("unsupported") + self._recursion_misses() - self._control.get("acknowledged_missed")

    def acknowledge_missed(self, number: int) -> None:
        """A comparison has begun (durably, on the agent's side) that answers this many of ``missed``."""
        self._control.set("acknowledged_missed", self._control.get("acknowledged_missed") + number)

    # ---- dirty blocks and re-reading ---------------------------------------------------------------------------------

    def mark_dirty(self, disk_index: int, first_block: int, blocks: int | bytes) -> None:
        """Mark blocks for re-reading: a count of blocks, or a bitmap (bit i of byte i//8, least significant first, is block
        ``first_block + i``). Writes to a dirty block are not captured until its re-read round begins."""
        place = self._by_index[disk_index]
        runs = block_maps.runs_told(first_block, blocks)
        for first, count in runs:
            if first < place.blocks:
                self._dirty.set_run(place.base_block + first, min(count, place.blocks - first))
        if runs:
            self._control.set("degraded", 1)

    def mark_all_dirty(self, disk_index: int) -> None:
        self.mark_dirty(disk_index, 0, self._by_index[disk_index].blocks)

    def dirty_blocks(self) -> int:
        """Blocks dirty or pending (re-read but not yet durable): 0 means that the stream alone is the truth."""
        if not self._control.get("degraded"):
            return len(self._pending_owner)
        dirty = sum(self._dirty.count(place.base_block, place.blocks) for place in self._places)
        if not dirty:
            dirty = self._leave_degraded()
        return dirty + len(self._pending_owner)

    def reread(self, limit_blocks: int) -> Reread | None:
        """One D8 round over up to ``limit_blocks`` dirty blocks (lowest first, so adjacent ones together); None when no block
        is dirty. ``reread_durable`` or ``reread_abandoned`` is due for every result, also while later rounds are under way."""
        if not self._control.get("degraded"):
            return None
        taken = self._take_dirty(limit_blocks)
        if not taken:
            self._leave_degraded()
            self._buffers.forget()
            return None
        runs = [run for _, run in taken]
        untracked = self._control.get("untracked")
        for first, count in runs:
            self._pending.set_run(first, count)
        faults.point("capture.reread_pending")
        for first, count in runs:
            self._dirty.clear_run(first, count)
        p0 = self._ring.produced()
        generation, clean = rereading.raise_generation(self._control)
        done = rereading.older_writes_done(self._control, self._parts.maps["inflight"], generation, clean, runs)
        blocks = tuple(
            (place.disk.index, block - place.base_block) for place, run in taken for block in range(run[0], sum(run))
        )
        for first, count in runs:
            self._pending_owner.update(dict.fromkeys(range(first, first + count), generation))
        if not done or self._control.get("untracked") != untracked:
            reason = "older writes are still in flight" if not done else "the in-flight table was full"
            round_failed = Reread(p0, p0, b"", (), 0, blocks, False, reason, generation=generation)
            self.reread_abandoned(round_failed)
            self._settle_lost(generation)
            return round_failed
        faults.point("capture.reread_before_read")
        memory = self._buffers.take(sum(count for _, count in runs) * BLOCK_BYTES)
        gathered = rereading.Gathered(memory)
        try:
            gathered.read_runs([(place, run, self._readers[place.disk.index]) for place, run in taken])
        except BaseException:
            self.reread_abandoned(Reread(p0, p0, b"", (), 0, blocks, False, "not read", generation=generation))
            raise
        return Reread(p0, self._ring.produced(), gathered.table(), gathered.payload, gathered.payload_bytes, blocks, True, "",
                      tuple(gathered.unreadable), generation, memory=memory)  # fmt: skip

    def reread_differing(self, wanted: Sequence[Differing]) -> Reread:
        """A D8 round over blocks that a comparison found different: of each, the pieces that differ from the replica's.

        They need not be dirty, so writes to them are captured all the while. A sector that no record of the stream covers has
        been the same since before the comparison, one that a record covers is right on the replica already: so a piece that
        equals the replica's at the place of the comparison need not travel, however much is written meanwhile. Nothing is
        remembered here: whoever asked compares again what was not spooled. ``ok`` false: ask again later.
        """
        blocks = sorted(wanted, key=lambda one: (one.disk_index, one.block))
        runs = [(self._by_index[one.disk_index].base_block + one.block, 1) for one in blocks]
        untracked = self._control.get("untracked")
        p0 = self._ring.produced()
        generation, clean = rereading.raise_generation(self._control)
        done = rereading.older_writes_done(self._control, self._parts.maps["inflight"], generation, clean, runs)
        if not done or self._control.get("untracked") != untracked:
            reason = "older writes are still in flight" if not done else "the in-flight table was full"
            self._settle_lost(generation)
            return Reread(p0, p0, b"", (), 0, (), False, reason, generation=generation, compared=wanted)
        memory = self._buffers.take(len(blocks) * BLOCK_BYTES)
        gathered = rereading.Gathered(memory)
        places = [(self._by_index[one.disk_index], self._readers[one.disk_index], one) for one in blocks]
        gathered.read_differing(places)
        return Reread(p0, self._ring.produced(), gathered.table(), gathered.payload, gathered.payload_bytes, (), True, "",
                      tuple(gathered.unreadable), generation, wanted, memory)  # fmt: skip

    def give_back(self, reread: Reread) -> None:
        """Its payload was copied: the memory serves another round. From any thread; without it the memory is just freed."""
        if reread.memory is not None:
            self._buffers.give_back(reread.memory)

    def forget_buffers(self) -> None:
        """No pass is open: the memory of the rounds is freed."""
        self._buffers.forget()

    def reread_durable(self, reread: Reread) -> None:
        """The re-read is spooled: its blocks are no longer pending. Release the records up to its p0 first: coming again after a
        restart, they would lie on top of what was read."""
        if reread.ok:
            self._clear_pending(reread)

    def reread_abandoned(self, reread: Reread) -> None:
        """The re-read was not emitted: its blocks are dirty again."""
        for disk_index, block in reread.blocks:
            self._dirty.set_run(self._by_index[disk_index].base_block + block, 1)
        self._control.set("degraded", 1)
        self._clear_pending(reread)

    def read_blocks(self, disk_index: int, first_block: int, count: int, buffer: memoryview) -> BlocksRead:
        """Read with O_DIRECT into ``buffer`` (writable, at least ``count`` blocks, page-aligned). Shorter only at the disk's end.
        Says nothing about writes in flight: a difference found by its hash is settled by a re-read (D8)."""
        place = self._by_index[disk_index]
        offset = first_block * BLOCK_BYTES
        length = max(0, min(count * BLOCK_BYTES, place.disk.size_bytes - offset))
        unreadable: list[tuple[int, int]] = []
        for done in range(0, length, rereading.READ_SPAN_BYTES):
            part = buffer[done : min(length, done + rereading.READ_SPAN_BYTES)]
            unreadable += read_direct(self._readers[disk_index], part, offset + done)
        return BlocksRead(length, tuple(unreadable))

    # ---- unlanded blocks (D5, D6) ------------------------------------------------------------------------------------

    def set_unlanded(self, extents: bytes, generation: int) -> None:
        """Note the blocks of a batch as not landed, before ``release``. ``generation`` (1 to 65535) names the batch, for
        example ``1 + sequence % 65535``; a later batch's number replaces an earlier one's."""
        if not 1 <= generation <= 0xFFFF:
            raise ValueError("a generation is 1 to 65535")
        self._unlanded.set_extents(extents, self._bases, generation)

    def clear_unlanded(self, extents: bytes, generation: int) -> None:
        """The batch landed: forget its blocks, except those that a later batch holds too."""
        self._unlanded.clear_extents(extents, self._bases, generation)

    def clear_unlanded_generations(self, low: int, high: int) -> None:
        """Forget every block whose generation lies in low..high (both included; when low > high the range wraps round past
        65535 to 1). For batches whose extents are no longer known, after a restart. Reads the whole map."""
        for place in self._places:
            self._unlanded.clear_generations(place.base_block, place.blocks, low, high)

    def unlanded_blocks(self) -> list[int]:
        """Number of unlanded blocks of each disk, in the order of ``disks``."""
        return [sum(1 for _ in self._unlanded.blocks(place.base_block, place.blocks)) for place in self._places]

    def mark_unlanded_dirty(self) -> int:
        """A process server was lost (D6): every unlanded block becomes dirty and is unlanded no more. Returns how many.
        A process that dies in the middle leaves both marks, never none."""
        total = 0
        for place in self._places:
            for first, count in block_maps.as_runs(self._unlanded.blocks(place.base_block, place.blocks)):
                self._dirty.set_run(first, count)
                total += count
            if total:
                self._control.set("degraded", 1)
            self._unlanded.clear_generations(place.base_block, place.blocks, 1, 0xFFFF)
        return total

    # ---- inside -------------------------------------------------------------------------------------------------------

    def _call(self, kind: int, argument: int, a: int = 0, b: int = 0, c: int = 0) -> bytes:
        return libbpf.call(self._parts.programs[pins.CALL_PROGRAM], CALL.pack(kind, argument, 0, a, b, c))

    def _recursion_misses(self) -> int:
        names = (pins.QUEUE_PROGRAM, *pins.COMPLETION_PROGRAMS)
        return sum(libbpf.recursion_misses(self._parts.programs[name]) for name in names)

    def _take_dirty(self, limit_blocks: int) -> list[tuple[DiskPlace, tuple[int, int]]]:
        taken: list[tuple[DiskPlace, tuple[int, int]]] = []
        for place in self._places:
            for run in self._dirty.runs(place.base_block, place.blocks, limit_blocks):
                taken.append((place, run))
                limit_blocks -= run[1]
            if limit_blocks <= 0:
                break
        return taken

    def _leave_degraded(self) -> int:
        """Clear the flag, look again (the program may mark at any moment), set it again if need be. Returns the dirty blocks."""
        self._control.set("degraded", 0)
        with self._fence:  # the store is out before a dirty byte is looked at: taking a lock is a full barrier
            dirty = sum(self._dirty.count(place.base_block, place.blocks) for place in self._places)
        if dirty:
            self._control.set("degraded", 1)
        return dirty

    def _recover_pending(self) -> None:
        recovered = 0
        for place in self._places:
            for first, count in self._pending.runs(place.base_block, place.blocks, place.blocks):
                self._dirty.set_run(first, count)
                self._control.set("degraded", 1)
                self._pending.clear_run(first, count)
                recovered += count
        if recovered:
            log.info("blocks of an unfinished re-read are dirty again", blocks=recovered)

    def _clear_pending(self, reread: Reread) -> None:
        """Except for blocks that a later round has taken again: they are pending for that one."""
        for disk_index, block in reread.blocks:
            number = self._by_index[disk_index].base_block + block
            if self._pending_owner.get(number) == reread.generation:
                del self._pending_owner[number]
                self._pending.clear_run(number, 1)

    def _settle_lost(self, generation: int) -> None:
        """Entries whose completion was not seen: settle those of disks that are idle once (D8), or stuck for long. Their blocks
        become dirty, and a completion that comes after all marks them again: a wrong guess costs a re-read, nothing else."""
        now = time.monotonic()
        stuck = rereading.older_entries(self._parts.maps["inflight"], generation, None)
        self._stuck_since = {entry[:2]: self._stuck_since.get(entry[:2], now) for entry in stuck}
        idle: set[int] = set()
        for _ in range(_IDLE_SAMPLES if stuck else 0):
            idle.update(place.number for place in self._places if not writes_in_flight(place.number))
            time.sleep(_IDLE_WINDOW_SECONDS / _IDLE_SAMPLES)
        settled = 0
        for key, born, first_sector in stuck:
            block = first_sector // (BLOCK_BYTES // SECTOR_BYTES)
            place = next((p for p in self._places if p.base_block <= block < p.base_block + p.blocks), None)
            if place is None or place.number in idle or now - self._stuck_since[key, born] > _STUCK_SECONDS:
                self._call(CALL_SETTLE, key, born)
                settled += 1
        if stuck:
            log.warning("writes without a completion", entries=len(stuck), settled=settled)
