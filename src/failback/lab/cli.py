"""``failback lab up | status | down | demo``: a whole installation with a real guest on this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from failback.errors import ConfigurationError, FailbackError
from failback.lab.layout import DEFAULT_CACHE, DEFAULT_DIRECTORY, Layout

app = typer.Typer(name="lab", no_args_is_help=True, help="A whole installation with a real guest on this machine.")

Directory = Annotated[Path, typer.Option(help="Where the lab lives; removed by 'down'.")]
Cache = Annotated[Path, typer.Option(help="Where the guest image is kept.")]


@app.command()
def up(directory: Directory = DEFAULT_DIRECTORY, cache: Cache = DEFAULT_CACHE) -> None:
    """Start everything: two sites, the servers, a guest in the cloud that commits to its ledger."""
    from failback.lab import laboratory, servers

    layout = Layout(directory, cache)
    try:
        found = laboratory.up(layout, _say)
    except FailbackError as error:
        raise _failed(error) from error
    typer.echo("\nTo speak to it:")
    for name, value in servers.command_environment(layout, found.ports or {}).items():
        typer.echo(f"  export {name}='{value}'")


@app.command()
def status(
    directory: Directory = DEFAULT_DIRECTORY,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What of the lab runs. Exit status 3 when there is no lab, 1 when a part of it is down."""
    from failback.lab import laboratory

    parts = laboratory.status(Layout(directory))
    if as_json:
        typer.echo(json.dumps([asdict(part) for part in parts], indent=2))
    else:
        for part in parts:
            typer.echo(f"{'up  ' if part.running else 'down'}  {part.name:28} {part.detail}")
    if not parts:
        typer.echo("there is no lab here", err=True)
        raise typer.Exit(3)
    if any(not part.running for part in parts if not part.name.startswith("machine ")):
        raise typer.Exit(1)


@app.command()
def down(directory: Directory = DEFAULT_DIRECTORY) -> None:
    """Stop and remove everything that the lab started. May be repeated."""
    from failback.lab import laboratory

    try:
        laboratory.down(Layout(directory), _say)
    except FailbackError as error:
        raise _failed(error) from error


@app.command()
def demo(
    directory: Directory = DEFAULT_DIRECTORY,
    cache: Cache = DEFAULT_CACHE,
    report: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("demo-report.json"),
    keep: Annotated[bool, typer.Option(help="Leave the lab running afterwards.")] = False,
) -> None:
    """Tell the main story and check it: a machine that failed over comes home with nothing lost."""
    from failback.lab import requirements
    from failback.lab.demo import run

    layout = Layout(directory, cache)
    try:
        requirements.require(layout)
        report.touch()
    except FailbackError as error:
        raise _failed(error) from error
    except OSError as error:
        raise _failed(
            ConfigurationError(f"{report} cannot be written: {error.strerror}", remedy="use --report")
        ) from error
    raise typer.Exit(run(layout, report, keep=keep))


def _say(sentence: str) -> None:
    typer.echo(f"· {sentence}")
    sys.stdout.flush()


def _failed(error: FailbackError) -> typer.Exit:
    typer.echo(f"failed: {error.message}", err=True)
    if error.remedy:
        typer.echo(f"  what to do: {error.remedy}", err=True)
    return typer.Exit(1)
