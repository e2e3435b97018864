"""The spool on a real file system: order, torn tails, freeing, errors of the disk, the bound."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest

from failback.errors import FailbackError, IntegrityError, OutOfSpaceError, ProtocolError, StorageError
from failback.model.ids import NO_GROUP, DiskId, MachineId, MarkId
from failback.model.stream import Codec, GapCause, MarkKind
from failback.process_server.space import SpoolSpace
from failback.process_server.spool import Spool, SpoolReader
from failback.protocol.frames import RawItem, encode_item
from failback.protocol.messages import Batch, StreamDisk
from failback.runtime import faults

MACHINE = MachineId(str(uuid.UUID(int=5)))


def item(sequence: int, payload_bytes: int = 1000) -> RawItem:
    payload = bytes([sequence % 256]) * payload_bytes
    return encode_item(
        Batch(MACHINE, NO_GROUP, 1, sequence, 0, sequence * 10, 0, 0, GapCause.NONE, MarkKind.NONE, MarkId(""),
              Codec.RAW, payload_bytes, b"", payload)
    )  # fmt: skip


def opened(directory: Path, segment_bytes: int = 8000) -> Spool:
    return Spool.open(directory / "machine" / "1", MACHINE, 1, segment_bytes=segment_bytes)


def read_all(spool: Spool, after: int = 0) -> list[int]:
    reader, found = SpoolReader(spool, after), []
    while items := reader.read_some(3000):
        found += [one.header.sequence for one in items]
    return found


@pytest.fixture(autouse=True)
def no_faults() -> object:
    yield
    faults.arm("")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "machine").mkdir()
    return tmp_path


def test_items_are_read_back_in_order_across_segments_and_restarts(directory: Path) -> None:
    spool = opened(directory)
    spool.append([item(1), item(2)])
    spool.append([item(sequence) for sequence in range(3, 31)])
    assert len(spool.segments) >= 4
    assert read_all(spool) == list(range(1, 31)) and read_all(spool, 17) == list(range(18, 31))
    spool.close()
    again = opened(directory)
    assert (again.spooled_sequence, again.spooled_ring) == (30, 300)
    again.append([item(31)])
    assert read_all(again, 28) == [29, 30, 31]
    got = SpoolReader(again, 30).read_some(1)[0]
    assert bytes(got.buffer) == bytes(item(31).buffer)


@pytest.mark.parametrize("cut", [1, 500, 1150])
def test_a_torn_tail_is_cut_off_at_open(directory: Path, cut: int) -> None:
    spool = opened(directory, 1 << 20)
    spool.append([item(1), item(2), item(3)])
    spool.close()
    path = spool.segments[-1].path
    path.write_bytes(path.read_bytes()[:-cut])
    again = opened(directory)
    assert again.spooled_sequence == 2
    again.append([item(3)])
    assert read_all(again) == [1, 2, 3]


def test_garbage_after_the_last_item_and_a_segment_of_nothing_but_garbage_are_cut_off(directory: Path) -> None:
    spool = opened(directory, 1 << 20)
    spool.append([item(1), item(2)])
    spool.close()
    with spool.segments[-1].path.open("ab") as stream:
        stream.write(bytes(5000))
    (spool.directory / f"{3:020d}.items").write_bytes(bytes(item(3).buffer)[:400])
    again = opened(directory)
    assert again.spooled_sequence == 2 and read_all(again) == [1, 2]


def test_a_damaged_item_that_was_durable_is_an_error_not_a_cut(directory: Path) -> None:
    spool = opened(directory)
    spool.append([item(sequence) for sequence in range(1, 21)])
    first = spool.segments[0].path
    content = bytearray(first.read_bytes())
    content[len(item(1).buffer) + 400] ^= 1
    first.write_bytes(content)
    reader = SpoolReader(spool, 0)
    with pytest.raises(IntegrityError) as caught:
        reader.read_some(1 << 20)
    assert caught.value.code == "SpoolDamaged" and "epoch" in caught.value.remedy


def test_what_has_landed_is_deleted_and_the_position_survives(directory: Path) -> None:
    spool = opened(directory)
    spool.append([item(sequence) for sequence in range(1, 31)])
    before = spool.total_bytes
    spool.landed(15, 150, "journal")
    assert spool.total_bytes < before and spool.first_held <= 16 and read_all(spool, 15) == list(range(16, 31))
    spool.landed(30, 300, "journal")
    spool.close()
    again = opened(directory)
    assert (again.spooled_sequence, again.spooled_ring) == (30, 300)
    assert (again.state.incarnation, again.pending_bytes) == ("journal", 0)
    again.append([item(31)])
    assert read_all(again, 30) == [31]


def test_disks_are_remembered(directory: Path) -> None:
    disks = (StreamDisk(DiskId("d"), 0, 512),)
    opened(directory).remember(disks)
    assert opened(directory).state.disks == disks


def test_a_journal_that_is_ahead_moves_the_spool_on(directory: Path) -> None:
    spool = opened(directory)
    spool.append([item(1), item(2)])
    spool.fast_forward(40, 400, "journal")
    spool.close()
    again = opened(directory)
    assert again.position() == (40, 400) and again.total_bytes == 0


def test_a_spool_that_greeted_an_agent_does_not_jump_to_the_journal(directory: Path) -> None:
    """The agent reckons its ring's positions from the greeting: behind another one, it would skip what nobody holds."""
    spool = opened(directory)
    spool.remember((StreamDisk(DiskId("d"), 0, 512),))
    assert not spool.fast_forward(40, 400, "journal")
    assert spool.position() == (0, 0)


def test_items_have_to_follow_one_another(directory: Path) -> None:
    spool = opened(directory)
    spool.append([item(1)])
    with pytest.raises(ProtocolError, match="cannot follow"):
        spool.append([item(2), item(4)])
    assert spool.spooled_sequence == 1
    spool.append([item(2)])
    assert read_all(spool) == [1, 2]


def test_a_reader_of_what_is_gone_says_so(directory: Path) -> None:
    spool = opened(directory)
    spool.append([item(sequence) for sequence in range(1, 31)])
    spool.landed(20, 200, "journal")
    with pytest.raises(ProtocolError) as caught:
        SpoolReader(spool, 0).read_some(1)
    assert caught.value.code == "ItemsMissing"


def test_a_failed_sync_spools_nothing_and_a_retry_writes_everything_anew(directory: Path) -> None:
    spool = opened(directory)
    spool.append([item(1)])
    faults.arm("spool.before_sync=error")
    with pytest.raises(StorageError) as caught:
        spool.append([item(sequence) for sequence in range(2, 20)])
    assert caught.value.retryable
    assert spool.spooled_sequence == 1 and read_all(spool) == [1]
    faults.arm("")
    spool.append([item(sequence) for sequence in range(2, 20)])
    assert read_all(spool) == list(range(1, 20))
    spool.close()
    assert read_all(opened(directory)) == list(range(1, 20))


def test_a_full_file_system_is_out_of_space_and_loses_nothing(small_file_system: Path) -> None:
    spool = Spool.open(small_file_system / "machine" / "1", MACHINE, 1, segment_bytes=1 << 20)
    count = 0
    with pytest.raises(OutOfSpaceError) as caught:
        while True:
            spool.append([item(count + 1, 200_000)])
            count += 1
    assert caught.value.retryable and count > 3
    assert spool.spooled_sequence == count and read_all(spool) == list(range(1, count + 1))
    spool.landed(count - 1, 10 * (count - 1), "journal")
    spool.append([item(count + 1, 200_000)])
    assert read_all(spool, count - 1) == [count, count + 1]
    spool.close()


@pytest.fixture
def small_file_system(tmp_path: Path) -> object:
    import subprocess

    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)], check=True)
    (mount / "machine").mkdir()
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


async def test_who_finds_no_room_waits_in_order_until_something_is_freed() -> None:
    stored = 0
    space = SpoolSpace(100, lambda: stored)
    order: list[str] = []

    async def take(name: str, count: int) -> None:
        nonlocal stored
        async with space.reserved(count):
            order.append(name)
            stored += count

    await take("first", 80)
    large, small = asyncio.create_task(take("large", 90)), asyncio.create_task(take("small", 10))
    await asyncio.sleep(0.01)
    assert order == ["first"] and space.is_full
    stored = 0
    space.look()
    await asyncio.gather(large, small)
    assert order == ["first", "large", "small"]
    waiting = asyncio.create_task(take("cancelled", 50))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert space.used_bytes == 100 and not space.is_full
    stored = 0
    await take("above the limit, alone", 500)
    assert order[-1].startswith("above")


def test_errors_name_a_remedy(directory: Path) -> None:
    (directory / "machine" / "1").mkdir()
    (directory / "machine" / "1" / "state.json").write_text("{")
    with pytest.raises(FailbackError) as caught:
        opened(directory)
    assert caught.value.code == "SpoolDamaged"
