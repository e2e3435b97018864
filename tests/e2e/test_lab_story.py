"""One guest, one failed-over machine, and the ways in which its homecoming can be disturbed.

The tests run in the order of the file on one lab, because a guest's boot is what costs time here: an on-premises disk is
missing and servers are killed in mid-sync; an older point is chosen and the failback cancelled; a twin runs beside the live
source; the machine comes home and nothing is lost. Then the whole lab crashes and begins again: the source dies in the middle
of the first pass and the disks as found are booted.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from failback.fabric.interfaces import PowerState
from failback.fabric.kvm.driver import KvmFabric
from failback.lab import laboratory, machine, processes, servers, sites, state, verify, witness
from failback.lab.commands import Commands
from failback.lab.layout import (
    CLOUD_UUID,
    DATA_SERIAL,
    DEFAULT_CACHE,
    MACHINE_NAME,
    ONPREM_URI,
    ONPREM_UUID,
    SYSTEM_SERIAL,
    Layout,
)
from failback.lab.machine import Disk

pytestmark = pytest.mark.timeout(900)

TWIN_UUID = "0a0f3d5e-5d1c-4b52-8f3e-6c1e5ed9e003"
CHOICE = ("--retention-volume", servers.RETENTION_VOLUME, "--datastore", servers.DATASTORE)


class Lab:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        found = state.load(layout)
        assert found is not None
        self.ports = found.ports or {}
        self.commands = Commands(layout, self.ports)
        self.cloud, self.onprem = KvmFabric(layout.cloud_uri), KvmFabric(ONPREM_URI)

    def item(self) -> dict[str, Any]:
        found: dict[str, Any] = self.commands.ask("item", "show", MACHINE_NAME)["properties"]
        return found

    def own(self) -> dict[str, Any]:
        found: dict[str, Any] = self.item()["providerSpecificDetails"]["failback"]
        return found

    def points(self, kind: str) -> list[str]:
        points = self.commands.ask("points", MACHINE_NAME)
        return [point["name"] for point in points if point["properties"]["failback"]["kind"] == kind]

    def twin_last_seen(self) -> str:
        """When the agent's certificate was last shown by hardware that is not the live side's (D2)."""
        components = self.commands.ask("component", "list")
        return next(str(entry["twinLastSeen"]) for entry in components if "twinLastSeen" in entry)

    def cancel_running_job(self) -> None:
        def running() -> list[str]:
            jobs = self.commands.ask("job", "list")
            return [job["name"] for job in jobs if job["properties"]["state"] in ("NotStarted", "InProgress")]

        for job in running():
            self.commands.run("job", "cancel", job)
        until(lambda: not running(), 60)

    def compared(self) -> float:
        """How much of the pass is compared, 0 to 1."""
        disks = self.item()["providerSpecificDetails"]["protectedDisks"]
        total = sum(disk["resyncTotalBytes"] for disk in disks)
        return sum(disk["resyncProcessedBytes"] for disk in disks) / total if total else 0.0

    def kill(self, role: str) -> None:
        found = state.load(self.layout)
        assert found is not None
        process = found.process(role)
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        laboratory.restart_role(self.layout, role)

    def await_protected(self) -> None:
        until(lambda: self.item()["protectionState"] == "Protected", 400)

    def await_live_commits(self) -> None:
        newest = witness.newest(self.layout.witness_file, CLOUD_UUID)
        laboratory.await_commit(self.layout, CLOUD_UUID, newest.number if newest else 0)

    def expect_home_complete(self) -> None:
        """Disks equal to the cloud's byte by byte, clean, and every acknowledged commit of the cloud there."""
        layout = self.layout
        for cloud, home in (
            (layout.cloud_system_disk, layout.onprem_system_extent),
            (layout.cloud_data_disk, layout.onprem_data_disk),
        ):
            assert verify.compare_disks(cloud, home).identical
            assert verify.file_system_problem(home) == ""
        content = verify.read_ledger(layout.onprem_data_disk, layout.directory / "scratch")
        assert content.problem == ""
        told = [heard for heard in witness.read(layout.witness_file) if heard.side == CLOUD_UUID]
        assert told
        assert verify.lost(told, content) == []


def until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    layout = Layout(Path("/var/lib/failback-e2e"), Path(os.environ.get("FAILBACK_LAB_CACHE", DEFAULT_CACHE)))
    laboratory.up(layout, print)
    try:
        yield Lab(layout)
    finally:
        if layout.logs.exists():
            shutil.copytree(layout.logs, Path("e2e-logs"), dirs_exist_ok=True)
        sites.remove_domain(layout.cloud_uri, TWIN_UUID)
        laboratory.down(layout, print)


def test_missing_disk_is_created_and_servers_may_be_killed_in_the_first_pass(lab: Lab) -> None:
    lab.layout.onprem_data_disk.unlink()
    lab.commands.run("item", "import", MACHINE_NAME)
    lab.commands.await_ready(MACHINE_NAME, *CHOICE)
    lab.commands.run("reprotect", MACHINE_NAME, *CHOICE, "--yes", "--no-wait")
    until(lambda: lab.compared() > 0.1, 300)
    for role in (servers.PROCESS_SERVER, servers.MASTER_TARGET, servers.CONFIGURATION_SERVER):
        lab.kill(role)
        time.sleep(2)
    lab.await_protected()
    assert lab.onprem.power_state(ONPREM_UUID) is PowerState.OFF


def test_older_point_is_exact_and_a_cancel_loses_nothing(lab: Lab) -> None:
    lab.commands.run("point", "create", MACHINE_NAME)
    lab.await_live_commits()
    application_consistent = lab.points("AppConsistent")[0]  # the newest: the policy may have made one of its own
    lab.commands.run("failback", MACHINE_NAME, "--point", application_consistent, "--yes")
    content = verify.read_ledger(lab.layout.onprem_data_disk, lab.layout.directory / "scratch")
    assert content.problem == ""
    newest = witness.newest(lab.layout.witness_file, CLOUD_UUID)
    assert newest is not None
    assert laboratory.ROWS_BEFORE_FAILOVER < content.newest < newest.number
    assert verify.file_system_problem(lab.layout.onprem_system_extent) == ""
    assert laboratory.await_commit(lab.layout, ONPREM_UUID, content.newest).number == content.newest + 1
    for disk in (lab.layout.cloud_system_disk, lab.layout.cloud_data_disk):
        machine.copy_sparse(disk, disk.with_name("twin-" + disk.name))
    lab.commands.run("cancel", MACHINE_NAME, "--yes")
    lab.await_live_commits()
    lab.await_protected()


def test_twin_beside_the_live_source_writes_nothing_and_the_machine_comes_home(lab: Lab) -> None:
    layout = lab.layout
    disks = (
        Disk(layout.cloud_datastore / f"twin-{layout.cloud_system_disk.name}", "vda", SYSTEM_SERIAL),
        Disk(layout.cloud_datastore / f"twin-{layout.cloud_data_disk.name}", "vdb", DATA_SERIAL),
    )
    text = machine.definition(
        name="twin", uuid=TWIN_UUID, site="cloud", disks=disks, kernel=layout.boot / "vmlinuz",
        initial_ram_disk=layout.boot / "initrd", console=layout.console("twin"),
    )  # fmt: skip
    machine.define(layout.cloud_uri, text)
    seen_before = lab.twin_last_seen()
    lab.cloud.power_on(TWIN_UUID)
    laboratory.await_commit(layout, TWIN_UUID, 0)
    until(lambda: lab.twin_last_seen() != seen_before, 120)
    time.sleep(5)
    assert lab.item()["protectionState"] == "Protected"
    lab.cloud.power_off(TWIN_UUID)
    lab.commands.run("failback", MACHINE_NAME, "--point", "latest", "--yes")
    lab.expect_home_complete()
    lab.commands.run("commit", MACHINE_NAME, "--yes")
    newest = witness.newest(layout.witness_file, ONPREM_UUID)
    laboratory.await_commit(layout, ONPREM_UUID, newest.number if newest else 0)
    assert not list(layout.onprem_datastore.glob("*.layer"))
    assert lab.item()["protectionState"] == "UnplannedFailoverCommitted"


def test_source_dies_in_the_first_pass_and_the_disks_as_found_are_booted(lab: Lab) -> None:
    """A second life of the lab after a crash of all of it."""
    crashed = state.load(lab.layout)
    assert crashed is not None
    for process in crashed.processes:
        os.kill(process.pid, signal.SIGKILL)
    laboratory.up(lab.layout, print)
    assert not any(processes.alive(process) for process in crashed.processes)
    again = Lab(lab.layout)
    again.commands.run("item", "import", MACHINE_NAME)
    again.commands.run("item", "set", MACHINE_NAME, "--bandwidth-limit", "100KB/s")  # else the pass is over at once
    again.commands.await_ready(MACHINE_NAME, *CHOICE)
    again.commands.run("reprotect", MACHINE_NAME, *CHOICE, "--yes", "--no-wait")
    until(lambda: again.compared() > 0.5, 200)
    again.cloud.power_off(CLOUD_UUID)
    assert again.item()["protectionState"] != "Protected"
    (before,) = again.points("BeforeReprotect")
    again.cancel_running_job()
    again.commands.run("failback", MACHINE_NAME, "--point", before, "--source-lost", "--yes")
    first = laboratory.await_commit(again.layout, ONPREM_UUID, 0)
    assert first.number == laboratory.ROWS_BEFORE_FAILOVER + 1
    content = verify.read_ledger(again.layout.onprem_data_disk, again.layout.directory / "scratch")
    assert (content.problem, content.newest) == ("", laboratory.ROWS_BEFORE_FAILOVER)
    assert again.cloud.power_state(CLOUD_UUID) is PowerState.OFF
    again.commands.run("cancel", MACHINE_NAME, "--yes")
    again.await_live_commits()
    again.await_protected()
