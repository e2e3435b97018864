"""Every parser against changed inputs: nothing but an error of ours comes out, in bounded time and memory.

The targets and their seeds are those of ``make fuzz`` (fuzz/README.md). What fuzzing found once is in ``fuzz/regressions/``."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import fuzz_targets
import pytest
from fuzz_mutations import mutated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FUZZ = Path(fuzz_targets.__file__).parent
LONGEST_SECONDS = 10.0
"""Of processor time for one input; a second even on a busy machine is far off."""


@pytest.mark.parametrize("name", sorted(fuzz_targets.BY_NAME))
def test_no_input_brings_anything_but_an_error_of_ours(name: str) -> None:
    target = fuzz_targets.BY_NAME[name]
    seeds = target.seeds()
    for seed in seeds:
        fuzz_targets.attack(target, seed)

    @given(mutated(seeds) | st.binary(max_size=200))
    @settings(max_examples=400 if target.cheap else 60, deadline=None, suppress_health_check=list(HealthCheck),
              database=None)  # fmt: skip
    def attacked(data: bytes) -> None:
        began = time.process_time()
        fuzz_targets.attack(target, data)
        assert time.process_time() - began < LONGEST_SECONDS

    attacked()


@pytest.mark.parametrize("name", sorted(fuzz_targets.BY_NAME))
def test_what_was_found_once_stays_mended(name: str) -> None:
    for path in sorted((FUZZ / "regressions" / name).glob("*")):
        fuzz_targets.attack(fuzz_targets.BY_NAME[name], path.read_bytes())


def test_right_inputs_are_right() -> None:
    """Fuzzing that never comes past the first check would find nothing: most seeds have to be taken whole."""
    for name in ("link", "item", "redo", "undo", "spool", "catalogue", "stored", "texts"):
        target = fuzz_targets.BY_NAME[name]
        target.run(target.seeds()[-1] if name != "item" else target.seeds()[0])
        if target.repair is not None:
            for seed in target.seeds():
                assert target.repair(seed) == seed, name


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))


@pytest.mark.parametrize("name", ["link", "item", "undo"])
def test_coverage_guided_for_a_moment(name: str, tmp_path: Path) -> None:
    """atheris itself, with its bounds of memory (1 GiB resident, 300 MiB at once) and time."""
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python")
    done = subprocess.run(
        [sys.executable, FUZZ / "run.py", name, "3"], capture_output=True, text=True, timeout=120, preexec_fn=_bounded,
        check=False, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "number_of_executed_units" in done.stderr
