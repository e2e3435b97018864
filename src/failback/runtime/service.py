"""Lifecycle of a long-running process: SIGTERM and SIGINT end it cleanly, READY=1 tells systemd.

``run(main)`` returns the process's exit status: 0 after a stop signal, 1 with the error's sentence and remedy else.
Nothing is lost by a hard kill instead: a clean stop is a courtesy, never a requirement.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable

from failback.errors import FailbackError
from failback.runtime import allocator, logs

log = logs.get(__name__)

Main = Callable[[asyncio.Event], Awaitable[None]]


def notify_ready() -> None:
    """Tell systemd (NOTIFY_SOCKET) that the service serves; silent elsewhere."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(b"READY=1", address)


def run(main: Main, *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> int:
    """Run ``main(stop)`` until it returns, fails, or a signal sets ``stop`` (then it has to return by itself)."""
    allocator.give_back_large_buffers()
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_guarded(main))
    except FailbackError as error:
        log.error(error.message, code=error.code, remedy=error.remedy)
        return 1
    except BaseExceptionGroup as group:
        known = group.subgroup(FailbackError)
        for leaf in _leaves(known) if known else ():
            log.error(str(leaf), code=getattr(leaf, "code", ""), remedy=getattr(leaf, "remedy", ""))
        _, rest = group.split(FailbackError)
        if rest is not None:
            log.error("stopped by an unexpected error", error=repr(rest))
            raise rest from None
        return 1
    return 0


async def _guarded(main: Main) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await main(stop)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found.extend(_leaves(error))
        else:
            found.append(error)
    return found
