"""The real master-target process over real TLS: attach, stream, compare, prepare, release, resume, commit, detach."""

from __future__ import annotations

import random
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import journal_driver as driver
import pytest
import xxhash
from master_target_site import MACHINE, Site
from process_server_site import eventually

from failback.errors import ConflictError, FailbackError
from failback.model import orders
from failback.model.ids import NO_GROUP, MarkId, PassId
from failback.model.points import PointChoice, PointSelector
from failback.model.stream import Codec, GapCause, MarkKind, Operation
from failback.protocol.extents import EXTENT
from failback.protocol.messages import Batch, Digests

SEED = 5
MARK = str(uuid.UUID(int=99))
LATEST = PointChoice(PointSelector.LATEST)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    built = Site(tmp_path)
    built.start()
    yield built
    await built.close()


def _model(sequence: int) -> dict[int, bytes]:
    return driver.Model(SEED, driver.initial(SEED)).advance(sequence)


async def test_the_whole_story_of_a_failback(site: Site) -> None:
    site.make_disks(SEED)
    attached = await site.attach()
    assert attached == await site.attach()
    assert attached.created == ()
    disk = site.disks()[0]
    assert not Path(disk.path).exists()
    refused = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", disk.path + ".replica"], capture_output=True,
                             text=True, check=False)  # fmt: skip
    assert "lock" in refused.stderr + refused.stdout
    site.assign(1)
    sender = site.sender(1)
    for sequence in range(1, 41):
        await sender.send(driver.make_batch(SEED, sequence))
    await sender.send(driver.make_batch(SEED, 41, mark=(MarkKind.FINAL, MARK)))
    await site.landed(sender, 41)
    assert sender.incarnation == attached.incarnation
    prepared = await site.prepare(LATEST, MARK)
    assert prepared.point.point_id == MARK and prepared.point.sequence == 41
    assert site.images(fenced=True) == _model(41)
    await eventually(lambda: site.replica().get("state") == "rolled-back")
    await site.plain(orders.RELEASE_REPLICA)
    await site.plain(orders.RELEASE_REPLICA)
    assert site.images(fenced=False) == _model(41)
    opened = subprocess.run(["qemu-io", "-r", "-f", "raw", "-c", "read 0 512", disk.path], capture_output=True, text=True,
                            check=False)  # fmt: skip
    assert "read 512/512" in opened.stdout
    await eventually(lambda: site.replica().get("state") == "released")
    site.kill()
    await site.plain(orders.RESUME_REPLICA)  # cancel: the disks are a replica again and the stream goes on
    site.assign(2)
    sender.stop()
    second = site.sender(2)
    await second.send(driver.make_batch(SEED, 1, epoch=2))
    await site.landed(second, 1)
    await eventually(lambda: site.replica().get("applied_sequence") == 1 and site.replica()["epoch"] == 2)
    await site.plain(orders.DETACH_REPLICA)
    await site.plain(orders.DETACH_REPLICA)
    assert Path(disk.path).exists()
    await eventually(lambda: not site.plane.status["replicas"])


async def test_released_disks_go_to_another_point_and_back(site: Site) -> None:
    """What a change of the recovery point orders: resume, prepare, release; forwards as well as backwards."""
    site.make_disks(SEED)
    await site.attach()
    site.assign(1)
    sender = site.sender(1)
    for sequence in range(1, 41):
        await sender.send(driver.make_batch(SEED, sequence))
    await sender.send(driver.make_batch(SEED, 41, mark=(MarkKind.FINAL, MARK)))
    await site.landed(sender, 41)
    await site.prepare(LATEST, MARK)
    points = site.replica()["points"]
    older = points[2]
    await site.plain(orders.RELEASE_REPLICA)
    with pytest.raises(ConflictError, match="released"):
        await site.prepare(PointChoice(PointSelector.POINT, older["point_id"]))
    for choice, sequence in (
        (PointChoice(PointSelector.POINT, older["point_id"]), older["sequence"]),
        (PointChoice(PointSelector.POINT, points[0]["point_id"]), 0),
        (LATEST, 41),
        (PointChoice(PointSelector.POINT, older["point_id"]), older["sequence"]),
    ):
        await site.plain(orders.RESUME_REPLICA)
        assert (await site.prepare(choice)).point.sequence == sequence
        await site.plain(orders.RELEASE_REPLICA)
        assert site.images(fenced=False) == (_model(sequence) if sequence else driver.initial(SEED))
        site.kill()
    await site.plain(orders.COMMIT_POINT)
    assert site.images(fenced=False) == _model(older["sequence"])


async def test_older_point_and_commit(site: Site) -> None:
    site.make_disks(SEED)
    await site.attach()
    site.assign(1)
    sender = site.sender(1)
    for sequence in range(1, 41):
        await sender.send(driver.make_batch(SEED, sequence))
    await site.landed(sender, 40)
    await eventually(lambda: len(site.replica().get("points", [])) > 4 and site.replica()["applied_sequence"] == 40)
    points = site.replica()["points"]
    assert points[0]["kind"] == "BeforeReprotect"
    older = points[2]
    prepared = await site.prepare(PointChoice(PointSelector.POINT, older["point_id"]))
    assert prepared.bytes_rolled_back > 0
    assert site.images(fenced=True) == _model(older["sequence"])
    site.kill()
    again = await site.prepare(PointChoice(PointSelector.POINT, older["point_id"]))
    assert again == prepared
    before = await site.prepare(PointChoice(PointSelector.POINT, points[0]["point_id"]))
    assert before.point.sequence == 0 and site.images(fenced=True) == driver.initial(SEED)
    await site.prepare(PointChoice(PointSelector.POINT, older["point_id"]))
    await site.plain(orders.RELEASE_REPLICA)
    await site.plain(orders.COMMIT_POINT)
    await site.plain(orders.COMMIT_POINT)
    assert site.images(fenced=False) == _model(older["sequence"])
    await eventually(lambda: [point["abandoned"] for point in site.replica()["points"]].count(True) == len(points) - 3)
    with pytest.raises(ConflictError, match="committed"):
        await site.plain(orders.RESUME_REPLICA)
    attached = await site.attach()  # the next reprotect begins a new journal
    assert attached.incarnation != sender.incarnation


async def test_missing_disks_are_created_and_digests_compared(site: Site) -> None:
    attached = await site.attach(create=True)
    assert set(attached.created) == {"disk-0", "disk-1"}
    site.assign(1)
    sender = site.sender(1)
    block, key = 65536, 12345
    content = random.Random(1).randbytes(block)
    size = driver.SIZES[1]
    batch = Batch(MACHINE, NO_GROUP, 1, 1, 0, 100, driver.START_NS, 0, GapCause.SYNC, MarkKind.NONE, MarkId(""), Codec.RAW,
                  block, EXTENT.pack(1, Operation.DATA, 0, block, 2 * block), content)  # fmt: skip
    pieces = [bytes(block)] * (size // block)
    pieces[2] = content
    pieces[4] = content  # differs: the replica has zeroes there
    table = b"".join(xxhash.xxh3_128_digest(piece, key) for piece in pieces)
    await sender.send(batch, Digests(MACHINE, 1, 2, 100, PassId(str(uuid.UUID(int=3))), 1, block, 0, key, table))
    await eventually(lambda: 2 in sender.replies)
    assert sender.replies[2].differing == bytes([0b10000, 0])
    assert sender.replies[2].count == size // block


async def test_only_the_assigned_stream_is_taken(site: Site) -> None:
    site.make_disks(SEED)
    await site.attach()
    site.assign(3)
    stale, stranger = site.sender(2), site.sender(3, server_id=str(uuid.uuid4()))
    await stale.send(driver.make_batch(SEED, 1, epoch=2))
    await stranger.send(driver.make_batch(SEED, 1, epoch=3))
    await eventually(lambda: "StaleEpoch" in {error.code for error in stale.refusals})
    await eventually(lambda: "NotAssigned" in {error.code for error in stranger.refusals})
    assert stale.landed == stranger.landed == 0
    assert site.images(fenced=True) == driver.initial(SEED)


async def test_refused_orders_name_the_reason_and_change_nothing(site: Site) -> None:
    site.make_disks(SEED)
    arguments = orders.AttachReplica(MACHINE, "elsewhere", site.disks())
    with pytest.raises(FailbackError, match="no retention volume"):
        await site.order(orders.ATTACH_REPLICA, arguments)
    holder = subprocess.Popen(
        ["qemu-io", "-f", "raw", site.disks()[1].path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin and holder.stdout
    holder.stdin.write(b"write 0 512\n")
    holder.stdin.flush()
    holder.stdout.readline()
    try:
        with pytest.raises(FailbackError, match="in use"):
            await site.attach()
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()
    assert all(Path(disk.path).exists() for disk in site.disks())
    await site.attach()


async def test_memory_stays_bounded_under_load(tmp_path: Path) -> None:
    site = Site(tmp_path, sizes={0: 1 << 30})
    site.start()
    try:
        await site.attach(create=True)
        site.assign(1)
        sender = site.sender(1)
        payload = random.Random(2).randbytes(8 << 20)
        for sequence in range(1, 41):
            extents = EXTENT.pack(0, Operation.DATA, 0, len(payload), sequence * len(payload))
            batch = Batch(MACHINE, NO_GROUP, 1, sequence, sequence * 10, sequence * 10 + 10, driver.START_NS, 0,
                          GapCause.SYNC, MarkKind.NONE, MarkId(""), Codec.RAW, len(payload), extents, payload)  # fmt: skip
            await sender.send(batch)
        await site.landed(sender, 40, 60)
        await eventually(lambda: site.replica().get("applied_sequence") == 40, 60)
        print(f"peak {site.peak_megabytes():.0f} MiB")
        assert site.peak_megabytes() < 300
    finally:
        await site.close()


@pytest.mark.parametrize("kind", ["vmdk-flat", "qcow2"])
async def test_other_disk_formats(site: Site, kind: str, tmp_path: Path) -> None:
    await site.attach(kind=kind, create=True)
    site.assign(1)
    sender = site.sender(1)
    for sequence in range(1, 15):
        await sender.send(driver.make_batch(SEED, sequence))
    await site.landed(sender, 14)
    site.kill()  # for qcow2 the storage daemon lives on, with its locks: the next process takes over
    for sequence in range(15, 30):
        await sender.send(driver.make_batch(SEED, sequence))
    await sender.send(driver.make_batch(SEED, 30, mark=(MarkKind.FINAL, MARK)))
    await site.landed(sender, 30)
    await site.prepare(LATEST, MARK)
    await site.plain(orders.RELEASE_REPLICA)
    model = driver.Model(SEED, {disk: bytes(size) for disk, size in driver.SIZES.items()}).advance(30)
    for disk in site.disks(kind=kind):
        raw = tmp_path / f"{disk.index}.raw"
        source = "vmdk" if kind == "vmdk-flat" else kind
        subprocess.run(["qemu-img", "convert", "-f", source, "-O", "raw", disk.path, str(raw)], check=True)
        assert raw.read_bytes() == model[disk.index]
