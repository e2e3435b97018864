"""Every reason why a machine cannot be captured has its sentence, found without loading anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from failback.mobility.capture import probing

NAMES = (
    "btf_trace_block_bio_queue", "btf_trace_block_split", "btf_trace_block_bio_complete", "btf_trace_block_rq_complete",
    "BPF_FUNC_ringbuf_reserve", "BPF_FUNC_for_each_map_elem", "BPF_FUNC_loop",
)  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The files of a machine that can be captured."""
    for directory in ("proc/self", "sys/kernel/security", "sys/kernel/btf"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tpython\nCapEff:\t000001ffffffffff\n")
    (tmp_path / "proc/filesystems").write_text("nodev\tsysfs\nnodev\tbpf\n\text4\n")
    (tmp_path / "sys/kernel/security/lockdown").write_text("none [integrity] confidentiality\n")
    types(tmp_path, *NAMES)
    return tmp_path


def types(root: Path, *names: str) -> None:
    (root / "sys/kernel/btf/vmlinux").write_bytes(b"\x9f\xeb\0" + b"\0".join(name.encode() for name in names) + b"\0")


def found(root: Path, machine: str = "x86_64", user: int = 0) -> str:
    obstacle = probing.obstacle(root, machine=machine, effective_user=user)
    return obstacle.code if obstacle else ""


def test_nothing_is_missing(machine: Path) -> None:
    assert found(machine) == ""
    (machine / "sys/kernel/security/lockdown").unlink()
    assert found(machine) == ""


def test_processor_and_user(machine: Path) -> None:
    assert found(machine, machine="aarch64") == "ArchitectureNotSupported"
    assert found(machine, user=1000) == "RootNeeded"


@pytest.mark.parametrize(
    ("code", "spoil", "words"),
    [
        ("CapabilitiesMissing", lambda root: (root / "proc/self/status").write_text("CapEff:\t00000000a80425fb\n"), "container"),
        ("KernelLockdown", lambda root: (root / "sys/kernel/security/lockdown").write_text("none integrity [confidentiality]\n"),
         "lockdown=integrity"),
        ("BpfMissing", lambda root: (root / "proc/filesystems").write_text("nodev\tsysfs\n"), "CONFIG_BPF_SYSCALL"),
        ("BtfMissing", lambda root: (root / "sys/kernel/btf/vmlinux").unlink(), "CONFIG_DEBUG_INFO_BTF"),
        ("TracepointMissing", lambda root: types(root, *NAMES[1:]), "CONFIG_TRACEPOINTS"),
        ("HelperMissing", lambda root: types(root, *NAMES[:-1]), "newer kernel"),
    ],
)  # fmt: skip
def test_each_missing_feature_has_its_code_and_a_remedy(
    machine: Path, code: str, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(machine)
    obstacle = probing.obstacle(machine, machine="x86_64", effective_user=0)
    assert obstacle is not None
    assert obstacle.code == code
    assert words in obstacle.remedy
    assert obstacle.error().code == code


@pytest.mark.skipif(os.geteuid() != 0, reason="capture needs root")
def test_this_machine_has_all() -> None:
    assert probing.obstacle() is None
