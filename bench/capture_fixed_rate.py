"""What a machine that writes 5,000 times a second notices of the capture: IOPS kept, p99 latency against bare."""

from __future__ import annotations

from typing import Any

from bench.capture_load import bare_and_captured
from bench.ground import GIBIBYTE, SMALL, fio, machine_facts
from bench.results import Bound, Result

SIZE = (1 if SMALL else 4) * GIBIBYTE
SECONDS = 6 if SMALL else 20
RATE = 5000


def load(device: str) -> dict[str, Any]:
    return dict(
        fio("load", filename=device, ioengine="libaio", rw="randwrite", bs="4k", iodepth=16, rate_iops=RATE,
            rate_process="poisson", time_based=None, runtime=SECONDS, size=SIZE)["write"]
    )  # fmt: skip


def p99_milliseconds(written: dict[str, Any]) -> float:
    return float(written["clat_ns"]["percentile"]["99.000000"]) / 1e6


def compare(bare: dict[str, Any], captured: dict[str, Any]) -> dict[str, Any]:
    return {
        "p99_ratio": round(p99_milliseconds(captured) / p99_milliseconds(bare), 3),
        "iops_kept": round(captured["iops"] / bare["iops"], 4),
        "bare_p99_milliseconds": round(p99_milliseconds(bare), 3), "bare_iops": round(bare["iops"]),
        "p99_milliseconds": round(p99_milliseconds(captured), 3), "iops": round(captured["iops"]),
    }  # fmt: skip


def bench() -> Result:
    machine = machine_facts()
    pairs = bare_and_captured(SIZE, load, compare)
    return Result(
        "capture_fixed_rate", (Bound("p99_ratio", 1.25), Bound("iops_kept", 0.995, False)), pairs.runs, pairs.equal,
        "a machine with idle processors, where only the capture program itself runs beside the load.",
        machine, {"size_bytes": SIZE, "seconds": SECONDS, "rate_iops": RATE, "peer": "the same load without capture"},
        tuple(pairs.complaints),
    )  # fmt: skip
