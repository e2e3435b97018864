"""The pacer, measured in bytes over virtual time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from failback.model.bandwidth import NO_LIMIT, BandwidthLimit
from failback.protection.bandwidth_rules import parse_window
from failback.transport.limits import BURST_SECONDS, Pacer

SLICE = 256 << 10
MONDAY_8 = datetime(2026, 3, 2, 8, tzinfo=UTC)


class VirtualSelector(selectors.SelectSelector):
    """Waiting passes at once and moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


def virtually(work: Callable[[Callable[[], float]], Awaitable[None]]) -> None:
    selector = VirtualSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(work(loop.time))  # type: ignore[arg-type]


async def sent_in(pacer: Pacer, now: Callable[[], float], seconds: float, count: int = SLICE) -> int:
    """Bytes let through until the time is over."""
    sent, end = 0, now() + seconds
    while now() < end:
        await pacer.pace(count)
        if now() < end:
            sent += count
    return sent


@pytest.mark.parametrize("rate", [100_000, 1_000_000, 50_000_000])
def test_bytes_over_time_are_the_limit(rate: int) -> None:
    async def work(now: Callable[[], float]) -> None:
        pacer = Pacer(BandwidthLimit(rate))
        sent = await sent_in(pacer, now, 60.0)
        allowed = 60 * rate + max(rate * BURST_SECONDS, 64 << 10) + SLICE
        assert 60 * rate - 2 * SLICE <= sent <= allowed
        assert pacer.figures().held_back and pacer.figures().bytes_per_second == rate

    virtually(work)


def test_a_pause_saves_up_no_more_than_a_burst() -> None:
    async def work(now: Callable[[], float]) -> None:
        pacer = Pacer(BandwidthLimit(1_000_000))
        await sent_in(pacer, now, 5.0)
        await asyncio.sleep(3600)
        assert not pacer.figures().held_back
        assert await sent_in(pacer, now, 1.0, 10_000) <= 1_000_000 * (1 + BURST_SECONDS) + 10_000

    virtually(work)


def test_without_a_limit_nobody_waits() -> None:
    async def work(now: Callable[[], float]) -> None:
        pacer, began = Pacer(), now()
        for _ in range(1000):
            await pacer.pace(1 << 30)
        assert now() == began and not pacer.figures().held_back

    virtually(work)


def test_another_limit_is_in_force_within_two_seconds_also_for_who_waits() -> None:
    async def work(now: Callable[[], float]) -> None:
        pacer = Pacer(BandwidthLimit(65_536))
        await pacer.pace(64 << 20)  # a debt of a quarter of an hour
        waiting = asyncio.create_task(pacer.pace(1))
        await asyncio.sleep(10)
        assert not waiting.done()
        changed = now()
        pacer.limit = NO_LIMIT
        await waiting
        assert now() - changed <= 2.0
        pacer.limit = BandwidthLimit(1_000_000)
        assert await sent_in(pacer, now, 10.0) <= 10_000_000 * 1.05 + SLICE

    virtually(work)


def test_a_window_opens_and_closes_by_itself() -> None:
    async def work(now: Callable[[], float]) -> None:
        began = now()
        limit = BandwidthLimit(2_000_000, (parse_window("mon 08:01-08:02 100KB/s"),))
        pacer = Pacer(limit, wall=lambda: MONDAY_8 + timedelta(seconds=now() - began))
        minutes = [await sent_in(pacer, now, 60.0, 10_000) for _ in range(3)]
        assert minutes[0] == pytest.approx(120_000_000, rel=0.03)
        assert minutes[1] == pytest.approx(6_000_000, rel=0.35)  # it is looked at once a second
        assert minutes[2] == pytest.approx(120_000_000, rel=0.03)

    virtually(work)


def test_a_time_zone_that_is_not_known_here_is_told() -> None:
    async def work(now: Callable[[], float]) -> None:
        pacer = Pacer(
            BandwidthLimit(0, (parse_window("mon 08:00-09:00 1MB/s"),), "Middle/Earth"), wall=lambda: MONDAY_8
        )
        assert "Middle/Earth" in pacer.figures().problem
        assert pacer.figures().bytes_per_second == 1_000_000

    virtually(work)
