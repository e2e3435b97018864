"""Worlds from seeds: 1,000 of them in about four minutes on two cores, SIMULATION_SEEDS=n for more or fewer.

Each failing world prints the command that replays it; a seed that failed once stays in regressions.txt for ever.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from failback.sim.mutations import MUTATIONS, noticed

REGRESSIONS = Path(__file__).with_name("regressions.txt")
WANTED = int(os.environ.get("SIMULATION_SEEDS", "1000"))
"""Always the same worlds, so that a run says something of the code and nothing of the machine's speed."""
CHUNK = 50


def _worlds(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "failback.sim", *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def _count(output: str) -> int:
    return sum(int(found) for found in re.findall(r"^(\d+) worlds", output, re.MULTILINE))


def _run_all(first: int, count: int, *more: str) -> tuple[bool, str]:
    """In two processes, each a fresh one after every chunk: dead worlds keep memory."""
    chunks = [(at, min(CHUNK, first + count - at)) for at in range(first, first + count, CHUNK)]
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda c: _worlds("--first", str(c[0]), "--count", str(c[1]), *more), chunks))
    return all(code == 0 for code, _ in results), "\n".join(output for _, output in results)


def test_worlds_that_failed_once_hold() -> None:
    for line in REGRESSIONS.read_text().splitlines():
        arguments = line.split("#")[0].split()
        if arguments:
            code, output = _worlds(*arguments)
            assert code == 0, output


@pytest.mark.parametrize("name", MUTATIONS)
def test_mistakes_are_noticed(name: str) -> None:
    """Each mistake put into the product makes a world fail that holds without it: the model sees what it is there for."""
    seen, said = noticed(name)
    assert seen, said


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("first", "share", "more"),
    [(1, 0.6, ()), (1_000_001, 0.4, ("--torn-overlaps",))],
    ids=["ordinary", "torn-overlaps"],
)
def test_worlds_hold(first: int, share: float, more: tuple[str, ...]) -> None:
    well, output = _run_all(first, round(WANTED * share), *more)
    print(f"{_count(output)} worlds")
    assert well, output
    assert _count(output) == round(WANTED * share)
