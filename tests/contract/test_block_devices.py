"""One suite for every block device: what holds for a raw file holds for VMDK, qcow2, a loop device and each wrapper."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from failback.block import qcow2, replica_disk
from failback.block.device import BlockDevice
from failback.block.faulty import Delaying, Failing, Torn, Wrapping
from failback.block.raw import RawDevice, create_sparse
from failback.errors import StorageError
from failback.model.ids import DiskId
from failback.model.points import ReplicaDisk

SIZE = (2 << 20) + 512


def _raw(folder: Path) -> BlockDevice:
    create_sparse(folder / "disk.img", SIZE)
    return RawDevice(folder / "disk.img")


def _vmdk(folder: Path) -> BlockDevice:
    disk = ReplicaDisk(DiskId("d"), 0, str(folder / "disk.vmdk"), "vmdk-flat", SIZE, create=True)
    assert replica_disk.create_if_missing(disk)
    return replica_disk.open_locked(disk, folder / "run")


def _qcow2(folder: Path) -> BlockDevice:
    qcow2.create(folder / "disk.qcow2", SIZE)
    return qcow2.Qcow2Device(folder / "disk.qcow2", folder / "run")


class _Loop(Wrapping):
    def __init__(self, backing: Path) -> None:
        done = subprocess.run(["losetup", "-f", "--show", str(backing)], capture_output=True, check=True, text=True)
        self.loop = done.stdout.strip()
        super().__init__(RawDevice(Path(self.loop)))

    def close(self) -> None:
        super().close()
        subprocess.run(["losetup", "-d", self.loop], check=True)


def _loop(folder: Path) -> BlockDevice:
    create_sparse(folder / "disk.img", SIZE)
    return _Loop(folder / "disk.img")


MAKERS: dict[str, Callable[[Path], BlockDevice]] = {
    "raw": _raw,
    "vmdk-flat": _vmdk,
    "qcow2": _qcow2,
    "loop": _loop,
    "failing-healed": lambda folder: _healed(Failing(_raw(folder))),
    "delaying": lambda folder: Delaying(_raw(folder), 0.0),
    "torn": lambda folder: Torn(_raw(folder)),
}


def _healed(device: Failing) -> BlockDevice:
    device.heal()
    return device


@pytest.fixture(params=sorted(MAKERS))
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockDevice]:
    made = MAKERS[request.param](tmp_path)
    yield made
    made.close()


def test_new_disk_reads_as_zeroes(device: BlockDevice) -> None:
    assert device.size_bytes == SIZE
    assert device.read(0, SIZE) == bytes(SIZE)


def test_random_operations_match_a_model(device: BlockDevice) -> None:
    chance = random.Random(7)
    model = bytearray(SIZE)
    for _ in range(200):
        offset = chance.randrange(SIZE // 512) * 512
        length = min(chance.choice((512, 1024, 4096, 65536, 200_192)), SIZE - offset)
        if chance.random() < 0.7:
            data = chance.randbytes(length)
            device.write(offset, memoryview(data))
            model[offset : offset + length] = data
        else:
            device.zero(offset, length)
            model[offset : offset + length] = bytes(length)
        probe = chance.randrange(SIZE - 512)
        assert device.read(probe, 512) == bytes(model[probe : probe + 512])
    device.flush()
    target = bytearray(SIZE)
    device.read_into(0, memoryview(target))
    assert target == model


def test_data_ranges_cover_all_data(device: BlockDevice) -> None:
    device.write(1 << 20, b"x" * 4096)
    device.flush()
    ranges = list(device.data_ranges(0, SIZE))
    assert any(start <= 1 << 20 and start + length >= (1 << 20) + 4096 for start, length in ranges)
    assert all(start >= 0 and start + length <= SIZE for start, length in ranges)
    rest = bytearray(device.read(0, SIZE))
    for start, length in ranges:
        rest[start : start + length] = bytes(length)
    assert rest == bytes(SIZE)


def test_data_ranges_cover_scattered_data_once(device: BlockDevice) -> None:
    chance = random.Random(5)
    for _ in range(12):
        device.write(512 * chance.randrange(SIZE // 512), b"d" * 512)
    for _ in range(40):
        begin, end = sorted(chance.sample(range(0, SIZE + 1, 512), 2))
        rest = bytearray(device.read(begin, end - begin))
        place = begin
        for start, length in device.data_ranges(begin, end - begin):
            assert place <= start and length > 0 and start + length <= end
            rest[start - begin : start - begin + length] = bytes(length)
            place = start + length
        assert rest == bytes(end - begin)


def test_discard_is_never_an_error(device: BlockDevice) -> None:
    device.write(0, b"y" * 8192)
    device.discard(4096, 4096)
    assert device.read(0, 4096) == b"y" * 4096
    device.write(4096, b"z" * 4096)
    assert device.read(4096, 4096) == b"z" * 4096


def test_range_outside_is_refused(device: BlockDevice) -> None:
    with pytest.raises(StorageError, match="outside"):
        device.write(SIZE - 512, bytes(1024))
    with pytest.raises(StorageError, match="outside"):
        device.read(-512, 512)


def test_failing_fails_and_torn_loses(tmp_path: Path) -> None:
    failing = Failing(_raw(tmp_path), after=1)
    failing.write(0, b"a" * 512)
    with pytest.raises(StorageError, match="injected"):
        failing.write(0, b"b" * 512)
    torn = Torn(failing.device)
    torn.write(0, b"c" * 65536)
    lost = torn.lose(random.Random(1))
    content = torn.read(0, 65536)
    assert 0 < lost < 128
    assert content.count(b"c" * 512) == 128 - lost
    torn.close()


def test_holes_of_a_raw_file_are_not_data(tmp_path: Path) -> None:
    create_sparse(tmp_path / "disk", 8 << 20)
    device = RawDevice(tmp_path / "disk")
    assert list(device.data_ranges(0, 8 << 20)) == []
    device.write(3 << 20, b"x" * 4096)
    device.write(5 << 20, b"x" * (1 << 20))
    found = list(device.data_ranges(0, 8 << 20))
    assert found == [(3 << 20, 256 << 10), (5 << 20, 1 << 20)]
    device.close()
