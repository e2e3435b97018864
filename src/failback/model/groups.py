"""What the members of a replication group and the configuration server say to each other around a common mark (D19).

A member walks through the phases in their order and says each one once (``POST /components/v1/group-hold``, a :class:`HoldStep`);
the answer (:class:`HoldReply`) comes when every member has said the same, and tells what to do next. So a hold lasts
from the first member's freeze to the last mark plus two round trips. A step with a ``reason`` makes the mark void:
everybody is answered ``release`` at once. Nobody waits longer than the limit that ``prepare`` named.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from failback.model.ids import GroupId, MarkId


class HoldPhase(enum.Enum):
    """Where a member is."""

    ARMED = "armed"
    """It could hold still now (or says why not); nothing has happened yet."""
    PREPARED = "prepared"
    """Its stream rests: a mark would be put at once."""
    HELD = "held"
    """Nothing on this machine runs that could write."""
    MARKED = "marked"
    """The mark lies in its capture ring."""
    RELEASED = "released"
    """It runs again; without a reason the hold was unbroken until this was asked for."""


class HoldAction(enum.Enum):
    WAIT = "wait"
    """Nothing is due: say ``armed`` again."""
    PREPARE = "prepare"
    HOLD = "hold"
    MARK = "mark"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class HoldStep:
    """The machine is known by its certificate. ``reason``: why the member cannot be, or was not, held still."""

    phase: HoldPhase
    group_id: GroupId
    epoch: int
    mark_id: MarkId = MarkId("")
    reason: str = ""
    ring: int = 0
    """With MARKED: the mark's position in the machine's stream."""
    enter_milliseconds: float = 0.0
    held_milliseconds: float = 0.0
    """With RELEASED: from the beginning of the freeze to the end of the thaw."""


@dataclass(frozen=True, slots=True)
class HoldReply:
    action: HoldAction
    mark_id: MarkId = MarkId("")
    limit_seconds: float = 0.0
    """With PREPARE: the longest hold; whatever happens the machine runs again after it."""
