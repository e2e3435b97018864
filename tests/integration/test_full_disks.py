"""Disks that are really full, down to the last block: nothing is lost, the state says so, and all goes on by itself when there is
room. Spool, retention volume with redo, undo and catalogue, and the configuration server's database."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import journal_driver as driver
import master_target_site
import process_server_site
import pytest
from process_server_doubles import make_batch
from process_server_site import eventually
from running_configuration_server import RunningConfigurationServer
from small_file_system import SmallFileSystem, mounted

from failback.errors import FailbackError
from failback.model.components import ProcessServerAssignment, ProcessServerStatus, Role
from failback.transport import identity
from failback.transport.control import ControlLoop

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")

BATCH_BYTES = 250_000


@pytest.fixture
def small(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SmallFileSystem]:
    with mounted(tmp_path, request.param) as made:
        yield made


@pytest.mark.parametrize("small", [24], indirect=True)
@pytest.mark.parametrize("killed", [False, True])
async def test_a_full_spool(small: SmallFileSystem, tmp_path: Path, killed: bool) -> None:
    site = process_server_site.Site(tmp_path / "site")
    site.directory.mkdir(exist_ok=True)
    (site.directory / "spool").symlink_to(small.path)
    await site.start()
    site.target.flow.clear()  # the master target takes nothing
    agent = site.agent()
    feeding = asyncio.create_task(
        agent.send(*(make_batch(agent.machine_id, n, payload_bytes=BATCH_BYTES) for n in range(1, 161)))
    )
    await eventually(lambda: "no space left" in site.machine_status(agent.machine_id).get("problem", ""), 60)
    assert any(error.code == "OutOfSpace" and error.retryable for error in agent.refusals), "the agent is told why"
    spooled = agent.spooled
    assert 40 <= spooled <= 24 * (1 << 20) // BATCH_BYTES
    assert site.plane.status["spool_free_bytes"] < 2 << 20, "as much as the file system has, whatever the limit"
    small.fill()
    if killed:
        await site.restart()
        await eventually(lambda: agent.sender.linked or agent.refusals[-1].code != "PeerUnavailable", 60)
    assert agent.forgotten == 0 and agent.spooled >= spooled
    site.target.flow.set()  # what lands makes room, although not one block is free
    await eventually(lambda: agent.landed >= spooled, 60)
    small.release()
    await eventually(lambda: agent.landed == 160, 60)
    await feeding
    items = site.target.streams[agent.machine_id, 1].items
    assert [item.header.sequence for item in items] == list(range(1, 161))
    await eventually(lambda: site.machine_status(agent.machine_id).get("problem") == "", 30)
    assert agent.forgotten == 0
    await site.close()


@pytest.mark.parametrize("small", [160], indirect=True)
@pytest.mark.parametrize("killed", [False, True])
async def test_a_full_retention_volume(small: SmallFileSystem, tmp_path: Path, killed: bool) -> None:
    site = master_target_site.Site(tmp_path / "site")
    site.directory.mkdir(exist_ok=True)
    site.retention = small.path / "retention"
    site.start()
    site.make_disks(5)
    await site.attach()
    site.assign(1)
    sender = site.sender(1)
    small.fill(leave_bytes=(64 << 20) + (1 << 20))  # 64 MiB are kept for undo and catalogue
    count = 700
    feeding = asyncio.create_task(sender.send(*(driver.make_batch(5, n) for n in range(1, count + 1))))
    await eventually(lambda: "is full" in site.replica().get("problem", ""), 60)
    landed = sender.landed
    assert landed < count
    kinds = {point["kind"] for point in site.replica()["points"]}
    assert "BeforeReprotect" in kinds, "the disks as they were found are kept at any price (D14)"
    small.fill()  # now undo and catalogue find no block either
    if killed:
        site.kill()
        await asyncio.sleep(2)
    small.release()
    await site.landed(sender, count, 90)
    await feeding
    await eventually(lambda: site.replica().get("applied_sequence") == count and not site.replica()["problem"], 60)
    assert sender.landed == count >= landed
    await site.plain("release-replica")
    assert site.images(fenced=False) == driver.Model(5, driver.initial(5)).advance(count)
    await site.close()


async def test_the_quota_of_a_retention_volume_is_its_end(tmp_path: Path) -> None:
    site = master_target_site.Site(tmp_path)
    site.start()
    assert site.process is not None
    site.process.kill()
    site.process.wait()
    config = tmp_path / "mt.toml"
    quota = (64 << 20) + (1 << 20)
    text = config.read_text().replace('name = "retention"\n', f'name = "retention"\nquota_bytes = {quota}\n')
    config.write_text(text)
    site.launch()
    site.make_disks(6)
    await site.attach()
    site.assign(1)
    sender = site.sender(1)
    feeding = asyncio.create_task(sender.send(*(driver.make_batch(6, n) for n in range(1, 701))))
    await eventually(lambda: "is full" in site.replica().get("problem", ""), 60)
    [volume] = site.plane.status["retention_volumes"]
    assert volume["capacity_bytes"] == quota and volume["free_bytes"] < quota
    assert sender.landed < 700
    site.process.kill()
    site.process.wait()
    config.write_text(text.replace(f"quota_bytes = {quota}", "quota_bytes = 0"))
    site.launch()
    await site.landed(sender, 700, 60)
    await feeding
    await site.close()


@pytest.mark.parametrize("small", [48], indirect=True)
async def test_a_full_disk_under_the_configuration_server(
    small: SmallFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILBACK_HARDWARE_ID", f"hw-{uuid.uuid4()}")
    home = small.path / "home"
    home.mkdir()
    with RunningConfigurationServer(home, "monitor_seconds = 0.5\n") as server:
        who = await identity.enrol_if_needed(tmp_path / "state", server.control(), Role.PROCESS_SERVER)
        applied: list[ProcessServerAssignment] = []
        stop = asyncio.Event()

        async def apply(assignment: ProcessServerAssignment) -> None:
            applied.append(assignment)

        loop = ControlLoop(
            who, server.control(0.2), status=lambda: ProcessServerStatus(spool_capacity_bytes=int(time.time() * 1e6)),
            assignment_kind=ProcessServerAssignment, apply_assignment=apply, orders={},
        )  # fmt: skip
        running = asyncio.create_task(loop.run(stop))
        await eventually(lambda: applied, 30)
        small.fill()
        with pytest.raises(FailbackError) as refused:
            async with asyncio.timeout(60):
                while True:  # what is in the write-ahead log's old room may still be taken
                    await asyncio.to_thread(identity.renew, who, server.control())
        assert "no space left" in refused.value.message and refused.value.retryable
        assert server.get("/healthz")["status"] == "ok", "reading goes on"
        small.release()
        async with asyncio.timeout(60):
            while True:
                try:
                    await asyncio.to_thread(identity.renew, who, server.control())
                    break
                except FailbackError:
                    await asyncio.sleep(0.2)
        who.reload()
        stop.set()
        await asyncio.wait_for(running, 30)
        assert loop is not None and server.get("/healthz")["status"] == "ok"
