"""``failback repoint --config FILE URL``: tell a component on this host that the configuration server has another address.

The new address is believed only when it shows a certificate of the authority that this component enrolled with, in the role of a
configuration server: nobody else can. Then ``url`` in ``[configuration_server]`` is rewritten, everything else in
the file stays, and the component is to be restarted. Needs the base package only: it runs on protected machines too.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import ssl
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from failback.errors import AuthenticationError, ConfigurationError, FailbackError, PeerError
from failback.model.components import Role
from failback.runtime.durable_files import replace_file
from failback.transport.identity import Identity, load, peer_identity

_TABLE = re.compile(r"^\s*\[configuration_server\]\s*(#.*)?$")
_ANY_TABLE = re.compile(r"^\s*\[")
_URL = re.compile(r"""^(\s*url\s*=\s*)("[^"]*"|'[^']*')(.*)$""")
_TIMEOUT_SECONDS = 20.0


def rewritten(content: str, url: str) -> str:
    """The TOML with another url. Pure. Raises ConfigurationError when it has none that can be replaced."""
    lines, inside = content.splitlines(keepends=True), False
    for number, line in enumerate(lines):
        if _ANY_TABLE.match(line):
            inside = bool(_TABLE.match(line.rstrip("\n")))
        found = _URL.match(line.rstrip("\n")) if inside else None
        if found is not None:
            lines[number] = f"{found[1]}{json.dumps(url)}{found[3]}\n"
            return "".join(lines)
    raise ConfigurationError(
        'the file has no line url = "..." below [configuration_server]', remedy="check --config, or edit it by hand"
    )


def verify(identity: Identity, url: str) -> str:
    """The component id of the configuration server there. Raises AuthenticationError and PeerError."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ConfigurationError(f"{url!r} is no address", remedy="https://HOST[:PORT]")
    context = identity.client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = True  # as the component itself will do
    try:
        with (
            socket.create_connection((parts.hostname, parts.port or 443), _TIMEOUT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname) as connection,
        ):
            peer = peer_identity(connection)
    except ssl.SSLCertVerificationError as error:
        raise AuthenticationError(
            f"{url} is not the configuration server of this component: {error.verify_message}",
            possible_causes="it is another installation, or the address is not in its certificate",
            remedy="restore the backup of this component's configuration server there; list the address under its addresses",
        ) from error
    except OSError as error:
        raise PeerError(
            f"{url} does not answer: {error}", remedy="check that it runs and that the port is open"
        ) from error
    if peer.role is not Role.CONFIGURATION_SERVER:
        raise AuthenticationError(f"{url} is a {peer.role.value}, no configuration server", remedy="check the address")
    return peer.component_id


def repoint(config_path: Path, url: str) -> dict[str, str]:
    """Verify and rewrite; returns what was found. Raises FailbackError; the file is then as it was."""
    try:
        content = config_path.read_text(encoding="utf-8")
        mode = config_path.stat().st_mode & 0o777
        table: dict[str, Any] = tomllib.loads(content)
        state_directory = Path(table["state_directory"])
        before = str(table["configuration_server"]["url"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{config_path} is no component's configuration: {error}", remedy="check --config"
        ) from error
    identity = load(state_directory / "identity")
    if identity is None:
        raise ConfigurationError(
            f"this component has not enrolled yet ({state_directory}): it has nothing to know its server by",
            remedy="write url and ca_file into its configuration by hand",
        )
    changed = rewritten(content, url)
    server_id = verify(identity, url)
    if tomllib.loads(changed)["configuration_server"]["url"] != url:
        raise ConfigurationError(f"{config_path} cannot be rewritten safely", remedy="edit url by hand")
    replace_file(config_path, changed.encode("utf-8"), mode)
    return {"component": identity.component_id, "configurationServer": server_id, "before": before, "url": url}


def main(arguments: list[str]) -> int:
    """Returns the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="failback repoint",
        description="Tells a component on this host that its configuration server has another address. The new address must "
        "show a certificate of the same authority. Restart the component afterwards.",
    )
    parser.add_argument("--config", type=Path, required=True, help="the component's TOML")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("url", metavar="URL", help="https://HOST[:PORT]")
    given = parser.parse_args(arguments)
    try:
        found = repoint(given.config, given.url)
    except FailbackError as error:
        sys.stderr.write(f"error {error.code}: {error.message}\n")
        if error.remedy:
            sys.stderr.write(f"  what to do: {error.remedy}\n")
        return 5 if isinstance(error, (PeerError, AuthenticationError)) else 2
    if given.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        sys.stdout.write(f"{given.config}: {found['before']} -> {found['url']}; restart the component\n")
    return 0
