"""Freezing a loop-mounted file system for real: order, limits, and thawing whoever dies (D18, D20)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from failback.errors import FreezeError
from failback.mobility import facts, mounts
from failback.mobility.freeze import freeze, plan_for, run_script

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="freezing needs root")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A loop device with ext4, mounted: (device, mount point). Thawed and removed in any case."""
    image, mount_point = tmp_path / "image", tmp_path / "mounted"
    image.touch()
    os.truncate(image, 64 << 20)
    mount_point.mkdir()
    run("mkfs.ext4", "-q", str(image))
    device = run("losetup", "-f", "--show", str(image))
    try:
        run("mount", device, str(mount_point))
        yield device, mount_point
    finally:
        thaw(mount_point)
        for place in (mount_point / "inner", mount_point):
            deadline = time.monotonic() + 3  # a watchdog on its way out still holds the directory
            while os.path.ismount(place) and time.monotonic() < deadline:
                subprocess.run(["umount", str(place)], capture_output=True, check=False)
                time.sleep(0.02)
        run("losetup", "-d", device)


def lives(pid: int) -> bool:
    """Whether the process still runs; one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def thaw(mount_point: Path) -> None:
    subprocess.run(["fsfreeze", "-u", str(mount_point)], capture_output=True, check=False)


def writes(mount_point: Path, seconds: float = 1.0) -> bool:
    """Whether a write to the file system ends in time (a child does it: under a freeze it hangs)."""
    writer = subprocess.Popen(["dd", "if=/dev/zero", f"of={mount_point}/probe", "bs=4k", "count=1", "conv=fsync"],
                              stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        return writer.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        writer.kill()
        # a frozen writer ends only after the thaw: the fixture thaws
        with contextlib.suppress(subprocess.TimeoutExpired):
            writer.wait(0.05)


async def test_freeze_holds_writers_and_thaw_lets_them_go(disk: tuple[str, Path]) -> None:
    device, mount_point = disk
    plan = plan_for((device,))
    assert plan.mount_points == (str(mount_point),)
    hold = await freeze(plan, 20.0)
    assert not await asyncio.to_thread(writes, mount_point, 0.5)
    hold.check()
    assert 18.0 < hold.seconds_left <= 20.0
    await hold.thaw()
    assert await asyncio.to_thread(writes, mount_point)
    assert hold.lost == "" and 0.4 < hold.frozen_seconds < 5
    with pytest.raises(FreezeError):
        hold.check()
    await asyncio.sleep(0.2)
    assert not lives(hold.watchdog_pid)


async def test_limit_thaws_and_tells(disk: tuple[str, Path]) -> None:
    device, mount_point = disk
    hold = await freeze(plan_for((device,)), 1.0)
    began = time.monotonic()
    await asyncio.wait_for(hold.ended.wait(), 3.0)
    assert time.monotonic() - began < 1.5
    assert await asyncio.to_thread(writes, mount_point)
    with pytest.raises(FreezeError) as caught:
        hold.check()
    assert caught.value.code == "FreezeLeaseLost" and caught.value.retryable


async def test_killed_watchdog_thaws(disk: tuple[str, Path]) -> None:
    device, mount_point = disk
    hold = await freeze(plan_for((device,)), 60.0)
    os.kill(hold.watchdog_pid, signal.SIGKILL)
    await asyncio.wait_for(hold.ended.wait(), 2.0)
    assert "watchdog" in hold.lost
    assert await asyncio.to_thread(writes, mount_point)


AGENT = textwrap.dedent("""
    import asyncio, sys
    from failback.mobility.freeze import freeze, plan_for
    async def main():
        hold = await freeze(plan_for((sys.argv[1],)), 60.0)
        print("frozen", hold.watchdog_pid, flush=True)
        await asyncio.sleep(60)
    asyncio.run(main())
""")


@pytest.mark.parametrize("way", ["killed", "killed-with-its-group"])
def test_killed_agent_leaves_the_machine_thawed(disk: tuple[str, Path], way: str) -> None:
    device, mount_point = disk
    agent = subprocess.Popen([sys.executable, "-c", AGENT, device, way], stdout=subprocess.PIPE, start_new_session=True)
    assert agent.stdout is not None
    said = agent.stdout.readline().split()
    assert said[0] == b"frozen"
    assert not writes(mount_point, 0.3)
    if way == "killed":
        agent.kill()
    else:
        os.killpg(agent.pid, signal.SIGKILL)
    agent.wait()
    agent.stdout.close()
    deadline = time.monotonic() + 3
    while lives(int(said[1])) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert writes(mount_point)


async def test_somebody_elses_freeze_is_an_error_and_undone(disk: tuple[str, Path]) -> None:
    device, mount_point = disk
    run("fsfreeze", "-f", str(mount_point))
    with pytest.raises(FreezeError) as caught:
        await freeze(plan_for((device,)), 5.0)
    assert "cannot be frozen" in caught.value.message and caught.value.retryable


async def test_nested_file_system_is_frozen_before_the_one_that_holds_its_image(disk: tuple[str, Path]) -> None:
    device, mount_point = disk
    inner = mount_point / "inner"
    inner.mkdir()
    image = mount_point / "inner.img"
    image.touch()
    os.truncate(image, 16 << 20)
    run("mkfs.ext4", "-q", str(image))
    nested = run("losetup", "-f", "--show", str(image))
    try:
        run("mount", nested, str(inner))
        plan = plan_for((device,))
        assert plan.mount_points == (str(inner), str(mount_point))
        hold = await freeze(plan, 20.0)
        await hold.thaw()
        assert await asyncio.to_thread(writes, inner)
    finally:
        run("umount", str(inner))
        run("losetup", "-d", nested)


def test_raw_writers_are_named(disk: tuple[str, Path]) -> None:
    device, mount_point = disk
    run("umount", str(mount_point))
    program = f"import time; f = open({device!r}, 'r+b'); print(flush=True); time.sleep(30)"
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        plan = plan_for((device,))
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    assert plan.mount_points == ()
    assert [
        user for user in plan.not_freezable if f"[{holder.pid}] on {device}" in user and user.startswith("raw writer")
    ]


async def test_scripts_have_a_time_limit(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n[ $1 = slow ] && exec sleep 30\n[ $1 = good ]\n")
    script.chmod(0o755)
    await run_script(str(script), "good", limit_seconds=5)
    with pytest.raises(FreezeError, match="status 1"):
        await run_script(str(script), "bad", limit_seconds=5)
    began = time.monotonic()
    with pytest.raises(FreezeError, match="longer than"):
        await run_script(str(script), "slow", limit_seconds=0.3)
    assert time.monotonic() - began < 3


def test_facts_name_the_disk_and_the_system_disk(disk: tuple[str, Path]) -> None:
    device, _ = disk
    (found,) = facts.disks((device,))
    assert found.device == device and found.size_bytes == 64 << 20 and not found.is_system
    assert any(each.is_system for each in facts.disks()) or not mounts.base_disks_of_mount("/")
    assert all("loop" not in each.device for each in facts.disks())
