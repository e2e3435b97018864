"""docs/reference/states.md, made from the table: ``python -m failback.protection.states_page > docs/reference/states.md``.

A test compares the page with what this says, so that neither can be changed alone.
"""

from __future__ import annotations

from failback.protection.operations import Direction, Side
from failback.protection.recorded_states import REASONS, RECORDED, differences, reached
from failback.protection.states import (
    INITIAL_STATE_OF_IMPORT,
    TABLE,
    State,
    active_location,
    allowed_operations,
    description,
    running_side,
)

_HEAD = """# States of a protected item

This page is made from `failback.protection.states` (`make states-page`); do not edit it.

An item goes round a circle. The direction is a field beside the state, so the way home has the states of the way out; a
reprotect turns it. What a job is doing just now is no state: it is the item's running job, and while one runs no operation
is allowed.
"""
_SITES = {Side.ON_PREMISES: "on premises", Side.CLOUD: "in the cloud"}


def diagram() -> str:
    """The table as a Mermaid diagram; a state is drawn by its value on the wire."""
    lines = ["stateDiagram-v2"]
    lines += [f'    state "{state.value}" as {state.name}' for state in State]
    lines.append(f"    [*] --> {INITIAL_STATE_OF_IMPORT.name}: import")
    lines += [
        f"    {state.name} --> {after.name}: {event.value}"
        for state, steps in TABLE.items()
        for event, after in steps.items()
    ]
    lines += [f"    {state.name} --> [*]" for state, steps in TABLE.items() if not steps]
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _states() -> list[str]:
    lines = [
        "## What an item shows",
        "",
        "States and directions in which an item can be here; operations in italics are ours and not on the wire. An item whose",
        "protection was disabled is not shown any more.",
        "",
        "| protectionState | direction | protectionStateDescription | activeLocation | provider | runs | allowedOperations |",
        "|---|---|---|---|---|---|---|",
    ]
    for state in State:
        for direction in Direction:
            if state is State.DISABLED or (state, direction) not in reached():
                continue
            allowed = allowed_operations(state, direction)
            lines.append(
                _row(
                    f"`{state.value}`", direction.value, description(state), active_location(state), direction.provider,
                    _SITES[running_side(state, direction)],
                    ", ".join(each.value if each.on_the_wire else f"*{each.value}*" for each in allowed),
                )
            )  # fmt: skip
    return lines


def _compared() -> list[str]:
    lines = [
        "## Compared with Azure Site Recovery",
        "",
        "Its recorded answers, and every operation that only one of both lists. A row without differences is the same here.",
        "",
        "| recorded | protectionState | operation | shown by | why |",
        "|---|---|---|---|---|",
    ]
    differing = differences()
    for row in RECORDED:
        if (row.state, row.direction) not in reached():
            why = "replication to the cloud is not served yet"
            lines.append(_row(row.phase, f"`{row.state.value}`", "", "not reached here", why))
            continue
        mine = [key for key in sorted(differing, key=str) if key[:2] == (row.state, row.direction)]
        if not mine:
            lines.append(_row(row.phase, f"`{row.state.value}`", "", "", "no difference"))
        for key in mine:
            by = "Failback" if differing[key] else "Azure"
            lines.append(_row(row.phase, f"`{row.state.value}`", key[2], by, REASONS[key]))
    return lines


def page() -> str:
    drawn = ["## The table", "", "```mermaid", diagram(), "```"]
    return "\n".join([_HEAD, *drawn, "", *_states(), "", *_compared(), ""])


if __name__ == "__main__":
    print(page(), end="")
