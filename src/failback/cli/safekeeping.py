"""``failback backup`` and ``failback restore``: run on the configuration server's own host, on its files and database."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from failback.cli.output import AsJson, Yes, confirm, failing, print_json, size, tell
from failback.errors import ConfigurationError

LEAST_CHARACTERS = 12
DEFAULT_CONFIG = Path("/etc/failback/configuration-server.toml")

Archive = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.", show_default=False)]
Config = Annotated[Path, typer.Option("--config", help="The configuration server's TOML.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="Holds the passphrase that seals the backup. Else it is asked for."),
]


def backup(
    file: Archive, config: Config = DEFAULT_CONFIG, passphrase_file: PassphraseFile = None, as_json: AsJson = False
) -> None:
    """Save the whole configuration server in one sealed file, while it serves.

    Database, certificate authority, secrets and configuration. Keep the passphrase elsewhere: without it the file is
    worth nothing, with it whoever has the file can pose as this installation.
    """
    from failback.configuration_server.safekeeping.backup import make

    with failing():
        summary = make(config, file, _passphrase(passphrase_file, twice=True))
    if as_json:
        print_json({"file": str(file), **asdict(summary)})
        return
    typer.echo(f"{file} ({size(summary.bytes)}, {summary.rows} rows, read back and verified)")


def restore(  # noqa: PLR0917 - options of a command
    file: Archive,
    config: Config = DEFAULT_CONFIG,
    passphrase_file: PassphraseFile = None,
    replace: Annotated[bool, typer.Option("--replace", help="Give up what the target holds now.")] = False,
    files_only: Annotated[
        bool,
        typer.Option("--files-only", help="Authority and secrets only: one more server on a PostgreSQL that is well."),
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make a configuration server out of a backup, on this host or on another.

    Stop the server first. Edit --config beforehand for another address or database (SQLite and PostgreSQL restore into one
    another); where the file is missing it is written from the backup. Jobs that ran on that day are failed and may be
    restarted. Components that know the old address: failback repoint.
    """
    from failback.configuration_server.safekeeping.restore import restore as run

    with failing():
        passphrase = _passphrase(passphrase_file, twice=False)
        if replace:
            confirm(["What the configuration server holds now is given up for the backup."], "Restore?", yes)
        done = run(file, config, passphrase, replace=replace, files_only=files_only)
    if as_json:
        print_json({"backup": asdict(done.backup), "stoppedJobs": list(done.stopped_jobs)})
        return
    made = datetime.fromtimestamp(done.backup.made_wall_ns / 1e9, UTC)
    what = "authority and secrets" if files_only else f"{done.backup.rows} rows, authority and secrets"
    typer.echo(f"restored {what} of {made:%Y-%m-%d %H:%M:%S} UTC")
    for name in done.stopped_jobs:
        tell(f"stopped: {name}; look at both machines before you restart it")
    tell(f"next: failback serve configuration-server --config {config} (or systemctl start)")


def _passphrase(file: Path | None, *, twice: bool) -> str:
    if file is not None:
        try:
            found = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot read {file}: {error}", remedy="check --passphrase-file") from None
    elif "FAILBACK_BACKUP_PASSPHRASE" in os.environ:
        found = os.environ["FAILBACK_BACKUP_PASSPHRASE"]
    elif sys.stdin.isatty():
        found = str(typer.prompt("Passphrase of the backup", hide_input=True, confirmation_prompt=twice, err=True))
    else:
        raise ConfigurationError("the backup needs a passphrase", remedy="--passphrase-file FILE")
    if len(found) < LEAST_CHARACTERS:
        raise ConfigurationError(
            f"the passphrase has less than {LEAST_CHARACTERS} characters", remedy="take a longer one"
        )
    return found
