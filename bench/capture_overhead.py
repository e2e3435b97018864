"""What the capture costs a machine that writes as fast as it can: the share of bare IOPS that is kept, ours on a loop device,
the peer's (``blockdev-mirror``, background mode) on the same image served by qemu-storage-daemon."""

from __future__ import annotations

from bench.capture_load import QemuDisk, Watch, protected
from bench.ground import GIBIBYTE, PAIRS, SMALL, Ground, fio, forget, machine_facts, random_filled, run, same, sparse
from bench.results import Bound, Result

SIZE = (1 if SMALL else 4) * GIBIBYTE
SECONDS = 6 if SMALL else 20
LOAD = {"rw": "randwrite", "bs": "4k", "iodepth": 16, "time_based": None, "runtime": SECONDS, "size": SIZE}


def on_device(device: str) -> float:
    return float(fio("load", filename=device, ioengine="libaio", **LOAD)["write"]["iops"])


def on_qemu(disk: QemuDisk) -> float:
    return float(fio("load", uri=disk.uri, ioengine="nbd", **LOAD)["write"]["iops"])


def bench() -> Result:
    machine = machine_facts()
    runs, equal, complaints = [], True, []
    with Ground() as ground:
        image = ground.on_disk / "source.image"
        random_filled(image, SIZE)
        device = ground.loop(image)
        on_device(device)  # the image's extents settle
        for number in range(PAIRS):
            bare = on_device(device)
            with protected(ground, device, image, SIZE, f"pair-{number}") as chain:
                with Watch(chain) as watch:
                    iops = on_device(device)
                watch.settle()
                equal &= same(device, chain.replica_path, SIZE)
                figures, found = watch.figures(), watch.complaints()
            complaints += [text for text in found if text not in complaints]
            disk, copy = QemuDisk(ground.on_disk / f"qemu-{number}", image), ground.in_memory / "copy.img"
            with disk.serving(None, SIZE):
                peer_bare = on_qemu(disk)
            sparse(copy, SIZE)
            with disk.serving(copy, SIZE):
                peer = on_qemu(disk)
                left = disk.backlog()
                disk.finish()
            forget(image)
            equal &= same(image, copy, SIZE)
            copy.unlink()
            kept, peer_kept = iops / bare, peer / peer_bare
            runs.append(
                {
                    "kept": round(kept, 3), "kept_to_peer": round(kept / peer_kept, 3), "peer_kept": round(peer_kept, 3),
                    "bare_iops": round(bare), "iops": round(iops), "peer_bare_iops": round(peer_bare), "peer_iops": round(peer),
                    "peer_left_megabytes": round(left / 1e6, 1), **figures,
                }
            )  # fmt: skip
            print(runs[-1], flush=True)
    return Result(
        "capture_overhead", (Bound("kept", 0.85, False), Bound("kept_to_peer", 1.0, False)), runs, equal,
        "processors that the chain does not share with the load: all roles and both networks run on these cores. The peer's bare "
        "rate is that of the NBD server, lower than the loop's, so the same absolute cost is a smaller share there; it copies "
        "blocks without order and makes no point in time.",
        machine, {"size_bytes": SIZE, "seconds": SECONDS, "peer": run("qemu-storage-daemon", "--version").splitlines()[0]},
        tuple(complaints),
    )  # fmt: skip
