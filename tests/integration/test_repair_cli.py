"""``failback resync`` as a user runs it, and a repair that begins by itself in a real server that is killed meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from api_client import SiteProcess


def failback(site: SiteProcess, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    settings = {
        "FAILBACK_SERVER": site.url, "FAILBACK_CA_FILE": str(site.ca_file), "FAILBACK_TOKEN_FILE": str(site.token_file),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "failback", *arguments], capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(site.directory), **settings}, check=False,
    )  # fmt: skip
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def jobs(site: SiteProcess, scenario: str) -> list[dict[str, Any]]:
    listed = json.loads(failback(site, "job", "list", "--item", "ledger", "--json").stdout)
    return [job["properties"] for job in listed if job["properties"]["scenarioName"] == scenario]


def epoch(site: SiteProcess) -> int:
    state = json.loads((site.directory / "sites.json").read_text())
    found: int = state["agent"]["epoch"]
    return found


def test_resync_by_hand_and_by_itself(tmp_path: Path) -> None:
    with SiteProcess(tmp_path) as site:
        failback(site, "item", "import", "ledger", "--on-premises", "home-vm", "--cloud", "cloud-vm")
        assert "OperationNotAllowed" in failback(site, "resync", "ledger", "--yes", status=4).stderr
        failback(site, "reprotect", "ledger", "--datastore", "store", "--yes")

        unconfirmed = failback(site, "resync", "ledger", status=6)
        assert "compared with the replica" in unconfirmed.stderr
        before = epoch(site)
        done = failback(site, "resync", "ledger", "--yes")
        assert "Resynchronize of ledger: Succeeded" in done.stdout
        assert "Finalize protection of ledger: Succeeded" in done.stdout
        assert epoch(site) == before + 1
        failback(site, "resync", "ledger", "--process-server", "nobody", "--yes", status=3)

        site.knob("no sync", True)
        site.knob("agent problem", [epoch(site), "SpoolDamaged: a segment of the spool is damaged"])
        site.wait_for_state("UnprotectedStatesBegin")
        site.kill()
        site.start()
        site.knob("no sync", False)
        site.wait_for_state("Protected")
        by_itself = [job for job in jobs(site, "RepairVMReplication") if job["failback"]["startedBy"] == "monitor"]
        assert [job["state"] for job in by_itself] == ["Succeeded"]
        time.sleep(1.5)
        assert len(jobs(site, "RepairVMReplication")) == 2
        assert "SpoolDamaged: a segment of the spool is damaged" in failback(site, "event", "list").stdout
        assert site.violations() == []
