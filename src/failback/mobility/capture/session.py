"""The capture as the rest of the mobility service sees it: open, collect, release, re-read (D1, D5, D6, D8 to D11).

One worker thread uses a session; nothing here is asynchronous, and no call blocks longer than the 2 s of a grace wait
plus disk reads. All that must outlive the process is pinned in bpffs: ring, maps, programs and links. The order of calls
that loses nothing: ``collect`` -> spool -> ``set_unlanded`` -> ``release``; ``reread`` -> spool -> ``reread_durable``;
landed -> ``clear_unlanded``. A process that dies between any two of them gets the same again after ``open``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from failback.mobility.capture.values import BlocksRead, CaptureDisk, Collected, Counters, Reread, SelfTest

DEFAULT_PIN_DIRECTORY = Path("/sys/fs/bpf/failback")
DEFAULT_RING_BYTES = 64 << 20


def is_capturable(disks: Sequence[CaptureDisk] = ()) -> None:
    """Probe the kernel's features (never its version) and the disks.

    Raises NotSupportedError with the reason and the remedy.
    """
    raise NotImplementedError


class CaptureSession:
    """See the module; made by :meth:`open`."""

    reattached: bool
    """True: programs and ring of an earlier process go on, positions continue, unreleased records come again. False: a new
    ring from position 0; nothing is known of the time before, so the disks need a comparison or a full copy."""

    @classmethod
    def open(
        cls, disks: Sequence[CaptureDisk], *, ring_bytes: int = DEFAULT_RING_BYTES,
        pin_directory: Path = DEFAULT_PIN_DIRECTORY, object_path: Path | None = None,
    ) -> CaptureSession:  # fmt: skip
        """Re-attach to the pins when layout version, disks and ring size match; else detach the old ones, load, pin, attach.

        ``ring_bytes`` is rounded up to a power of two. Pending re-reads of a dead process become dirty blocks.
        Raises NotSupportedError, ConfigurationError (a partition, a wrong size), StorageError.
        """
        raise NotImplementedError

    def self_test(self, scratch_directory: Path | None = None) -> SelfTest:
        """Write random content with O_DIRECT to a file in ``scratch_directory`` (on a captured disk) and find exactly it in
        the ring; without a usable directory, on a throw-away loop device that is captured for that moment. Must pass before
        protection is declared. Moves neither cursor nor consumer position; its own loop device's records are not emitted."""
        raise NotImplementedError

    def produced_position(self) -> int:
        raise NotImplementedError

    def consumed_position(self) -> int:
        """What was released: the kernel may overwrite everything before it."""
        raise NotImplementedError

    def cursor(self) -> int:
        """Where the next ``collect`` begins: at or after ``consumed_position``."""
        raise NotImplementedError

    def wait(self, seconds: float) -> bool:
        """Sleep until about a mebibyte lies beyond the cursor (True) or the time has passed (False)."""
        raise NotImplementedError

    def collect(self, limit_bytes: int, *, up_to: int | None = None) -> Collected | None:
        """The writes from the cursor on, and move the cursor past them; None when there is nothing to take yet.

        Ends at the first of: a record still being filled, about ``limit_bytes`` of ring, ``up_to`` (a position that this
        session gave: ``p0``, ``end_position``, ``produced_position()``, a mark's), directly after a mark. A bio is not cut
        unless ``up_to`` or a mark cuts it. Ranges that hold only barriers give a Collected without extents.
        """
        raise NotImplementedError

    def release(self, position: int) -> None:
        """Everything before ``position`` is spooled (D5): give its room back to the kernel. Idempotent, never goes back."""
        raise NotImplementedError

    def put_mark(self, number: int) -> int:
        """Put a mark record into the stream; writes submitted before the call have smaller positions than the result.

        Writes to no disk, so it is safe while file systems are frozen. Raises StorageError (retryable) when the ring is full.
        """
        raise NotImplementedError

    def counters(self) -> Counters:
        raise NotImplementedError

    def mark_dirty(self, disk_index: int, first_block: int, blocks: int | bytes) -> None:
        """Mark blocks for re-reading: a count of blocks, or a bitmap (bit i of byte i//8, least significant first, is block
        ``first_block + i``). Writes to a dirty block are not captured until its re-read round begins."""
        raise NotImplementedError

    def mark_all_dirty(self, disk_index: int) -> None:
        raise NotImplementedError

    def dirty_blocks(self) -> int:
        """Blocks dirty or pending (re-read but not yet durable): 0 means that the stream alone is the truth."""
        raise NotImplementedError

    def reread(self, limit_blocks: int) -> Reread | None:
        """One D8 round over up to ``limit_blocks`` dirty blocks (lowest first, so adjacent ones together); None when no block
        is dirty. Call ``reread_durable`` with the result before the next round."""
        raise NotImplementedError

    def reread_durable(self, reread: Reread) -> None:
        """The re-read is spooled: its blocks are no longer pending."""
        raise NotImplementedError

    def reread_abandoned(self, reread: Reread) -> None:
        """The re-read was not emitted: its blocks are dirty again."""
        raise NotImplementedError

    def set_unlanded(self, extents: bytes, generation: int) -> None:
        """Note the blocks of a batch as not landed, before ``release``. ``generation`` (1 to 65535) names the batch, for
        example ``1 + sequence % 65535``; a later batch's number replaces an earlier one's."""
        raise NotImplementedError

    def clear_unlanded(self, extents: bytes, generation: int) -> None:
        """The batch landed: forget its blocks, except those that a later batch holds too."""
        raise NotImplementedError

    def clear_unlanded_generations(self, low: int, high: int) -> None:
        """Forget every block whose generation lies in low..high (both included; when low > high the range wraps round past
        65535 to 1). For batches whose extents are no longer known, after a restart. Reads the whole map."""
        raise NotImplementedError

    def unlanded_blocks(self) -> list[int]:
        """Number of unlanded blocks of each disk, in the order of ``disks``."""
        raise NotImplementedError

    def mark_unlanded_dirty(self) -> int:
        """A process server was lost (D6): every unlanded block becomes dirty and is unlanded no more. Returns how many."""
        raise NotImplementedError

    def read_blocks(self, disk_index: int, first_block: int, count: int, buffer: memoryview) -> BlocksRead:
        """Read with O_DIRECT into ``buffer`` (writable, at least ``count`` blocks, page-aligned for speed). Shorter only at the
        disk's end. Says nothing about writes in flight: for hashing under D8 compare at ``produced_position`` afterwards."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of mappings and descriptors; programs go on capturing into the pinned ring."""
        raise NotImplementedError

    def detach(self) -> None:
        """Stop capturing and remove the pins; then close."""
        raise NotImplementedError
