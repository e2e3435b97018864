"""What commands print: tables or JSON on standard output, errors with cause and remedy on standard error, exit statuses.

Exit statuses: 0 done · 1 it failed (a job, a readiness check) · 2 the command line or its settings are wrong · 3 no such thing
· 4 refused in this state · 5 the server cannot be reached or does not let us in · 6 cancelled or not confirmed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from failback.cli.client import Api, ApiError
from failback.errors import (
    AuthenticationError,
    ConfigurationError,
    ConflictError,
    FailbackError,
    NotFoundError,
    PeerError,
)

FAILED, USAGE, NOT_FOUND, REFUSED, UNREACHABLE, CANCELLED = 1, 2, 3, 4, 5, 6

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Only start the job and print its id.")]
ItemName = Annotated[str, typer.Argument(metavar="NAME", help="The item's name.", show_default=False)]

connection: dict[str, str | None] = {}
"""The options --server, --ca-file and --token-file of this run; set by the main callback."""


@contextmanager
def server() -> Iterator[Api]:
    """The configuration server of this run; errors become a message and an exit status."""
    from failback.cli import settings

    with failing(), Api(settings.find(connection), tell=tell) as api:
        yield api


@contextmanager
def failing() -> Iterator[None]:
    """Turn errors of our tree into a message and an exit status."""
    try:
        yield
    except FailbackError as error:
        complain(error)
        raise typer.Exit(status_of(error)) from None


def status_of(error: FailbackError) -> int:
    if isinstance(error, ApiError):
        by_status = {400: USAGE, 401: UNREACHABLE, 403: UNREACHABLE, 404: NOT_FOUND, 409: REFUSED, 503: UNREACHABLE}
        return by_status.get(error.status, FAILED)
    if isinstance(error, (PeerError, AuthenticationError)):
        return UNREACHABLE
    if isinstance(error, ConfigurationError):
        return USAGE
    if isinstance(error, ConflictError):
        return REFUSED
    return NOT_FOUND if isinstance(error, NotFoundError) else FAILED


def complain(error: FailbackError) -> None:
    """One sentence, then cause and remedy, on standard error."""
    typer.echo(f"error {error.code}: {error.message}", err=True)
    if error.possible_causes:
        typer.echo(f"  possible cause: {error.possible_causes}", err=True)
    if error.remedy:
        typer.echo(f"  what to do: {error.remedy}", err=True)


def tell(sentence: str) -> None:
    """A remark beside the result."""
    typer.echo(sentence, err=True)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], empty: str = "nothing") -> None:
    """A table on a terminal; tab-separated columns without decoration elsewhere, so that scripts can cut them."""
    if not rows:
        tell(empty)
        return
    if not sys.stdout.isatty():
        for row in [headings, *rows]:
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(Text(cell, style=style_of(cell)) for cell in row))
    Console().print(table)


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        typer.echo(f"{name:<{width}}  {value}")


def style_of(word: str) -> str:
    colours = {
        "green": {"pass", "Succeeded", "Protected", "Normal", "alive", "OK", "yes"},
        "red": {"fail", "Failed", "Critical", "lost", "Cancelled"},
        "yellow": {"InProgress", "Warning", "Cancelling", "UnprotectedStatesBegin"},
    }
    return next((colour for colour, words in colours.items() if word in words), "")


def confirm(statement: Sequence[str], question: str, yes: bool) -> None:
    """Say what will happen and ask; exits unless confirmed. Without a terminal ``--yes`` is needed."""
    for line in statement:
        tell(line)
    if yes:
        return
    if not sys.stdin.isatty():
        tell("not confirmed: there is no terminal to ask on; add --yes")
        raise typer.Exit(CANCELLED)
    if not typer.confirm(question, err=True):
        tell("not confirmed: nothing was changed")
        raise typer.Exit(CANCELLED)


def size(count: float) -> str:
    """``1.5 GiB``"""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float | None) -> str:
    """``1 h 02 min``, ``3 min 10 s``, ``12 s``; a dash for None."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def moment(text: str | None) -> str:
    """A wire date to the second; a dash for one that has not come."""
    if not text or text.startswith(("0001", "1753")):
        return "-"
    return text[:19] + "Z"


def age_seconds(text: str | None) -> float | None:
    if moment(text) == "-" or text is None:
        return None
    then = datetime.fromisoformat(text[:19]).replace(tzinfo=UTC)
    return max(0.0, (datetime.now(UTC) - then).total_seconds())


def only(values: Sequence[dict[str, Any]], name_of: Callable[[dict[str, Any]], str], what: str, option: str) -> str:
    """The name of the only value. Raises ConfigurationError asking for the option when there is none or more than one."""
    if len(values) == 1:
        return name_of(values[0])
    names = ", ".join(name_of(value) for value in values)
    reason = f"there are several {what}s: {names}" if values else f"the configuration server knows no {what}"
    raise ConfigurationError(reason, remedy=f"name one with {option}" if values else "see failback component list")
