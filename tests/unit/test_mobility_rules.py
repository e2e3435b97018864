"""The mobility service's pure rules: gaps, outstanding items, passes, lag, payload, freezing order."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from failback.mobility import gaps, lag, mounts, passes, payload
from failback.mobility.capture.values import Reread
from failback.mobility.config import Compression
from failback.mobility.outstanding import EXTENT_BYTES, GENERATIONS, Outstanding, Sent, generation_of, interval_seconds
from failback.model.components import MobilityAssignment, SourceDisk, SyncMode
from failback.model.ids import DiskId, MachineId, PassId
from failback.model.stream import BLOCK_BYTES, Codec, GapCause, Operation
from failback.protocol.extents import EXTENT
from failback.protocol.messages import DigestReply

ZERO = gaps.NOTHING


# --- gaps ---------------------------------------------------------------------------------------------------------------


def test_a_batch_without_news_may_become_a_point() -> None:
    rule = gaps.GapRule(ZERO)
    counters = replace(ZERO, bios=7, bytes_written=4096)
    assert rule.decide(counters, dirty_blocks=0, pass_open=False, end_position=10) is GapCause.NONE


@pytest.mark.parametrize(
    ("counter", "cause"),
    [
        ("drops", GapCause.OVERFLOW), ("recursion_misses", GapCause.MISSED), ("unsupported", GapCause.MISSED),
        ("write_errors", GapCause.WRITE_ERROR), ("overlaps", GapCause.OVERLAP), ("untracked", GapCause.OVERFLOW),
        ("unreadable_pages", GapCause.OVERFLOW), ("skipped", GapCause.OVERFLOW),
        ("unannounced", GapCause.OVERFLOW),
    ],
)  # fmt: skip
def test_each_counter_opens_a_gap_that_lasts_until_nothing_is_dirty(counter: str, cause: GapCause) -> None:
    rule = gaps.GapRule(ZERO)
    risen = replace(ZERO, **{counter: 1})
    assert rule.decide(risen, dirty_blocks=0, pass_open=False, end_position=1) is cause
    assert rule.decide(risen, dirty_blocks=3, pass_open=False, end_position=2) is cause
    assert rule.decide(risen, dirty_blocks=0, pass_open=False, end_position=3) is GapCause.NONE
    assert gaps.comparison_needed(ZERO, risen) is (cause is GapCause.MISSED)


def test_an_open_pass_holds_points_back_and_so_does_its_last_read() -> None:
    rule = gaps.GapRule(ZERO, cause=GapCause.SYNC, consistent_from=100)
    assert rule.decide(ZERO, dirty_blocks=0, pass_open=True, end_position=200) is GapCause.SYNC
    rule.consistent_from = 500
    assert rule.decide(ZERO, dirty_blocks=0, pass_open=False, end_position=499) is GapCause.SYNC
    assert rule.decide(ZERO, dirty_blocks=0, pass_open=False, end_position=500) is GapCause.NONE


def test_every_gap_counter_of_the_capture_is_known_here() -> None:
    names = [name for name, _ in gaps._CAUSES]
    for name in names:
        assert replace(ZERO, **{name: 1}).gap_sum() == 1
    ordinary = {"bytes_dropped", "bios", "bytes_written", "discards", "barriers", "healed"}
    assert set(names) | ordinary >= set(ZERO.__slots__)


# --- outstanding --------------------------------------------------------------------------------------------------------


def reread() -> Reread:
    return Reread(p0=0, end_position=0, extents=b"", payload=[], payload_bytes=0, blocks=[(0, 1)], ok=True, reason="")


def test_release_follows_spooled_and_the_map_follows_landed() -> None:
    book = Outstanding(0, 0)
    one, two, three = (Sent(n, n * 100, 10, extents=bytes(16)) for n in (1, 2, 3))
    two.reread = waiting = reread()
    for item in (one, two, three):
        book.add(item)
    assert book.unspooled_bytes == 30 and book.next_sequence == 4 and book.unlanded_items == 3
    spooled = book.spooled(2)
    assert spooled is not None and spooled.release_position == 200 and spooled.rereads == [waiting]
    assert book.spooled(2) is None
    landed = book.landed(1)
    assert landed is not None and list(landed.items) == [one] and landed.forgotten == (0, -1)
    assert book.landed(1) is None
    landed = book.landed(3)
    assert landed is not None and list(landed.items) == [two, three]


def test_only_what_was_sent_here_can_be_held_there() -> None:
    """D5: another item of the same number, or more than was sent, releases nothing."""
    book = Outstanding(3, 1, 70)
    assert not book.contradicts(3, 70) and book.contradicts(3, 60) and book.contradicts(2, 70)
    for number in (4, 5):
        book.add(Sent(number, number * 100, 10))
    assert not book.contradicts(5, 500) and book.contradicts(5, 480) and book.contradicts(6, 600)
    book.spooled(4)
    assert not book.contradicts(4, 400) and not book.contradicts(5, 500) and book.contradicts(4, 390)


def test_after_a_restart_older_items_are_forgotten_ones_and_numbers_go_on() -> None:
    book = Outstanding(10, 4)
    assert book.next_sequence == 11
    book.add(Sent(11, 5, 1, extents=bytes(16)))
    landed = book.landed(8)
    assert landed is not None and landed.forgotten == (5, 8) and not landed.items
    landed = book.landed(11)
    assert landed is not None and landed.forgotten == (9, 10) and len(landed.items) == 1


def test_a_sequence_with_a_hole_is_refused() -> None:
    with pytest.raises(ValueError, match="item 3 after 0"):
        Outstanding(0, 0).add(Sent(3, 0, 0))


def test_memory_for_extents_is_bounded() -> None:
    book = Outstanding(0, 0)
    for number in range(1, 200):
        book.add(Sent(number, number, 1, extents=bytes(1 << 20)))
    assert sum(len(item.extents) for item in book._unlanded) <= EXTENT_BYTES
    landed = book.landed(199)
    assert landed is not None and landed.forgotten == (9, 199)
    assert book._extent_bytes == 0


@given(st.integers(1, 10**9))
def test_generations_are_16_bit_and_neighbours_differ(sequence: int) -> None:
    assert 1 <= generation_of(sequence) <= GENERATIONS
    assert generation_of(sequence) != generation_of(sequence + 1)


def test_batches_grow_longer_when_little_lands() -> None:
    assert interval_seconds(250, 10) == 0.25
    assert interval_seconds(250, 20_000) == 5.0


# --- passes -------------------------------------------------------------------------------------------------------------


def disk(index: int, blocks: int, mode: SyncMode, tail: int = 0) -> tuple[SourceDisk, SyncMode]:
    size = blocks * BLOCK_BYTES + tail
    return SourceDisk(DiskId(f"disk{index}"), index, f"serial:{index}", size, mode), mode


def answer(sequence: int, chunk: passes.Chunk, differing: bytes) -> DigestReply:
    return DigestReply(
        MachineId("m"), 1, sequence, PassId("p"), chunk.disk_index, chunk.first_block, chunk.count, differing
    )


def test_a_pass_asks_for_every_block_once_and_ends_when_all_is_answered() -> None:
    sync = passes.SyncPass(
        PassId("p"), [disk(0, 1300, SyncMode.COMPARE, 512), disk(1, 3, SyncMode.NONE), disk(2, 5, SyncMode.FULL)]
    )
    chunks = []
    while (chunk := sync.next_chunk()) is not None:
        sync.sent(len(chunks) + 1, chunk)
        chunks.append(chunk)
    assert [(chunk.first_block, chunk.count) for chunk in chunks] == [(0, 512), (512, 512), (1024, 277)]
    assert not sync.read
    assert sync.resume_blocks() == {0: 0, 2: 0}
    for number, chunk in enumerate(chunks, 1):
        assert sync.answered(answer(number, chunk, b"\x05")) == chunk
    assert sync.read
    assert sync.answered(answer(1, chunks[0], b"")) is None
    table = EXTENT.pack(2, Operation.DATA, 1, 4096, 0) + EXTENT.pack(2, Operation.ZERO, 1, 61440, 4096)
    sync.reread([(2, 0)], table)
    running = {each.disk_id: each for each in sync.progress(False)}[DiskId("disk2")]
    assert running.bytes_compared == BLOCK_BYTES and running.bytes_sent == 4096, "zeroes do not travel"
    done = {each.disk_id: each for each in sync.progress(True)}
    assert set(done) == {"disk0", "disk2"}
    assert done[DiskId("disk0")].bytes_differing == 6 * BLOCK_BYTES
    assert done[DiskId("disk0")].bytes_compared == 1300 * BLOCK_BYTES + 512


def test_unanswered_chunks_are_bounded_and_overdue_ones_are_asked_again() -> None:
    sync = passes.SyncPass(PassId("p"), [disk(0, 512 * 20, SyncMode.COMPARE)])
    for number in range(1, passes.MOST_UNANSWERED + 1):
        chunk = sync.next_chunk()
        assert chunk is not None
        sync.sent(number, chunk)
    assert sync.next_chunk() is None
    sync.landed(1, now=0.0)
    sync.landed(1, now=passes.ANSWER_SECONDS - 1)
    assert sync.next_chunk() is None
    sync.landed(1, now=passes.ANSWER_SECONDS + 1)
    again = sync.next_chunk()
    assert again == passes.Chunk(0, 0, 512)


def test_a_restarted_pass_goes_on_where_everything_before_was_answered() -> None:
    sync = passes.SyncPass(PassId("p"), [disk(0, 2000, SyncMode.COMPARE)])
    first, second = sync.next_chunk(), sync.next_chunk()
    assert first is not None and second is not None
    sync.sent(1, first)
    sync.sent(2, second)
    sync.answered(answer(1, first, b""))
    assert sync.resume_blocks() == {0: 512}
    later = passes.SyncPass(PassId("p"), [disk(0, 2000, SyncMode.COMPARE)], {0: 512})
    assert later.next_chunk() == passes.Chunk(0, 512, 512)


def test_a_pass_over_no_disk_does_not_call_itself_one() -> None:
    """D6, D7: re-sent blocks are a gap of their own; only a comparison or a copy cures a damaged journal."""
    resend = passes.SyncPass(PassId("p"), [disk(0, 3, SyncMode.NONE)])
    assert resend.read and not resend.holds_back(5)
    rule = gaps.GapRule(ZERO, cause=GapCause.RESEND, consistent_from=10)
    assert rule.decide(ZERO, dirty_blocks=5, pass_open=resend.holds_back(5), end_position=20) is GapCause.RESEND
    assert rule.decide(ZERO, dirty_blocks=0, pass_open=resend.holds_back(0), end_position=20) is GapCause.NONE
    copy = passes.SyncPass(PassId("p"), [disk(0, 3, SyncMode.FULL)])
    assert copy.holds_back(5) and not copy.holds_back(0)


def test_a_chunk_that_is_still_being_hashed_is_asked_for_again_after_a_restart() -> None:
    """A slow disk and a quick link: everything sent is answered while the next chunks are on their way through the hashing."""
    sync = passes.SyncPass(PassId("p"), [disk(0, 2000, SyncMode.COMPARE), disk(1, 2000, SyncMode.COMPARE)])
    first, second, third = (sync.next_chunk() for _ in range(3))
    assert first is not None and second is not None and third is not None
    sync.sent(1, first)
    sync.answered(answer(1, first, b""))
    assert sync.resume_blocks() == {0: 512, 1: 0}
    sync.sent(2, second)
    sync.sent(3, third)
    sync.answered(answer(2, second, b""))
    sync.answered(answer(3, third, b""))
    assert sync.resume_blocks() == {0: 1536, 1: 0}


def test_what_was_hashed_for_a_replaced_pass_does_not_count_for_the_new_one() -> None:
    """Writes were missed in mid-pass: everything is compared anew, with digests made after that."""
    old = passes.SyncPass(PassId("p"), [disk(0, 1024, SyncMode.COMPARE)])
    stale = old.next_chunk()
    new = passes.SyncPass(PassId("p"), [disk(0, 1024, SyncMode.COMPARE)])
    fresh = new.next_chunk()
    assert stale is not None and fresh == stale
    assert not new.owns(stale) and new.owns(fresh)
    with pytest.raises(ValueError, match="another pass"):
        new.sent(1, stale)
    new.sent(2, fresh)
    assert not new.owns(fresh)
    new.answered(answer(2, fresh, b""))
    assert not new.read


@pytest.mark.parametrize(
    ("sync", "done", "fresh", "compare_all", "sent_before", "start", "mode"),
    [
        (SyncMode.COMPARE, False, True, False, False, True, SyncMode.COMPARE),  # a first protection
        (SyncMode.FULL, False, True, False, False, True, SyncMode.FULL),
        (SyncMode.FULL, False, False, False, True, True, SyncMode.FULL),  # the agent restarted in the middle
        (SyncMode.FULL, False, True, False, True, True, SyncMode.COMPARE),  # the machine rebooted in the middle
        (SyncMode.COMPARE, True, False, False, True, False, SyncMode.NONE),  # the agent restarted afterwards
        (SyncMode.COMPARE, True, True, False, True, True, SyncMode.COMPARE),  # other disks, or pins lost, in one boot
        (SyncMode.NONE, False, False, False, False, True, SyncMode.NONE),  # another process server: the unlanded only
        (SyncMode.NONE, False, True, False, False, True, SyncMode.COMPARE),  # the same after a reboot
        (SyncMode.COMPARE, True, False, True, True, True, SyncMode.COMPARE),  # writes were missed
        (SyncMode.FULL, False, False, True, True, True, SyncMode.COMPARE),  # missed in a full copy, then a restart
        (SyncMode.FULL, False, True, True, False, True, SyncMode.FULL),  # all of it is to come anyway
    ],
)
def test_what_is_read_when_a_stream_begins(  # noqa: PLR0917
    sync: SyncMode, done: bool, fresh: bool, compare_all: bool, sent_before: bool, start: bool, mode: SyncMode
) -> None:
    source, _ = disk(0, 10, sync)
    assignment = MobilityAssignment(True, MachineId("m"), 1, pass_id=PassId("p"), disks=(source,))
    decided = passes.decide(assignment, done=done, fresh_ring=fresh, compare_all=compare_all, sent_before=sent_before)
    assert (decided.start, decided.modes) == (start, ((source, mode),))
    assert decided.compare_all is (compare_all or (mode is SyncMode.COMPARE and (done or sync is SyncMode.NONE)))


# --- lag, payload, mounts -----------------------------------------------------------------------------------------------


def test_lag_percentiles_are_right_within_a_bucket() -> None:
    histogram = lag.LagHistogram()
    assert histogram.figures() is None
    for milliseconds in range(1, 1001):
        histogram.landed(milliseconds, milliseconds, 100)
    figures = histogram.figures()
    assert figures is not None and figures.samples == 1000 and figures.maximum == 1000
    assert figures.p50 == pytest.approx(500, rel=0.06)
    assert figures.p99 == pytest.approx(990, rel=0.06)


def test_lag_is_weighted_by_bytes_and_spread_between_oldest_and_newest() -> None:
    histogram = lag.LagHistogram()
    histogram.landed(300, 100, 10_000)
    histogram.landed(5000, 5000, 1)
    figures = histogram.figures()
    assert figures is not None
    assert 150 < figures.p50 < 250
    assert figures.p99 < 400
    assert figures.maximum == 5000


def test_payload_is_compressed_only_where_that_pays() -> None:
    text = b"the same words again and again " * 4000
    noise = os.urandom(len(text))
    parts = [memoryview(text)[:5000], text[5000:]]
    codec, encoded = payload.encode(parts, len(text), Compression.AUTO)
    assert codec is Codec.ZSTD and len(encoded) < len(text) // 10
    assert zstandard.ZstdDecompressor().decompress(encoded) == text
    assert payload.encode([noise], len(noise), Compression.AUTO) == (Codec.RAW, noise)
    assert payload.encode([noise], len(noise), Compression.ON)[0] is Codec.RAW
    assert payload.encode([text], len(text), Compression.OFF) == (Codec.RAW, text)
    assert payload.encode([], 0, Compression.ON) == (Codec.RAW, b"")


def test_mountinfo_counts_a_file_system_once_and_unescapes_names() -> None:
    text = (
        "22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw\n"
        "23 22 254:1 /sub /srv/bind\\040mount rw - ext4 /dev/vda1 rw\n"
        "24 22 0:30 / /data rw - btrfs /dev/vdb rw,space_cache\n"
        "25 22 254:17 / /with\\040space ro - xfs /dev/vdb1 ro,noatime\n"
        "garbage\n"
    )
    found = mounts.parse_mountinfo(text)
    assert [(mount.mount_point, mount.filesystem, mount.writable) for mount in found] == [
        ("/", "ext4", True), ("/data", "btrfs", True), ("/with space", "xfs", False),
    ]  # fmt: skip


def test_nested_file_systems_freeze_first_and_the_root_last() -> None:
    def mount(path: str, depth: int) -> mounts.BlockMount:
        return mounts.BlockMount(path, "ext4", frozenset({"vda"}), depth)

    ordered = mounts.order([mount("/", 0), mount("/srv", 0), mount("/srv/image", 1), mount("/srv/image/in", 2)])
    assert [item.mount_point for item in ordered] == ["/srv/image/in", "/srv/image", "/srv", "/"]
