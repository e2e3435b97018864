"""The demo's report: what it has to hold, and that it never says more than was measured."""

from __future__ import annotations

import json
from dataclasses import asdict

from failback.lab.report import Check, Report

KEYS = {
    "ok", "acknowledged_commits", "found_commits", "lost_commits", "disks_identical", "filesystems_clean", "rpo_ms",
    "bytes_changed", "bytes_sent", "downtime_s", "recovery_points", "phases_s", "versions",
}  # fmt: skip


def test_report_has_every_promised_key() -> None:
    assert set(asdict(Report())) >= KEYS
    json.dumps(asdict(Report()))


def test_what_was_not_reached_is_not_claimed() -> None:
    table = Report(failure="interrupted").table()
    assert "interrupted" in table
    assert "THE DEMO FAILED" in table
    assert "yes" not in table.split("Time")[0]


def test_finished_report_shows_its_figures() -> None:
    report = Report(
        ok=True, acknowledged_commits=369, found_commits=369, lost_commits=0, disks_identical=True, filesystems_clean=True,
        rpo_ms={"p50": 243.2, "p99": 1711.9}, bytes_changed=3 << 20, bytes_sent=1 << 20, downtime_s=26.84,
        recovery_points=9, phases_s={"lab up": 61.3}, checks=[Check("disks", True, "equal")],
    )  # fmt: skip
    table = report.table()
    for figure in ("369", "243 / 1712 ms", "3.0 MiB / 1.0 MiB", "26.8 s", "61.3 s", "pass  disks: equal"):
        assert figure in table
    assert "FAIL" not in table
