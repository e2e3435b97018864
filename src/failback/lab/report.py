"""The demo's report: one JSON file for machines, one table for people."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from failback import __version__


@dataclass(frozen=True, slots=True)
class Check:
    """A statement that the demo makes, and what it saw."""

    name: str
    passed: bool
    detail: str


@dataclass(slots=True)
class Report:
    """Filled phase by phase; every figure keeps its first value until it was really measured (None: not reached)."""

    ok: bool = False
    acknowledged_commits: int | None = None
    found_commits: int | None = None
    lost_commits: int | None = None
    disks_identical: bool | None = None
    filesystems_clean: bool | None = None
    rpo_ms: dict[str, float] = field(default_factory=dict)
    bytes_changed: int | None = None
    bytes_sent: int | None = None
    downtime_s: float | None = None
    recovery_points: int | None = None
    phases_s: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    failure: str = ""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def table(self) -> str:
        rows: list[tuple[str, Any]] = [
            ("acknowledged commits", self.acknowledged_commits),
            ("found after the failback", self.found_commits),
            ("lost", self.lost_commits),
            ("disks identical at the last mark", _yes_no(self.disks_identical)),
            ("file systems clean", _yes_no(self.filesystems_clean)),
            ("lag from write to landed, p50 / p99", self._lag()),
            ("bytes changed / sent", f"{_mebibytes(self.bytes_changed)} / {_mebibytes(self.bytes_sent)}"),
            ("recovery points", self.recovery_points),
            ("downtime seen by the workload", "-" if self.downtime_s is None else f"{self.downtime_s:.1f} s"),
        ]
        lines = ["", "Report"]
        lines += [f"  {name:38} {'-' if value is None else value}" for name, value in rows]
        lines += ["", "Time"]
        lines += [f"  {name:38} {seconds:6.1f} s" for name, seconds in self.phases_s.items()]
        lines += ["", "Checks"]
        lines += [f"  {'pass' if check.passed else 'FAIL'}  {check.name}: {check.detail}" for check in self.checks]
        if self.failure:
            lines += ["", f"Stopped: {self.failure}"]
        lines += ["", "The machine came home; nothing acknowledged was lost." if self.ok else "THE DEMO FAILED."]
        return "\n".join(lines)

    def _lag(self) -> str:
        return f"{self.rpo_ms['p50']:.0f} / {self.rpo_ms['p99']:.0f} ms" if self.rpo_ms else "-"


def versions() -> dict[str, str]:
    """What ran: our version and those of the programs underneath."""
    return {
        "failback": __version__,
        "python": platform.python_version(),
        "kernel": os.uname().release,
        "qemu": _first_line("qemu-system-x86_64", "--version"),
        "libvirt": _first_line("libvirtd", "--version"),
    }


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return "not found"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""


def _yes_no(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "NO"


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.1f} MiB"
