"""``failback points NAME`` and ``failback point create NAME``: what an item can go back to."""

from __future__ import annotations

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
    tell,
)

app = typer.Typer(no_args_is_help=True, help="Recovery points: list, create.")


def points(name: ItemName, as_json: AsJson = False) -> None:
    """Recovery points, newest first, and the gaps between them."""
    with server() as api:
        found = api.every(f"{ITEMS}/{name}/recoveryPoints")
        item = api.get(f"{ITEMS}/{name}")
    if as_json:
        print_json(found)
        return
    rows = []
    for point in found:
        properties = point["properties"]
        own = properties["failback"]
        when = properties["recoveryPointTime"]
        state = "abandoned" if own["abandoned"] else "reachable"
        rows.append((point["name"], moment(when), duration(age_seconds(when)), own["kind"], state))
    print_table(("id", "time", "age", "kind", "state"), rows, "no recovery points yet")
    for gap in item["properties"]["providerSpecificDetails"]["failback"]["gaps"]:
        tell(f"gap ({gap['cause']}): {moment(gap['started'])} to {moment(gap['ended']) if gap['ended'] else 'now'}")


app.command("list")(points)


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
