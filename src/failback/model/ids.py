"""Identifiers. All are lower-case UUID texts unless said otherwise; a NewType keeps them from being mixed up."""

from __future__ import annotations

import uuid
from typing import NewType

ComponentId = NewType("ComponentId", str)
"""A registered role on a machine: an agent, a process server, a master target. In the certificate's subject CN."""

MachineId = NewType("MachineId", str)
"""A protected machine, on whichever side it runs: the component id of its mobility service."""

DiskId = NewType("DiskId", str)
"""A protected disk of a machine; the same on both sides and in every epoch."""

GroupId = NewType("GroupId", str)
"""A replication group (multi-VM consistency); ``NO_GROUP`` for a machine by itself."""

MarkId = NewType("MarkId", str)
"""A mark put into a stream; the recovery point that it becomes carries the same id."""

PointId = NewType("PointId", str)
"""A recovery point. Equal to its mark's id where a mark made it."""

PassId = NewType("PassId", str)
"""One pass of comparing or copying disks (initial sync, resync)."""

OrderId = NewType("OrderId", str)
"""One order from the configuration server to a component."""

NIL = "00000000-0000-0000-0000-000000000000"
NO_GROUP = GroupId(NIL)


def new_id() -> str:
    """A fresh random id."""
    return str(uuid.uuid4())
