"""A cancel that arrives together with what was waited for is not lost.

Python 3.11 loses such a cancel in ``asyncio.wait_for`` and in a TaskGroup that ends by a child's error: loops that go on after
either would never end. ``asyncio.timeout`` does not."""

from __future__ import annotations

import asyncio

from failback.configuration_server.registry import News


async def test_a_poller_that_is_cancelled_as_its_news_come_ends() -> None:
    news = News()
    rounds = 0

    async def poll() -> None:
        nonlocal rounds
        with news.subscribe("key") as subscription:
            while True:
                await subscription.wait(30.0)
                rounds += 1

    task = asyncio.create_task(poll())
    await asyncio.sleep(0)
    news.announce("key")
    await asyncio.sleep(0)  # the event is set, the poller is about to wake up ...
    task.cancel()  # ... and is stopped
    done, _ = await asyncio.wait([task], timeout=5)
    task.cancel()
    assert done and task.cancelled(), f"the poller went on, {rounds} rounds"
