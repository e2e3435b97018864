"""``python -m failback.sim --seed N`` replays one world; ``--first A --count N`` runs many and names those that fail.

``--story`` prints what happened, ``--mutation NAME`` puts a mistake into the product (see ``mutations``).
Exit status 1 when a world failed. Hash randomisation is switched off by starting anew.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext
from pathlib import Path

from failback.runtime import logs
from failback.sim.mutations import MUTATIONS, made
from failback.sim.world import World

TORN = " --torn-overlaps"


def run(seed: int, directory: Path, options: argparse.Namespace) -> bool:
    world = World(seed, directory, load_seconds=options.seconds, faults=not options.calm)
    world.machine.torn_overlaps = options.torn_overlaps
    try:
        world.run()
    except Exception as error:
        print(f"FAILED seed {seed}: {type(error).__name__}: {error}")
        print(
            f"  replay: python -m failback.sim --seed {seed} --seconds {options.seconds:g}{TORN * options.torn_overlaps} --story",
            flush=True,
        )
        if options.story:
            print("\n".join(world.story))
            traceback.print_exc()
        return False
    if options.story:
        print("\n".join(world.story))
        print(f"seed {seed}: {world.judge.points_judged} points and {world.judge.places_judged} places judged,"
              f" {world.machine.written} writes, epochs {world.plane.epochs_for}, kills {world.kills},"
              f" {world.loop.steps} steps, {world.loop.now - 1000:.0f} virtual seconds")  # fmt: skip
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m failback.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="one world")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=15.0, help="virtual seconds of load and faults")
    parser.add_argument("--limit", type=float, default=0.0, help="stop after so many real seconds")
    parser.add_argument("--calm", action="store_true", help="no faults")
    parser.add_argument(
        "--torn-overlaps",
        action="store_true",
        help="overlapping programs may be interrupted anywhere",
    )
    parser.add_argument("--mutation", choices=[*MUTATIONS], help="put this mistake into the product")
    parser.add_argument("--most-failures", type=int, default=5, help="stop after so many failed worlds")
    parser.add_argument("--story", action="store_true", help="print what happened")
    parser.add_argument("--log", action="store_true", help="print the roles' own logs, stamped with virtual time")
    options = parser.parse_args()
    if options.log:
        logs.configure("simulation", level="DEBUG")
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "failback.sim", *sys.argv[1:]])
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.count)
    failed = done = 0
    began = time.perf_counter()
    mistake = made(options.mutation) if options.mutation else nullcontext()
    with mistake, tempfile.TemporaryDirectory(prefix="failback-sim-", dir=base) as directory:
        for seed in seeds:
            failed += not run(seed, Path(directory), options)
            done += 1
            if failed >= options.most_failures:
                break
            if options.limit and time.perf_counter() - began > options.limit:
                break
    print(f"{done} worlds, {failed} failed, {time.perf_counter() - began:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    status = main()
    os._exit(status)  # suspended coroutines of dead processes must not be closed
