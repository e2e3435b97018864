"""What a protected machine and the servers pay in memory, measured on the real processes against a real configuration server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running_configuration_server import RunningConfigurationServer

IDLE_AGENT_MEBIBYTES = 60
SERVER_MEBIBYTES = 300


def resident_mebibytes(pid: int, field: str = "VmRSS") -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) >> 10
    raise AssertionError(f"no {field} of {pid}")


def configuration(server: RunningConfigurationServer, directory: Path, role: str) -> Path:
    (directory / "volume").mkdir()
    own = {
        "mobility": f'runtime_directory = "{directory}/run"\npin_directory = "/sys/fs/bpf/failback-footprint"\n',
        "process-server": f'spool_directory = "{directory}/spool"\nlisten_host = "127.0.0.1"\nlisten_port = 0\n',
        "master-target": (
            'listen_host = "127.0.0.1"\nlisten_port = 0\n'
            f'retention_volumes = [{{ name = "retention", path = "{directory}/volume" }}]\n'
            f'datastores = [{{ name = "store", path = "{directory}/volume" }}]\n'
        ),
    }
    control = server.control()
    path = directory / f"{role}.toml"
    path.write_text(
        f'state_directory = "{directory}/state"\n{own[role]}[configuration_server]\nurl = "{control.url}"\n'
        f'ca_file = "{control.ca_file}"\npassphrase_file = "{control.passphrase_file}"\nheartbeat_seconds = 0.2\n',
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize(
    ("role", "bound"),
    [
        ("mobility", IDLE_AGENT_MEBIBYTES),
        ("process-server", SERVER_MEBIBYTES),
        ("master-target", SERVER_MEBIBYTES),
    ],
)
def test_idle_memory_is_bounded(tmp_path: Path, role: str, bound: int) -> None:
    with RunningConfigurationServer(tmp_path) as server:
        config = configuration(server, tmp_path, role)
        log = tmp_path / f"{role}.log"
        command = [sys.executable, "-m", "failback", "serve", role, "--config", str(config)]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stderr=output, env={**os.environ, "FAILBACK_FAULTS": ""})
        try:
            identity = tmp_path / "state" / "identity" / "component.json"
            deadline = time.monotonic() + 30
            while not identity.exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            time.sleep(1.0)  # a few heartbeats
            assert process.poll() is None, log.read_text()
            assert resident_mebibytes(process.pid) <= bound
            assert server._process is not None
            assert resident_mebibytes(server._process.pid, "VmHWM") <= SERVER_MEBIBYTES
        finally:
            process.terminate()
            process.wait(15)
