"""The process that lays, merges or discards layers is killed at each of its fault points; the same call again completes.

A real libvirt daemon and QEMU images; the calls run in a child process with ``FAILBACK_FAULTS``, as in the product.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from failback.fabric.kvm.driver import KvmFabric
from failback.lab import processes, sites

_DOMAIN = """<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/>
</disk></devices></domain>"""
_CALL = """
import sys
from failback.fabric.kvm.driver import KvmFabric
fabric = KvmFabric(sys.argv[1])
arguments = (sys.argv[3], "key") + ((lambda done, total: None,) if sys.argv[2] == "merge" else ())
getattr(fabric, sys.argv[2])(*arguments)
"""


@dataclass(frozen=True)
class Machine:
    uri: str
    uuid: str
    disk: Path

    def call(self, name: str, fault: str = "") -> int:
        environment = {**os.environ, "FAILBACK_FAULTS": f"{fault}=kill@1" if fault else ""}
        command = [sys.executable, "-c", _CALL, self.uri, name, self.uuid]
        return subprocess.run(command, env=environment, timeout=120, check=False).returncode

    def layer(self) -> Path:
        (found,) = self.disk.parent.glob("*.layer")
        return found

    def write_into_layer(self) -> None:
        """Stands for what the guest wrote: the machine is off, so the layer may be written from outside."""
        command = ["qemu-io", "-f", "qcow2", "-c", "write -P 0xaa 65536 65536", str(self.layer())]
        subprocess.run(command, check=True, timeout=60, capture_output=True)


@pytest.fixture(scope="module")
def daemon() -> Iterator[str]:
    directory = Path(tempfile.mkdtemp(prefix="fbk-layers-", dir="/var/tmp"))
    sockets = Path(tempfile.mkdtemp(prefix="fbk-", dir="/run"))
    recorded = sites.start_isolated("layers libvirtd", directory, sockets, directory / "libvirtd.log")
    yield f"qemu+unix:///system?socket={sockets}/libvirt-sock"
    processes.stop(recorded)
    shutil.rmtree(directory)
    shutil.rmtree(sockets)


@pytest.fixture
def machine(daemon: str, tmp_path: Path) -> Iterator[Machine]:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes([1]) * (1 << 20))
    identity = str(uuid.uuid4())
    definition = tmp_path / "domain.xml"
    definition.write_text(_DOMAIN.format(name=f"t-{identity[:8]}", uuid=identity, disk=disk))
    subprocess.run(["virsh", "-q", "-c", daemon, "define", str(definition)], check=True, timeout=60)
    yield Machine(daemon, identity, disk)
    sites.remove_domain(daemon, identity)


def expect_own_disk(machine: Machine, written: bool) -> None:
    fabric = KvmFabric(machine.uri)
    assert not fabric.layered(machine.uuid, "key")
    assert not list(machine.disk.parent.glob("*.layer"))
    expected = bytearray(bytes([1]) * (1 << 20))
    if written:
        expected[65536:131072] = bytes([0xAA]) * 65536
    assert machine.disk.read_bytes() == bytes(expected)
    fabric.power_on(machine.uuid)


def test_killed_while_laying(machine: Machine) -> None:
    assert machine.call("lay", "kvm.lay.before_define") == -signal.SIGKILL
    assert not KvmFabric(machine.uri).layered(machine.uuid, "key")
    assert machine.call("lay") == 0
    assert KvmFabric(machine.uri).layered(machine.uuid, "key")
    machine.write_into_layer()
    assert machine.call("lay") == 0
    assert machine.call("merge") == 0
    expect_own_disk(machine, written=True)


def test_killed_while_merging_off(machine: Machine) -> None:
    assert machine.call("lay") == 0
    machine.write_into_layer()
    assert machine.call("merge", "kvm.merge.before_define") == -signal.SIGKILL
    assert KvmFabric(machine.uri).layered(machine.uuid, "key")
    assert machine.call("merge") == 0
    expect_own_disk(machine, written=True)


@pytest.mark.parametrize("fault", ["kvm.merge.before_pivot", "kvm.merge.before_define"])
def test_killed_while_merging_running(machine: Machine, fault: str) -> None:
    assert machine.call("lay") == 0
    machine.write_into_layer()
    fabric = KvmFabric(machine.uri)
    fabric.power_on(machine.uuid)
    assert machine.call("merge", fault) == -signal.SIGKILL
    assert machine.call("merge") == 0
    fabric.power_off(machine.uuid)
    expect_own_disk(machine, written=True)


def test_written_and_powered_off_between_pivot_and_definition(machine: Machine) -> None:
    """What the guest wrote after the pivot is newer than the layer: merging again must not bring the layer's data back."""
    assert machine.call("lay") == 0
    machine.write_into_layer()
    fabric = KvmFabric(machine.uri)
    fabric.power_on(machine.uuid)
    assert machine.call("merge", "kvm.merge.before_define") == -signal.SIGKILL
    write = 'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P 0xbb 65536 4096"'
    name = fabric.machine(machine.uuid).name
    command = ["virsh", "-q", "-c", machine.uri, "qemu-monitor-command", "--hmp", name, write]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    fabric.power_off(machine.uuid)
    assert machine.call("merge") == 0
    assert machine.disk.read_bytes()[65536 : 65536 + 4096] == bytes([0xBB]) * 4096
    assert machine.disk.read_bytes()[65536 + 4096 : 131072] == bytes([0xAA]) * (65536 - 4096)
    assert not list(machine.disk.parent.glob("*.layer"))


def test_killed_while_discarding(machine: Machine) -> None:
    assert machine.call("lay") == 0
    machine.write_into_layer()
    layer = machine.layer()
    assert machine.call("discard", "kvm.discard.before_delete") == -signal.SIGKILL
    assert layer.exists()
    assert machine.call("lay") == 0
    assert machine.call("discard") == 0
    expect_own_disk(machine, written=False)
