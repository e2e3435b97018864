"""Asking fabrics without stopping the server: each call runs in a thread and has a deadline.

A thread that is late is left to end by itself (drivers have timeouts of their own); the request answers in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from failback.configuration_server.api.services import SiteFabric, Surroundings
from failback.errors import FabricError, FailbackError, NotFoundError

T = TypeVar("T")


async def ask(services: Surroundings, call: Callable[[], T], name: str) -> T:
    """The call's answer. Raises what it raises, and FabricError when it takes too long."""
    try:
        async with asyncio.timeout(services.fabric_seconds):
            return await asyncio.to_thread(call)
    except TimeoutError:
        raise FabricError(
            f"the fabric {name} did not answer within {services.fabric_seconds:.0f} s",
            remedy="check the hypervisor's service and the network to it",
            retryable=True,
        ) from None


async def away_reasons(services: Surroundings, sites: Sequence[SiteFabric]) -> dict[str, str]:
    """For each fabric why it does not answer, empty when it does; all are asked at once, for ``probe_seconds`` at most."""

    async def asked(one: SiteFabric) -> str:
        try:
            async with asyncio.timeout(services.probe_seconds):
                return await asyncio.to_thread(one.fabric.probe)
        except TimeoutError:
            return f"no answer within {services.probe_seconds:.0f} s"
        except FailbackError as error:
            return error.message

    reasons = await asyncio.gather(*(asked(one) for one in sites))
    return {one.name: reason for one, reason in zip(sites, reasons, strict=True)}


def site(services: Surroundings, name: str) -> SiteFabric:
    """The configured fabric of that name. Raises NotFoundError."""
    found = services.fabrics.get(name)
    if found is None:
        known = ", ".join(sorted(services.fabrics)) or "none"
        raise NotFoundError(
            f"no fabric {name!r} is configured", code="FabricNotFound", remedy=f"configured fabrics: {known}"
        )
    return found
