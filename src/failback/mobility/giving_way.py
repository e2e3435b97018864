"""When the protected machine's own programs go first: the mobility service is nice as long as it keeps up.

What waits in the ring costs nothing but age. So reading, compressing and encrypting give way to the machine's work (``niceness``
of the configuration) while the ring is nearly empty and what lands is young; when either grows the service takes its ordinary
share again, because a full ring is a gap and the policy promises a lag. :func:`gives_way` is the rule and pure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from failback.runtime import logs, niceness

log = logs.get(__name__)

RING_FRACTION = 0.3
RING_FRACTION_AGAIN = 0.1
LAG_SECONDS = 0.7
LAG_SECONDS_AGAIN = 0.45
LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Pressure:
    """How far behind the service is."""

    ring_fraction: float
    """Of the ring that is not released."""
    lag_seconds: float
    """Of the oldest write of the batch that landed last."""


def gives_way(giving_way: bool, pressure: Pressure) -> bool:
    """Whether to give way from now on. Two thresholds each, so that it does not swing."""
    if giving_way:
        return pressure.ring_fraction < RING_FRACTION and pressure.lag_seconds < LAG_SECONDS
    return pressure.ring_fraction < RING_FRACTION_AGAIN and pressure.lag_seconds < LAG_SECONDS_AGAIN


class GivingWay:
    """One for the process; calls come from the event loop. ``niceness`` 0: never gives way."""

    def __init__(self, wanted: int) -> None:
        self._ordinary = niceness.own()
        self._wanted = wanted
        self._possible = wanted > self._ordinary and niceness.can_return(self._ordinary)
        if wanted > self._ordinary and not self._possible:
            log.info("the service cannot give way to other programs: it could not take its share back (CAP_SYS_NICE)")
        self._giving_way = False

    async def run(self, pressure: Callable[[], Pressure | None]) -> None:
        """Until cancelled. ``pressure`` None: something waits for the service, it gives way to nobody."""
        while self._possible:
            felt = pressure()
            if (felt is not None and gives_way(self._giving_way, felt)) is not self._giving_way:
                self._set(not self._giving_way)
            await asyncio.sleep(LOOK_SECONDS)

    def insist(self) -> None:
        """Take the ordinary share now: others wait for this process. Until ``run`` looks again."""
        if self._giving_way:
            self._set(False)

    def _set(self, giving_way: bool) -> None:
        self._giving_way = giving_way
        niceness.set_of_all_threads(self._wanted if giving_way else self._ordinary)
        log.debug("niceness changed", giving_way=giving_way)
