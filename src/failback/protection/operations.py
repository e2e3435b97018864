"""Operations on a protected item and the words that Azure Site Recovery's wire has for them (asr.md sections 5.1, 5.2).

An :class:`Operation`'s value is its name in ``allowedOperations``. "Reprotect" is ``SwitchProtection`` for this
provider, never ``ReverseReplicate``. ``CREATE_RECOVERY_POINT`` and ``MOVE`` are our extensions and are left out of the wire's
list.
"""

from __future__ import annotations

import enum


class Operation(enum.Enum):
    REPROTECT = "SwitchProtection"
    FAILOVER = "UnplannedFailover"
    COMMIT = "Commit"
    CHANGE_POINT = "ChangePit"
    CANCEL_FAILOVER = "CancelFailover"
    REPAIR = "RepairReplication"
    MOVE = "SwitchProcessServer"
    DISABLE = "DisableProtection"
    CREATE_RECOVERY_POINT = "CreateRecoveryPoint"

    @property
    def on_the_wire(self) -> bool:
        return self not in (Operation.CREATE_RECOVERY_POINT, Operation.MOVE)


SPOKEN = {
    Operation.REPROTECT: "Reprotect",
    Operation.FAILOVER: "Failover",
    Operation.COMMIT: "Commit",
    Operation.CHANGE_POINT: "Changing the recovery point",
    Operation.CANCEL_FAILOVER: "Cancelling a failover",
    Operation.REPAIR: "Resynchronizing",
    Operation.MOVE: "Moving to another process server",
    Operation.DISABLE: "Disabling the protection",
    Operation.CREATE_RECOVERY_POINT: "Creating a recovery point",
}
"""How a sentence for a person begins."""


class Side(enum.Enum):
    """Where a machine runs; the words of a fabric's ``site`` in the configuration."""

    ON_PREMISES = "onprem"
    CLOUD = "cloud"

    @property
    def other(self) -> Side:
        return Side.CLOUD if self is Side.ON_PREMISES else Side.ON_PREMISES


class Direction(enum.Enum):
    """Which way an item replicates (or replicated last): the same states serve both."""

    TO_CLOUD = "on-premises-to-cloud"
    TO_ON_PREMISES = "cloud-to-on-premises"

    @property
    def source(self) -> Side:
        return Side.ON_PREMISES if self is Direction.TO_CLOUD else Side.CLOUD

    @property
    def target(self) -> Side:
        return self.source.other

    @property
    def reversed(self) -> Direction:
        return Direction.TO_ON_PREMISES if self is Direction.TO_CLOUD else Direction.TO_CLOUD

    @property
    def provider(self) -> str:
        """The provider's ``instanceType`` on the wire."""
        return "InMageAzureV2" if self is Direction.TO_CLOUD else "InMage"
