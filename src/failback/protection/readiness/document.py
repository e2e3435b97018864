"""docs/readiness.md, made from the registry: ``python -m failback.protection.readiness.document > docs/readiness.md``.

A test compares the page with what this says, so that neither can be changed alone.
"""

from __future__ import annotations

from failback.protection.operations import Operation
from failback.protection.readiness.registry import BY_NUMBER, CATALOGUE, ROWS, checks_of
from failback.protection.readiness.rows import Place, Row
from failback.protection.readiness.support_matrix import ORIGINAL_TARGETS, REFUSED, SUPPORTED

_HEAD = """# Readiness: every precondition, and where it is handled

This page is made from `failback.protection.readiness` (`make readiness-page`); do not edit it.

`failback readiness NAME` evaluates every check before a reprotect, `failback readiness NAME --failback` before a failback,
and touches nothing. All findings come at once, with the bytes to send, the time that takes at the measured rate and the expected
downtime. `--refresh` has the servers and the agent report anew first. The jobs run the same checks as their first task and fail
with the same findings. Over the API: `GET …/replicationProtectedItems/{item}/readiness?operation=reprotect|failback`.

A finding is `pass`, `warning` (nothing is kept from being done), `fail`, or `not-applicable` with the reason. Rows whose facts
only a vSphere or an Azure fabric can tell are not applicable where another fabric stands.

Rows 1 to 85 and L1 to L12 are those of Azure Site Recovery's documentation on reprotect and failback; X rows are ours. Kinds: B
blocks the item for good · P precheck of a reprotect · F precheck of a failback · R runtime rule or after-effect · D rule of a
list · A advice · I information · U step of a user interface · L added by later documentation · X ours. Where its contradictions
were decided: [0030](decisions/0030-contradictions-of-the-documentation.md).
"""

_TABLE = """
## Rows

| row | kind | what is checked | object | when | consequence | handled | code | remedy or reason |
|---|---|---|---|---|---|---|---|---|
"""


def _when(row: Row) -> str:
    words = {Operation.REPROTECT: "reprotect", Operation.FAILOVER: "failback"}
    return ", ".join(word for operation, word in words.items() if operation in checks_of(row).operations)


def _handled(row: Row) -> str:
    if row.with_row:
        return f"check of row {row.with_row}"
    places = ", ".join(f"`{each.removeprefix('failback.')}`" for each in row.by)
    if row.place is Place.CHECK:
        return f"check; also {places}" if places else "check"
    return f"{row.place.value}: {places}" if places else row.place.value


def _line(row: Row) -> str:
    code = row.code or (BY_NUMBER[row.with_row].code if row.with_row else "")
    remedy = row.remedy or row.reason or (BY_NUMBER[row.with_row].remedy if row.with_row else "")
    cells = (
        row.number, row.kind, row.title, row.subject, _when(row) if row.check or row.with_row else "", row.consequence,
        _handled(row), f"`{code}`" if code else "", remedy,
    )  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _matrix() -> list[str]:
    targets = ", ".join(f"{name} (`{driver}`)" for driver, name in ORIGINAL_TARGETS.items())
    tried = ", ".join(f"{each.name} {each.version}" for each in SUPPORTED)
    lines = [
        "",
        "## Systems and platforms",
        "",
        f"Machines come back to: {targets}. Tried with this product: {tried}; other Linux systems are accepted when the",
        "capture's self-test passes on their kernel. Refused:",
        "",
        "| system | protected as | row | reason |",
        "|---|---|---|---|",
    ]
    lines += [f"| {each.version} | {each.source_kind or 'any'} | {each.row} | {each.reason} |" for each in REFUSED]
    return lines


def page() -> str:
    own = [row.number for row in ROWS if row.number not in CATALOGUE]
    rows = "\n".join(_line(BY_NUMBER[number]) for number in (*CATALOGUE, *own))
    return _HEAD + _TABLE + rows + "\n" + "\n".join(_matrix()) + "\n"


if __name__ == "__main__":
    print(page(), end="")
