"""The images that we make hold a machine's data: nobody but their owner reads them, whatever our umask."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from failback.block import qcow2
from failback.block.raw import create_sparse
from failback.fabric.kvm import images

SIZE = 4 << 20


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_images_are_their_owners_alone(tmp_path: Path) -> None:
    raw, image, layer = (tmp_path / name for name in ("disk.raw", "disk.qcow2", "disk.layer"))
    create_sparse(raw, SIZE)
    qcow2.create(image, SIZE)
    images.create_layer(layer, image, "qcow2", SIZE)
    assert [oct(_mode(path)) for path in (raw, image, layer)] == ["0o600"] * 3
