"""All rows of the readiness catalogue, and ``evaluate``: every check that belongs to the operation, over one snapshot.

``evaluate(facts) -> list[Check]`` is pure: the caller gathers the facts and passes ages instead of clocks. A check whose
subject is missing is not-applicable when another check already fails for that reason, so that one cause shows once.
Codes are those that Azure Site Recovery prints for the same condition where it prints one; the others are ours, in words.
"""

from __future__ import annotations

from dataclasses import replace

from failback.protection.readiness import (
    boot,
    control,
    datastores,
    eligibility,
    jobs,
    network,
    platform,
    retention,
    servers,
    virtual_machine,
)
from failback.protection.readiness.facts import ReadinessFacts
from failback.protection.readiness.finding import Check
from failback.protection.readiness.rows import Place, Row

_LINKS = Row(
    "85", "I", "links of the documentation", "documentation", "none", Place.DOCUMENTED,
    reason="pages of the real service; our guides stand in their place (docs/guides)",
)  # fmt: skip

ROWS: tuple[Row, ...] = (
    *eligibility.ROWS,
    *platform.ROWS,
    *control.ROWS,
    *jobs.ROWS,
    *servers.ROWS,
    *virtual_machine.ROWS,
    *retention.ROWS,
    *datastores.ROWS,
    *network.ROWS,
    *boot.ROWS,
    _LINKS,
)
"""In the order in which a person would work through them."""

BY_NUMBER: dict[str, Row] = {row.number: row for row in ROWS}
CATALOGUE = (*(str(number) for number in range(1, 86)), *(f"L{number}" for number in range(1, 13)))
"""The numbers of the documentation's rows, all of which are in ``BY_NUMBER``; the others are ours (X...)."""


def checks_of(row: Row) -> Row:
    """The row whose check answers this one: itself, or the one that it goes with."""
    return BY_NUMBER[row.with_row] if row.with_row else row


def answered_by(row: Row) -> tuple[str, ...]:
    """The numbers of all rows that this row's check answers, its own first."""
    return (row.number, *(other.number for other in ROWS if other.with_row == row.number))


def evaluate(facts: ReadinessFacts) -> list[Check]:
    """All findings at once, complete with name, rows and, where something is wrong, code and remedy."""
    found: list[Check] = []
    for row in ROWS:
        if row.check is None or facts.operation not in row.operations:
            continue
        rows = answered_by(row)
        for check in row.check(facts):
            found.append(
                replace(
                    check,
                    name=check.name or row.title,
                    rows=rows,
                    code=(check.code or row.code) if check.blames else "",
                    remedy=(check.remedy or row.remedy) if check.blames else "",
                )
            )
    return found
