"""The probe order of every role: can this machine connect to those addresses (readiness, connectivity)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from failback.model.components import Order
from failback.model.orders import Probe, ProbeResult
from failback.runtime import records
from failback.transport.control import ReportProgress

_PROBE_SECONDS = 5.0


async def probe(order: Order, _: ReportProgress) -> dict[str, Any]:
    """Connect to each ``host:port`` of the order."""
    wanted = records.decode(order.arguments, Probe, "probe")
    tried = await asyncio.gather(*(_timed(target) for target in wanted.targets))
    by_target = dict(zip(wanted.targets, tried, strict=True))
    failures = {target: reason for target, (reason, _) in by_target.items()}
    took = {target: milliseconds for target, (reason, milliseconds) in by_target.items() if not reason}
    answer: dict[str, Any] = records.encode(ProbeResult(failures, took))
    return answer


async def _timed(target: str) -> tuple[str, float]:
    """The reason (empty: it connects) and how long it took in milliseconds."""
    begun = time.monotonic()
    reason = await _try_connect(target)
    return reason, round((time.monotonic() - begun) * 1e3, 2)


async def _try_connect(target: str) -> str:
    """Empty when ``host:port`` accepts a TCP connection, else the reason."""
    host, _, port = target.rpartition(":")
    if not host or not port.isdigit():
        return f"{target!r} is not host:port"
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except TimeoutError:
        return f"no answer within {_PROBE_SECONDS:g} s"
    except (OSError, ValueError) as error:  # of a port or a name that cannot be
        return getattr(error, "strerror", None) or str(error)
    writer.close()
    return ""
