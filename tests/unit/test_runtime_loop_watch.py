"""A loop that stands still is named with the place where it does, and again when it goes on."""

from __future__ import annotations

import asyncio
import time

import pytest

from failback.runtime import loop_watch


def stand_here(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_loop_that_stands_still_is_shown_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    async with loop_watch.watched(longest_seconds=0.3, look_every_seconds=0.05):
        await asyncio.sleep(0.1)
        stand_here(1.5)
        deadline = time.monotonic() + 30
        while "goes on" not in caplog.text and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
    assert "the event loop goes on" in caplog.text
    (still,) = [record for record in caplog.records if record.message == "the event loop stands still"]
    assert "stand_here" in still.fields["at"]  # type: ignore[attr-defined]


async def test_a_loop_that_moves_is_left_in_peace(caplog: pytest.LogCaptureFixture) -> None:
    async with loop_watch.watched(longest_seconds=60.0, look_every_seconds=0.01):
        await asyncio.sleep(0.2)
    assert "stands still" not in caplog.text
