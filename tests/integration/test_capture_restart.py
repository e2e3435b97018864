"""The capture outlives its agent: kill -9 under load, at any place, and the replica still becomes identical (D5, D8, D11)."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from capture_disk import disk_of, is_identical, loop_disk, pin_directory, seeded_replica, sh

from failback.mobility.capture.session import CaptureSession
from failback.protocol.extents import EXTENT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="capturing writes needs root")

CONSUMER = Path(__file__).with_name("capture_consumer.py")
KILLS = 4
_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def no_agent_stays() -> Iterator[None]:
    yield
    for agent in _started:
        agent.kill()
        agent.wait()
    _started.clear()


def start(device: str, replica: Path, pins: Path, ring_bytes: int, faults: str = "") -> subprocess.Popen[str]:
    agent = subprocess.Popen(
        [sys.executable, str(CONSUMER), device, str(replica), str(pins), str(ring_bytes), str(128 << 10)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "FAILBACK_FAULTS": faults},
    )  # fmt: skip
    _started.append(agent)
    return agent


def first_line(agent: subprocess.Popen[str]) -> dict[str, object]:
    assert agent.stdout is not None
    line: dict[str, object] = json.loads(agent.stdout.readline())
    return line


@pytest.mark.parametrize("ring_bytes", [32 << 20, 512 << 10], ids=["roomy-ring", "overflowing-ring"])
def test_killed_agents_lose_nothing(tmp_path: Path, ring_bytes: int) -> None:
    with loop_disk(Path("/dev/shm"), 96) as (device, _), pin_directory() as pins:
        seeded_replica(device, tmp_path / "replica").close()
        agent = start(device, tmp_path / "replica", pins, ring_bytes)
        assert not first_line(agent)["reattached"]
        load = subprocess.Popen(
            ["fio", "--output=/dev/null", "--name=w", f"--filename={device}", "--rw=randwrite", "--bsrange=4k-128k", "--size=96m",
             "--time_based", "--runtime=5", "--ioengine=libaio", "--direct=1", "--iodepth=8", "--rate_iops=800"],
        )  # fmt: skip
        for _ in range(KILLS):
            time.sleep(random.uniform(0.4, 0.8))
            agent.kill()
            agent.wait()
            agent = start(device, tmp_path / "replica", pins, ring_bytes)
            assert first_line(agent)["reattached"]
        assert load.wait() == 0
        output, _ = agent.communicate("stop\n", timeout=60)
        assert agent.returncode == 0
        if ring_bytes < 1 << 20:
            assert json.loads(output)["drops"] > 0  # of all agents: the counter is pinned
        assert is_identical(device, tmp_path / "replica")


@pytest.mark.parametrize("place", ["capture.reread_pending", "capture.reread_before_read"])
def test_a_reread_that_dies_is_done_again(tmp_path: Path, place: str) -> None:
    with loop_disk(tmp_path, 16) as (device, _), pin_directory() as pins:
        subprocess.run(
            ["dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=8", "oflag=direct"],
            check=True,
            capture_output=True,
        )
        (tmp_path / "replica").write_bytes(os.urandom(16 << 20))
        session = CaptureSession.open([disk_of(device)], ring_bytes=1 << 20, pin_directory=pins)
        session.mark_all_dirty(0)
        session.close()
        agent = start(device, tmp_path / "replica", pins, 1 << 20, f"{place}=kill@2")
        assert first_line(agent)["reattached"]
        assert agent.wait(20) == -9
        session = CaptureSession.open([disk_of(device)], ring_bytes=1 << 20, pin_directory=pins)
        assert session.reattached
        assert session.dirty_blocks() == 256 - 64
        session.close()
        agent = start(device, tmp_path / "replica", pins, 1 << 20)
        agent.communicate("stop\n", timeout=60)
        assert agent.returncode == 0
        assert is_identical(device, tmp_path / "replica")


@pytest.mark.parametrize("place", ["capture.pinned_maps", "capture.attached"])
def test_an_open_that_dies_is_begun_again(tmp_path: Path, place: str) -> None:
    with loop_disk(tmp_path, 16) as (device, _), pin_directory() as pins:
        agent = start(device, tmp_path / "replica", pins, 1 << 20, f"{place}=kill")
        assert agent.wait(20) == -9
        assert list(pins.iterdir())
        session = CaptureSession.open([disk_of(device)], ring_bytes=1 << 20, pin_directory=pins)
        try:
            assert not session.reattached
            assert session.self_test().passed
        finally:
            session.detach()
        assert not pins.exists()


def test_a_later_round_keeps_its_blocks_pending(tmp_path: Path) -> None:
    """Two re-reads of a block on their way: the first one's durability says nothing about the second."""
    with loop_disk(tmp_path, 16) as (device, _), pin_directory() as pins:
        session = CaptureSession.open([disk_of(device)], ring_bytes=1 << 20, pin_directory=pins)
        session.mark_dirty(0, 5, 2)
        first = session.reread(10)
        session.mark_dirty(0, 6, b"\x01")
        second = session.reread(10)
        assert first is not None
        assert second is not None
        assert (list(first.blocks), list(second.blocks)) == ([(0, 5), (0, 6)], [(0, 6)])
        session.reread_durable(first)
        assert session.dirty_blocks() == 1
        session.close()
        session = CaptureSession.open([disk_of(device)], ring_bytes=1 << 20, pin_directory=pins)
        try:
            assert session.dirty_blocks() == 1
            third = session.reread(10)
            assert third is not None
            assert list(third.blocks) == [(0, 6)]
            session.reread_durable(third)
            assert session.dirty_blocks() == 0
        finally:
            session.detach()


def test_other_disks_begin_a_new_ring(tmp_path: Path) -> None:
    with (
        loop_disk(tmp_path, 16) as (one, _),
        loop_disk(tmp_path, 24) as (two, _),
        pin_directory() as pins,
    ):
        for device, name in ((one, "one"), (two, "two")):
            seeded_replica(device, tmp_path / name).close()
        session = CaptureSession.open([disk_of(one)], ring_bytes=1 << 20, pin_directory=pins)
        session.close()
        session = CaptureSession.open([disk_of(one), disk_of(two, 1)], ring_bytes=32 << 20, pin_directory=pins)
        try:
            assert not session.reattached
            for device, seed in ((one, "a"), (two, "b"), (one, "c")):
                sh(f"yes {seed} | dd of={device} bs=64k count=20 iflag=fullblock oflag=direct")
            collected = session.collect(1 << 30)
            assert collected is not None
            payload, at = b"".join(collected.payload), 0
            for disk, operation, _, length, offset in EXTENT.iter_unpack(collected.extents):
                assert operation == 1
                with open(tmp_path / ("one", "two")[disk], "r+b") as replica:
                    replica.seek(offset)
                    replica.write(payload[at : at + length])
                at += length
            assert is_identical(one, tmp_path / "one")
            assert is_identical(two, tmp_path / "two")
        finally:
            session.detach()
