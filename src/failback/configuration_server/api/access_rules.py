"""Which role a call needs: one table, asked by the gate before a byte of the body is read. Pure.

Readers see everything but who may sign in. Operators run what exists: failover, commit, cancel, reprotect, resynchronize,
points, views, jobs. Administrators change what exists: items, policies, groups, components, clients. The split is that of
Azure's built-in roles Site Recovery Reader, Operator and Contributor. A call that the table does not know needs an
administrator, so a route that somebody forgets here is closed and not open.
"""

from __future__ import annotations

import enum

from failback.configuration_server.api.arm import last_segment


class Access(enum.IntEnum):
    """Roles, weakest first: each may do what those before it may."""

    READER = 1
    OPERATOR = 2
    ADMINISTRATOR = 3

    @property
    def word(self) -> str:
        return self.name.lower()


BY_WORD = {access.word: access for access in Access}

OPERATOR_ACTIONS = frozenset({
    "reProtect", "unplannedFailover", "plannedFailover", "testFailover", "testFailoverCleanup", "failoverCommit",
    "failoverCancel", "applyRecoveryPoint", "repairReplication", "switchProcessServer", "createRecoveryPoint", "scrub",
    "updateMobilityService", "resolveHealthErrors", "reassociateGateway", "checkConsistency", "refreshProvider", "refresh",
    "cancel", "restart", "resume", "export",
})  # fmt: skip
"""Last segments of POSTs that an operator may send."""
OPERATOR_RESOURCES = frozenset({"views"})
"""Collections whose members an operator may put and delete."""
CLIENTS = "/failback/clients"


def needed(method: str, path: str) -> Access:
    """The weakest role that may send this request."""
    if method in ("GET", "HEAD", "OPTIONS"):
        return Access.ADMINISTRATOR if CLIENTS in path else Access.READER
    if method == "POST" and path.rsplit("/", 1)[-1] in OPERATOR_ACTIONS:
        return Access.OPERATOR
    if method in ("PUT", "DELETE") and last_segment(path.rsplit("/", 1)[0]) in OPERATOR_RESOURCES:
        return Access.OPERATOR
    return Access.ADMINISTRATOR
