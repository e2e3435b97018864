"""The state of a protected item: one table, one ``advance``.

Theory. An item goes round a circle; the direction is a field beside the state, so the way home has the states of the
way out. ``protectionState`` on the wire is the state's value (asr.md section 5.1)::

    COMMITTED --reprotect-started--> REPLICATING --replica-consistent--> PROTECTED --failed-over--> COMMIT_PENDING
        ^  ^---reprotect-abandoned-------'  ^ ^------------repair-started--------'                   |      |
        |                                   '-----------------failover-cancelled---------------------'      |
        '-------------------------------------------------failover-committed--------------------------------'

``reprotect-started`` turns the direction; ``reprotect-abandoned`` turns it back. An imported item begins COMMITTED with
direction TO_CLOUD: it failed over and runs in the cloud. A machine runs at the target after a failover, else at the
source; the side that may *speak* for it (``items.live_side``) follows once it is heard from. A source that was lost
during a synchronisation leaves the points before it, so REPLICATING may fail over too, when asked for by name.
``recovery-point-changed`` stays where it is: the same failover, at another point.
``protection-disabled`` leaves every state but COMMIT_PENDING, where a disposable layer still has to be merged or
dropped. In-progress phases are not states: they are the item's running job.
"""

from __future__ import annotations

import enum

from failback.errors import ConflictError
from failback.protection.operations import SPOKEN, Direction, Operation, Side


class State(enum.Enum):
    REPLICATING = "UnprotectedStatesBegin"
    """Replication has begun; the replica is not consistent yet."""
    PROTECTED = "Protected"
    COMMIT_PENDING = "UnplannedFailoverCommitPendingStatesBegin"
    COMMITTED = "UnplannedFailoverCommitted"
    DISABLED = "Disabled"
    """The end: the item is only kept for its history."""


class Event(enum.Enum):
    REPROTECT_STARTED = "reprotect-started"
    REPROTECT_ABANDONED = "reprotect-abandoned"
    REPLICA_CONSISTENT = "replica-consistent"
    REPAIR_STARTED = "repair-started"
    FAILED_OVER = "failed-over"
    POINT_CHANGED = "recovery-point-changed"
    FAILOVER_COMMITTED = "failover-committed"
    FAILOVER_CANCELLED = "failover-cancelled"
    PROTECTION_DISABLED = "protection-disabled"


INITIAL_STATE_OF_IMPORT = State.COMMITTED
INITIAL_DIRECTION_OF_IMPORT = Direction.TO_CLOUD

TABLE: dict[State, dict[Event, State]] = {
    State.COMMITTED: {
        Event.REPROTECT_STARTED: State.REPLICATING,
        Event.PROTECTION_DISABLED: State.DISABLED,
    },
    State.REPLICATING: {
        Event.REPLICA_CONSISTENT: State.PROTECTED,
        Event.REPROTECT_ABANDONED: State.COMMITTED,
        Event.FAILED_OVER: State.COMMIT_PENDING,
        Event.PROTECTION_DISABLED: State.DISABLED,
    },
    State.PROTECTED: {
        Event.REPAIR_STARTED: State.REPLICATING,
        Event.FAILED_OVER: State.COMMIT_PENDING,
        Event.PROTECTION_DISABLED: State.DISABLED,
    },
    State.COMMIT_PENDING: {
        Event.POINT_CHANGED: State.COMMIT_PENDING,
        Event.FAILOVER_COMMITTED: State.COMMITTED,
        Event.FAILOVER_CANCELLED: State.REPLICATING,
    },
    State.DISABLED: {},
}

OPERATIONS: dict[State, frozenset[Operation]] = {
    State.COMMITTED: frozenset({Operation.REPROTECT, Operation.DISABLE}),
    State.REPLICATING: frozenset({Operation.REPAIR, Operation.MOVE, Operation.DISABLE}),
    State.PROTECTED: frozenset(
        {Operation.FAILOVER, Operation.REPAIR, Operation.MOVE, Operation.DISABLE, Operation.CREATE_RECOVERY_POINT}
    ),
    State.COMMIT_PENDING: frozenset({Operation.COMMIT, Operation.CHANGE_POINT, Operation.CANCEL_FAILOVER}),
    State.DISABLED: frozenset(),
}

_BECAUSE: dict[State, str] = {
    State.COMMITTED: "the failover is committed and nothing replicates: reprotect first",
    State.REPLICATING: "the replica is not consistent yet: wait until the synchronisation is over",
    State.PROTECTED: "the machine is protected and has not failed over",
    State.COMMIT_PENDING: "a failover waits for its commit or cancel: do one of them first",
    State.DISABLED: "the protection was disabled",
}
_DESCRIPTIONS: dict[State, str] = {
    State.COMMITTED: "Failover committed",
    State.REPLICATING: "Synchronization in progress",
    State.PROTECTED: "Protected",
    State.COMMIT_PENDING: "Failover completed",
    State.DISABLED: "Protection disabled",
}


def advance(state: State, event: Event) -> State:
    """The state after the event. Raises ConflictError when the table has no such step."""
    after = TABLE[state].get(event)
    if after is None:
        raise ConflictError(
            f"an item in state {state.value} cannot take the step {event.value}",
            code="InvalidItemState",
            remedy="look at the item's state and running job, then ask again",
        )
    return after


def direction_after(direction: Direction, event: Event) -> Direction:
    """The direction after the event: a reprotect turns it, an abandoned one turns it back."""
    if event in (Event.REPROTECT_STARTED, Event.REPROTECT_ABANDONED):
        return direction.reversed
    return direction


def running_side(state: State, direction: Direction) -> Side:
    """Where the machine runs: the source while it replicates, the target after a failover."""
    return direction.target if state in (State.COMMIT_PENDING, State.COMMITTED) else direction.source


def live_side(state: State, direction: Direction) -> Side:
    """The side that may speak for the machine (D2) in a state that lasts.

    It changes with the commit at the latest; while a failover waits for that, it is the target as soon as its agent is
    heard from.
    """
    return direction.target if state is State.COMMITTED else direction.source


def direction_of(state: State, live: Side) -> Direction:
    """The direction in which an item stands, from its live side.

    While a failover waits for its commit, the live side moves when the target's agent is first heard from, so it tells
    nothing; only failovers to on premises are served, so that is the direction then.
    """
    if state is State.COMMIT_PENDING:
        return Direction.TO_ON_PREMISES
    source = live.other if state is State.COMMITTED else live
    return Direction.TO_CLOUD if source is Side.ON_PREMISES else Direction.TO_ON_PREMISES


def active_location(state: State) -> str:
    """``activeLocation`` on the wire: after a reprotect the roles have swapped, so a source is always Primary."""
    return "Recovery" if state in (State.COMMIT_PENDING, State.COMMITTED) else "Primary"


def description(state: State) -> str:
    return _DESCRIPTIONS[state]


def why_not(
    operation: Operation, state: State, direction: Direction, running_job: str = "", *, source_lost: bool = False
) -> str:
    """Why the operation is not allowed now, as a sentence for a person; empty when it is allowed.

    ``running_job`` names the item's unfinished job, if any: only one job works on an item at a time. ``source_lost``: the
    caller says that the source is gone, so a failover goes to what has arrived, even before the first pass is over.
    """
    spoken = SPOKEN[operation]
    without_source = source_lost and operation is Operation.FAILOVER and state is State.REPLICATING
    if operation not in OPERATIONS[state] and not without_source:
        return f"{spoken} is not possible now: {_BECAUSE[state]}."
    if operation is Operation.REPROTECT and running_side(state, direction) is not Side.CLOUD:
        return f"{spoken} is not possible now: the machine runs on premises; only cloud to on-premises is served."
    if running_job:
        return f"{spoken} is not possible now: {running_job} is working on the item; wait for it or cancel it."
    return ""


def allowed_operations(state: State, direction: Direction, running_job: str = "") -> tuple[Operation, ...]:
    """What may be done now, in the enum's order."""
    return tuple(operation for operation in Operation if not why_not(operation, state, direction, running_job))


def require(
    operation: Operation, state: State, direction: Direction, running_job: str = "", *, source_lost: bool = False
) -> None:
    """Raise ConflictError with the reason unless the operation is allowed now."""
    reason = why_not(operation, state, direction, running_job, source_lost=source_lost)
    if reason:
        allowed = ", ".join(SPOKEN[other].lower() for other in allowed_operations(state, direction, running_job))
        raise ConflictError(
            reason,
            code="OperationNotAllowed",
            remedy=f"allowed now: {allowed}" if allowed else "nothing is allowed now",
        )
