"""How old written bytes are when they are durable at the master target: 5,000 IOPS of 4 KiB, then 100 MB/s in sequence."""

from __future__ import annotations

from typing import Any

from bench.capture_load import RING_MEGABYTES, Watch, protected
from bench.chain import Chain
from bench.ground import GIBIBYTE, PAIRS, SMALL, Ground, fio, machine_facts, random_filled, same
from bench.results import Bound, Result
from failback.model.components import SyncMode

SIZE = (1 if SMALL else 4) * GIBIBYTE
SECONDS = 6 if SMALL else 60
LOADS = {
    "random": {"rw": "randwrite", "bs": "4k", "iodepth": 16, "rate_iops": 5000},
    "sequential": {"rw": "write", "bs": "256k", "iodepth": 4, "rate": "100m"},
}
LINES = {"Azure Site Recovery, published, a machine": {"iops": 840, "megabytes_a_second": 54}}


def measured(chain: Chain, device: str, load: dict[str, Any], block_bytes: int) -> tuple[dict[str, Any], list[str]]:
    """One load under an epoch of its own, so that the agent's histogram holds only that."""
    chain.protect(SyncMode.NONE)
    chain.capturing()
    with Watch(chain, block_bytes) as watch:
        written = fio("load", filename=device, time_based=None, runtime=SECONDS, size=SIZE, **load)["write"]
    watch.settle()
    lag = chain.agent["lag"]
    complaints = watch.complaints() + [f"gap: {gap}" for gap in sorted(watch.gaps)]
    figures = watch.figures()
    kept = ("captured_fraction", "physically_written_to_protected", "backlog_last_third_megabytes", "gaps", "risen")
    return {
        "p50_milliseconds": lag["p50"], "p99_milliseconds": lag["p99"], "maximum_milliseconds": lag["maximum"],
        "iops": round(written["iops"]), "megabytes_a_second": round(written["bw_bytes"] / 1e6, 1),
        **{name: figures[name] for name in kept},
    }, complaints  # fmt: skip


def bench() -> Result:
    machine = machine_facts()
    runs, equal, complaints = [], True, []
    with Ground() as ground:
        image = ground.on_disk / "source.image"
        random_filled(image, SIZE)
        device = ground.loop(image)
        target = ground.volume("target", 6 * SIZE + 4 * GIBIBYTE)
        for number in range(PAIRS):
            run: dict[str, Any] = {}
            place = f"run-{number}"
            with protected(ground, device, image, SIZE, place, elsewhere=target, ring_megabytes=RING_MEGABYTES) as chain:
                for name, load in LOADS.items():
                    figures, found = measured(chain, device, load, 4096 if name == "random" else 256 << 10)
                    run |= {f"{name}_{figure}": value for figure, value in figures.items()}
                    complaints += [f"{name}: {text}" for text in found]
                equal &= same(device, chain.replica_path, SIZE)
            run["p99_milliseconds"] = max(run[f"{name}_p99_milliseconds"] for name in LOADS)
            run["p50_milliseconds"] = max(run[f"{name}_p50_milliseconds"] for name in LOADS)
            runs.append(run)
            print(run, flush=True)
    return Result(
        "lag", (Bound("p99_milliseconds", 1000), Bound("p50_milliseconds", 400)), runs, equal,
        "lag over a wide-area link. It is taken by the mobility service's own clock, from submission of the write to the "
        "acknowledgement that the master target's journal holds it durably.",
        machine, {"size_bytes": SIZE, "seconds": SECONDS, "ring_megabytes": RING_MEGABYTES, "lines": LINES},
        tuple(dict.fromkeys(complaints)),
    )  # fmt: skip
