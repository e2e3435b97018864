"""A master target that many machines write to at once stays below 300 MB, and holds what was sent."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.chain import Chain, Role
from bench.servers import Batches, Fleet

from failback.model.policy import ReplicationPolicy
from failback.model.stream import GapCause

MACHINES = 12
MEBIBYTE = 1 << 20
DISK_BYTES = 128 * MEBIBYTE
BOUND_MEGABYTES = 300


def test_twelve_machines_at_full_speed_stay_below_300_megabytes(tmp_path: Path) -> None:
    chain = Chain(
        tmp_path / "chain", "/dev/null", DISK_BYTES, spool=tmp_path / "spool", journal=tmp_path / "journal",
        target=tmp_path / "store", roles=(Role.PROCESS_SERVER, Role.MASTER_TARGET),
        policy=ReplicationPolicy(name="memory", redo_window_seconds=2),
    )  # fmt: skip
    with chain:
        fleet = Fleet(chain, [DISK_BYTES] * MACHINES)
        batches = Batches(
            32 * MEBIBYTE, 8 * MEBIBYTE, MEBIBYTE, os.urandom(24 * MEBIBYTE), chain.epoch, sequential=True,
            spread=4, gap=GapCause.SYNC, mark_at_end=True,
        )  # fmt: skip
        fleet.send(batches)
        fleet.send(batches)  # over what is there now: old content is read and saved
        peak = chain.peak_megabytes()["master-target"]
        assert all(batches.lie_on(machine, chain.target) for machine in fleet.machines)
    print(f"peak {peak:.0f} MiB")
    assert peak < BOUND_MEGABYTES
