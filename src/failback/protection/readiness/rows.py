"""A row of the readiness catalogue: one precondition of Azure Site Recovery's documentation, and where it is handled here.

The kinds are those of the catalogue: *Blocks* the item for good, *Precheck* before a reprotect, *Failback* precheck,
*Runtime* rule or after-effect, *Display* rule of a list, *Advice*, *Information*, *User interface* step; *Own* rows are
ours. Only advice, information and steps of a user interface may be merely documented; all others change what a command does.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from failback.protection.operations import Operation
from failback.protection.readiness.facts import ReadinessFacts
from failback.protection.readiness.finding import Check

Rule = Callable[[ReadinessFacts], list[Check]]

REPROTECT = frozenset({Operation.REPROTECT})
FAILBACK = frozenset({Operation.FAILOVER})
BOTH = REPROTECT | FAILBACK


class Kind(enum.Enum):
    ADVICE = "A"
    INFORMATION = "I"
    USER_INTERFACE = "U"
    BLOCKS = "B"
    PRECHECK = "P"
    FAILBACK = "F"
    RUNTIME = "R"
    DISPLAY = "D"
    LATER = "L"
    """Added by later versions of the same documentation."""
    OWN = "X"


MERELY_DOCUMENTED = frozenset({Kind.ADVICE, Kind.INFORMATION, Kind.USER_INTERFACE})


class Place(enum.Enum):
    """Where a row is handled."""

    CHECK = "check"
    LIST_FILTER = "filter of a list"
    RUNTIME_GUARD = "runtime guard"
    INPUT = "rule of the input"
    DOCUMENTED = "documented"


@dataclass(frozen=True, slots=True)
class Row:
    """``title`` is the name of its check. ``with_row``: the row whose check answers this one too.

    ``by``: what handles it when it is not a check, as ``module:name``; ``reason``: why it is only documented.
    """

    number: str
    kind: str
    title: str
    subject: str
    consequence: str
    place: Place = Place.CHECK
    check: Rule | None = None
    with_row: str = ""
    operations: frozenset[Operation] = REPROTECT
    code: str = ""
    remedy: str = ""
    by: tuple[str, ...] = ()
    reason: str = ""

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(Kind(letter) for letter in self.kind.split("/"))
