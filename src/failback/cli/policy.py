"""``failback policy``: how often points are made, and how long which of them stay."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from failback.cli.output import AsJson, print_json, print_table, server
from failback.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True, help="Replication policies: list, set.")

_MINUTES = {"m": 1, "h": 60, "d": 1440}


@app.command("list")
def list_policies(as_json: AsJson = False) -> None:
    """All policies and their figures."""
    with server() as api:
        found = api.every("/replicationPolicies")
    if as_json:
        print_json(found)
        return
    rows = []
    for one in found:
        own = one["properties"]["providerSpecificDetails"]
        steps = "; ".join(
            f"after {step['olderThanInMinutes']} min one in {step['everyInMinutes']} min" for step in own["thinning"]
        )
        points = f"every {own['crashConsistentSeconds']} s, app-consistent every {own['appConsistentFrequencyInMinutes']} min"
        limit = "; ".join((own["bandwidth"]["limit"], *own["bandwidth"]["schedule"]))
        rows.append((one["name"], points, f"{own['recoveryPointHistory']} min", steps or "none is thinned", limit))
    print_table(("name", "points", "history", "thinning", "bandwidth"), rows, "no policies")


@app.command("set")
def set_policy(
    name: Annotated[str, typer.Argument(help="The policy's name.")] = "failback",
    *,
    crash_consistent: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="Between crash-consistent points; 1 is the shortest.")
    ] = None,
    app_consistent: Annotated[
        int | None, typer.Option(metavar="MINUTES", help="Between app-consistent points; 0: none by itself.")
    ] = None,
    history: Annotated[str | None, typer.Option(metavar="TIME", help="How long points stay: 24h, 7d.")] = None,
    redo_window: Annotated[
        str | None, typer.Option(metavar="TIME", help="For how long any moment can be chosen, not only points: 1h.")
    ] = None,
    thin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AGE:EVERY", help="Of points older than AGE keep one in EVERY: 1h:1m. Several; none ends all."
        ),
    ] = None,
    bandwidth_limit: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="Of each machine that has no limit of its own: 50MB/s; none ends it."),
    ] = None,
    bandwidth_schedule: Annotated[
        list[str] | None,
        typer.Option(metavar="WINDOW", help='Another limit at times: "mon-fri 08:00-18:00 10MB/s". none ends all.'),
    ] = None,
    time_zone: Annotated[str | None, typer.Option(help="Whose wall time windows mean, e.g. Europe/Berlin.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change a policy's figures; master targets keep to them within seconds."""
    wanted: dict[str, Any] = {}
    if crash_consistent is not None:
        wanted["crashConsistentSeconds"] = crash_consistent
    if app_consistent is not None:
        wanted["appConsistentFrequencyInMinutes"] = app_consistent
    if history is not None:
        wanted["recoveryPointHistory"] = _minutes(history)
    if redo_window is not None:
        wanted["redoWindowInSeconds"] = _minutes(redo_window) * 60
    if thin is not None:
        wanted["thinning"] = [_step(text) for text in thin if text != "none"]
    schedule = None if bandwidth_schedule is None else [text for text in bandwidth_schedule if text != "none"]
    bandwidth = {"limit": bandwidth_limit, "schedule": schedule, "timeZone": time_zone}
    if any(value is not None for value in bandwidth.values()):
        wanted["bandwidth"] = {name: value for name, value in bandwidth.items() if value is not None}
    with server() as api:
        changed = api.patch(f"/replicationPolicies/{name}", {"properties": {"replicationProviderSettings": wanted}})
    if as_json:
        print_json(changed)
    else:
        typer.echo(f"policy {name} is changed; failback policy list shows it")


def _step(text: str) -> dict[str, int]:
    age, colon, every = text.partition(":")
    if not colon:
        raise ConfigurationError(f"{text!r} is no step", remedy="write AGE:EVERY, like 2h:1h")
    return {"olderThanInMinutes": _minutes(age), "everyInMinutes": _minutes(every)}


def _minutes(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([mhd])", text.strip())
    if found is None:
        raise ConfigurationError(
            f"{text!r} is no time", remedy="write it in whole minutes, hours or days: 90m, 24h, 7d"
        )
    return int(found[1]) * _MINUTES[found[2]]
