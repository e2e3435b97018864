"""Signing in and who may: ``failback login``, ``failback client create | list | delete``, ``failback audit``.

``login`` changes a client's id and secret for a token, keeps it in a file of mode 0600 beside ``cli.toml`` and writes there
where the server is, so that later commands need no options. The secret itself is kept nowhere.
"""

from __future__ import annotations

import json
import os
import ssl
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from failback.cli import output, settings
from failback.cli.output import AsJson, Yes, confirm, failing, moment, print_json, print_table, server, tell
from failback.errors import AuthenticationError, ConfigurationError, PeerError

app = typer.Typer(no_args_is_help=True, help="Clients of the API: who may sign in, under which role.")

SECRET_VARIABLE = "FAILBACK_CLIENT_SECRET"
TOKEN_PATH = "/failback/oauth2/v2.0/token"


class Role(StrEnum):
    READER = "reader"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"


def login(
    client_id: Annotated[str, typer.Argument(metavar="CLIENT", help="The client's id or name.", show_default=False)],
    secret_file: Annotated[
        Path | None, typer.Option(help=f"File with its secret; else {SECRET_VARIABLE}, else it is asked for.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sign in: stores a token (and where the server is) for the commands after it. Ask an administrator for a client."""
    with failing():
        found = settings.find(output.connection, needed=("server", "ca_file"))
        secret = _secret(secret_file)
        granted = _token(found, client_id, secret)
        path = settings.default_file(os.environ)
        token_file = path.with_name("token")
        settings.keep(token_file, granted["access_token"] + "\n")
        settings.remember(path, server=found.server, ca_file=str(found.ca_file.absolute()), token_file=str(token_file))
    told = {"server": found.server, "tokenFile": str(token_file), "expiresInSeconds": granted["expires_in"]}
    if as_json:
        print_json(told)
    else:
        tell(f"signed in at {found.server} for {output.duration(granted['expires_in'])}; the token is in {token_file}")


def _secret(secret_file: Path | None) -> str:
    if secret_file is not None:
        try:
            return secret_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {secret_file}: {error.strerror}", remedy="check --secret-file"
            ) from error
    return os.environ.get(SECRET_VARIABLE) or str(typer.prompt("Secret", hide_input=True, err=True))


def _token(found: settings.Settings, client_id: str, secret: str) -> dict[str, Any]:
    """What the token endpoint grants. Raises AuthenticationError, PeerError."""
    import httpx

    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    try:
        context = ssl.create_default_context(cafile=str(found.ca_file))
        with httpx.Client(verify=context, trust_env=False, timeout=30.0) as http:
            answer = http.post(found.server + TOKEN_PATH, data=form)
        said = answer.json()
    except (OSError, httpx.TransportError) as error:
        raise PeerError(
            f"cannot sign in at {found.server}: {error}", remedy="check --server, --ca-file and that the server runs"
        ) from error
    except json.JSONDecodeError as error:
        raise PeerError(f"{found.server} is no configuration server", remedy="check --server") from error
    if not answer.is_success:
        raise AuthenticationError(
            str(said.get("error_description", "the sign-in was refused")),
            remedy="check id and secret, or have an administrator make a client: failback client create",
        )
    granted: dict[str, Any] = said
    return granted


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A name of its own: letters, digits, hyphens.")],
    role: Annotated[Role, typer.Option(help="What it may do: see docs/api.md.")] = Role.READER,
    as_json: AsJson = False,
) -> None:
    """Make a client. Its secret is shown once, here."""
    with server() as api:
        made = api.put(f"/failback/clients/{name}", {"properties": {"role": role.value}})
    if as_json:
        print_json(made)
        return
    own = made["properties"]
    output.print_pairs((("client", name), ("id", own["clientId"]), ("role", own["role"]), ("secret", own["secret"])))
    tell("the secret is not shown again; sign in with: failback login " + name)


@app.command("list")
def list_clients(as_json: AsJson = False) -> None:
    """All clients, their roles and when each last signed in."""
    with server() as api:
        found = api.every("/failback/clients")
    if as_json:
        print_json(found)
        return
    rows = []
    for one in found:
        own = one["properties"]
        rows.append((one["name"], own["role"], own["clientId"], moment(own["created"]), moment(own["lastSignIn"])))
    print_table(
        ("name", "role", "id", "made", "last sign-in"), rows, "no clients; the administrator token works always"
    )


@app.command()
def delete(name: Annotated[str, typer.Argument(help="Its name or id.")], yes: Yes = False) -> None:
    """Shut a client out: its secret and its tokens count for nothing from now on."""
    confirm([f"{name} cannot sign in any more, and the tokens that it holds end now."], "Delete the client?", yes)
    with server() as api:
        api.delete(f"/failback/clients/{name}")
    tell(f"client {name} is deleted")


def audit(
    actor: Annotated[str, typer.Option(help="Only changes by this client or token.")] = "",
    outcome: Annotated[str, typer.Option(help="Only accepted, refused or failed.")] = "",
    limit: Annotated[int, typer.Option(help="At most so many.", min=1)] = 50,
    as_json: AsJson = False,
) -> None:
    """Who changed what and when, or tried to; newest first."""
    clauses = [f"actor eq '{actor}'"] * bool(actor) + [f"outcome eq '{outcome}'"] * bool(outcome)
    with server() as api:
        found = api.some("/failback/audit", limit, {"$filter": " and ".join(clauses)} if clauses else None)
    if as_json:
        print_json(found)
        return
    rows = []
    for one in found:
        own = one["properties"]
        what = " ".join(word for word in (own["action"], own["target"]) if word)
        rows.append(
            (moment(own["time"]), own["actor"], own["address"] or "-", what, own["outcome"], own["detail"] or "-")
        )
    print_table(("time", "who", "from", "what", "outcome", "detail"), rows, "nothing was changed")
