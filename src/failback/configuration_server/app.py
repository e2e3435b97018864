"""Putting the configuration server together: from its configuration to one ASGI application and its background work.

``open_server`` opens the database, makes what the installation lacks and wires the parts; :class:`Assembled` holds them for
``main`` and for tests. ``background`` runs the monitors as long as the server lives.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from failback import __version__
from failback.configuration_server.config import ServerConfig
from failback.configuration_server.database import Database
from failback.configuration_server.enrolment.bootstrap import Installation, bootstrap
from failback.configuration_server.enrolment.desk import EnrolmentDesk
from failback.configuration_server.enrolment.routes import component_router, error_response
from failback.configuration_server.fabrics import open_fabric
from failback.configuration_server.monitors.watch import Monitors
from failback.configuration_server.registry import News, Orders, Registry
from failback.errors import FailbackError
from failback.fabric.interfaces import Fabric
from failback.runtime import logs
from failback.runtime.clock import Clock, SystemClock

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
    fabrics: dict[str, Fabric]
    monitors: Monitors
    application: FastAPI

    async def background(self) -> None:
        """What runs beside the requests, until it is cancelled."""
        await self.monitors.run()

    def close(self) -> None:
        self.news.close()
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
    fabrics = {fabric.name: open_fabric(fabric) for fabric in config.fabrics}
    application = FastAPI(title="Failback", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    application.include_router(component_router(desk, registry, clock))
    _add_health(application, database)
    _add_errors(application)
    monitors = Monitors(
        database, news, alarm_seconds=config.heartbeat_alarm_seconds, pause_seconds=config.monitor_seconds, clock=clock
    )
    return Assembled(
        config, clock, database, installation, news, registry, orders, desk, fabrics, monitors, application
    )


def _add_health(application: FastAPI, database: Database) -> None:
    @application.get("/healthz")
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

    @application.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("request failed unexpectedly", path=request.url.path, error=repr(error))
        wrapped = FailbackError("the configuration server failed inside", remedy="see its log")
        return error_response(wrapped)
