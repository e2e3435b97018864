"""What the three parts of an item's stream last told of it, from the components' rows.

Used where it is decided whether a stream goes on (:mod:`failback.protection.repair_rules`).
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.items import ItemRow
from failback.model.components import MasterTargetStatus, MobilityStatus, ProcessServerStatus
from failback.protection.repair_rules import Parts
from failback.runtime import records


def stream_parts(session: Session, item: ItemRow) -> Parts:
    """None for a part that has not told anything of this machine."""

    def told(component_id: str | None) -> ComponentRow | None:
        row = session.get(ComponentRow, component_id) if component_id else None
        return row if row is not None and row.status else None

    agent, server, target = told(item.machine_id), told(item.process_server_id), told(item.master_target_id)
    mobility = records.decode(agent.status, MobilityStatus, "status of the mobility service") if agent else None
    spooled = replica = None
    if server is not None:
        machines = records.decode(server.status, ProcessServerStatus, "status of the process server").machines
        spooled = next((each for each in machines if each.machine_id == item.machine_id), None)
    if target is not None:
        replicas = records.decode(target.status, MasterTargetStatus, "status of the master target").replicas
        replica = next((each for each in replicas if each.machine_id == item.machine_id), None)
    return Parts(mobility, spooled, replica)
