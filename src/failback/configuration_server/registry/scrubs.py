"""What a scrub found becomes events of the item: once for each stretch, when the agent first tells of it.

Called within the intake of an agent's heartbeat. The stretch is repaired by then, or about to be; points that were made
while it was wrong carry it, which the event says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from failback.configuration_server.database import events
from failback.configuration_server.database.items import ItemRow
from failback.model.components import ScrubStatus
from failback.runtime import records

REPLICA_WAS_WRONG = "ECH0021"
SCRUB_ENDED = "ECH0022"


def note(session: Session, item: ItemRow, now: Mapping[str, Any], before: Mapping[str, Any], wall_ns: int) -> None:
    """``now`` and ``before`` are the agent's encoded statuses."""
    if not now.get("scrub") or now.get("scrub") == before.get("scrub"):
        return
    scrub = records.decode(now["scrub"], ScrubStatus, "heartbeat: scrub")
    known = records.decode(before["scrub"], ScrubStatus) if before.get("scrub") else None
    if known is not None and known.scrub_id != scrub.scrub_id:
        known = None
    seen = {(one.disk_index, one.offset_bytes): one.length_bytes for one in known.findings} if known else {}
    name = item.friendly_name or item.name
    for one in scrub.findings:
        length = one.length_bytes - seen.get((one.disk_index, one.offset_bytes), 0)
        if length > 0:
            start = one.offset_bytes + one.length_bytes - length
            events.record(
                session, wall_ns, REPLICA_WAS_WRONG,
                f"the replica of disk {one.disk_index} was wrong at bytes {start} to {start + length - 1}; it is repaired "
                "from the source; recovery points made since it went wrong carry the wrong content there",
                severity="Critical", item_id=item.item_id, subject=name,
            )  # fmt: skip
    if scrub.state == "finished" and (known is None or known.state != "finished"):
        wrong = (
            f"{scrub.repaired_bytes} bytes were wrong and are repaired" if scrub.repaired_bytes else "nothing was wrong"
        )
        events.record(
            session, wall_ns, SCRUB_ENDED, f"the disks of {name} were compared with the replica: {wrong}",
            severity="Warning" if scrub.repaired_bytes else "OK", item_id=item.item_id, subject=name,
        )  # fmt: skip
