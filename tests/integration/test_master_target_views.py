"""Views of a real master target: real clients read points while it goes on applying; leases, restarts, the end of the replica."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import journal_driver as driver
import pytest
from master_target_site import MACHINE, Sender, Site
from process_server_site import eventually

from failback.errors import ConflictError, FailbackError
from failback.model import orders
from failback.model.components import ViewStatus
from failback.model.points import PointChoice, PointKind, PointSelector
from failback.runtime import records

SEED = 5


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    built = Site(tmp_path)
    built.start()
    yield built
    await built.close()


def _model(sequence: int) -> dict[int, bytes]:
    return driver.Model(SEED, driver.initial(SEED)).advance(sequence)


async def _fed(site: Site, up_to: int) -> Sender:
    site.make_disks(SEED)
    await site.attach()
    site.assign(1)
    sender = site.sender(1)
    await _feed(site, sender, 1, up_to)
    return sender


async def _feed(site: Site, sender: Sender, first: int, last: int) -> None:
    for sequence in range(first, last + 1):
        await sender.send(driver.make_batch(SEED, sequence))
    await site.landed(sender, last)
    await eventually(lambda: site.replica().get("applied_sequence") == last)


async def _open(site: Site, choice: PointChoice, view_id: str = "", **fields: Any) -> ViewStatus:
    arguments = orders.OpenView(view_id or str(uuid.uuid4()), MACHINE, choice, **fields)
    return records.decode(await site.order(orders.OPEN_VIEW, arguments), ViewStatus)


async def _close(site: Site, view: ViewStatus) -> None:
    await site.order(orders.CLOSE_VIEW, orders.CloseView(view.view_id))


async def _run(*command: str, status: int = 0) -> str:
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


async def _copied(view: ViewStatus, directory: Path) -> dict[int, bytes]:
    found = {}
    for export in view.exports:
        target = directory / f"{view.view_id}-{export.index}"
        target.unlink(missing_ok=True)
        await _run("nbdcopy", export.uri, str(target))
        found[export.index] = target.read_bytes()
    return found


def _views(site: Site) -> dict[str, str]:
    return {view["view_id"]: view["ended"] for view in site.plane.status["views"]}


async def test_points_are_read_by_clients_while_replication_goes_on(site: Site, tmp_path: Path) -> None:
    sender = await _fed(site, 30)
    points = [point for point in site.replica()["points"] if point["kind"] != PointKind.BEFORE_REPROTECT.value]
    views = [
        await _open(site, PointChoice(PointSelector.POINT, point["point_id"])) for point in (points[0], points[-1])
    ]
    feeding = asyncio.create_task(_feed(site, sender, 31, 90))
    rounds = 0
    while not feeding.done() or rounds < 2:
        rounds += 1
        for view in views:
            assert await _copied(view, tmp_path) == _model(view.point.sequence)
    await feeding
    await _run(
        "qemu-img",
        "compare",
        "-f",
        "raw",
        "-F",
        "raw",
        views[0].exports[0].uri,
        str(tmp_path / f"{views[0].view_id}-0"),
    )
    between = await _open(site, PointChoice(PointSelector.TIME, str(driver.START_NS + 88 * 10**9 + 1)))
    assert between.point.sequence == 88 and await _copied(between, tmp_path) == _model(88)
    latest = await _open(site, PointChoice(PointSelector.LATEST), writable=True)
    assert latest.point.sequence == 90
    await _run("qemu-io", "-f", "raw", "-c", "write -P 9 4096 8192", "-c", "flush", latest.exports[0].uri)
    changed = bytearray(_model(90)[0])
    changed[4096:12288] = bytes([9]) * 8192
    assert (await _copied(latest, tmp_path))[0] == changed
    assert site.images(fenced=True) == _model(90)
    assert (await _open(site, PointChoice(PointSelector.LATEST), latest.view_id)).point == latest.point  # a new lease
    await eventually(lambda: next(view["layer_bytes"] for view in site.plane.status["views"]
                                  if view["view_id"] == latest.view_id) > 0)  # fmt: skip
    await _close(site, latest)
    await _close(site, latest)
    await _run("nbdinfo", latest.exports[0].uri, status=1)
    await eventually(lambda: _views(site)[latest.view_id] == "closed")


async def test_a_failback_does_not_wait_for_views_and_ends_them(site: Site, tmp_path: Path) -> None:
    await _fed(site, 40)
    points = site.replica()["points"]
    view = await _open(site, PointChoice(PointSelector.POINT, points[3]["point_id"]))
    await site.prepare(PointChoice(PointSelector.POINT, points[1]["point_id"]))
    assert await _copied(view, tmp_path) == _model(points[3]["sequence"])  # the disks are at another point now
    await site.plain(orders.RELEASE_REPLICA)
    await eventually(lambda: _views(site)[view.view_id] == "the replica was released")
    await _run("nbdinfo", view.exports[0].uri, status=1)
    with pytest.raises(ConflictError, match="released"):
        await _open(site, PointChoice(PointSelector.POINT, points[1]["point_id"]))


async def test_leases_and_restarts_end_views_cleanly(site: Site, tmp_path: Path) -> None:
    await _fed(site, 30)
    first = PointChoice(PointSelector.POINT, site.replica()["points"][0]["point_id"])
    short = await _open(site, first, lease_seconds=0.5)
    await eventually(lambda: _views(site).get(short.view_id) == "its lease is over")
    lasting = await _open(site, first, writable=True)
    await _run("qemu-io", "-f", "raw", "-c", "write -P 9 0 64k", lasting.exports[0].uri)
    site.kill()
    await eventually(lambda: site.plane.status.get("views") == () or not site.plane.status.get("views"))
    await _run("nbdinfo", lasting.exports[0].uri, status=1)
    journal = site.retention / "failback" / MACHINE
    assert sorted(path.name for path in journal.iterdir() if path.is_dir()) == ["redo", "undo"]
    assert not [path for path in journal.iterdir() if path.is_file() and not path.name.startswith("catalogue")]
    again = await _open(site, first, lasting.view_id)
    assert await _copied(again, tmp_path) == driver.initial(SEED)
    with pytest.raises(FailbackError, match="no recovery point"):
        await _open(site, PointChoice(PointSelector.POINT, str(uuid.uuid4())))


async def test_rot_in_closed_undo_is_found_before_it_is_needed(site: Site) -> None:
    await _fed(site, 40)
    points = site.replica()["points"]
    await eventually(lambda: site.replica()["undo_proven_wall_ns"] > 0)
    proven = site.replica()["undo_proven_wall_ns"]
    await site.order(orders.SCRUB, orders.Scrub("one", replica_of=MACHINE))
    await eventually(lambda: site.replica()["undo_proven_wall_ns"] > proven and site.replica()["points"] == points)
    files = sorted((site.retention / "failback" / MACHINE / "undo").glob("*.undo"))
    rotten = next(path for path in files[2:-1] if path.stat().st_size > 500)
    content = bytearray(rotten.read_bytes())
    content[-1] ^= 1
    rotten.write_bytes(content)
    await site.order(orders.SCRUB, orders.Scrub("two", replica_of=MACHINE))
    await eventually(lambda: site.replica()["problem"].startswith("older recovery points cannot be reached"))
    assert 0 < len(site.replica()["points"]) < len(points)
    for point in site.replica()["points"]:
        view = await _open(site, PointChoice(PointSelector.POINT, point["point_id"]))
        await _close(site, view)
