"""The lab's server roles: their configuration files, their processes, and the commands that speak to them.

They are the programs that a user deploys (``failback serve ROLE --config FILE``), each in a process of its own, enrolled
with the passphrase that the configuration server made at its first start.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from failback.errors import FailbackError, PeerError
from failback.lab import processes
from failback.lab.layout import HOST, HOST_AS_SEEN_BY_GUESTS, ONPREM_URI, Layout
from failback.lab.processes import Recorded

CONFIGURATION_SERVER = "configuration-server"
PROCESS_SERVER = "process-server"
MASTER_TARGET = "master-target"
WITNESS = "witness"
RETENTION_VOLUME = "retention"
DATASTORE = "onprem"
_START_SECONDS = 60.0
_SPOOL_LIMIT_BYTES = 1 << 30


def choose_ports() -> dict[str, int]:
    """Free TCP ports on the loopback, held open together so that no two are the same."""
    names = (CONFIGURATION_SERVER, PROCESS_SERVER, MASTER_TARGET, WITNESS)
    sockets = [socket.socket() for _ in names]
    for listening in sockets:
        listening.bind((HOST, 0))
    ports = {name: int(listening.getsockname()[1]) for name, listening in zip(names, sockets, strict=True)}
    for listening in sockets:
        listening.close()
    return ports


def ca_file(layout: Layout) -> Path:
    return layout.role_directory(CONFIGURATION_SERVER) / "ca" / "ca.pem"


def passphrase_file(layout: Layout) -> Path:
    return layout.role_directory(CONFIGURATION_SERVER) / "enrolment-passphrase"


def token_file(layout: Layout) -> Path:
    return layout.role_directory(CONFIGURATION_SERVER) / "administrator.token"


def server_url(ports: dict[str, int], host: str = HOST) -> str:
    return f"https://{host}:{ports[CONFIGURATION_SERVER]}"


def command_environment(layout: Layout, ports: dict[str, int]) -> dict[str, str]:
    """What the ``failback`` command needs in its environment to speak to this lab."""
    return {
        "FAILBACK_SERVER": server_url(ports),
        "FAILBACK_CA_FILE": str(ca_file(layout)),
        "FAILBACK_TOKEN_FILE": str(token_file(layout)),
    }


def write_configurations(layout: Layout, ports: dict[str, int]) -> None:
    """One TOML a role, in the role's directory."""
    texts = {
        CONFIGURATION_SERVER: _configuration_server(layout, ports),
        PROCESS_SERVER: _process_server(layout, ports),
        MASTER_TARGET: _master_target(layout, ports),
    }
    for role, text in texts.items():
        directory = layout.role_directory(role)
        directory.mkdir(parents=True, exist_ok=True)
        config_file(layout, role).write_text(text, encoding="utf-8")
    layout.retention_volume.mkdir(parents=True, exist_ok=True)


def config_file(layout: Layout, role: str) -> Path:
    return layout.role_directory(role) / f"{role}.toml"


def mobility_configuration(ports: dict[str, int]) -> str:
    """The agent's TOML inside the guest."""
    return f"""pre_script = "/etc/failback/pre.sh"
post_script = "/etc/failback/post.sh"

[configuration_server]
url = "{server_url(ports, HOST_AS_SEEN_BY_GUESTS)}"
ca_file = "/etc/failback/ca.pem"
passphrase_file = "/etc/failback/passphrase"
heartbeat_seconds = 2.0
"""


def start_role(layout: Layout, role: str, environment: dict[str, str] | None = None) -> Recorded:
    """Start the role's process (also to start it again after it was killed)."""
    command = [sys.executable, "-m", "failback", "serve", role, "--config", str(config_file(layout, role))]
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", **(environment or {})}
    return processes.spawn(role, command, layout.logs / f"{role}.log", quiet)


def start_witness(layout: Layout, ports: dict[str, int]) -> Recorded:
    command = [sys.executable, "-m", "failback.lab.witness", "--port", str(ports[WITNESS])]
    command += ["--file", str(layout.witness_file), "--drill", str(layout.drill_file)]
    return processes.spawn(WITNESS, command, layout.logs / "witness.log")


def await_listening(layout: Layout, recorded: Recorded, port: int) -> None:
    """Until the process accepts connections on ``port``. Raises PeerError with the end of its log."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((HOST, port)) == 0:
                return
        if not processes.alive(recorded) or time.monotonic() > deadline:
            log = layout.logs / f"{recorded.name}.log"
            raise PeerError(
                f"the {recorded.name} did not start: {processes.tail(log, 5)}",
                code="LabRole",
                remedy=f"look into {log}",
            )
        time.sleep(0.1)


def await_file(path: Path, recorded: Recorded) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not (path.exists() and path.stat().st_size > 0):
        if not processes.alive(recorded) or time.monotonic() > deadline:
            raise FailbackError(f"the {recorded.name} did not make {path}", remedy=f"look into {recorded.log}")
        time.sleep(0.1)


def _control(layout: Layout, ports: dict[str, int], address: str) -> str:
    return f"""
[configuration_server]
url = "{server_url(ports)}"
ca_file = "{ca_file(layout)}"
passphrase_file = "{passphrase_file(layout)}"
heartbeat_seconds = 2.0
addresses = ["{address}"]
"""


def _configuration_server(layout: Layout, ports: dict[str, int]) -> str:
    return f"""state_directory = "{layout.role_directory(CONFIGURATION_SERVER)}"
listen_host = "{HOST}"
listen_port = {ports[CONFIGURATION_SERVER]}
addresses = ["{HOST}", "{HOST_AS_SEEN_BY_GUESTS}", "localhost"]
heartbeat_alarm_seconds = 15.0
monitor_seconds = 2.0
crash_consistent_seconds = 5

[[fabrics]]
name = "onprem"
site = "onprem"
driver = "kvm"
uri = "{ONPREM_URI}"
datastores = {{ {DATASTORE} = "{layout.onprem_datastore}" }}

[[fabrics]]
name = "cloud"
site = "cloud"
driver = "kvm"
uri = "{layout.cloud_uri}"
datastores = {{ cloud = "{layout.cloud_datastore}" }}
"""


def _process_server(layout: Layout, ports: dict[str, int]) -> str:
    directory = layout.role_directory(PROCESS_SERVER)
    text = f"""state_directory = "{directory}/state"
spool_directory = "{directory}/spool"
spool_limit_bytes = {_SPOOL_LIMIT_BYTES}
listen_host = "{HOST}"
listen_port = {ports[PROCESS_SERVER]}
"""
    return text + _control(layout, ports, HOST_AS_SEEN_BY_GUESTS)


def _master_target(layout: Layout, ports: dict[str, int]) -> str:
    text = f"""state_directory = "{layout.role_directory(MASTER_TARGET)}/state"
listen_host = "{HOST}"
listen_port = {ports[MASTER_TARGET]}
"""
    control = _control(layout, ports, HOST)
    volumes = f"""
[[retention_volumes]]
name = "{RETENTION_VOLUME}"
path = "{layout.retention_volume}"

[[datastores]]
name = "{DATASTORE}"
path = "{layout.onprem_datastore}"
"""
    return text + control + volumes


def private_environment() -> dict[str, str]:
    """This process's environment without settings that would send the lab's commands to another server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FAILBACK_")}
