"""What a machine that writes 5,000 times a second notices of the capture: IOPS kept, p99 latency against bare."""

from __future__ import annotations

from typing import Any

from bench.capture_load import Watch, protected
from bench.ground import GIBIBYTE, PAIRS, SMALL, Ground, fio, machine_facts, random_filled, same
from bench.results import Bound, Result

SIZE = (1 if SMALL else 4) * GIBIBYTE
SECONDS = 6 if SMALL else 20
RATE = 5000


def load(device: str, seconds: int = SECONDS) -> dict[str, Any]:
    return dict(
        fio("load", filename=device, ioengine="libaio", rw="randwrite", bs="4k", iodepth=16, rate_iops=RATE,
            rate_process="poisson", time_based=None, runtime=seconds, size=SIZE)["write"]
    )  # fmt: skip


def p99_milliseconds(written: dict[str, Any]) -> float:
    return float(written["clat_ns"]["percentile"]["99.000000"]) / 1e6


def bench() -> Result:
    machine = machine_facts()
    runs, equal, complaints = [], True, []
    with Ground() as ground:
        image = ground.on_disk / "source.image"
        random_filled(image, SIZE)
        device = ground.loop(image)
        load(device, 3)
        for number in range(PAIRS):
            bare = load(device)
            with protected(ground, device, image, SIZE, f"pair-{number}") as chain:
                with Watch(chain) as watch:
                    captured = load(device)
                watch.settle()
                equal &= same(device, chain.replica_path, SIZE)
                figures, found = watch.figures(), watch.complaints()
            complaints += [text for text in found if text not in complaints]
            runs.append(
                {
                    "p99_ratio": round(p99_milliseconds(captured) / p99_milliseconds(bare), 3),
                    "iops_kept": round(captured["iops"] / bare["iops"], 4),
                    "bare_p99_milliseconds": round(p99_milliseconds(bare), 3), "bare_iops": round(bare["iops"]),
                    "p99_milliseconds": round(p99_milliseconds(captured), 3), "iops": round(captured["iops"]), **figures,
                }
            )  # fmt: skip
            print(runs[-1], flush=True)
    return Result(
        "capture_fixed_rate", (Bound("p99_ratio", 1.25), Bound("iops_kept", 0.995, False)), runs, equal,
        "a machine with idle processors, where only the capture program itself runs beside the load.",
        machine, {"size_bytes": SIZE, "seconds": SECONDS, "rate_iops": RATE, "peer": "the same load without capture"},
        tuple(complaints),
    )  # fmt: skip
