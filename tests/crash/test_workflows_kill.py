"""Every workflow, killed (SIGKILL) before and after each of its steps and after everything that a step remembers.

One run of a workflow is killed at its first fault point, started again, killed at the next, and so on to the end; its outcome
(rows, both sites, and the order of everything that really happened) equals that of a run that nobody killed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from simulated_sites import REPROTECT_INPUTS

DOUBLES = Path(__file__).parent.parent / "doubles"

FAILOVER_INPUTS = {"selector": "latest", "value": "", "shut_down_source": True}
REPROTECT = ("SwitchReplicationGroupProtection", REPROTECT_INPUTS)
FAILOVER = ("UnplannedFailover", FAILOVER_INPUTS)
CANCEL = ("CancelFailover", {})
CHANGE = ("ChangeRecoveryPoint", {"selector": "point", "value": "before"})
COMMIT = ("CommitFailover", {})
POINT = ("CreateRecoveryPoint", {})
DISABLE = ("DisableDr", {})
REPAIR = ("RepairVMReplication", {"reason": "SpoolDamaged: a test"})

DISKS = (
    "UpdateReplicaDisks", {"names": ["grown:2097152:disk-0", "joined:1048576:serial-9", "gone:0:disk-1"]}
)  # fmt: skip
KNOBS = {"UpdateReplicaDisks": {"disks": {"serial-0": 2 << 20, "serial-9": 1 << 20}}}
"""What is different at the sites from the beginning of a job."""

Job = tuple[str, dict[str, Any]]


def around(*names: str) -> list[str]:
    return [f"job.{name}.{when}" for name in names for when in ("before", "after")]


WORKFLOWS: dict[str, tuple[list[Job], Job, list[str]]] = {
    "reprotect": (
        [],
        REPROTECT,
        [
            *around("SwitchReplicationGroupProtectionPreflightTask", "VmCommitFailover", "DiscoverReplica"),
            "job.DiscoverReplica.recorded",
            *around("GetSwitchProtectionRequirementsTask", "AttachReplicaDisks"),
            *("job.EnableDr.before", "job.EnableDr.epoch", "job.EnableDr.after", "job.EnableDr.recorded"),
            "job.finish.after",
            *around("ResumeReplicaTask", "IrCompletionTask"),
        ],
    ),
    "failback": (
        [REPROTECT],
        FAILOVER,
        [
            *around("VmUfoPrerequisitesCheck"),
            *("job.VmShutdownVmOnPrimary.before", "job.VmShutdownVmOnPrimary.lease"),
            *("job.VmShutdownVmOnPrimary.prepare", "job.VmShutdownVmOnPrimary.after"),
            *("job.VmPrepareForUnPlannedFailover.before", "job.VmPrepareForUnPlannedFailover.fenced"),
            *("job.VmPrepareForUnPlannedFailover.after", "job.VmFailover.before", "job.VmFailover.layer"),
            *("job.VmFailover.after", "job.VmFoStartVmOnSecondary.before", "job.VmFoStartVmOnSecondary.since"),
            *("job.VmFoStartVmOnSecondary.after", "job.VmFoStartVmOnSecondary.recorded"),
        ],
    ),
    "commit": (
        [REPROTECT, FAILOVER],
        COMMIT,
        [*around("VmCommitPrerequisitesCheck", "VmCommit"), "job.VmCommit.recorded"],
    ),
    "change point": (
        [REPROTECT, FAILOVER],
        CHANGE,
        [
            *around("VmChangePitPrerequisitesCheck", "VmShutdownVmOnSecondary"),
            *("job.VmPrepareForUnPlannedFailover.before", "job.VmPrepareForUnPlannedFailover.changed"),
            *("job.VmPrepareForUnPlannedFailover.after", "job.VmFailover.before", "job.VmFailover.layer"),
            *("job.VmFailover.after", "job.VmFoStartVmOnSecondary.before", "job.VmFoStartVmOnSecondary.since"),
            *("job.VmFoStartVmOnSecondary.after", "job.VmFoStartVmOnSecondary.recorded"),
        ],
    ),
    "cancel": (
        [REPROTECT, FAILOVER],
        CANCEL,
        [
            *around("VmCancelFailoverPrerequisitesCheck", "VmShutdownVmOnSecondary"),
            *("job.VmResumeReplication.before", "job.VmResumeReplication.cancelled", "job.VmResumeReplication.epoch"),
            *("job.VmResumeReplication.after", "job.VmStartVmOnPrimary.before", "job.VmStartVmOnPrimary.after"),
        ],
    ),
    "point": (
        [REPROTECT],
        POINT,
        [
            *("job.InsertConsistencyTag.before", "job.InsertConsistencyTag.mark", "job.InsertConsistencyTag.after"),
            *around("PublishRecoveryPoint"),
        ],
    ),
    "repair": (
        [REPROTECT],
        REPAIR,
        [
            "job.RepairReplicationPrerequisitesCheck.before",
            *("job.RepairReplicationPrerequisitesCheck.event", "job.RepairReplicationPrerequisitesCheck.after"),
            *("job.StartResynchronization.before", "job.StartResynchronization.server"),
            *("job.StartResynchronization.epoch", "job.StartResynchronization.after", "job.finish.after"),
            *around("ResumeReplicaTask", "IrCompletionTask"),
        ],
    ),
    "disks": (
        [REPROTECT],
        DISKS,
        [
            *("job.PlanDiskChanges.before", "job.PlanDiskChanges.plan", "job.PlanDiskChanges.after"),
            *around("AttachChangedDisks"),
            *("job.StartReplicationOfDisks.before", "job.StartReplicationOfDisks.epoch"),
            *("job.StartReplicationOfDisks.after", "job.finish.after"),
            *around("ResumeReplicaTask", "IrCompletionTask"),
        ],
    ),
    "disable": ([REPROTECT], DISABLE, around("VmDisableProtectionPrerequisitesCheck", "VmDisableProtection")),
}


class Driver:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(DOUBLES / "workflow_driver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, directory: Path, job: Job, key: str, fault: str = "") -> tuple[int, dict[str, Any]]:
        """Wait status of the run (9: killed) and its outcome."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        wanted = {"directory": str(directory), "scenario": job[0], "inputs": job[1], "key": key, "seconds": 120,
                  "faults": f"{fault}=kill@1" if fault else "", "knobs": KNOBS.get(job[0], {})}  # fmt: skip
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["status"], answer["outcome"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Beginnings:
    """Sites in the state that a list of jobs leaves them in; each list is run once and copied."""

    def __init__(self, driver: Driver, directory: Path) -> None:
        self._driver = driver
        self._directory = directory

    def copy_to(self, directory: Path, before: list[Job]) -> None:
        shutil.copytree(self._made(before), directory)

    def _made(self, before: list[Job]) -> Path:
        made = self._directory / "-".join(["begin", *(name for name, _ in before)])
        if not made.exists():
            if not before:
                made.mkdir()
                return made
            self.copy_to(made, before[:-1])
            status, outcome = self._driver.run(made, before[-1], f"before {len(before)}")
            assert status == 0, outcome
        return made


@dataclass
class Chain:
    """What became of one workflow: the outcome of a run in peace, and of one killed at every point (``missed``: not passed)."""

    whole: dict[str, Any]
    killed: dict[str, Any]
    missed: list[str]


def chain(directory: Path, name: str) -> Chain:
    before, job, points = WORKFLOWS[name]
    driver = Driver()
    try:
        beginnings = Beginnings(driver, directory)
        beginnings.copy_to(directory / "whole", before)
        _, whole = driver.run(directory / "whole", job, "tested")
        beginnings.copy_to(directory / "killed", before)
        missed = [
            point for point in points if not os.WIFSIGNALED(driver.run(directory / "killed", job, "tested", point)[0])
        ]
        _, killed = driver.run(directory / "killed", job, "tested")
        return Chain(whole, killed, missed)
    finally:
        driver.close()


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Chain]]]:
    """All workflows at once: they wait more than they work."""
    with ThreadPoolExecutor(len(WORKFLOWS)) as pool:
        yield {name: pool.submit(chain, tmp_path_factory.mktemp(name), name) for name in WORKFLOWS}


@pytest.mark.parametrize("name", list(WORKFLOWS))
def test_killed_at_every_step_the_end_is_the_same(chains: dict[str, Future[Chain]], name: str) -> None:
    seen = chains[name].result()
    assert {state for _, state, _, _ in seen.whole["jobs"]} == {"Succeeded"}, seen.whole["jobs"]
    assert seen.missed == []
    assert seen.killed == seen.whole
    assert seen.killed["world"]["violations"] == []


def test_killed_at_the_power_off_and_back_after_the_lease_the_source_goes_on(tmp_path: Path) -> None:
    """The power-off happened but cannot be proven to have happened inside the lease: nothing may start on premises."""
    driver = Driver()
    try:
        Beginnings(driver, tmp_path).copy_to(tmp_path / "site", [REPROTECT])
        job = ("UnplannedFailover", {**FAILOVER_INPUTS, "lease_seconds": 10.0})
        status, _ = driver.run(tmp_path / "site", job, "tested", "job.VmShutdownVmOnPrimary.after")
        assert os.WIFSIGNALED(status)
        assert json.loads((tmp_path / "site" / "sites.json").read_text())["power"] == {
            "cloud-vm": "Off",
            "home-vm": "Off",
        }
        time.sleep(10)
        for point in (
            "job.undo.before",
            "job.VmShutdownVmOnPrimary.cancelled",
            "job.VmShutdownVmOnPrimary.epoch",
            "job.undo.after",
        ):
            status, _ = driver.run(tmp_path / "site", job, "tested", point)
            assert os.WIFSIGNALED(status), point
        _, seen = driver.run(tmp_path / "site", job, "tested")
    finally:
        driver.close()
    assert seen["world"]["power"] == {"cloud-vm": "On", "home-vm": "Off"}
    assert seen["world"]["log"][-4:-2] == ["cloud-vm off", "cloud-vm on"]
    assert set(seen["world"]["log"][-2:]) == {"pass begun", "replica attached"}
    assert "home-vm on" not in seen["world"]["log"]
    assert [(name, state, errors) for name, state, _, errors in seen["jobs"]][-2:] == [
        ("UnplannedFailover", "Failed", ["FreezeLeaseLost"]),
        ("IrCompletion", "Succeeded", []),
    ]
    assert seen["item"]["protection_state"] == "Protected"
