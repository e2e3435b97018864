"""Writes past the page cache: the same bytes as ordinary ones, whatever the place, the length and the file system."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from failback.block.direct import SMALLEST_BYTES, DirectWriter
from failback.block.raw import RawDevice

SIZE = 16 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as stream:
        stream.truncate(SIZE)
    return path


def test_large_writes_are_read_back_whatever_was_cached(image: Path) -> None:
    chance = random.Random(1)
    model = bytearray(SIZE)
    device = RawDevice(image)
    for _ in range(60):
        offset = (
            chance.randrange(0, SIZE // 512) * 512 if chance.random() < 0.3 else chance.randrange(0, SIZE >> 12) << 12
        )
        length = min(SIZE - offset, chance.choice([512, 4096, SMALLEST_BYTES, (1 << 20) + 512, 5 << 20]))
        data = chance.randbytes(length)
        device.read(max(0, offset - 4096), 4096)  # the cache holds some of it
        device.write(offset, data)
        model[offset : offset + length] = data
        assert device.read(offset, length) == data
    device.flush()
    assert device.read(0, SIZE) == bytes(model)
    device.close()
    assert image.read_bytes() == bytes(model)


def test_only_aligned_large_writes_go_past_the_cache(image: Path) -> None:
    writer = DirectWriter(image)
    large = memoryview(random.Random(2).randbytes(SMALLEST_BYTES + 512))
    assert writer.write(512, large) == 0
    assert writer.write(0, large[: SMALLEST_BYTES - 4096]) == 0
    taken = writer.write(4096, large)
    assert taken in (0, SMALLEST_BYTES)  # 0: this file system has no direct writes
    assert image.read_bytes()[4096 : 4096 + taken] == large[:taken]
    writer.close()
    assert writer.write(4096, large) == 0


def test_a_file_system_that_refuses_gets_ordinary_writes(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []
    ordinary = os.pwrite

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        if _is_direct(descriptor):
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return ordinary(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    device = RawDevice(image)
    data = random.Random(3).randbytes(3 << 20)
    device.write(0, data)
    device.write(4 << 20, data)
    assert len(refused) <= 1
    assert device.read(0, len(data)) == device.read(4 << 20, len(data)) == data
    device.close()


def test_another_error_is_told(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = os.pwrite

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        if _is_direct(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return ordinary(descriptor, data, offset)

    writer = DirectWriter(image)
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="No space"):
        writer.write(0, memoryview(bytes(SMALLEST_BYTES)))
    writer.close()


def _is_direct(descriptor: int) -> bool:
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        if line.startswith("flags:"):
            return bool(int(line.split()[1], 8) & os.O_DIRECT)
    return False
