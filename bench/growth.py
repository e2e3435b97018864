"""What the two servers cost as disks and machines get more: seconds and memory for each byte at 1, 4 and 16 GiB and with 1, 4
and 16 machines, against the smallest; and the figures of a master target of 60 disks."""

from __future__ import annotations

from typing import Any

from bench.chain import Chain
from bench.chain import Role as Part
from bench.ground import GIBIBYTE, MEBIBYTE, PAIRS, SMALL, Ground, forget, machine_facts
from bench.results import Bound, Result
from bench.servers import Batches, Fleet, random_content
from failback.model.policy import ReplicationPolicy
from failback.model.stream import GapCause

UNIT = GIBIBYTE // (8 if SMALL else 1)
SIZES = (1, 4, 16)
MACHINES = (1, 4, 16)
MANY = 12 if SMALL else 60
SPREAD = 4
"""A quarter of each disk is written, all over it."""


def once(ground: Ground, name: str, sizes: list[int], content: bytes, **how: Any) -> tuple[dict[str, Any], bool]:
    """One chain of the two servers, one full copy of every disk."""
    place = ground.on_disk / name
    chain = Chain(
        place / "chain", "/dev/null", max(sizes), spool=place / "spool", journal=place / "journal", target=place / "store",
        roles=(Part.PROCESS_SERVER, Part.MASTER_TARGET), policy=ReplicationPolicy(name="bench", redo_window_seconds=2),
    )  # fmt: skip
    try:
        with chain:
            fleet = Fleet(chain, sizes)
            idle = chain.peak_megabytes()
            batches = Batches(
                sizes[0] // SPREAD, how.get("batch_bytes", 4 * MEBIBYTE), how.get("extent_bytes", MEBIBYTE), content,
                chain.epoch, sequential=True, spread=SPREAD, gap=GapCause.SYNC, mark_at_end=True,
            )  # fmt: skip
            figures = fleet.send(batches, pace_seconds=how.get("pace_seconds", 0.0))
            lags = sorted(lag for machine in fleet.machines for lag in machine.lags)
            peak = chain.peak_megabytes()
            equal = all(batches.lie_on(machine, chain.target) for machine in fleet.machines)
            for machine in fleet.machines:
                forget(machine.replica_path(chain.target))
    finally:
        chain.remove()
    sent = batches.total_bytes * len(sizes) / GIBIBYTE
    used = sum(seconds for key, seconds in figures.items() if key.startswith("cpu_"))
    return {
        "seconds_a_gibibyte": round(figures["seconds"] / sent, 3), "cpu_seconds_a_gibibyte": round(used / sent, 3),
        "peak_megabytes": round(sum(peak.values()), 1), "idle_megabytes": round(sum(idle.values()), 1),
        "lag_p50_milliseconds": round(lags[len(lags) // 2] * 1000),
        "lag_p99_milliseconds": round(lags[int(len(lags) * 0.99)] * 1000),
        "gibibytes": round(sent, 2),
    }, equal  # fmt: skip


def grown(steps: dict[int, dict[str, Any]], figure: str, *, for_each: bool) -> float:
    """The worst step against the first; ``for_each``: the figure is of the whole and counts for each unit."""
    first = min(steps)
    base = steps[first][figure]
    return float(max((step[figure] * (first / number if for_each else 1)) / base for number, step in steps.items()))


def bench() -> Result:
    machine = machine_facts()
    runs, equal = [], True
    content = random_content(24 * MEBIBYTE)
    with Ground() as ground:
        for number in range(min(PAIRS, 3)):
            disks, fleets = {}, {}
            for size in SIZES:
                disks[size], same = once(ground, f"disk-{number}-{size}", [size * UNIT], content)
                equal &= same
            for count in MACHINES:
                sizes = [UNIT] * count
                fleets[count], same = once(ground, f"machines-{number}-{count}", sizes, content)
                equal &= same
            many, same = once(
                ground, f"many-{number}", [UNIT // 4] * MANY, content, batch_bytes=MEBIBYTE, extent_bytes=65536,
                pace_seconds=1.0,
            )  # fmt: skip
            equal &= same
            runs.append(
                {
                    "time_growth": round(max(grown(one, "seconds_a_gibibyte", for_each=False) for one in (disks, fleets)), 3),
                    "memory_growth": round(max(grown(one, "peak_megabytes", for_each=True) for one in (disks, fleets)), 3),
                    "cpu_growth": round(max(grown(one, "cpu_seconds_a_gibibyte", for_each=False) for one in (disks, fleets)), 3),
                    **{f"many_{key}": value for key, value in many.items()},
                    "disks": {str(size): step for size, step in disks.items()},
                    "machines": {str(count): step for count, step in fleets.items()},
                }
            )  # fmt: skip
            print(runs[-1], flush=True)
    return Result(
        "growth", (Bound("time_growth", 1.2), Bound("memory_growth", 1.2)), runs, equal,
        "what the machines themselves spend: their streams come from one process that sends as agents do; a quarter of each disk "
        "is written. Memory is the peak of both servers together; it counts for each byte of disk.",
        machine, {"unit_bytes": UNIT, "sizes": SIZES, "machines": MACHINES, "many": MANY, "peer": "itself at the smallest size"},
    )  # fmt: skip
