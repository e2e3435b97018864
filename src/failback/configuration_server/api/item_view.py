"""Everything that is known of one item, read in one transaction: rows, what its components last told, points, verdicts.

The view is a value: shaping it for the wire (``item_shape``) and deciding on it needs no database any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.database import items, policies
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.events import VerdictRow, verdicts_on
from failback.configuration_server.database.groups import GroupRow
from failback.configuration_server.database.items import ItemRow, named
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.database.points import GapRow, PointRow, gaps_of, points_of
from failback.configuration_server.database.policies import policy_of
from failback.errors import NotFoundError
from failback.model.bandwidth import NO_LIMIT, BandwidthLimit
from failback.model.components import (
    MasterTargetStatus,
    MobilityStatus,
    ProcessServerStatus,
    ReplicaStatus,
    SpooledMachine,
)
from failback.model.points import RecoveryPoint
from failback.model.policy import ReplicationPolicy
from failback.protection.operations import Direction, Operation, Side
from failback.protection.states import State, allowed_operations, direction_of, require, running_side
from failback.runtime import records

FINAL_JOB_STATES = frozenset({"Succeeded", "Failed", "Cancelled", "CompletedWithInformation"})


@dataclass(frozen=True, slots=True)
class ItemView:
    row: ItemRow
    state: State
    runs_at: Side
    direction: Direction
    agent: ComponentRow | None
    mobility: MobilityStatus
    process_server: ComponentRow | None
    spooled: SpooledMachine | None
    master_target: ComponentRow | None
    replica: ReplicaStatus | None
    points: Sequence[RecoveryPoint]
    gaps: Sequence[GapRow]
    verdicts: Sequence[VerdictRow]
    policy: ReplicationPolicy
    job: JobRow | None
    """The unfinished job of the item."""
    bandwidth: BandwidthLimit = NO_LIMIT
    """In force for its stream: its own, or that of its policy."""
    group: GroupRow | None = None
    """Its replication group."""

    @property
    def running_job(self) -> str:
        return f"job {self.job.job_id} ({self.job.friendly_name})" if self.job else ""

    def allowed(self) -> tuple[Operation, ...]:
        return allowed_operations(self.state, self.direction, self.running_job)

    def require(self, operation: Operation, *, source_lost: bool = False) -> None:
        """Raise ConflictError with the reason unless the operation is allowed now."""
        require(operation, self.state, self.direction, self.running_job, source_lost=source_lost)


def item_row(session: Session, name: str) -> ItemRow:
    """The item by name or id. One whose protection was disabled is gone for the API. Raises NotFoundError."""
    row = named(session, name)
    if row.protection_state == State.DISABLED.value:
        raise NotFoundError(
            f"the protection of {name!r} was disabled", remedy="failback item import registers the machine again"
        )
    return row


def item_rows(session: Session, *, after: str = "", limit: int | None = None) -> list[ItemRow]:
    """Items by name, those after a name, so many."""
    statement = select(ItemRow).where(ItemRow.protection_state != State.DISABLED.value, ItemRow.name > after)
    return list(session.scalars(statement.order_by(ItemRow.name).limit(limit)))


def view(session: Session, row: ItemRow, *, full: bool = True) -> ItemView:
    """Read what belongs to the item. The row must be of this session.

    ``full`` False is for lists of many: only the newest and oldest point, and nothing of what the servers told.
    """
    agent = _component(session, row.machine_id)
    process_server = _component(session, row.process_server_id)
    master_target = _component(session, row.master_target_id)
    state = State(row.protection_state)
    direction = direction_of(state, Side(row.live_side))
    return ItemView(
        row=row,
        state=state,
        runs_at=running_side(state, direction),
        direction=direction,
        agent=agent,
        mobility=records.decode(agent.status or {}, MobilityStatus) if agent else MobilityStatus(),
        process_server=process_server,
        spooled=_spooled(process_server, row.machine_id) if full else None,
        master_target=master_target,
        replica=_replica(master_target, row.machine_id) if full else None,
        points=points_of(session, row.item_id) if full else _outermost_points(session, row.item_id),
        gaps=gaps_of(session, row.item_id) if full else (),
        verdicts=verdicts_on(session, row.item_id),
        policy=policy_of(session, row.policy_name),
        bandwidth=items.bandwidth_of(row, policies.bandwidth_of(session, row.policy_name)),
        group=session.get(GroupRow, row.group_id) if row.group_id else None,
        job=unfinished_job(session, row),
    )


def unfinished_job(session: Session, row: ItemRow) -> JobRow | None:
    job = session.get(JobRow, row.current_job_id) if row.current_job_id else None
    return None if job is None or job.state in FINAL_JOB_STATES else job


def _outermost_points(session: Session, item_id: str) -> list[RecoveryPoint]:
    """The newest and the oldest reachable point, in this order."""
    reachable = select(PointRow).where(PointRow.item_id == item_id, PointRow.abandoned.is_(False)).limit(1)
    newest = session.scalars(reachable.order_by(PointRow.wall_ns.desc())).first()
    oldest = session.scalars(reachable.order_by(PointRow.wall_ns)).first()
    return [row.point() for row in (newest, oldest) if row is not None]


def _component(session: Session, component_id: str | None) -> ComponentRow | None:
    return session.get(ComponentRow, component_id) if component_id else None


def _spooled(process_server: ComponentRow | None, machine_id: str | None) -> SpooledMachine | None:
    if process_server is None or not process_server.status:
        return None
    status = records.decode(process_server.status, ProcessServerStatus)
    return next((machine for machine in status.machines if machine.machine_id == machine_id), None)


def _replica(master_target: ComponentRow | None, machine_id: str | None) -> ReplicaStatus | None:
    if master_target is None or not master_target.status:
        return None
    status = records.decode(master_target.status, MasterTargetStatus)
    return next((replica for replica in status.replicas if replica.machine_id == machine_id), None)
