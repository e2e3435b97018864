"""kill -9 of the agent between pre-script and post-script: the application is not left holding still."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="freezing needs root")

LIFE = """
import asyncio, sys, types
from pathlib import Path
from failback.mobility.config import MobilityConfig
from failback.mobility.leases import Leases, Running
from failback.mobility.memory import MemoryFile
from failback.model.components import Order
from failback.model.ids import OrderId, new_id
from failback.transport.identity import ControlConfig

async def main(directory, kind):
    config = MobilityConfig(configuration_server=ControlConfig(url="https://localhost", ca_file=directory),
                            runtime_directory=directory / "run", pre_script=str(directory / "pre.sh"),
                            post_script=str(directory / "post.sh"))
    # no disks: nothing of this machine is frozen
    running = Running(types.SimpleNamespace(linked=True, waits_for=lambda limit: ""), ())
    leases = Leases(config, MemoryFile(config.runtime_directory), lambda: running, lambda: None)
    await leases.settle()
    if kind:
        arguments = {"mark_id": new_id()} | ({"lease_seconds": 60.0} if kind == "freeze_lease" else {})
        await getattr(leases, kind)(Order(OrderId(new_id()), kind, 1, arguments), lambda done, total: None)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


def _live(directory: Path, kind: str, faults: str) -> int:
    command = [sys.executable, "-c", LIFE, str(directory), kind]
    return subprocess.run(command, env={**os.environ, "FAILBACK_FAULTS": faults}, check=False, timeout=60).returncode


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("app_consistent_mark", "pre app-consistent\npost app-consistent\n"),
        ("freeze_lease", "pre failback\npost failback-cancelled\n"),
    ],
)
def test_the_next_life_runs_the_post_script_once(tmp_path: Path, kind: str, expected: str) -> None:
    told = tmp_path / "told"
    for name in ("pre", "post"):
        script = tmp_path / f"{name}.sh"
        script.write_text(f"#!/bin/sh\necho {name} $1 >> {told}\n")
        script.chmod(0o755)
    assert _live(tmp_path, kind, "mobility.frozen=kill@1") == -signal.SIGKILL
    assert told.read_text() == expected.partition("\n")[0] + "\n"
    for _ in range(2):
        assert _live(tmp_path, "", "") == 0
        assert told.read_text() == expected
