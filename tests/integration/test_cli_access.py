"""Signing in from the command line, and what the roles let it do: a real server, the real command."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_configuration_server import RunningConfigurationServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConfigurationServer]:
    with RunningConfigurationServer(tmp_path_factory.mktemp("server")) as running:
        yield running


def failback(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FAILBACK_")}
    return subprocess.run(
        [sys.executable, "-m", "failback", *arguments], capture_output=True, text=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL, env={**kept, "HOME": str(home), "XDG_CONFIG_HOME": str(home), **environment},
    )  # fmt: skip


def test_from_a_new_client_to_its_end(server: RunningConfigurationServer, tmp_path: Path) -> None:
    where = ("--server", server.url, "--ca-file", str(server.ca_file))
    boss = (*where, "--token-file", str(server.state / "administrator.token"))
    made = failback(tmp_path, *boss, "client", "create", "night-shift", "--role", "operator", "--json")
    secret = json.loads(made.stdout)["properties"]["secret"]

    wrong = failback(tmp_path, *where, "login", "night-shift", FAILBACK_CLIENT_SECRET="wrong")
    assert (wrong.returncode, secret in wrong.stderr) == (5, False)
    assert not (tmp_path / "failback" / "token").exists()
    signed_in = failback(tmp_path, *where, "login", "night-shift", FAILBACK_CLIENT_SECRET=secret)
    assert signed_in.returncode == 0, signed_in.stderr
    token_file = tmp_path / "failback" / "token"
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600

    # From here on without options: login wrote where the server is.
    assert failback(tmp_path, "job", "list").returncode == 0
    refused = failback(tmp_path, "policy", "set", "--crash-consistent", "60")
    assert refused.returncode == 5 and "needs the role administrator" in refused.stderr
    audit = failback(tmp_path, "audit", "--actor", "night-shift", "--json")
    told = [row["properties"] for row in json.loads(audit.stdout)]
    assert [(row["action"], row["outcome"]) for row in told] == [
        ("PATCH replicationPolicies/failback", "refused"), ("sign in", "accepted"),
    ]  # fmt: skip

    assert "night-shift" in failback(tmp_path, *boss, "client", "list").stdout
    assert failback(tmp_path, *boss, "client", "delete", "night-shift", "--yes").returncode == 0
    out = failback(tmp_path, "job", "list")
    assert out.returncode == 5 and "revoked" in out.stderr
    again = failback(tmp_path, *where, "login", "night-shift", FAILBACK_CLIENT_SECRET=secret)
    assert again.returncode == 5
