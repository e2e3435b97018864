"""What the real service shows of an item in each state, as recorded, and why ours differs where it does.

Each row is one recorded answer of the service (``allowed`` None: the recording shows no list). ``REASONS`` explains every
operation that one of both lists has and the other has not; a test asserts that it explains these and no other, so that
neither the table of states nor this page can drift from the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from failback.protection.operations import Direction, Operation
from failback.protection.states import (
    INITIAL_DIRECTION_OF_IMPORT,
    INITIAL_STATE_OF_IMPORT,
    TABLE,
    Event,
    State,
    allowed_operations,
    direction_after,
    why_not,
)


@dataclass(frozen=True, slots=True)
class Recorded:
    phase: str
    state: State
    direction: Direction
    description: str
    """Empty: not recorded."""
    location: str
    provider: str
    """Empty: recorded of another provider."""
    allowed: frozenset[str] | None


RECORDED = (
    Recorded("first copy to the cloud", State.REPLICATING, Direction.TO_CLOUD, "", "Primary", "InMageAzureV2", None),
    Recorded(
        "protected, to the cloud", State.PROTECTED, Direction.TO_CLOUD, "Protected", "Primary", "InMageAzureV2",
        frozenset({"UnplannedFailover", "DisableProtection", "TestFailover"}),
    ),
    Recorded(
        "failed over, not committed", State.COMMIT_PENDING, Direction.TO_ON_PREMISES, "Failover completed", "Recovery", "",
        frozenset({"CompleteMigration", "Commit", "DisableProtection", "ChangePit"}),
    ),
    Recorded(
        "committed in the cloud", State.COMMITTED, Direction.TO_CLOUD, "Failover committed", "Recovery", "InMageAzureV2",
        frozenset({"CompleteMigration", "DisableProtection", "SwitchProtection"}),
    ),
    Recorded(
        "reprotected, to on premises", State.PROTECTED, Direction.TO_ON_PREMISES, "Protected", "Primary", "InMage",
        frozenset({"UnplannedFailover", "DisableProtection"}),
    ),
    Recorded(
        "failback committed", State.COMMITTED, Direction.TO_ON_PREMISES, "Failover committed", "Recovery", "InMage",
        frozenset({"CompleteMigration", "DisableProtection", "SwitchProtection"}),
    ),
)  # fmt: skip

_MIGRATION = "completing a migration is not served yet; DisableProtection ends the protection"
REASONS: dict[tuple[State, Direction, str], str] = {
    (State.COMMIT_PENDING, Direction.TO_ON_PREMISES, "CompleteMigration"): _MIGRATION,
    (State.COMMITTED, Direction.TO_CLOUD, "CompleteMigration"): _MIGRATION,
    (State.COMMITTED, Direction.TO_ON_PREMISES, "CompleteMigration"): _MIGRATION,
    (State.COMMITTED, Direction.TO_ON_PREMISES, "SwitchProtection"): "replication to the cloud is not served yet",
    (State.COMMIT_PENDING, Direction.TO_ON_PREMISES, "DisableProtection"):
        "the machine runs on a disposable layer, which is merged by a commit or dropped by a cancel first",
    (State.COMMIT_PENDING, Direction.TO_ON_PREMISES, "CancelFailover"):
        "a failback can be called off until its commit; the service knows the operation too",
    (State.PROTECTED, Direction.TO_ON_PREMISES, "RepairReplication"):
        "it may be asked for at any time; the recording, of a healthy item, does not list it",
}  # fmt: skip


def reached() -> frozenset[tuple[State, Direction]]:
    """Every state with every direction in which an item can be: walks the table as far as operations allow."""
    found = {(INITIAL_STATE_OF_IMPORT, INITIAL_DIRECTION_OF_IMPORT)}
    todo = list(found)
    while todo:
        state, direction = todo.pop()
        for event, after in TABLE[state].items():
            if event is Event.REPROTECT_STARTED and why_not(Operation.REPROTECT, state, direction):
                continue
            new = (after, direction_after(direction, event))
            if new not in found:
                found.add(new)
                todo.append(new)
    return frozenset(found)


def shown(state: State, direction: Direction) -> frozenset[str]:
    """``allowedOperations`` of an item on which no job works."""
    return frozenset(each.value for each in allowed_operations(state, direction) if each.on_the_wire)


def differences() -> dict[tuple[State, Direction, str], bool]:
    """Operations that only one of both lists has, in the rows that an item reaches here; True: ours has it."""
    return {
        (row.state, row.direction, name): name in shown(row.state, row.direction)
        for row in RECORDED
        if row.allowed is not None and (row.state, row.direction) in reached()
        for name in row.allowed ^ shown(row.state, row.direction)
    }
