"""The on-premises machine must not run while its disks are a replica (row 78 of docs/readiness.md).

The fence is on the disks: as long as they are a replica they lie under another name and are locked (D22), so the
hypervisor cannot start the machine on them. This guard tells when somebody started it all the same (on other disks, or on
copies): one event when it is seen on, and one when it is off again. It powers nothing off: whose machine it is, is not known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from sqlalchemy.orm import Session

from failback.configuration_server.database import Database, events, items
from failback.configuration_server.database.items import ItemRow
from failback.errors import FailbackError
from failback.fabric.interfaces import Fabric, PowerState
from failback.protection.operations import Direction, Side
from failback.protection.states import State, direction_of
from failback.runtime import logs
from failback.runtime.clock import Clock

log = logs.get(__name__)

STARTED = "OnPremisesMachineStarted"
OFF_AGAIN = "OnPremisesMachineOffAgain"
_HELD = frozenset({State.REPLICATING, State.PROTECTED})


def holds_replica(item: ItemRow) -> bool:
    """Whether the item's on-premises disks are a replica now."""
    state = State(item.protection_state)
    return state in _HELD and direction_of(state, Side(item.live_side)) is Direction.TO_ON_PREMISES


class ReplicaGuard:
    """``run`` until cancelled; ``look_once`` is one look at every such machine and returns what was told."""

    def __init__(
        self, database: Database, fabrics: Mapping[str, Fabric], clock: Clock, *, pause_seconds: float
    ) -> None:
        self._database = database
        self._fabrics = fabrics
        self._clock = clock
        self._pause_seconds = pause_seconds
        self._seen_on: set[str] = set()

    async def run(self) -> None:
        while True:
            try:
                await self.look_once()
            except FailbackError as error:  # a fabric that is away, a busy database: told by other checks
                log.warning("the power of on-premises machines was not read", reason=error.message)
            await asyncio.sleep(self._pause_seconds)

    async def look_once(self) -> list[str]:
        """Codes of the events that were recorded."""

        def held(session: Session) -> list[tuple[str, str, str, str]]:
            return [
                (row.item_id, row.name, row.on_premises_fabric, row.on_premises_fabric_id)
                for row in items.all_items(session)
                if holds_replica(row)
            ]

        machines = await self._database.look(held)
        self._seen_on &= {item_id for item_id, *_ in machines}
        told: list[str] = []
        for item_id, name, fabric_name, fabric_id in machines:
            fabric = self._fabrics.get(fabric_name)
            if fabric is None:
                continue
            power = await asyncio.to_thread(fabric.power_state, fabric_id)
            if power is PowerState.ON and item_id not in self._seen_on:
                await self._tell(STARTED, item_id, name, f"{fabric_id} runs on premises while its disks are a replica.")
                self._seen_on.add(item_id)
                told.append(STARTED)
            elif power is PowerState.OFF and item_id in self._seen_on:
                await self._tell(OFF_AGAIN, item_id, name, f"{fabric_id} is off again.")
                self._seen_on.remove(item_id)
                told.append(OFF_AGAIN)
        return told

    async def _tell(self, code: str, item_id: str, name: str, sentence: str) -> None:
        severity = "Critical" if code == STARTED else "OK"
        log.warning("on-premises machine", item=name, code=code, sentence=sentence)

        def record(session: Session) -> None:
            events.record(
                session, self._clock.wall_ns(), code, sentence, severity=severity, subject=name,
                event_type="VmHealth", item_id=item_id,
            )  # fmt: skip

        await self._database.run(record)
