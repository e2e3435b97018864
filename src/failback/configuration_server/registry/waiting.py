"""Waiting until the database says something: bounded, cancellable, and woken at once by news.

``look(session)`` returns None to go on waiting and anything else to end it. The database is looked at again at least every
``RECHECK_SECONDS``, so a change made by another process is seen too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.orm import Session

from failback.configuration_server.database import Database
from failback.configuration_server.registry.news import News
from failback.errors import FailbackError, PeerError
from failback.runtime.clock import SystemClock

T = TypeVar("T")

RECHECK_SECONDS = 1.0


class Cancelled(FailbackError):
    """The waiting was given up because its job was cancelled."""

    code = "Canceled"


async def wait_for(
    database: Database, news: News, look: Callable[[Session], T | None], *, about: tuple[str, ...],
    timeout_seconds: float, waiting_for: str, cancelled: Callable[[], bool] | None = None,
) -> T:  # fmt: skip
    """What ``look`` found. Raises PeerError "… within N s" after the time, :class:`Cancelled` when ``cancelled()``."""
    clock = SystemClock()
    deadline = clock.monotonic() + timeout_seconds
    with news.subscribe(*about) as subscription:
        while True:
            found = await database.look(look)
            if found is not None:
                return found
            if cancelled is not None and cancelled():
                raise Cancelled(f"cancelled while waiting for {waiting_for}")
            left = deadline - clock.monotonic()
            if left <= 0:
                raise PeerError(
                    f"{waiting_for}: not within {timeout_seconds:g} s",
                    code="TimedOut",
                    possible_causes="the component is away, overloaded or cannot be reached",
                    remedy="check the component's service and its log, then restart the job",
                )
            if subscription.closed:
                raise PeerError(f"the configuration server stops while it waits for {waiting_for}", code="Stopping")
            await subscription.wait(min(left, RECHECK_SECONDS))
