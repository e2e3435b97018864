"""The ``failback`` command: composes the nouns and ways of ``failback.cli`` into one Typer application.

``run`` returns the process's exit status (see ``output`` for their meanings). ``failback serve`` and ``failback
repoint`` are dispatched before this module is imported; they are listed here only for ``--help``.
"""

from __future__ import annotations

from typing import Annotated

import typer

from failback import __version__
from failback import serve as roles
from failback.cli import (
    access,
    component,
    event,
    group,
    item,
    job,
    mobility,
    operation,
    output,
    point,
    policy,
    safekeeping,
    view,
)

app = typer.Typer(
    name="failback",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Brings failed-over machines home: reprotect, fail back, commit or cancel.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"failback {__version__}")
        raise typer.Exit


@app.callback()
def connect(
    server: Annotated[
        str | None, typer.Option(help="Configuration server: https://HOST[:PORT]. [FAILBACK_SERVER]")
    ] = None,
    ca_file: Annotated[str | None, typer.Option(help="Its CA certificate. [FAILBACK_CA_FILE]")] = None,
    token_file: Annotated[str | None, typer.Option(help="The administrator token. [FAILBACK_TOKEN_FILE]")] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Settings may also stand in ~/.config/failback/cli.toml (server, ca_file, token_file)."""
    output.connection.update(server=server, ca_file=ca_file, token_file=token_file)


app.command()(access.login)
app.add_typer(item.app, name="item")
app.command()(operation.readiness)
app.command()(operation.reprotect)
app.command()(point.points)
app.add_typer(point.app, name="point")
app.add_typer(view.app, name="view")
app.add_typer(policy.app, name="policy")
app.command()(operation.failback)
app.command("change-point")(operation.change_point)
app.command()(operation.commit)
app.command()(operation.cancel)
app.command()(operation.resync)
app.command()(operation.scrub)
app.add_typer(group.app, name="group")
app.add_typer(job.app, name="job")
app.add_typer(component.app, name="component")
app.add_typer(event.app, name="event")
app.add_typer(mobility.app, name="mobility")
app.add_typer(access.app, name="client")
app.command()(access.audit)
app.command()(safekeeping.backup)
app.command()(safekeeping.restore)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Run one role: failback serve ROLE --config FILE."""
    raise typer.Exit(roles.serve(context.args))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def repoint(context: typer.Context) -> None:
    """Tell a component on this host its configuration server's new address: failback repoint --config FILE URL."""
    from failback.transport import repoint as command

    raise typer.Exit(command.main(context.args))


def _mount_lab() -> None:
    """The lab brings its own commands; it is not part of every installation."""
    try:
        from failback.lab.cli import app as lab
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("failback.lab"):
            raise
        return
    app.add_typer(lab, name="lab")


_mount_lab()


def run() -> int:
    """Run the command of ``sys.argv``; returns its exit status."""
    try:
        status = app(standalone_mode=False)
    except typer.Abort:
        output.tell("interrupted; a job that was started goes on (failback job list)")
        return 130
    except Exception as error:  # click's own are told from defects there
        return _usage_error(error)
    return status if isinstance(status, int) else 0


def _usage_error(error: Exception) -> int:
    """Click's own errors (a wrong option) are printed by themselves and are status 2; anything else is a defect."""
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    return output.USAGE
