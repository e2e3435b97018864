"""An order leads the master target, which is root, to its datastores only; what it remembers of one machine stands apart."""

import os
import stat
from pathlib import Path

import pytest

from failback.errors import PreconditionError
from failback.master_target.config import MasterTargetConfig, NamedPlace
from failback.master_target.replicas import Replicas
from failback.model.ids import DiskId, MachineId
from failback.model.orders import AttachReplica
from failback.model.points import ReplicaDisk
from failback.transport.https import ControlConfig

MACHINE = MachineId("11111111-2222-3333-4444-555555555555")
SIZE = 1 << 20


@pytest.fixture
def replicas(tmp_path: Path) -> Replicas:
    for name in ("retention", "store", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "shadow").write_bytes(bytes(SIZE))
    (tmp_path / "store" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "store" / "disk").symlink_to(tmp_path / "outside" / "shadow")
    os.mknod(tmp_path / "outside" / "device", stat.S_IFBLK | 0o600, os.makedev(7, 250))
    (tmp_path / "store" / "device").symlink_to(tmp_path / "outside" / "device")
    return Replicas(
        MasterTargetConfig(
            tmp_path / "state",
            ControlConfig("https://unused", tmp_path / "ca.pem"),
            (NamedPlace("retention", tmp_path / "retention"),),
            (NamedPlace("store", tmp_path / "store"),),
        )
    )


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize(
    "place",
    [
        "outside/shadow",
        "store/../outside/shadow",
        "store/link/shadow",
        "store/disk",
        "store",
        "store-2/disk",
        "store/device",
    ],
)
def test_a_disk_outside_of_the_datastores_is_refused_and_untouched(
    replicas: Replicas, tmp_path: Path, place: str, create: bool
) -> None:
    before = sorted(path for path in tmp_path.rglob("*") if "state" not in path.parts)
    disk = ReplicaDisk(DiskId("d"), 0, f"{tmp_path}/{place}", "raw", SIZE, create)
    with pytest.raises(PreconditionError, match="lies in no datastore"):
        replicas.attach(AttachReplica(MACHINE, "retention", (disk,)))
    assert sorted(path for path in tmp_path.rglob("*") if "state" not in path.parts) == before
    assert replicas.statuses() == ()


def test_a_disk_in_a_datastore_is_taken(replicas: Replicas, tmp_path: Path) -> None:
    disk = ReplicaDisk(DiskId("d"), 0, f"{tmp_path}/store/machine/disk.raw", "raw", SIZE, create=True)
    assert replicas.attach(AttachReplica(MACHINE, "retention", (disk,))).created == ("d",)
    assert (tmp_path / "store" / "machine" / "disk.raw.replica").stat().st_mode & 0o777 == 0o600
    replicas.close()


def test_a_damaged_memory_of_one_machine_stops_that_machine_only(replicas: Replicas, tmp_path: Path) -> None:
    disk = ReplicaDisk(DiskId("d"), 0, f"{tmp_path}/store/machine/disk.raw", "raw", SIZE, create=True)
    replicas.attach(AttachReplica(MACHINE, "retention", (disk,)))
    replicas.close()
    (remembered,) = (tmp_path / "state").rglob(f"{MACHINE}.json")
    other = remembered.with_name(f"{MACHINE.replace('1', '9')}.json")
    other.write_text("[" * 100_000)
    replicas.restore()
    problems = {status.machine_id: status.problem for status in replicas.statuses()}
    assert problems[MACHINE] == "" and "cannot be read: it is nested too deeply" in problems[MachineId(other.stem)]
    replicas.close()
