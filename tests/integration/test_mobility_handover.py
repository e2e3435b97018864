"""The whole service across an upgrade: a new capture takes over under load, no disk is compared, nothing is lost (D11)."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from mobility_world import World, load, run

from failback.mobility.capture import libbpf, pins
from failback.mobility.capture.layout import EARLIER_LAYOUT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="capture needs root")


def stamp_as_earlier(directory: Path) -> None:
    """The running programs as the version before stamped them."""
    descriptor = libbpf.open_pin(directory / "control")
    control = pins.Control(descriptor)
    control.set("layout_version", EARLIER_LAYOUT)
    control.close()
    os.close(descriptor)


@pytest.mark.parametrize("change", ["layout", "ring"])
async def test_an_upgraded_service_goes_on_without_comparing(tmp_path: Path, change: str) -> None:
    async with World(tmp_path) as world:
        point = world.mount()
        world.plane.assign(world.assignment())
        world.start()
        await world.synced()
        writer = load(point, 12)
        await world.until(lambda: world.plane.status.get("bytes_changed", 0) > 2 << 20)
        world.kill(signal.SIGTERM if change == "layout" else signal.SIGKILL)
        if change == "layout":
            stamp_as_earlier(world.pins)
        else:
            world.ring_megabytes *= 2
        world.plane.status = {}
        items = len(world.receiver.items)
        world.start()
        await world.until(lambda: world.plane.status.get("linked") and world.plane.status.get("capture") == "capturing")
        await asyncio.to_thread(writer.wait)
        run("umount", str(point))
        await world.settled(60)
        assert world.same()
        assert "capture handed over" in world.log()
        assert "tracking goes on in a new ring" in world.log()
        kinds = {item.kind for item in world.receiver.items[items:]}
        assert kinds == {"batch"}  # no digests: nothing was compared
        assert world.plane.status["sync_done"] is True


async def test_after_a_reboot_the_disks_are_compared_by_themselves_and_it_is_shown(tmp_path: Path) -> None:
    """A reboot empties bpffs and the runtime directory; what was written while nothing captured is found by hash (D11)."""
    async with World(tmp_path) as world:
        world.plane.assign(world.assignment())
        world.start()
        await world.synced()
        world.kill()
        pins.remove(world.pins)
        for path in (tmp_path / "run").iterdir():
            path.unlink()
        run("dd", "if=/dev/urandom", f"of={world.devices[0]}", "bs=64k", "count=5", "seek=77", "oflag=direct",
            "conv=notrunc", "status=none")  # fmt: skip
        seen: list[dict[str, object]] = []
        world.plane.status = {}
        items = len(world.receiver.items)
        world.start()

        def over() -> bool:
            status = world.plane.status
            seen.append(status)
            return status.get("sync_done") is True and status.get("gap") == ""

        await world.until(over, 60)
        await world.settled()
        assert world.same()
        assert "digests" in {item.kind for item in world.receiver.items[items:]}
        assert any(status.get("gap") == "sync" for status in seen)  # shown while it lasts
        (progress,) = world.plane.status["sync"]
        assert progress["bytes_compared"] == progress["bytes_total"]
        assert 5 * 65536 <= progress["bytes_differing"] <= 16 * 65536
