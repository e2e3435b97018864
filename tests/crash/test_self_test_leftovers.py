"""An agent that dies during its first self-test leaves pins behind; the next start removes exactly those."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from failback.mobility import selftest
from failback.mobility.capture.block_device import loop_device

BPFFS = Path("/sys/fs/bpf")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="bpffs needs root")


def test_pins_of_a_killed_self_test_are_removed_and_those_of_a_living_one_stay() -> None:
    program = "from failback.mobility.selftest import self_test_without_capture; self_test_without_capture()"
    environment = dict(os.environ, FAILBACK_FAULTS="self_test.pinned=kill@1")
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    assert process.wait(120) == -9
    left = BPFFS / f"{selftest.PREFIX}{process.pid}"
    assert any(left.iterdir())
    living = BPFFS / f"{selftest.PREFIX}{os.getppid()}"
    living.mkdir()
    try:
        assert left.name in selftest.remove_leftovers()
        assert not left.exists()
        assert living.exists()
        assert selftest.remove_leftovers() == []
    finally:
        living.rmdir()


def test_the_loop_device_of_a_dead_process_goes_by_itself() -> None:
    """The kernel clears it with the last descriptor, so a killed self-test holds none for ever."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with loop_device(1 << 20) as device:
            os.write(writer, device.encode())
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    device = os.read(reader, 64).decode()
    os.close(reader)
    os.close(writer)
    backing = Path("/sys/block", device.removeprefix("/dev/"), "loop/backing_file")
    deadline = time.monotonic() + 30
    while backing.exists() and "failback-self-test" in backing.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not backing.exists() or "failback-self-test" not in backing.read_text()
