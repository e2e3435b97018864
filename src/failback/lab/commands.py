"""The ``failback`` command as an operator uses it: the demo and the tests drive the product through nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from failback.errors import FailbackError
from failback.lab import servers
from failback.lab.layout import Layout


@dataclass(frozen=True, slots=True)
class Commands:
    """``run`` shows what the command prints, ``ask`` reads its JSON, ``refused`` expects it to fail."""

    layout: Layout
    ports: dict[str, int]

    def run(self, *arguments: str, timeout_seconds: float = 900) -> None:
        """Raises FailbackError when the command fails."""
        print(f"\n$ failback {' '.join(arguments)}", flush=True)
        done = self._start(arguments, timeout_seconds, capture=False)
        if done.returncode != 0:
            raise FailbackError(f"failback {arguments[0]} ended with status {done.returncode}", code="LabCommand")

    def ask(self, *arguments: str, timeout_seconds: float = 120) -> Any:
        done = self._start((*arguments, "--json"), timeout_seconds, capture=True)
        if done.returncode != 0:
            raise FailbackError(f"failback {' '.join(arguments)}: {done.stderr.strip()}", code="LabCommand")
        return json.loads(done.stdout)

    def refused(self, *arguments: str, timeout_seconds: float = 120) -> str:
        """What the command says when it refuses; empty when it did not refuse."""
        print(f"\n$ failback {' '.join(arguments)}", flush=True)
        done = self._start(arguments, timeout_seconds, capture=True)
        said = (done.stderr.strip() or done.stdout.strip()) if done.returncode != 0 else ""
        print(said or done.stdout, flush=True)
        return said

    def await_components(self, seconds: float = 180) -> dict[str, str]:
        """Role -> component id, once agent, process server and master target have registered and are heard from."""
        wanted = {servers.PROCESS_SERVER, servers.MASTER_TARGET, "mobility"}
        deadline = time.monotonic() + seconds
        while True:
            entries = self.ask("component", "list")
            alive = {entry["failback"]["role"]: str(entry["id"]) for entry in entries if entry["failback"]["alive"]}
            if wanted <= set(alive):
                return alive
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(wanted - set(alive)))
                raise FailbackError(f"not heard from within {seconds:.0f} s: {missing}", code="LabTimeout")
            time.sleep(1)

    def await_ready(self, name: str, *choice: str, seconds: float = 180) -> None:
        """Until every readiness check of the item passes (the agent tests its capture in its first seconds)."""
        deadline = time.monotonic() + seconds
        while True:
            done = self._start(("readiness", name, *choice), 120, capture=True)
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                raise FailbackError(f"{name} did not become ready:\n{done.stdout}{done.stderr}", code="LabTimeout")
            time.sleep(2)

    def in_background(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a long command; the caller waits for it."""
        return subprocess.Popen(
            self._command(arguments), env=self._environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def _start(self, arguments: tuple[str, ...], timeout: float, *, capture: bool) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(arguments), env=self._environment(), text=True, check=False, timeout=timeout,
            capture_output=capture, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "failback", *arguments]

    def _environment(self) -> dict[str, str]:
        return {**servers.private_environment(), **servers.command_environment(self.layout, self.ports)}
