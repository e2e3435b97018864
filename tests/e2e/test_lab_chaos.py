"""The main story on a real guest while its servers are killed every few seconds, and its mobility service too.

A supervisor restarts what dies, as systemd's Restart=always does; a killer sends SIGKILL to a randomly chosen server every 1 to
4 s from before the import until after the commit. The mobility service is killed by chance while the machine is compared
and replicates, and deliberately in the middle of a freeze. What an operator does is repeated only when the command
line could not reach the server, or when an operation ended with an error that says it may be repeated.

``FAILBACK_CHAOS_SEED`` chooses the seed; it is printed, with the time of each chapter and the number of kills.
``FAILBACK_CHAOS_CANCEL=1`` adds a failback to a moment between two points, cancelled again (two minutes more);
``FAILBACK_CHAOS_LOGS`` names a folder that keeps the lab's logs.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from failback.errors import FailbackError
from failback.fabric.interfaces import PowerState
from failback.fabric.kvm.driver import KvmFabric
from failback.lab import laboratory, machine, processes, servers, state, verify, witness
from failback.lab.commands import Commands
from failback.lab.layout import CLOUD_UUID, DEFAULT_CACHE, MACHINE_NAME, ONPREM_URI, ONPREM_UUID, Layout

pytestmark = pytest.mark.timeout(900)

ROLES = (servers.CONFIGURATION_SERVER, servers.PROCESS_SERVER, servers.MASTER_TARGET)
CHOICE = ("--retention-volume", servers.RETENTION_VOLUME, "--datastore", servers.DATASTORE)
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 4.0
AGENT_SECONDS = (10.0, 20.0)
LONGEST_MARK_SECONDS = 60
CLOCKS_SECONDS = 3.0
POINTS_AWAITED = 4
LEASE_LOST = "FreezeLeaseLost"
RESTARTS = 2


class Chaos:
    """Kills the lab's servers and its agent, and starts the servers again."""

    def __init__(self, layout: Layout, seed: int) -> None:
        self.layout = layout
        self.kills: Counter[str] = Counter()
        self.deaths: list[str] = []
        """Ends of servers that nobody killed: each is a defect."""
        self.kill_agents = False
        self.down: set[str] = set()
        """Servers that are not started again for now."""
        self._chance = random.Random(seed)
        self._killed: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def __enter__(self) -> Chaos:
        for work in (self._supervise, self._kill_servers, self._kill_agent):
            thread = threading.Thread(target=self._guarded, args=(work,), name=work.__name__)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.down.clear()
        self._revive()

    def kill(self, role: str) -> None:
        with self._lock:
            found = self._process(role)
            if processes.alive(found):
                self._killed.add((found.pid, found.start_ticks))
                os.kill(found.pid, signal.SIGKILL)
                self.kills[role] += 1

    def kill_agent(self) -> None:
        """At the ledger's next commit, or at once while it is held."""
        partial = self.layout.drill_file.with_suffix(".partial")
        partial.write_text("kill-agent\n")
        partial.rename(self.layout.drill_file)
        self.kills["mobility"] += 1

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:
            self.failures.append(error)

    def _process(self, role: str) -> processes.Recorded:
        found = state.load(self.layout)
        assert found is not None
        process = found.process(role)
        assert process is not None
        return process

    def _supervise(self) -> None:
        while not self._stop.wait(0.3):
            self._revive()

    def _revive(self) -> None:
        for role in ROLES:
            with self._lock:
                gone = self._process(role)
                if role in self.down or processes.alive(gone):
                    continue
                if (gone.pid, gone.start_ticks) not in self._killed:
                    self.deaths.append(f"{role}: {processes.tail(Path(gone.log), 5)}")
                processes.stop(gone)
                found = state.load(self.layout)
                assert found is not None
                state.save(self.layout, found.with_process(servers.start_role(self.layout, role)))

    def _kill_servers(self) -> None:
        while not self._stop.wait(self._chance.uniform(SHORTEST_SECONDS, LONGEST_SECONDS)):
            self.kill(self._chance.choice(ROLES))

    def _kill_agent(self) -> None:
        chance = random.Random(self._chance.random())
        while not self._stop.wait(chance.uniform(*AGENT_SECONDS)):
            if self.kill_agents:
                self.kill_agent()


class StubbornCommands(Commands):
    """An operator who tries again when the server does not answer, and only then."""

    def _start(self, arguments: tuple[str, ...], timeout: float, *, capture: bool) -> subprocess.CompletedProcess[str]:
        deadline = time.monotonic() + 90
        while True:
            done = Commands._start(self, arguments, timeout, capture=True)
            if done.returncode == 0 or "error PeerUnavailable" not in done.stderr or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if not capture:
            print(done.stdout, done.stderr, sep="", flush=True)
        return done

    def begin(self, *arguments: str) -> str:
        """Start an operation; the id of its job."""
        print(f"\n$ failback {' '.join(arguments)}", flush=True)
        agreed = () if arguments[0] == "point" else ("--yes",)
        done = self._start((*arguments, *agreed, "--no-wait"), 120, capture=True)
        if done.returncode:
            raise FailbackError(done.stderr.strip(), code="LabCommand")
        return done.stdout.split()[-1]

    def outcome(self, job_id: str) -> tuple[str, list[str]]:
        """How the job ended, and the codes of its errors."""
        self._start(("job", "watch", job_id), 400, capture=False)
        properties = self.ask("job", "show", job_id)["properties"]
        codes = [error["serviceErrorDetails"]["code"] for error in properties["errors"]]
        return str(properties["state"]), codes


class Story:
    def __init__(self, layout: Layout, chaos: Chaos) -> None:
        found = state.load(layout)
        assert found is not None
        self.layout, self.chaos = layout, chaos
        self.commands = StubbornCommands(layout, found.ports or {})
        self.cloud, self.onprem = KvmFabric(layout.cloud_uri), KvmFabric(ONPREM_URI)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        began = time.monotonic()
        print(f"\n=== {title}", flush=True)
        yield
        self.seconds[title] = round(time.monotonic() - began, 1)
        assert self.chaos.deaths == []
        assert self.chaos.failures == []

    def item_state(self) -> str:
        return str(self.commands.ask("item", "show", MACHINE_NAME)["properties"]["protectionState"])

    def succeed(self, *arguments: str) -> None:
        """The job goes on by itself over every kill. One that had to give up (an agent killed in mid-freeze thaws, and that
        mark is lost) says so as retryable, and is restarted as an operator would."""
        job = self.commands.begin(*arguments)
        reached, codes = self.commands.outcome(job)
        for _ in range(RESTARTS):
            if reached == "Succeeded":
                break
            print(f"restarted after {codes}", flush=True)
            self.commands.run("job", "restart", job, "--no-wait")
            reached, codes = self.commands.outcome(job)
        assert reached == "Succeeded", codes

    def await_state(self, wanted: str, seconds: float = 240) -> None:
        self.until(lambda: self.item_state() == wanted, seconds)

    def until(self, holds: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not within {seconds} s"
            time.sleep(0.3)

    def await_live_commits(self, side: str) -> None:
        newest = witness.newest(self.layout.witness_file, side)
        laboratory.await_commit(self.layout, side, newest.number if newest else 0)

    def expect_sides(self, cloud: PowerState, onprem: PowerState) -> None:
        assert (self.cloud.power_state(CLOUD_UUID), self.onprem.power_state(ONPREM_UUID)) == (cloud, onprem)

    def expect_home_complete(self) -> int:
        """Exactly one side runs, disks equal, clean, every acknowledged commit there. Returns how many there were."""
        self.expect_sides(PowerState.OFF, PowerState.ON)
        layout = self.layout
        told = [heard for heard in witness.read(layout.witness_file) if heard.side == CLOUD_UUID]
        content = verify.read_ledger(layout.onprem_data_disk, layout.directory / "scratch")
        assert content.problem == ""
        assert verify.lost(told, content) == []
        for cloud, home in (
            (layout.cloud_system_disk, layout.onprem_system_extent),
            (layout.cloud_data_disk, layout.onprem_data_disk),
        ):
            assert verify.compare_disks(cloud, home).identical
            assert verify.file_system_problem(home) == ""
        _, damaged = verify.damaged_files(layout.onprem_system_extent, layout.directory / "scratch")
        assert damaged == []
        return len({heard.number for heard in told})


@pytest.fixture
def layout() -> Iterator[Layout]:
    where = Layout(Path("/var/lib/failback-chaos"), Path(os.environ.get("FAILBACK_LAB_CACHE", DEFAULT_CACHE)))
    laboratory.up(where, print)
    try:
        yield where
    finally:
        keep = os.environ.get("FAILBACK_CHAOS_LOGS")
        if keep:
            subprocess.run(["cp", "-r", str(where.logs), keep], check=False)
        laboratory.down(where, print)


def _fail_back_and_lose_the_lease(story: Story) -> None:
    """The agent dies while its machine is frozen: the watchdog thaws it, nothing starts on premises, the source goes on."""
    layout, chaos = story.layout, story.chaos
    held = witness.held_file(layout.drill_file)
    held.unlink(missing_ok=True)
    freezes = _freezes(layout)
    job = story.commands.begin("failback", MACHINE_NAME, "--point", "latest")
    story.until(held.exists, 120)
    chaos.down.add(servers.MASTER_TARGET)  # so that the last mark cannot land: the machine stays frozen
    chaos.kill(servers.MASTER_TARGET)
    story.until(lambda: _freezes(layout) > freezes, 60)
    time.sleep(1)
    newest = witness.newest(layout.witness_file, CLOUD_UUID)
    chaos.kill_agent()
    chaos.down.discard(servers.MASTER_TARGET)
    assert newest is not None
    laboratory.await_commit(layout, CLOUD_UUID, newest.number, 60)
    ended, codes = story.commands.outcome(job)
    assert (ended, codes[-1:]) == ("Failed", [LEASE_LOST])
    story.expect_sides(PowerState.ON, PowerState.OFF)
    story.await_state("Protected")


def _fail_back_to_a_moment_and_cancel(story: Story) -> None:
    moment = _between_two_points(story)
    with story.chapter("failback to a moment"):
        story.succeed("failback", MACHINE_NAME, "--point", moment.isoformat().replace("+00:00", "Z"))
        story.expect_sides(PowerState.OFF, PowerState.ON)
        _expect_ledger_of(story, moment)
    with story.chapter("cancel"):
        story.succeed("cancel", MACHINE_NAME)
        story.await_live_commits(CLOUD_UUID)
        story.expect_sides(PowerState.ON, PowerState.OFF)
        story.await_state("Protected")


def _between_two_points(story: Story) -> datetime:
    """The middle between two neighbouring points that are made from now on, while the ledger commits; the source's clock."""

    def times() -> list[datetime]:
        points = story.commands.ask("points", MACHINE_NAME)
        return sorted(datetime.fromisoformat(point["properties"]["recoveryPointTime"]) for point in points)

    newest = times()[-1]
    story.until(lambda: sum(moment > newest for moment in times()) >= POINTS_AWAITED, 90)
    new = [moment for moment in times() if moment > newest]
    earlier, later = max(pairwise(new), key=lambda pair: pair[1] - pair[0])
    return earlier + (later - earlier) / 2


def _expect_ledger_of(story: Story, moment: datetime) -> None:
    """What was acknowledged before the moment is there, what came after it is not (within the two clocks' difference)."""
    copy = story.layout.directory / "moment.raw"  # as after a power cut: the file system's journal is played back first
    machine.copy_sparse(story.layout.onprem_data_disk, copy)
    subprocess.run(["e2fsck", "-y", "-E", "journal_only", str(copy)], capture_output=True, check=False)
    assert verify.file_system_problem(copy) == ""
    content = verify.read_ledger(copy, story.layout.directory / "scratch")
    assert content.problem == ""
    boot_wall = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    told = {heard.number: heard for heard in witness.read(story.layout.witness_file) if heard.side == CLOUD_UUID}
    after = {number: boot_wall + heard.at - moment.timestamp() for number, heard in told.items()}
    newest = max(number for number in told if number in content.rows)
    print(f"asked for {moment}: the newest commit there was acknowledged {after[newest]:+.2f} s from it", flush=True)
    assert verify.lost([told[number] for number in told if after[number] < -CLOCKS_SECONDS], content) == []
    assert [number for number in content.rows if after.get(number, -CLOCKS_SECONDS) > CLOCKS_SECONDS] == []
    assert newest < max(told)


def _freezes(layout: Layout) -> int:
    """How many freezes with the limit of a lease have begun; an app-consistent one has a shorter limit."""
    limits = re.findall(r"freezing .*limit_seconds=(\d+)", layout.console("cloud").read_text(errors="replace"))
    return sum(int(limit) > LONGEST_MARK_SECONDS for limit in limits)


def test_the_machine_comes_home_while_everything_is_killed(layout: Layout) -> None:
    seed = int(os.environ.get("FAILBACK_CHAOS_SEED") or random.SystemRandom().randrange(10_000))
    print(f"\nchaos with seed {seed}", flush=True)
    with Chaos(layout, seed) as chaos:
        story = Story(layout, chaos)
        try:
            acknowledged = _tell(story)
        finally:
            print(f"\nseed {seed}, kills {dict(chaos.kills)}, seconds {story.seconds}", flush=True)
    print(f"{acknowledged} acknowledged commits, 0 lost", flush=True)
    assert all(chaos.kills[role] > 0 for role in (*ROLES, "mobility"))
    assert chaos.deaths == []


def _tell(story: Story) -> int:
    commands, chaos, layout = story.commands, story.chaos, story.layout
    with story.chapter("import and reprotect"):
        commands.run("item", "import", MACHINE_NAME)
        commands.await_ready(MACHINE_NAME, *CHOICE)
        chaos.kill_agents = True
        chaos.kill_agent()
        story.succeed("reprotect", MACHINE_NAME, *CHOICE)
        story.await_state("Protected")
    with story.chapter("replicate"):
        time.sleep(10)
        chaos.kill_agents = False
        story.await_state("Protected")
        story.succeed("point", "create", MACHINE_NAME)
    with story.chapter("a failback whose lease is lost"):
        _fail_back_and_lose_the_lease(story)
    if os.environ.get("FAILBACK_CHAOS_CANCEL"):
        _fail_back_to_a_moment_and_cancel(story)
    with story.chapter("failback"):
        story.succeed("failback", MACHINE_NAME, "--point", "latest")
        acknowledged = story.expect_home_complete()
    with story.chapter("commit"):
        story.succeed("commit", MACHINE_NAME)
        story.await_live_commits(ONPREM_UUID)
        assert story.item_state() == "UnplannedFailoverCommitted"
        assert not list(layout.onprem_datastore.glob("*.layer"))
        assert story.cloud.power_state(CLOUD_UUID) is PowerState.OFF
    return acknowledged
