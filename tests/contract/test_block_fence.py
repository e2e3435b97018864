"""The fence: QEMU itself refuses a disk that is a replica, by its locks and by its name; each step may be repeated."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from failback.block import replica_disk
from failback.errors import ConflictError, NotFoundError, PreconditionError
from failback.model.ids import DiskId
from failback.model.points import ReplicaDisk

SIZE = 1 << 20


def _disk(folder: Path, kind: str, *, create: bool = True) -> ReplicaDisk:
    suffix = {"raw": "img", "vmdk-flat": "vmdk", "qcow2": "qcow2"}[kind]
    return ReplicaDisk(DiskId("d"), 0, str(folder / f"disk.{suffix}"), kind, SIZE, create=create)


def _qemu_writes(file: Path, kind: str) -> subprocess.CompletedProcess[str]:
    """What a hypervisor does: open for writing."""
    return subprocess.run(
        ["qemu-io", "-f", kind, "-c", "write -P 65 0 4k", str(file)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kind", ["raw", "vmdk-flat", "qcow2"])
def test_locks_and_names_fence_and_release(tmp_path: Path, kind: str) -> None:
    disk = _disk(tmp_path, kind)
    assert replica_disk.create_if_missing(disk)
    assert not replica_disk.create_if_missing(disk)
    device = replica_disk.open_locked(disk, tmp_path / "run")
    device.write(0, b"Q" * 4096)
    device.flush()
    data_file = tmp_path / {"raw": "disk.img", "vmdk-flat": "disk-flat.vmdk", "qcow2": "disk.qcow2"}[kind]
    qemu_format = "qcow2" if kind == "qcow2" else "raw"
    assert not data_file.exists() and not Path(disk.path).exists()
    refused = _qemu_writes(replica_disk.fenced(data_file), qemu_format)
    assert "lock" in refused.stderr + refused.stdout
    device.close()
    replica_disk.unfence(disk)
    replica_disk.unfence(disk)
    assert Path(disk.path).exists() and data_file.exists()
    read = subprocess.run(["qemu-io", "-r", "-f", "vmdk" if kind == "vmdk-flat" else qemu_format, "-c",
                           "read -P 81 0 4k", disk.path], capture_output=True, text=True, check=False)  # fmt: skip
    assert "read 4096/4096" in read.stdout and "failed" not in read.stdout
    again = replica_disk.open_locked(disk, tmp_path / "run")
    assert again.read(0, 4096) == b"Q" * 4096
    again.close()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_running_hypervisor_is_noticed(tmp_path: Path, kind: str) -> None:
    disk = _disk(tmp_path, kind)
    replica_disk.create_if_missing(disk)
    replica_disk.unfence(disk)
    with subprocess.Popen(["qemu-io", "-f", kind, disk.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin and holder.stdout
        holder.stdin.write(b"write 0 512\n")
        holder.stdin.flush()
        while b"wrote" not in holder.stdout.readline():
            pass
        with pytest.raises(ConflictError, match="in use"):
            replica_disk.open_locked(disk, tmp_path / "run")
        assert Path(disk.path).exists()
        holder.stdin.close()


def test_missing_and_wrong_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not there"):
        replica_disk.create_if_missing(_disk(tmp_path, "raw", create=False))
    (tmp_path / "disk.img").write_bytes(bytes(512))
    with pytest.raises(PreconditionError, match="512 bytes"):
        replica_disk.open_locked(_disk(tmp_path, "raw"), tmp_path / "run")
    assert (tmp_path / "disk.img").exists()
