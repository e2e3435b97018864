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
