"""Holding programs still for real with the cgroup v2 freezer: who is stopped, limits, and whoever dies (D19)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from failback.errors import FreezeError
from failback.mobility import cgroups, hold

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="freezing control groups needs root")

COUNT = "import sys, time\nn = 0\nwhile True:\n n += 1\n print(n, flush=True)\n time.sleep(0.001)\n"


class Held:
    """A control group with a program that counts into a file."""

    def __init__(self, directory: Path) -> None:
        root = cgroups.Hierarchy().root
        self.name = f"/failback-test-{uuid.uuid4().hex[:12]}"
        self.path = root / self.name[1:]
        self.path.mkdir()
        self.output = directory / "count"
        self.program = subprocess.Popen([sys.executable, "-c", COUNT], stdout=self.output.open("wb"))
        (self.path / "cgroup.procs").write_text(str(self.program.pid))
        self.until_counts()

    def count(self) -> int:
        return len(self.output.read_bytes())

    def moves(self, seconds: float = 0.05) -> bool:
        before = self.count()
        time.sleep(seconds)
        return self.count() != before

    def until_counts(self, seconds: float = 10.0) -> None:
        before, deadline = self.count(), time.monotonic() + seconds
        while self.count() == before:
            assert time.monotonic() < deadline, "the program does not run"
            time.sleep(0.005)

    @property
    def frozen(self) -> bool:
        return (self.path / "cgroup.freeze").read_text().strip() == "1"

    def close(self) -> None:
        (self.path / "cgroup.freeze").write_text("0")
        self.program.kill()
        self.program.wait()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.01)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Held]:
    held = Held(tmp_path)
    try:
        yield held
    finally:
        held.close()


def test_a_held_program_stands_still_and_goes_on(group: Held, tmp_path: Path) -> None:
    machine = hold.MachineHold(hold.HoldPlan((group.name,)), tmp_path / "run")
    try:
        times = []
        for _ in range(20):
            machine.look()
            machine.enter(1.0)
            assert not group.moves(0.01)
            machine.check()
            times.append(machine.leave())
            group.until_counts()
        entered = sorted(each.enter_milliseconds for each in times)
        print(f"enter median {entered[10]} worst {entered[-1]} ms")
        assert entered[10] < 250
        assert all(each.held_milliseconds >= 10 for each in times)
    finally:
        machine.close()
    assert not (tmp_path / "run" / hold.MEMORY_FILE).exists()


def test_the_limit_lets_go_and_breaks_the_hold(group: Held, tmp_path: Path) -> None:
    machine = hold.MachineHold(hold.HoldPlan((group.name,)), tmp_path / "run")
    try:
        machine.enter(0.2)
        group.until_counts()  # by the watchdog: this process does nothing
        assert not group.frozen
        with pytest.raises(FreezeError, match="broken"):
            machine.leave()
        assert machine.lost
        with pytest.raises(FreezeError, match="broken"):
            machine.enter(0.2)
        assert group.moves()
    finally:
        machine.close()


def test_a_hold_that_somebody_else_ended_is_broken(group: Held, tmp_path: Path) -> None:
    machine = hold.MachineHold(hold.HoldPlan((group.name,)), tmp_path / "run")
    try:
        machine.enter(5.0)
        (group.path / "cgroup.freeze").write_text("0")
        with pytest.raises(FreezeError, match="thawed by somebody else"):
            machine.leave()
    finally:
        machine.close()


def test_a_killed_watchdog_breaks_the_hold(group: Held, tmp_path: Path) -> None:
    machine = hold.MachineHold(hold.HoldPlan((group.name,)), tmp_path / "run")
    try:
        machine.enter(5.0)
        os.kill(machine.watchdog_pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while not machine.lost and time.monotonic() < deadline:
            with contextlib.suppress(FreezeError):
                machine.check()
            time.sleep(0.005)
        with pytest.raises(FreezeError, match="watchdog"):
            machine.leave()
        group.until_counts()
    finally:
        machine.close()


AGENT = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from failback.mobility.hold import HoldPlan, MachineHold
    machine = MachineHold(HoldPlan((sys.argv[1],)), Path(sys.argv[2]))
    machine.enter(60.0)
    print("held", machine.watchdog_pid, flush=True)
    time.sleep(60)
""")


@pytest.mark.parametrize("way", ["killed", "killed with its watchdog"])
def test_a_killed_agent_leaves_the_machine_running(group: Held, tmp_path: Path, way: str) -> None:
    agent = subprocess.Popen([sys.executable, "-c", AGENT, group.name, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert agent.stdout is not None
    said = agent.stdout.readline().split()
    assert said[0] == b"held" and not group.moves()
    if way != "killed":
        os.kill(int(said[1]), signal.SIGSTOP)  # so that it cannot act between the two
        agent.kill()
        os.kill(int(said[1]), signal.SIGKILL)
        agent.wait()
        assert not group.moves()
        assert hold.release_left_over(tmp_path / "run") == 1  # what the next start of the service does first
    else:
        agent.kill()
        agent.wait()
    agent.stdout.close()
    group.until_counts()
    assert not group.frozen


@pytest.mark.parametrize("name", ["/failback-test-no-such-group", "/"])
def test_a_group_that_does_not_exist_is_not_called_held(name: str, tmp_path: Path) -> None:
    with pytest.raises(FreezeError, match="no control group") as caught:
        hold.MachineHold(hold.HoldPlan((name,)), tmp_path / "run")
    assert caught.value.code == "HoldNotPossible"


def test_a_program_in_the_root_group_is_named_when_everything_shall_be_held(tmp_path: Path) -> None:
    """This test runs in such a program: a machine without a service manager cannot be held as a whole."""
    if cgroups.group_of("self"):
        pytest.skip("this process lies in a control group of its own")
    with pytest.raises(FreezeError) as caught:
        hold.MachineHold(hold.HoldPlan(), tmp_path / "run")
    assert caught.value.code == "HoldNotPossible" and "outside of every control group" in caught.value.message
