"""The master target's TOML (a commented sample: deploy/master-target.toml)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from failback.transport.https import ControlConfig


@dataclass(frozen=True, slots=True)
class NamedPlace:
    """A retention volume or a datastore: the name that operators choose and where it is mounted."""

    name: str
    path: Path
    quota_bytes: int = 0
    """Of a retention volume: what all journals there may hold together; 0: what the file system has."""


@dataclass(frozen=True, slots=True)
class MasterTargetConfig:
    state_directory: Path
    configuration_server: ControlConfig
    retention_volumes: tuple[NamedPlace, ...] = ()
    datastores: tuple[NamedPlace, ...] = ()
    listen_host: str = "0.0.0.0"
    listen_port: int = 9444
    receive_memory_bytes: int = 64 << 20
    """Memory for items that arrive, over all links."""
    view_listen_host: str = ""
    """Where open views are served to other hosts, by TLS; empty: only on this host, by unix sockets."""
    view_listen_port: int = 10809
    metrics_listen: str = ""
    """ADDRESS:PORT on loopback for Prometheus; empty: none."""
    scrub_every_hours: float = 168.0
    """How often closed undo files are read and proven; 0: only when it is asked for."""
    scrub_megabytes_per_second: float = 20.0
    niceness: int = 0
    """Nice value (0 to 19) where the machine's other programs go first, for example guests beside it."""
    log_level: str = "INFO"
    log_json: bool = False
