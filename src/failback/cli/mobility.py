"""``failback mobility bundle``: one offline archive that installs the mobility service on a protected machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from failback.cli.output import failing, size

app = typer.Typer(no_args_is_help=True, help="The mobility service of protected machines.")


@app.callback()
def _group() -> None:
    """The mobility service of protected machines."""


@app.command()
def bundle(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the archive goes.")] = Path(
        "failback-mobility.tar.gz"
    ),
) -> None:
    """Make the archive: wheels, capture program, unit file, install script. No internet is needed to install it."""
    from failback.mobility.bundle import make_bundle

    with failing():
        make_bundle(output)
    typer.echo(f"{output} ({size(output.stat().st_size)})")
