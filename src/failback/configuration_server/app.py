"""Putting the configuration server together: from its configuration to one ASGI application and its background work.

``open_server`` opens the database, makes what the installation lacks and wires the parts; :class:`Assembled` holds them for
``main`` and for tests. ``background`` runs the monitors and the points by the policy as long as the server lives.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from pathlib import Path

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from failback import __version__
from failback.configuration_server.api import (
    arm_router,
    faults,
    forwarded,
    letter_case,
    metrics,
    oauth,
    operations_list,
)
from failback.configuration_server.api.gate import Gate
from failback.configuration_server.api.readiness import preflight_of
from failback.configuration_server.api.services import Services, SiteFabric, Surroundings
from failback.configuration_server.api.sign_in import signed_in
from failback.configuration_server.config import BACKUP_MARKER, ServerConfig
from failback.configuration_server.database import Database
from failback.configuration_server.enrolment.bootstrap import Installation, bootstrap
from failback.configuration_server.enrolment.desk import EnrolmentDesk
from failback.configuration_server.enrolment.group_route import group_router
from failback.configuration_server.enrolment.routes import component_router, error_response, token_router
from failback.configuration_server.fabrics import open_fabric
from failback.configuration_server.jobs.engine import JobEngine
from failback.configuration_server.jobs.executor import DbosExecutor
from failback.configuration_server.jobs.processes import Processes
from failback.configuration_server.monitors.disk_changes import DiskWatch
from failback.configuration_server.monitors.repairs import Repairs
from failback.configuration_server.monitors.replica_guard import ReplicaGuard
from failback.configuration_server.monitors.watch import Monitors
from failback.configuration_server.registry import News, Orders, Registry
from failback.configuration_server.workflows.catalogue import scenarios
from failback.configuration_server.workflows.group_point import GroupPoints
from failback.configuration_server.workflows.scheduled_points import ScheduledPoints
from failback.configuration_server.workflows.world import World
from failback.errors import FailbackError
from failback.protection.operations import Side
from failback.runtime import host, logs
from failback.runtime.clock import Clock, SystemClock

GUARD_EVERY = 3
"""Passes of the monitors between two looks at the power of on-premises machines."""

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Assembled:
    config: ServerConfig
    clock: Clock
    database: Database
    installation: Installation
    news: News
    registry: Registry
    orders: Orders
    desk: EnrolmentDesk
    monitors: Monitors
    engine: JobEngine
    groups: GroupPoints
    guard: ReplicaGuard
    application: FastAPI

    async def background(self) -> None:
        """What runs beside the requests, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.monitors.run(), name="monitors")
            group.create_task(Repairs(self.database, self.engine, self.clock).run(), name="repairs")
            group.create_task(DiskWatch(self.database, self.engine, self.clock).run(), name="disks that change")
            group.create_task(
                ScheduledPoints(self.database, self.orders, self.clock).run(), name="points by the policy"
            )
            group.create_task(self.groups.run(), name="marks of replication groups")
            group.create_task(self.guard.run(), name="on-premises machines stay off")

    async def quiet(self) -> None:
        """Interrupt the jobs (they go on at the next start) and answer the long polls."""
        self.groups.close()
        await self.engine.close()
        self.news.close()

    def close(self) -> None:
        self.database.close()


def open_server(config: ServerConfig) -> Assembled:
    """Raises ConfigurationError."""
    clock = SystemClock()
    config.state_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(config.database_url) if config.database_url else Database.in_directory(config.state_directory)
    database.upgrade()
    installation = bootstrap(config, database, clock)
    news = News()
    registry = Registry(database, news, clock)
    orders = Orders(database, news, clock)
    desk = EnrolmentDesk(database, news, installation.authority, clock)
    monitors = Monitors(
        database, news, alarm_seconds=config.heartbeat_alarm_seconds, pause_seconds=config.monitor_seconds, clock=clock
    )
    sites = {
        fabric.name: SiteFabric(fabric.name, Side(fabric.site.value), fabric.driver, open_fabric(fabric))
        for fabric in config.fabrics
    }
    # No ``advertised`` addresses: which of them a component can use depends on where it stands, and a heartbeat
    # proves its way to this server better than a probe.
    around = Surroundings(
        database=database, orders=orders, news=news, fabrics=sites, clock=clock,
        heartbeat_alarm_seconds=config.heartbeat_alarm_seconds, backup_marker=config.state_directory / BACKUP_MARKER,
    )  # fmt: skip
    world = World(
        orders=orders,
        news=news,
        fabrics={name: site.fabric for name, site in sites.items()},
        preflight=preflight_of(around),
        timing=config.limits,
        clock=clock,
    )
    processes = None if database.sqlite else Processes(database, process_id_in(config.state_directory), clock)
    executor_id = processes.process_id if processes is not None else installation.component_id
    executor = DbosExecutor(jobs_url(config.database_url, config.state_directory), executor_id)
    engine = JobEngine(database, scenarios(world), executor, clock=clock, processes=processes)
    groups = GroupPoints(database, clock, hold_seconds=config.limits.hold_seconds)
    services = Services(
        database=database, orders=orders, news=news, fabrics=sites, clock=clock, jobs=engine, groups=groups,
        heartbeat_alarm_seconds=config.heartbeat_alarm_seconds, backup_marker=around.backup_marker,
        page_rows=config.page_rows, view_certificates=installation.authority,
    )  # fmt: skip
    application = application_of(config, services, desk, registry)
    guard = ReplicaGuard(database, world.fabrics, clock, pause_seconds=config.monitor_seconds * GUARD_EVERY)
    return Assembled(
        config,
        clock,
        database,
        installation,
        news,
        registry,
        orders,
        desk,
        monitors,
        engine,
        groups,
        guard,
        application,
    )


def process_id_in(state_directory: Path) -> str:
    """One for each host and state directory, the same after a restart; a copied directory makes another one."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"failback:{host.gather().hardware_id}:{state_directory.resolve()}"))


def jobs_url(database_url: str, state_directory: Path) -> str:
    """Where the executor keeps its own records: beside our SQLite database, in a schema of its own in PostgreSQL."""
    if database_url and not database_url.startswith("sqlite"):
        return database_url
    return f"sqlite:///{state_directory / 'jobs.sqlite'}"


def application_of(config: ServerConfig, services: Services, desk: EnrolmentDesk, registry: Registry) -> FastAPI:
    """The whole HTTP application. ``/openapi.json`` describes the ARM routes, to callers who have signed in."""
    application = FastAPI(title="Failback", version=__version__, docs_url=None, redoc_url=None)
    application.include_router(component_router(desk, registry, services.clock), include_in_schema=False)
    application.include_router(group_router(services.groups), include_in_schema=False)
    application.include_router(token_router(desk), dependencies=[Depends(signed_in(services))], include_in_schema=False)
    application.include_router(arm_router(services))
    application.include_router(operations_list.router(), dependencies=[Depends(signed_in(services))])
    application.include_router(metrics.router(services))
    application.include_router(oauth.router(services, config.token_seconds))
    _add_health(application, services.database)
    _add_errors(application)
    words = letter_case.words_of(application.openapi()["paths"])
    application.add_middleware(Gate, services=services, proxies=forwarded.parse(config.trusted_proxies), words=words)
    return application


def _add_health(application: FastAPI, database: Database) -> None:
    @application.get("/healthz", include_in_schema=False)
    async def healthz() -> JSONResponse:
        """200 when the database answers; without signing in, so it says no more."""
        try:
            await database.look(lambda session: session.execute(text("SELECT 1")).scalar())
        except SQLAlchemyError as error:
            log.error("health check failed", error=repr(error))
            return JSONResponse({"status": "failed", "reason": "the database does not answer"}, 503)
        return JSONResponse({"status": "ok", "version": __version__})


def _add_errors(application: FastAPI) -> None:
    @application.exception_handler(FailbackError)
    async def known(_request: Request, error: FailbackError) -> JSONResponse:
        return error_response(error)

    @application.exception_handler(HTTPException)
    async def refused(_request: Request, error: HTTPException) -> JSONResponse:
        return faults.refused(error)

    @application.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        return faults.answer(faults.invalid(error))

    @application.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("request failed unexpectedly", path=request.url.path, error=repr(error))
        wrapped = FailbackError("the configuration server failed inside", remedy="see its log")
        return error_response(wrapped)
