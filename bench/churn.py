"""The highest rate of 64 KiB random writes for which the lag stays under 5 s: rates go up until one fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.capture_load import RING_MEGABYTES, Watch, protected
from bench.ground import GIBIBYTE, PAIRS, SMALL, Ground, fio, machine_facts, random_filled, same
from bench.results import Bound, Result
from failback.model.components import SyncMode

SIZE = (1 if SMALL else 4) * GIBIBYTE
SECONDS = 6 if SMALL else 60
RATES = (25, 50, 75, 100, 150, 200, 250, 300, 400, 500)
LINES = {"Azure Site Recovery, published, megabytes a second": [54, 100, 500]}


def available_bytes() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) << 10


def highest(ground: Ground, device: str, image: Path, name: str) -> tuple[dict[str, Any], bool, list[str]]:
    best: dict[str, Any] = {"megabytes_a_second": 0.0}
    steps, ended = [], "the highest rate was reached"
    with protected(ground, device, image, SIZE, name, ring_megabytes=RING_MEGABYTES) as chain:
        for rate in RATES:
            if available_bytes() < 2 * rate * 1_000_000 * min(SECONDS, 30) + 2 * GIBIBYTE:
                ended = f"{rate} MB/s was not tried: memory for journal and target is short"
                break
            chain.protect(SyncMode.NONE)
            chain.capturing()
            with Watch(chain, 65536) as watch:
                written = fio("load", filename=device, rw="randwrite", bs="64k", iodepth=8, rate=f"{rate * 1_000_000}",
                              time_based=None, runtime=SECONDS, size=SIZE)["write"]  # fmt: skip
            watch.settle()
            lag = chain.agent["lag"]
            step = {
                "asked_megabytes_a_second": rate, "megabytes_a_second": round(written["bw_bytes"] / 1e6, 1),
                "lag_maximum_milliseconds": lag["maximum"], "lag_p99_milliseconds": lag["p99"], **watch.figures(),
            }  # fmt: skip
            steps.append(step)
            why = watch.complaints() + [f"lag of {lag['maximum']:.0f} ms"] * (lag["maximum"] >= 5000)
            if watch.drain_seconds > SECONDS:
                why.append(f"applying fell behind: {watch.drain_seconds:.0f} s to catch up after {SECONDS} s of load")
            if step["megabytes_a_second"] < 0.97 * rate:
                why.append(f"the load itself reached only {step['megabytes_a_second']} MB/s")
            if why:
                ended = f"at {rate} MB/s: {'; '.join(why)}"
                break
            best = {key: value for key, value in step.items() if key != "asked_megabytes_a_second"}
        equal = same(device, chain.replica_path, SIZE)
    return best | {"ended": ended, "steps": steps}, equal, []


def bench() -> Result:
    machine = machine_facts()
    runs, equal = [], True
    with Ground() as ground:
        image = ground.on_disk / "source.image"
        random_filled(image, SIZE)
        device = ground.loop(image)
        for number in range(PAIRS):
            best, is_same, _ = highest(ground, device, image, f"run-{number}")
            equal &= is_same
            runs.append(best)
            print({name: value for name, value in best.items() if name != "steps"}, flush=True)
    return Result(
        "churn", (Bound("megabytes_a_second", 200, False),), runs, equal,
        "rates between the steps tried; disks of the two servers (spool, journal and target lie in memory).",
        machine, {"size_bytes": SIZE, "seconds": SECONDS, "rates_tried": RATES, "ring_megabytes": RING_MEGABYTES, "lines": LINES},
    )  # fmt: skip
