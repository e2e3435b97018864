"""The configuration server's TOML, as a frozen dataclass (see ``deploy/configuration-server.toml`` for a commented one)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from failback.configuration_server.workflows.world import Timing
from failback.errors import ConfigurationError
from failback.runtime import config

MOST_CERTIFICATE_DAYS = 825
MOST_PAGE_ROWS = 5000
MOST_TOKEN_SECONDS = 7 * 86400


class Site(enum.Enum):
    """Which side of a failback a fabric is."""

    ON_PREMISES = "onprem"
    CLOUD = "cloud"


BACKUP_MARKER = "last-backup"
"""In the state directory: a backup of this server touches it when it is done (docs/readiness.md, row 18)."""


@dataclass(frozen=True, slots=True)
class FabricConfig:
    """One ``[[fabrics]]`` table. ``datastores`` adds plain directories to those that the fabric itself lists."""

    name: str
    site: Site
    driver: str = "kvm"
    uri: str = "qemu:///system"
    datastores: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    state_directory: Path
    database_url: str = ""
    """Empty: one SQLite file in the state directory."""
    listen_host: str = "0.0.0.0"
    listen_port: int = 443
    """0: any free port; ``listening.json`` in the state directory says which."""
    addresses: tuple[str, ...] = ()
    """Names and IP addresses under which others reach this server; they go into its certificate."""
    page_rows: int = 500
    """Of one page of a list of the REST API."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose ``X-Forwarded-*`` headers are believed."""
    token_seconds: float = 3600.0
    """Life of the tokens that clients sign in for."""
    fabrics: tuple[FabricConfig, ...] = ()
    heartbeat_alarm_seconds: float = 60.0
    """A component silent for longer is reported as lost."""
    monitor_seconds: float = 5.0
    """Pause between two passes of the monitors."""
    crash_consistent_seconds: int = 300
    """Distance of catalogued crash-consistent points under the failback policy."""
    certificate_days: float = 365.0
    """Life of the certificates of components; they renew them themselves when a third of it is left."""
    limits: Timing = field(default_factory=Timing)
    """How long jobs wait for what; see ``[limits]`` in the sample."""
    log_level: str = "INFO"
    log_json: bool = False


def load(path: Path) -> ServerConfig:
    """Raises ConfigurationError."""
    loaded = config.load(path, ServerConfig)
    names = [fabric.name for fabric in loaded.fabrics]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigurationError(f"{path}: two fabrics are named {doubled[0]!r}", remedy="give each its own name")
    if not 0 <= loaded.listen_port < 65536:
        raise ConfigurationError(f"{path}: listen_port {loaded.listen_port} is not a TCP port")
    if not 0 < loaded.certificate_days <= MOST_CERTIFICATE_DAYS:
        raise ConfigurationError(
            f"{path}: certificate_days: more than 0 and at most {MOST_CERTIFICATE_DAYS} are needed"
        )
    if not 1 <= loaded.page_rows <= MOST_PAGE_ROWS:
        raise ConfigurationError(f"{path}: page_rows: 1 to {MOST_PAGE_ROWS} are allowed")
    if not 60 <= loaded.token_seconds <= MOST_TOKEN_SECONDS:
        raise ConfigurationError(f"{path}: token_seconds: 60 to {MOST_TOKEN_SECONDS} are allowed")
    return loaded
