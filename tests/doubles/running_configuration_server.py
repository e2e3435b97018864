"""A real configuration-server process on a real TLS port, for tests: started, stopped, killed, started again."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from failback.transport.https import ControlConfig


class RunningConfigurationServer:
    """``with RunningConfigurationServer(tmp_path) as server``; ``configuration`` adds lines to its TOML."""

    def __init__(
        self,
        directory: Path,
        configuration: str = "",
        environment: dict[str, str] | None = None,
        *,
        starts: bool = True,
    ) -> None:
        self.directory = directory
        self.state = directory / "configuration-server"
        self._config = directory / "configuration-server.toml"
        self._log = directory / "configuration-server.log"
        self._environment = {**os.environ, **(environment or {})}
        self._port = 0
        self._starts = starts
        self._lines = configuration
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RunningConfigurationServer:
        if self._starts:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def ca_file(self) -> Path:
        return self.state / "ca" / "ca.pem"

    @property
    def token(self) -> str:
        return (self.state / "administrator.token").read_text(encoding="utf-8").strip()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def control(self, heartbeat_seconds: float = 0.5) -> ControlConfig:
        return ControlConfig(self.url, self.ca_file, self.state / "enrolment-passphrase", None, heartbeat_seconds)

    def start(self, faults: str = "") -> None:
        """Returns when it answers; the port stays the same over restarts."""
        self.launch(faults)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            listening = self.state / "listening.json"
            if listening.exists():
                self._port = json.loads(listening.read_text())["port"]
                if self.get("/healthz")["status"] == "ok":
                    return
            time.sleep(0.02)
        raise AssertionError(f"the configuration server did not start:\n{self.log}")

    def start_again_with(self, faults: str) -> None:
        """Kill it and start it with these fault points armed."""
        self.kill()
        self.start(faults)

    def wait(self, seconds: float = 30.0) -> int:
        """Until the process has ended; returns its status (negative: the signal that killed it)."""
        assert self._process is not None
        return self._process.wait(seconds)

    def configure(self) -> Path:
        """Write its TOML."""
        self._config.write_text(
            f'state_directory = "{self.state}"\nlisten_host = "127.0.0.1"\nlisten_port = {self._port}\n{self._lines}',
            encoding="utf-8",
        )
        return self._config

    def launch(self, faults: str = "") -> None:
        """Start the process with these fault points armed; it may die of them."""
        self.configure()
        (self.state / "listening.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "failback", "serve", "configuration-server", "--config", str(self._config)]
        environment = {**self._environment, "FAILBACK_FAULTS": faults}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)

    def stop(self) -> None:
        """SIGTERM; it has to end by itself, with status 0."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"it did not stop:\n{self.log}") from None
        assert status == 0, self.log

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def get(self, path: str) -> dict[str, object]:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        with urllib.request.urlopen(self.url + path, context=context, timeout=10) as answer:
            found: dict[str, object] = json.loads(answer.read())
            return found
