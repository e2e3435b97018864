"""``failback event list``: what changed, newest first."""

from __future__ import annotations

from typing import Annotated

import typer

from failback.cli.output import AsJson, moment, print_json, print_table, server

app = typer.Typer(no_args_is_help=True, help="Events: what changed and when.")


@app.callback()
def _group() -> None:
    """Events: what changed and when."""


@app.command("list")
def list_events(
    item: Annotated[str, typer.Option(help="Only events of this item.")] = "",
    severity: Annotated[str, typer.Option(help="Only OK, Warning or Critical.")] = "",
    limit: Annotated[int, typer.Option(help="At most so many.", min=1)] = 50,
    as_json: AsJson = False,
) -> None:
    """Events, newest first."""
    clauses = [f"itemName eq '{item}'"] * bool(item) + [f"severity eq '{severity}'"] * bool(severity)
    with server() as api:
        events = api.some("/replicationEvents", limit, {"$filter": " and ".join(clauses)} if clauses else None)
    if as_json:
        print_json(events)
        return
    rows = []
    for event in events:
        properties = event["properties"]
        subject = properties["affectedObjectFriendlyName"] or "-"
        when = moment(properties["timeOfOccurrence"])
        rows.append((when, properties["severity"], properties["eventCode"], subject, properties["description"]))
    print_table(("time", "severity", "code", "object", "what"), rows, "no events")
