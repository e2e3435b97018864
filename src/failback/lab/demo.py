"""``make demo``: a machine that failed over to the cloud comes home, and everything that is claimed of it is checked.

The story is told in chapters; each is timed and adds checks to the report. The product is driven through its command
line only. Whatever happens (a failed check, an error, Ctrl-C), the lab is taken down and the exit status says it.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from failback.errors import FailbackError
from failback.fabric.interfaces import PowerState
from failback.fabric.kvm.driver import KvmFabric
from failback.lab import laboratory, servers, verify, witness
from failback.lab.commands import Commands
from failback.lab.layout import CLOUD_UUID, MACHINE_NAME, ONPREM_URI, ONPREM_UUID, Layout
from failback.lab.report import Check, Report, versions

COMMITTING_SECONDS = 15.0
_POLL_SECONDS = 1.0


@dataclass(slots=True)
class Story:
    layout: Layout
    report: Report
    commands: Commands
    onprem: KvmFabric = field(default_factory=lambda: KvmFabric(ONPREM_URI))
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        """Time a chapter; it is in the report also when it failed."""
        began = time.monotonic()
        print(f"\n=== [{began - self.started:5.0f} s] {title}", flush=True)
        try:
            yield
        finally:
            self.report.phases_s[title] = round(time.monotonic() - began, 1)

    def check(self, name: str, passed: bool, detail: str) -> None:
        self.report.checks.append(Check(name, passed, detail))
        print(f"  {'pass' if passed else 'FAIL'}  {name}: {detail}", flush=True)

    def item(self) -> dict[str, Any]:
        answer = self.commands.ask("item", "show", MACHINE_NAME)
        found: dict[str, Any] = answer.get("properties", answer)
        return found

    def own_figures(self) -> dict[str, Any]:
        """What only our own clients read: lag in milliseconds, bytes, the stream's place."""
        own: dict[str, Any] = self.item()["providerSpecificDetails"]["failback"]
        return own


def run(layout: Layout, report_path: Path, *, keep: bool = False) -> int:
    """Tell the story. Returns the exit status: 0 when every check passed."""
    report = Report(versions=versions())
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        _tell(layout, report)
        report.ok = bool(report.checks) and all(check.passed for check in report.checks)
    except KeyboardInterrupt:
        report.failure = "interrupted"
    except (FailbackError, subprocess.SubprocessError, OSError, LookupError, ValueError) as error:
        remedy = getattr(error, "remedy", "")
        report.failure = f"{error}" + (f" (what to do: {remedy})" if remedy else "")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end(layout, report, report_path, keep)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, previous)
    print(report.table(), flush=True)
    return 0 if report.ok else 1


def _tell(layout: Layout, report: Report) -> None:
    began = time.monotonic()
    print("=== two sites, the servers, and a machine that runs in the cloud", flush=True)
    lab = laboratory.up(layout, lambda sentence: print(f"  · {sentence}", flush=True))
    report.phases_s["lab up"] = round(time.monotonic() - began, 1)
    story = Story(layout, report, Commands(layout, lab.ports or {}), started=began)
    with story.chapter("1 import the machine that failed over"):
        _import(story)
    with story.chapter("2 readiness"):
        process_server, master_target = _readiness(story)
    with story.chapter("3 reprotect: cloud to on premises"):
        _reprotect(story, process_server, master_target)
    with story.chapter("4 replicating while the ledger commits"):
        _replicate(story)
    with story.chapter("5 failback"):
        _fail_back(story)
    with story.chapter("6 what came home"):
        _verify(story)
    with story.chapter("7 commit"):
        _commit(story)


def _import(story: Story) -> None:
    cloud = ("--cloud", f"cloud:{MACHINE_NAME}")
    said = story.commands.refused(
        "item", "import", "born-in-the-cloud", *cloud, "--on-premises", "onprem:no-such-machine"
    )
    story.check(
        "a machine without an on-premises origin is refused",
        bool(said),
        said.partition("\n")[0].partition(" (")[0] or "it was accepted",
    )
    story.commands.await_components()
    story.commands.run("item", "import", MACHINE_NAME, *cloud, "--on-premises", f"onprem:{MACHINE_NAME}")


def _readiness(story: Story) -> tuple[str, str]:
    """Returns the ids of process server and master target."""
    components = story.commands.await_components()
    process_server, master_target = components[servers.PROCESS_SERVER], components[servers.MASTER_TARGET]
    choice = _choice(process_server, master_target)
    story.commands.await_ready(MACHINE_NAME, *choice)
    story.commands.run("readiness", MACHINE_NAME, *choice)
    return process_server, master_target


def _reprotect(story: Story, process_server: str, master_target: str) -> None:
    story.commands.run("reprotect", MACHINE_NAME, *_choice(process_server, master_target), "--yes")
    _until(lambda: story.item()["protectionState"] == "Protected", 600, "the item did not become protected")
    done = subprocess.run(["virsh", "start", MACHINE_NAME], capture_output=True, text=True, check=False, timeout=60)
    print(f"\n$ virsh start {MACHINE_NAME}\n{done.stderr.strip() or done.stdout.strip()}", flush=True)
    refused = done.returncode != 0 and story.onprem.power_state(ONPREM_UUID) is PowerState.OFF
    story.check("the hypervisor refuses to start the replica", refused, _last_line(done.stderr) or "it started")
    replica = story.layout.onprem_data_disk.with_name(story.layout.onprem_data_disk.name + ".replica")
    command = ["qemu-io", "-f", "raw", "-c", "length", str(replica)]
    opened = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    locked = opened.returncode != 0 and "lock" in opened.stderr
    story.check("QEMU cannot open the replica's file either", locked, _last_line(opened.stderr) or "it opened")


def _replicate(story: Story) -> None:
    before = witness.newest(story.layout.witness_file, CLOUD_UUID)
    time.sleep(COMMITTING_SECONDS)
    story.commands.run("point", "create", MACHINE_NAME)
    after = witness.newest(story.layout.witness_file, CLOUD_UUID)
    committed = (after.number if after else 0) - (before.number if before else 0)
    story.check("the ledger went on committing", committed > 0, f"{committed} commits during this chapter")
    story.commands.run("item", "show", MACHINE_NAME)
    story.commands.run("points", MACHINE_NAME)
    story.commands.run("job", "list")
    points = story.commands.ask("points", MACHINE_NAME)
    entries = points["value"] if isinstance(points, dict) else points
    story.report.recovery_points = len(entries)
    app_consistent = [point for point in entries if "appconsistent" in str(point).lower().replace("-", "")]
    story.check("there is an app-consistent point", bool(app_consistent), f"{len(entries)} recovery points")
    own = story.own_figures()
    lag = own["lagMilliseconds"] or {}
    story.report.rpo_ms = {name: float(lag[name]) for name in ("p50", "p99") if name in lag}
    story.report.bytes_changed, story.report.bytes_sent = own["bytesChanged"], own["bytesSent"]
    story.check("the lag was measured", bool(story.report.rpo_ms), str(story.report.rpo_ms))


def _fail_back(story: Story) -> None:
    story.commands.run("failback", MACHINE_NAME, "--point", "latest", "--yes")
    cloud = KvmFabric(story.layout.cloud_uri).power_state(CLOUD_UUID)
    onprem = story.onprem.power_state(ONPREM_UUID)
    states = f"cloud {cloud.value}, on premises {onprem.value}"
    story.check(
        "the machine runs on premises, and only there", (cloud, onprem) == (PowerState.OFF, PowerState.ON), states
    )


def _verify(story: Story) -> None:
    layout, report = story.layout, story.report
    pairs = (
        ("system disk", layout.cloud_system_disk, layout.onprem_system_extent),
        ("data disk", layout.cloud_data_disk, layout.onprem_data_disk),
    )
    identical, clean = True, True
    for name, cloud, onprem in pairs:
        difference = verify.compare_disks(cloud, onprem)
        identical &= difference.identical
        detail = f"{difference.sizes[1] >> 20} MiB equal" if difference.identical else f"{difference}"
        story.check(f"{name} identical to the cloud's at the last mark", difference.identical, detail)
        problems = [problem for disk in (cloud, onprem) if (problem := verify.file_system_problem(disk))]
        clean &= not problems
        story.check(f"file system of the {name} clean", not problems, problems[0] if problems else "e2fsck -fn")
    report.disks_identical, report.filesystems_clean = identical, clean
    content = verify.read_ledger(layout.onprem_data_disk, layout.directory / "scratch")
    acknowledged = [heard for heard in witness.read(layout.witness_file) if heard.side == CLOUD_UUID]
    missing = verify.lost(acknowledged, content)
    report.acknowledged_commits = len({heard.number for heard in acknowledged})
    report.found_commits = report.acknowledged_commits - len(missing)
    report.lost_commits = len(missing)
    story.check(
        "no acknowledged commit is lost",
        not missing,
        f"{report.acknowledged_commits} acknowledged, {len(missing)} lost",
    )
    story.check(
        "the ledger is whole", not content.problem, content.problem or f"rows 1 to {content.newest}, checksums right"
    )
    files, damaged = verify.damaged_files(layout.onprem_system_extent, layout.directory / "scratch")
    story.check(
        "the files on the system disk are whole", files > 0 and not damaged, f"{files} files, damaged: {damaged}"
    )
    first = laboratory.await_commit(layout, ONPREM_UUID, 0)
    last = max(acknowledged, key=lambda heard: heard.at)
    report.downtime_s = round(first.at - last.at, 1)
    story.check(
        "the ledger goes on at home", first.number == content.newest + 1,
        f"row {first.number} after {content.newest}, {report.downtime_s} s without a commit",
    )  # fmt: skip


def _commit(story: Story) -> None:
    story.commands.run("commit", MACHINE_NAME, "--yes")
    layers = list(story.layout.onprem_datastore.glob("*.layer"))
    running = story.onprem.power_state(ONPREM_UUID) is PowerState.ON
    story.check("the disposable layers are merged and gone", not layers and running, f"{len(layers)} layers left")
    newest = witness.newest(story.layout.witness_file, ONPREM_UUID)
    heard = laboratory.await_commit(story.layout, ONPREM_UUID, newest.number if newest else 0, 30)
    story.check("the ledger commits on after the merge", True, f"row {heard.number}")
    state = story.item()["protectionState"]
    story.check("the item is committed", state == "UnplannedFailoverCommitted", state)


def _choice(process_server: str, master_target: str) -> tuple[str, ...]:
    return (
        "--process-server", process_server, "--master-target", master_target,
        "--retention-volume", servers.RETENTION_VOLUME, "--datastore", servers.DATASTORE,
    )  # fmt: skip


def _until(holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise FailbackError(f"{otherwise} within {seconds:.0f} s", code="LabTimeout")
        time.sleep(_POLL_SECONDS)


def _end(layout: Layout, report: Report, report_path: Path, keep: bool) -> None:
    report.write(report_path)
    if not report.ok and layout.logs.exists():
        _keep_logs(layout, report_path)
    if keep:
        print(f"\nThe lab stays in {layout.directory}; 'failback lab down' removes it.", flush=True)
        return
    try:
        laboratory.down(layout, lambda sentence: print(f"  · {sentence}", flush=True))
    except FailbackError as error:
        report.ok = False
        report.failure = report.failure or f"the lab could not be removed: {error}"
    report.write(report_path)


def _keep_logs(layout: Layout, report_path: Path) -> None:
    """A failed demo's logs outlive its lab: beside the report."""
    kept = report_path.with_name(report_path.stem + "-logs")
    kept.mkdir(exist_ok=True)
    for log in layout.logs.glob("*.log"):
        (kept / log.name).write_bytes(log.read_bytes())
    print(f"\nThe logs are in {kept}", flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""
