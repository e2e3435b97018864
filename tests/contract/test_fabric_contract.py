"""What every fabric must do (fabric/interfaces.py), run against KVM: a real libvirt daemon and a real QEMU.

A fabric joins the suite with a ``Site``: a machine of two disks, and a way to write to a disk as the running guest would.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from failback.errors import ConflictError, FabricError, NotFoundError
from failback.fabric.interfaces import AddsDisks, Fabric, PowerState
from failback.fabric.kvm.driver import KvmFabric
from failback.lab import processes, sites

MEBIBYTE = 1 << 20

_DOMAIN = """<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><on_crash>destroy</on_crash>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='raw' discard='unmap'/><source file='{system}'/>
<target dev='vda' bus='virtio'/><serial>t-system</serial></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw' discard='unmap'/><source file='{data}'/>
<target dev='vdb' bus='virtio'/><serial>t-data</serial></disk>
</devices></domain>"""


@dataclass(frozen=True)
class Site:
    fabric: Fabric
    uri: str
    uuid: str
    name: str
    system: Path
    data: Path

    def guest_writes(self, device: str, byte: str, offset: int, length: int) -> None:
        """Through the disk's own device in the running QEMU: it goes wherever the guest's writes would go."""
        device = f"/machine/peripheral/virtio-disk{'ab'.index(device[-1])}/virtio-backend"
        command = f'qemu-io -d {device} "write -P {byte} {offset} {length}"'
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, "qemu-monitor-command", "--hmp", self.name, command],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert done.stdout.strip() == "", done.stdout


@pytest.fixture(scope="module")
def daemon() -> Iterator[str]:
    directory = Path(tempfile.mkdtemp(prefix="fbk-fabric-", dir="/var/tmp"))
    sockets = Path(tempfile.mkdtemp(prefix="fbk-", dir="/run"))
    recorded = sites.start_isolated("contract libvirtd", directory, sockets, directory / "libvirtd.log")
    yield f"qemu+unix:///system?socket={sockets}/libvirt-sock"
    processes.stop(recorded)
    shutil.rmtree(directory)
    shutil.rmtree(sockets)


@pytest.fixture
def site(daemon: str, tmp_path: Path) -> Iterator[Site]:
    extent = tmp_path / "t-system-flat.vmdk"
    (tmp_path / "t-system.vmdk").write_text("# Disk DescriptorFile\n")
    data = tmp_path / "t-data.raw"
    for path, size in ((extent, 8), (data, 4)):
        path.write_bytes(bytes([1]) * (size * MEBIBYTE))
    identity, name = str(uuid.uuid4()), f"t-{uuid.uuid4().hex[:8]}"
    definition = tmp_path / "domain.xml"
    definition.write_text(_DOMAIN.format(name=name, uuid=identity, system=extent, data=data))
    subprocess.run(["virsh", "-q", "-c", daemon, "define", str(definition)], check=True, timeout=60)
    fabric = KvmFabric(daemon, {"store": tmp_path})
    yield Site(fabric, daemon, identity, name, extent, data)
    sites.remove_domain(daemon, identity)


def test_inventory_names_machine_disks_and_datastores(site: Site, tmp_path: Path) -> None:
    assert site.fabric.probe() == ""
    machine = site.fabric.machine(site.name)
    assert machine == site.fabric.machine(site.uuid)
    assert machine in site.fabric.machines()
    assert (machine.fabric_id, machine.hardware_id, machine.firmware) == (site.uuid, site.uuid, "bios")
    system, data = machine.disks
    assert (system.target, system.serial, system.format, system.size_bytes) == ("vda", "t-system", "vmdk-flat", 8 << 20)
    assert system.path == str(tmp_path / "t-system.vmdk")
    assert (data.index, data.path, data.format, data.size_bytes) == (1, str(site.data), "raw", 4 << 20)
    (store,) = [found for found in site.fabric.datastores() if found.name == "store"]
    assert store.capacity_bytes >= store.free_bytes > 0


def test_missing_disk_is_shown_and_cannot_be_started(site: Site) -> None:
    site.data.rename(site.data.with_name("t-data.raw.replica"))
    disk = site.fabric.machine(site.name).disks[1]
    assert disk.missing
    assert disk.size_bytes == 0
    with pytest.raises(FabricError, match=r"t-data\.raw"):
        site.fabric.power_on(site.uuid)
    assert site.fabric.power_state(site.uuid) is PowerState.OFF


def test_unknown_machine_and_dead_fabric_are_told_apart(site: Site) -> None:
    with pytest.raises(NotFoundError):
        site.fabric.machine("no-such-machine")
    dead = KvmFabric("qemu+unix:///system?socket=/run/no-such-socket")
    assert "does not answer" in dead.probe()
    with pytest.raises(FabricError):
        dead.power_state(site.uuid)


def test_power_calls_may_be_repeated(site: Site) -> None:
    fabric = site.fabric
    for _ in range(2):
        fabric.power_on(site.uuid)
        assert fabric.power_state(site.uuid) is PowerState.ON
    for _ in range(2):
        fabric.power_off(site.uuid)
        assert fabric.power_state(site.uuid) is PowerState.OFF


def test_a_disk_that_joined_is_added_once_and_lies_under_the_layer_too(site: Site, tmp_path: Path) -> None:
    fabric = site.fabric
    assert isinstance(fabric, AddsDisks)
    joined = tmp_path / "t-joined.img"
    joined.write_bytes(bytes([1]) * MEBIBYTE)
    assert {fabric.add_disk(site.uuid, str(joined), "raw", "t-joined") for _ in range(2)} == {"vdc"}
    machine = fabric.machine(site.uuid)
    assert [(disk.index, disk.target, disk.serial, disk.path) for disk in machine.disks[2:]] == [
        (2, "vdc", "t-joined", str(joined))
    ]
    fabric.lay(site.uuid, "job-1")
    fabric.power_on(site.uuid)
    with pytest.raises(ConflictError):
        fabric.add_disk(site.uuid, str(tmp_path / "another.img"), "raw", "")
    command = 'qemu-io -d /machine/peripheral/virtio-disk2/virtio-backend "write -P 0xdd 0 65536"'
    subprocess.run(
        ["virsh", "-q", "-c", site.uri, "qemu-monitor-command", "--hmp", site.name, command], check=True, timeout=60
    )
    assert joined.read_bytes() == bytes([1]) * MEBIBYTE, "untouched until commit"
    fabric.merge(site.uuid, "job-1", lambda done, total: None)
    assert joined.read_bytes()[:65536] == bytes([0xDD]) * 65536


def test_discard_gives_the_untouched_disks_back(site: Site) -> None:
    fabric = site.fabric
    fabric.lay(site.uuid, "job-1")
    fabric.lay(site.uuid, "job-1")
    assert fabric.layered(site.uuid, "job-1")
    assert not fabric.layered(site.uuid, "job-2")
    with pytest.raises(ConflictError):
        fabric.lay(site.uuid, "job-2")
    fabric.power_on(site.uuid)
    site.guest_writes("vda", "0xaa", 0, MEBIBYTE)
    site.guest_writes("vdb", "0xbb", MEBIBYTE, 65536)
    assert fabric.machine(site.uuid).disks[1].path == str(site.data)
    with pytest.raises(ConflictError):
        fabric.discard(site.uuid, "job-1")
    (layer,) = site.system.parent.glob("t-system*.layer")
    assert layer.stat().st_blocks * 512 >= MEBIBYTE
    fabric.power_off(site.uuid)
    for _ in range(2):
        fabric.discard(site.uuid, "job-1")
    assert not fabric.layered(site.uuid, "job-1")
    assert site.system.read_bytes() == bytes([1]) * (8 * MEBIBYTE)
    assert site.data.read_bytes() == bytes([1]) * (4 * MEBIBYTE)
    assert not list(site.data.parent.glob("*.layer"))
    fabric.power_on(site.uuid)


@pytest.mark.parametrize("running", [True, False], ids=["running", "off"])
def test_merge_keeps_what_the_guest_wrote(site: Site, running: bool) -> None:
    fabric = site.fabric
    fabric.lay(site.uuid, "job-1")
    fabric.power_on(site.uuid)
    site.guest_writes("vda", "0xaa", MEBIBYTE, MEBIBYTE)
    site.guest_writes("vdb", "0xbb", 0, 65536)
    if not running:
        fabric.power_off(site.uuid)
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        fabric.merge(site.uuid, "job-1", lambda done, total: seen.append((done, total)))
    assert not fabric.layered(site.uuid, "job-1")
    assert seen[-1][0] == seen[-1][1] > 0
    if running:
        assert fabric.power_state(site.uuid) is PowerState.ON
        site.guest_writes("vdb", "0xcc", 65536, 65536)
        fabric.power_off(site.uuid)
    expected = bytearray(bytes([1]) * (4 * MEBIBYTE))
    expected[:65536] = bytes([0xBB]) * 65536
    if running:
        expected[65536:131072] = bytes([0xCC]) * 65536
    assert site.data.read_bytes() == bytes(expected)
    assert site.system.read_bytes()[MEBIBYTE : 2 * MEBIBYTE] == bytes([0xAA]) * MEBIBYTE
    assert not list(site.data.parent.glob("*.layer"))
    fabric.power_on(site.uuid)
