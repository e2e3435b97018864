"""First copy over a link of 1 Gbit/s: ours through a token bucket between the machine and its process server, the peer (nbdcopy)
behind nbdkit's rate filter. What compresses decides: half of what the disk holds is random."""

from __future__ import annotations

from pathlib import Path

from bench.ground import GIBIBYTE, PAIRS, Ground, forget, half_full, machine_facts, run, same
from bench.initial_sync import SIZE, nbdcopy, ours
from bench.results import Bound, Result

MEGABITS = 1000


def bench() -> Result:
    machine = machine_facts()
    with Ground() as ground:
        image = ground.on_disk / "source.image"
        half_full(image, SIZE)
        device = ground.loop(image)
        target = ground.volume("target", 3 * SIZE + GIBIBYTE)
        runs, equal = [], True
        for number in range(PAIRS):
            seconds, is_same, figures = ours(ground, device, target, number, megabits=MEGABITS)
            copy = target / "copy.img"
            forget(Path(device))
            peer_seconds, _ = nbdcopy(device, copy, SIZE, None, megabits=MEGABITS)
            equal = equal and is_same and same(device, copy, SIZE)
            copy.unlink()
            runs.append(
                {
                    "ratio": round(seconds / peer_seconds, 3),
                    "seconds": round(seconds, 2),
                    "peer_seconds": round(peer_seconds, 2),
                    "sent_to_content": round(figures["sent_megabytes"] * 1e6 / (SIZE / 2), 3),
                    **figures,
                }
            )
            print(runs[-1], flush=True)
    return Result(
        "initial_sync_1gbit", (Bound("ratio", 0.6),), runs, equal,
        "a network's latency and loss; the link between process server and master target is not slowed. The random half of the "
        "content does not shrink, so the ratio cannot be below (1 + r) / 2, where r is what the text-like half shrinks to.",
        machine, {"size_bytes": SIZE, "megabits_a_second": MEGABITS,
                  "peer": run("nbdcopy", "--version") + ", " + run("nbdkit", "--version")},
    )  # fmt: skip
