"""``make soak SOAK_MINUTES=N``: worlds of the simulation and rounds of chaos with real processes side by side, for N minutes.

One processor runs simulated worlds (up to 10,000; every third one with overlapping writes torn anywhere), the other rounds of
``chaos_round``: a fresh site each, 35 kills and every large fault, then the proof. Ends with a report; status 1 when anything was
lost. ``SOAK_SEED`` chooses the first seed; it is printed, and each failing world or round names its own.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "doubles"))

from chaos_faults import LARGE
from chaos_round import Report, Round
from chaos_site import ChaosSite

KILLS, POINTS = 35, 30
WORLDS, CHUNK = 10_000, 25
ROUND_SECONDS = 400.0
LEAST_ROUND_SECONDS = 150.0
"""No round is begun with less time left."""


class Worlds(threading.Thread):
    """Simulated worlds until the time is over."""

    def __init__(self, first: int, deadline: float) -> None:
        super().__init__(name="worlds", daemon=True)
        self._first = first
        self._deadline = deadline
        self.done = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while self.done < WORLDS and time.monotonic() < self._deadline:
            more = ["--torn-overlaps"] if self.done // CHUNK % 3 == 2 else []
            left = max(1.0, self._deadline - time.monotonic())
            done = subprocess.run(
                [sys.executable, "-m", "failback.sim", "--first", str(self._first + self.done), "--count", str(CHUNK),
                 "--limit", str(left), *more], capture_output=True, text=True, check=False,
            )  # fmt: skip
            counted = re.search(r"^(\d+) worlds", done.stdout, re.MULTILINE)
            self.done += int(counted[1]) if counted else 0
            if done.returncode:
                self.failures.append(done.stdout[-3000:] + done.stderr[-3000:])
                print(self.failures[-1], flush=True)
                if not counted:
                    return


async def chaos(seed: int, report: Report, seconds: float) -> None:
    """One round on a site of its own."""
    directory = Path(tempfile.mkdtemp(prefix="failback-soak-", dir="/var/tmp"))
    directory.chmod(0o755)
    chance = random.Random(seed)
    try:
        async with ChaosSite(directory, chance) as site:
            story = Round(site, report)
            try:
                async with story.running():
                    await story.begin()
                    await story.chaos(KILLS, chance.sample(LARGE, len(LARGE)), seconds)
                    await story.more_points(POINTS)
                    await story.prove(POINTS)
            except BaseException:
                print(site.report(), flush=True)
                raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    minutes = float(os.environ.get("SOAK_MINUTES", "20"))
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(1_000_000))
    began = time.monotonic()
    deadline = began + minutes * 60
    print(f"soak of {minutes:g} minutes with seed {seed}", flush=True)
    worlds = Worlds(10_000_000 + seed * WORLDS, deadline)
    worlds.start()
    report = Report()
    rounds = 0
    while (left := deadline - time.monotonic()) > LEAST_ROUND_SECONDS or rounds == 0:
        kills, points, lost = report.kills, report.points, len(report.lost)
        try:
            asyncio.run(chaos(seed + rounds, report, min(ROUND_SECONDS, left * 0.6)))
        except Exception as error:  # the round is lost, the soak goes on and ends with status 1
            traceback.print_exc()
            report.lost.append(f"round with seed {seed + rounds}: {type(error).__name__}: {str(error)[:300]}")
        rounds += 1
        minute = (time.monotonic() - began) / 60
        print(f"{minute:5.1f} min: round {rounds} (seed {seed + rounds - 1}): {report.kills - kills} kills, "
              f"{report.points - points} points, {len(report.lost) - lost} lost; {worlds.done} worlds", flush=True)  # fmt: skip
    worlds.join()
    print(f"\n=== soak of {(time.monotonic() - began) / 60:.1f} minutes, seed {seed}, {rounds} rounds")
    print("\n".join(report.lines()))
    print(f"simulated worlds: {worlds.done}, failed: {len(worlds.failures)}")
    return 1 if report.lost or worlds.failures else 0


if __name__ == "__main__":
    sys.exit(main())
