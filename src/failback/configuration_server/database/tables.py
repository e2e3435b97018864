"""Imports every table group, so that the metadata is complete for Alembic and for tests."""

from failback.configuration_server.database import (
    access,
    certificates,
    components,
    events,
    groups,
    items,
    jobs,
    orders,
    points,
    policies,
)
from failback.configuration_server.database.base import Base

metadata = Base.metadata

__all__ = [
    "access",
    "certificates",
    "components",
    "events",
    "groups",
    "items",
    "jobs",
    "metadata",
    "orders",
    "points",
    "policies",
]
