"""``failback points NAME`` and ``failback point create NAME``: what an item can go back to."""

from __future__ import annotations

from typing import Any

import typer

from failback.cli import watch
from failback.cli.client import ITEMS
from failback.cli.output import (
    AsJson,
    ItemName,
    NoWait,
    age_seconds,
    duration,
    moment,
    print_json,
    print_table,
    server,
)

app = typer.Typer(no_args_is_help=True, help="Recovery points: list, create.")


def points(name: ItemName, as_json: AsJson = False) -> None:
    """Recovery points, newest first, and the gaps between them."""
    with server() as api:
        found = api.every(f"{ITEMS}/{name}/recoveryPoints")
        missing = api.every(f"{ITEMS}/{name}/gaps")
    if as_json:
        print_json(found)
        return
    rows = [(one["properties"]["started"], _gap_row(one["properties"])) for one in missing]
    for point in found:
        properties = point["properties"]
        own = properties["failback"]
        when = properties["recoveryPointTime"]
        state = "abandoned" if own["abandoned"] else "reachable"
        rows.append((when, (point["name"], moment(when), duration(age_seconds(when)), own["kind"], state)))
    rows.sort(key=lambda row: row[0], reverse=True)  # wire dates sort as text
    print_table(("id", "time", "age", "kind", "state"), [row for _, row in rows], "no recovery points yet")


def _gap_row(gap: dict[str, Any]) -> tuple[str, ...]:
    """A stretch without points, at the place where it began."""
    began = gap["started"]
    until = f"until {moment(gap['ended'])}" if gap["ended"] else "still open"
    return ("-", moment(began), duration(age_seconds(began)), f"gap: {gap['cause']}", until)


app.command("list")(points)


@app.command()
def gaps(name: ItemName, as_json: AsJson = False) -> None:
    """Stretches of time in which no recovery point could be made: the cause, the beginning and the end."""
    with server() as api:
        found = api.every(f"{ITEMS}/{name}/gaps")
    if as_json:
        print_json(found)
        return
    rows = [(gap["cause"], moment(gap["started"]), moment(gap["ended"]) if gap["ended"] else "still open")
            for gap in (one["properties"] for one in found)]  # fmt: skip
    print_table(("cause", "began", "ended"), rows, "no gaps")


@app.command()
def create(name: ItemName, no_wait: NoWait = False, as_json: AsJson = False) -> None:
    """Make an app-consistent point now: scripts, a short freeze, a mark, scripts."""
    with server() as api:
        job_id = api.start(f"{ITEMS}/{name}/createRecoveryPoint")
        if not no_wait:
            watch.follow_all(api, job_id, as_json=as_json)
        elif as_json:
            print_json({"jobId": job_id})
        else:
            typer.echo(job_id)
