"""Disks that join, grow or leave while their machine is protected: points from before stay complete (D13 to D15)."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import journal_driver as driver
import pytest
from master_target_site import Site
from process_server_site import eventually

from failback.block import replica_disk, vmdk
from failback.errors import ConflictError
from failback.model import orders
from failback.model.ids import NO_GROUP, DiskId, MarkId
from failback.model.points import PointChoice, PointSelector, ReplicaDisk
from failback.model.stream import Codec, GapCause, MarkKind, Operation
from failback.protocol.extents import EXTENT
from failback.protocol.messages import Batch
from failback.runtime import records

SEED = 7
GROWN_BYTES = 3 << 20
NEW_BYTES = 256 << 10
MARK = "33333333-3333-3333-3333-333333333333"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    site.start()
    yield site
    await site.close()


def batch(sequence: int, gap: GapCause, mark: str, *parts: tuple[int, int, bytes]) -> Batch:
    table = b"".join(EXTENT.pack(disk, Operation.DATA, 0, len(data), offset) for disk, offset, data in parts)
    payload = b"".join(data for _, _, data in parts)
    kind = MarkKind.APP_CONSISTENT if mark else MarkKind.NONE
    return Batch(driver.MACHINE, NO_GROUP, 2, sequence, (sequence - 1) * 100, sequence * 100,
                 driver.START_NS + (100 + sequence) * 1_000_000_000, 0, gap, kind, MarkId(mark), Codec.RAW, len(payload),
                 table, payload)  # fmt: skip


@pytest.mark.parametrize("fault", ["", "attach.before_change=kill@1", "attach.after_create=kill@1"])
async def test_a_disk_grows_one_joins_and_one_leaves(site: Site, fault: str) -> None:
    site.make_disks(SEED)
    await site.attach()
    site.assign(1)
    sender = site.sender(1)
    for sequence in range(1, 19):
        await sender.send(driver.make_batch(SEED, sequence))
    await site.landed(sender, 18)
    await eventually(lambda: len(site.replica().get("points", [])) > 2 and site.replica()["applied_sequence"] == 18)
    older = site.replica()["points"][-1]
    model = driver.Model(SEED, driver.initial(SEED))
    at_point = model.advance(older["sequence"])
    sender.stop()

    first, second = site.disks()
    joined = ReplicaDisk(DiskId("disk-2"), 2, str(site.datastore / "disk-2.img"), "raw", NEW_BYTES, create=True)
    asked = (replace(first, size_bytes=GROWN_BYTES), replace(second, removed=True), joined)
    if fault:
        site.kill_with(fault)
    attached = records.decode(
        await site.order(orders.ATTACH_REPLICA, orders.AttachReplica(driver.MACHINE, "retention", asked)),
        orders.AttachedReplica,
    )
    assert "disk-2" in attached.created
    assert bool(fault) == bool(site.kills)
    site.sizes = {0: GROWN_BYTES, 2: NEW_BYTES}
    site.assign(2)
    late = site.sender(2)
    chance = random.Random(SEED)
    grown, fresh, low = chance.randbytes(65536), chance.randbytes(NEW_BYTES), chance.randbytes(4096)
    await late.send(batch(1, GapCause.SYNC, "", (0, 2 << 20, grown), (2, 0, fresh)))
    await late.send(batch(2, GapCause.NONE, MARK, (0, 8192, low)))
    await site.landed(late, 2)
    await eventually(lambda: site.replica()["points"][-1]["epoch"] == 2)

    prepared = await site.prepare(PointChoice(PointSelector.POINT, older["point_id"]))
    assert {disk.index: disk.size_bytes for disk in prepared.disks} == driver.SIZES
    images = [Path(disk.path + ".replica").read_bytes() for disk in asked]
    assert images[0][: driver.SIZES[0]] == at_point[0]
    assert images[0][driver.SIZES[0] :] == bytes(GROWN_BYTES - driver.SIZES[0])
    assert images[1] == at_point[1]
    assert images[2] == bytes(NEW_BYTES)

    await site.plain(orders.RESUME_REPLICA)
    newest = site.replica()["points"][-1]
    prepared = await site.prepare(PointChoice(PointSelector.POINT, newest["point_id"]))
    assert [(disk.index, disk.size_bytes, disk.removed) for disk in prepared.disks] == [
        (0, GROWN_BYTES, False), (1, driver.SIZES[1], True), (2, NEW_BYTES, False),
    ]  # fmt: skip
    images = [Path(disk.path + ".replica").read_bytes() for disk in asked]
    assert images[0][8192:12288] == low
    assert images[0][2 << 20 : (2 << 20) + 65536] == grown
    assert images[2] == fresh


async def test_a_disk_never_shrinks_is_forgotten_or_becomes_another(site: Site) -> None:
    site.make_disks(SEED)
    await site.attach()
    first, second = site.disks()
    for asked in (
        (replace(first, size_bytes=first.size_bytes - 512), second),
        (first,),
        (replace(first, path=first.path + "x"), second),
        (replace(first, disk_id=DiskId("other")), second),
    ):
        with pytest.raises(ConflictError, match="other disks"):
            await site.order(orders.ATTACH_REPLICA, orders.AttachReplica(driver.MACHINE, "retention", asked))
    assert site.replica()["state"] == "attached"


@pytest.mark.parametrize("kind", ["raw", "vmdk-flat", "qcow2"])
def test_every_format_grows_and_keeps_its_content(tmp_path: Path, kind: str) -> None:
    name = {"raw": "d.img", "vmdk-flat": "d.vmdk", "qcow2": "d.qcow2"}[kind]
    disk = ReplicaDisk(DiskId("d"), 0, str(tmp_path / name), kind, 1 << 20, create=True)
    replica_disk.create_if_missing(disk)
    device = replica_disk.open_locked(disk, tmp_path / "run")
    device.write(4096, b"x" * 4096)
    device.flush()
    device.close()
    larger = replace(disk, size_bytes=5 << 20)
    for _ in range(2):
        replica_disk.grow(larger)
    device = replica_disk.open_locked(larger, tmp_path / "run")
    assert device.size_bytes == 5 << 20
    assert bytes(device.read(4096, 4096)) == b"x" * 4096
    assert bytes(device.read(1 << 20, 4 << 20)) == bytes(4 << 20)
    device.close()
    if kind == "vmdk-flat":
        assert vmdk.read_descriptor(replica_disk.fenced(tmp_path / name)).size_bytes == 5 << 20
