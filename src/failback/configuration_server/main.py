"""``failback serve configuration-server --config FILE``: the process.

Opens everything, goes on with unfinished jobs, listens, tells systemd, and lives until a stop signal: first the jobs are
interrupted, then the long polls answered, then the listener closed. A hard kill instead loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import uvloop

from failback.configuration_server import app, serving
from failback.configuration_server.config import ServerConfig, load
from failback.configuration_server.safekeeping import presence
from failback.errors import FailbackError
from failback.runtime import logs, service

log = logs.get(__name__)


def serve(config_path: Path) -> int:
    """Returns the process's exit status."""
    logs.configure("configuration-server")
    try:
        config = load(config_path)
    except FailbackError as error:
        log.error(error.message, code=error.code, remedy=error.remedy)
        return 1
    logs.configure("configuration-server", level=config.log_level, as_json=config.log_json)
    for library in ("alembic", "uvicorn"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        with presence.serving(config.state_directory, config.database_url):
            return service.run(lambda stop: run(config, stop), loop_factory=uvloop.new_event_loop)
    except FailbackError as error:
        log.error(error.message, code=error.code, remedy=error.remedy)
        return 1


async def run(config: ServerConfig, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set."""
    assembled = await asyncio.to_thread(app.open_server, config)
    try:
        await assembled.engine.open()
        listening = serving.bind(config.listen_host, config.listen_port)
        context = serving.tls_context(assembled.installation)
        server = serving.server_for(assembled.application, assembled.installation, context)
        async with asyncio.TaskGroup() as group:
            serving_task = group.create_task(server.serve([listening]), name="https")
            background = group.create_task(assembled.background(), name="background")
            renewing = group.create_task(
                serving.keep_certificate(assembled.installation, config.addresses, context), name="certificate"
            )
            while not server.started and not serving_task.done():  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
            serving.describe(config.state_directory, listening)
            service.notify_ready()
            log.info("serving", address="{}:{}".format(*listening.getsockname()[:2]))
            await stop.wait()
            log.info("stopping")
            await assembled.quiet()
            server.should_exit = True
            await serving_task
            background.cancel()
            renewing.cancel()
    finally:
        await asyncio.to_thread(assembled.close)
