"""Starts :mod:`api_site` in a process of its own and speaks to it, for tests of the API and the command line."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from simulated_sites import Sites

VAULT = "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v"
CONTAINER = f"{VAULT}/replicationFabrics/configuration-server/replicationProtectionContainers/machines"
ITEM = f"{CONTAINER}/replicationProtectedItems/ledger"
IMPORT = {
    "instanceType": "FailbackImport",
    "onPremises": {"fabric": "home", "machine": "home-vm"},
    "cloud": {"fabric": "cloud", "machine": "cloud-vm"},
}


class SiteProcess:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sites = Sites(directory / "sites.json")

    def __enter__(self) -> SiteProcess:
        self.start()
        return self

    def start(self) -> None:
        """On the same port as before, with everything that the files know."""
        script = Path(__file__).with_name("api_site.py")
        listening = self.directory / "listening.json"
        listening.unlink(missing_ok=True)
        log = self.directory / "log"
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, str(script), str(self.directory)], stdout=stream, stderr=stream,
                env={**os.environ, "PYTHONPATH": str(script.parent)},
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not listening.exists():
            assert self._process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        self.url = f"https://127.0.0.1:{json.loads(listening.read_text())['port']}"

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    @property
    def ca_file(self) -> Path:
        return self.directory / "state" / "ca" / "ca.pem"

    @property
    def token_file(self) -> Path:
        return self.directory / "state" / "administrator.token"

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, decoded body and headers (lower case)."""
        request = urllib.request.Request(self.url + path, method=method, headers={
            "Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **headers,
        }, data=None if body is None else json.dumps(body).encode())  # fmt: skip
        context = ssl.create_default_context(cafile=str(self.ca_file))
        try:
            with urllib.request.urlopen(request, context=context, timeout=30) as answer:
                return answer.status, _decoded(answer.read()), {k.lower(): v for k, v in answer.headers.items()}
        except urllib.error.HTTPError as error:
            return error.code, _decoded(error.read()), {k.lower(): v for k, v in error.headers.items()}

    def import_ledger(self, **changes: Any) -> tuple[int, Any]:
        body = {"properties": {"providerSpecificDetails": {**IMPORT, **changes}}}
        status, answer, _ = self.call("PUT", ITEM, body)
        return status, answer

    def state(self) -> str:
        found: str = self.call("GET", ITEM)[1]["properties"]["protectionState"]
        return found

    def wait_for_state(self, wanted: str) -> None:
        deadline = time.monotonic() + 30
        while self.state() != wanted:
            assert time.monotonic() < deadline, f"the item stays {self.state()}"
            time.sleep(0.1)

    def power(self, machine: str, state: str) -> None:
        """As if somebody did it at the hypervisor."""
        self._change("power", machine, state)

    def knob(self, name: str, value: Any) -> None:
        self._change("knobs", name, value)

    def _change(self, table: str, name: str, value: Any) -> None:
        """The server's process writes the same file: look again until the change has stayed."""
        stayed = 0
        while stayed < 5:
            if self.sites.read()[table].get(name) != value:
                with self.sites.change() as site:
                    site[table][name] = value
                stayed = 0
            stayed += 1
            time.sleep(0.04)

    def violations(self) -> list[str]:
        found: list[str] = self.sites.read()["violations"]
        return found


def _decoded(content: bytes) -> Any:
    return json.loads(content) if content else None
