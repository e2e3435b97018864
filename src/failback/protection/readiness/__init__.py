"""Readiness: everything that has to hold before a reprotect or a failback, checked before anything is touched.

The registry holds every row of the documentation's catalogue with where it is handled; docs/readiness.md is made from it.
Checks are pure functions over the frozen :class:`ReadinessFacts`; :func:`evaluate` runs all that belong to the operation.
"""

from failback.protection.readiness.estimate import Estimate, estimate
from failback.protection.readiness.facts import (
    HEARTBEAT_ALARM_SECONDS,
    AzureFacts,
    ComponentFacts,
    DiskFacts,
    ProbedEdge,
    ReadinessFacts,
    TransferFacts,
    VSphereDatastore,
    VSphereFacts,
    VSphereMachine,
)
from failback.protection.readiness.finding import (
    CONNECTIVITY,
    Check,
    Verdict,
    first_failure,
    may_pass_soon,
    ready,
    version_key,
)
from failback.protection.readiness.registry import BY_NUMBER, CATALOGUE, ROWS, evaluate
from failback.protection.readiness.rows import Kind, Place, Row

__all__ = [
    "BY_NUMBER",
    "CATALOGUE",
    "CONNECTIVITY",
    "HEARTBEAT_ALARM_SECONDS",
    "ROWS",
    "AzureFacts",
    "Check",
    "ComponentFacts",
    "DiskFacts",
    "Estimate",
    "Kind",
    "Place",
    "ProbedEdge",
    "ReadinessFacts",
    "Row",
    "TransferFacts",
    "VSphereDatastore",
    "VSphereFacts",
    "VSphereMachine",
    "Verdict",
    "estimate",
    "evaluate",
    "first_failure",
    "may_pass_soon",
    "ready",
    "version_key",
]
