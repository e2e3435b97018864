"""What the API needs of the rest of the configuration server; the app fills it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from failback import __version__
from failback.configuration_server.database import Database
from failback.configuration_server.registry import News, Orders
from failback.configuration_server.workflows.group_point import GroupPoints
from failback.fabric.interfaces import Fabric
from failback.protection.operations import Side
from failback.protection.readiness import HEARTBEAT_ALARM_SECONDS
from failback.runtime.clock import Clock, SystemClock


class IssuedCertificate(Protocol):
    @property
    def certificate_pem(self) -> str: ...


class ViewCertificates(Protocol):
    """The installation's authority, as far as clients of views need it."""

    ca_pem: str

    def issue_view_client(self, csr_pem: str, view_id: str, life: timedelta) -> IssuedCertificate: ...


class JobControl(Protocol):
    """The job engine, as far as requests drive it."""

    async def start(
        self, scenario: str, item_id: str, inputs: Mapping[str, Any], key: str, *, started_by: str = ""
    ) -> str:
        """Find or create the job of ``key``; returns its id. Raises ConflictError when another job has the item."""
        ...

    async def cancel(self, job_id: str) -> None: ...

    async def restart(self, job_id: str) -> None: ...

    async def resume(self, job_id: str) -> None: ...


@dataclass(frozen=True, slots=True)
class SiteFabric:
    """A configured fabric: which side it is and how to call it (calls block: run them in a thread)."""

    name: str
    side: Side
    driver: str
    fabric: Fabric


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """All but the jobs: what readiness needs, which jobs in turn ask for."""

    database: Database
    orders: Orders
    news: News
    fabrics: Mapping[str, SiteFabric]
    clock: Clock = field(default_factory=SystemClock)
    version: str = __version__
    heartbeat_alarm_seconds: float = HEARTBEAT_ALARM_SECONDS
    probe_seconds: float = 10.0
    fabric_seconds: float = 30.0
    """How long a request waits for a fabric's answer."""
    page_rows: int = 500
    """Of a list's page; more are told by ``nextLink``."""
    network_cards: Path = Path("/sys/class/net")
    """Where this server's network cards are listed."""
    backup_marker: Path | None = None
    """A file that every backup of this server touches; its age is shown by readiness. None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services(Surroundings):
    jobs: JobControl
    groups: GroupPoints
    view_certificates: ViewCertificates | None = None
