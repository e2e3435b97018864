"""What the capture costs a machine that writes as fast as it can: the share of bare IOPS that is kept, ours on a loop device,
the peer's (``blockdev-mirror``, background mode) on the same image served by qemu-storage-daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.capture_load import QemuDisk, bare_and_captured
from bench.ground import GIBIBYTE, SMALL, Ground, fio, forget, machine_facts, run, same, sparse
from bench.results import Bound, Result

SIZE = (1 if SMALL else 4) * GIBIBYTE
SECONDS = 6 if SMALL else 20
LOAD = {"rw": "randwrite", "bs": "4k", "iodepth": 16, "time_based": None, "runtime": SECONDS, "size": SIZE}


def on_device(device: str) -> float:
    return float(fio("load", filename=device, ioengine="libaio", **LOAD)["write"]["iops"])


def on_qemu(disk: QemuDisk) -> float:
    return float(fio("load", uri=disk.uri, ioengine="nbd", **LOAD)["write"]["iops"])


def kept(bare: float, captured: float) -> dict[str, Any]:
    return {"kept": round(captured / bare, 3), "bare_iops": round(bare), "iops": round(captured)}


def mirrored(ground: Ground, image: Path, number: int) -> tuple[dict[str, Any], bool]:
    """The same load on the peer, without and with its mirror."""
    disk, copy = QemuDisk(ground.on_disk / f"qemu-{number}", image), ground.in_memory / "copy.img"
    with disk.serving(None, SIZE):
        bare = on_qemu(disk)
    sparse(copy, SIZE)
    with disk.serving(copy, SIZE):
        iops = on_qemu(disk)
        left = disk.backlog()
        disk.finish()
    forget(image)
    equal = same(image, copy, SIZE)
    copy.unlink()
    return {
        "peer_kept": round(iops / bare, 3), "peer_bare_iops": round(bare), "peer_iops": round(iops),
        "peer_left_megabytes": round(left / 1e6, 1),
    }, equal  # fmt: skip


def bench() -> Result:
    machine = machine_facts()
    pairs = bare_and_captured(SIZE, on_device, kept, mirrored)
    for each in pairs.runs:
        each["kept_to_peer"] = round(each["kept"] / each["peer_kept"], 3)
    return Result(
        "capture_overhead", (Bound("kept", 0.85, False), Bound("kept_to_peer", 1.0, False)), pairs.runs, pairs.equal,
        "processors that the chain does not share with the load: all roles and both networks run on these cores. The peer's bare "
        "rate is that of the NBD server, lower than the loop's, so the same absolute cost is a smaller share there; it copies "
        "blocks without order and makes no point in time.",
        machine, {"size_bytes": SIZE, "seconds": SECONDS, "peer": run("qemu-storage-daemon", "--version").splitlines()[0]},
        tuple(pairs.complaints),
    )  # fmt: skip
