"""The process server's TOML (a commented sample: deploy/process-server.toml)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from failback.transport.https import ControlConfig


@dataclass(frozen=True, slots=True)
class ProcessServerConfig:
    """``spool_limit_bytes`` bounds the spools of all machines together; above it the agents wait."""

    state_directory: Path
    spool_directory: Path
    configuration_server: ControlConfig
    spool_limit_bytes: int = 50 << 30
    listen_host: str = "0.0.0.0"
    listen_port: int = 9443
    receive_memory_bytes: int = 32 << 20
    """Memory for items that arrive, over all links."""
    read_memory_bytes: int = 32 << 20
    """Memory for items read back from the spools, over all machines."""
    recent_memory_bytes: int = 72 << 20
    """Memory for items that arrived and have neither landed nor been spooled, over all machines."""
    metrics_listen: str = ""
    """ADDRESS:PORT on loopback for Prometheus; empty: none."""
    niceness: int = 0
    """Nice value (0 to 19) where the machine's other programs go first, for example guests beside it."""
    log_level: str = "INFO"
    log_json: bool = False
