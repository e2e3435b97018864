"""The process ``failback serve process-server --config FILE``.

Starts with the assignment that it remembers, so that the data path goes on while the configuration server is away. Listens
at once; agents whose machine is not assigned are refused and try again. A kill at any moment loses nothing that was
acknowledged; a clean stop only ends links politely.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from failback.errors import ConfigurationError
from failback.model.components import ProcessServerAssignment, ProcessServerStatus, Role
from failback.model.orders import PROBE
from failback.process_server.assignment import Streams
from failback.process_server.config import ProcessServerConfig
from failback.process_server.intake import check_peer, take_stream
from failback.process_server.space import free_bytes
from failback.protection import figures
from failback.protocol.messages import Hello
from failback.runtime import config as configuration
from failback.runtime import logs, niceness, service
from failback.transport.control import ControlLoop
from failback.transport.exposition import Exposition
from failback.transport.identity import Identity, enrol_if_needed
from failback.transport.link import Accept, Link, LinkServer, serve_links
from failback.transport.probe import probe

log = logs.get(__name__)


def serve(config_path: Path) -> int:
    """Run until SIGTERM; the exit status."""
    try:
        config = configuration.load(config_path, ProcessServerConfig)
    except ConfigurationError as error:
        logs.configure("process-server")
        log.error(error.message, code=error.code, remedy=error.remedy)
        return 2
    logs.configure("process-server", level=config.log_level, as_json=config.log_json)
    niceness.set_of_all_threads(max(niceness.own(), config.niceness))
    return service.run(lambda stop: _main(config, stop))


async def _main(config: ProcessServerConfig, stop: asyncio.Event) -> None:
    config.state_directory.mkdir(parents=True, exist_ok=True)
    config.spool_directory.mkdir(parents=True, exist_ok=True)
    identity = await _enrol(config, stop)
    if identity is None:
        return
    async with asyncio.TaskGroup() as group:
        streams = Streams(
            config.spool_directory,
            identity,
            group,
            limit_bytes=config.spool_limit_bytes,
            read_bytes=config.read_memory_bytes,
            recent_bytes=config.recent_memory_bytes,
        )

        async def accept(link: Link, hello: Hello) -> None:
            check_peer(link, hello)
            await take_stream(streams.find(hello.machine_id, hello.epoch), link, hello)

        server = await _listen(config, identity, accept)
        control = ControlLoop(
            identity,
            config.configuration_server,
            status=lambda: status(config, streams, server),
            assignment_kind=ProcessServerAssignment,
            apply_assignment=streams.apply,
            orders={PROBE: probe},
            assignment_file=config.state_directory / "assignment.json",
        )
        log.info("process server listens", host=config.listen_host, port=server.port, component=identity.component_id)
        exposition = Exposition(
            lambda: figures.of_process_server(identity.component_id, status(config, streams, server))
        )
        await exposition.start(config.metrics_listen)
        service.notify_ready()
        remembering = group.create_task(streams.remember_landed())
        await control.run(stop)
        exposition.close()
        remembering.cancel()
        await server.close()
        await streams.close()


async def _enrol(config: ProcessServerConfig, stop: asyncio.Event) -> Identity | None:
    """The identity; None when a stop signal came first."""
    enrolling = asyncio.create_task(
        enrol_if_needed(config.state_directory, config.configuration_server, Role.PROCESS_SERVER)
    )
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([enrolling, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not enrolling.done():
        enrolling.cancel()
        return None
    return enrolling.result()


async def _listen(config: ProcessServerConfig, identity: Identity, accept: Accept) -> LinkServer:
    try:
        return await serve_links(
            config.listen_host, config.listen_port, identity, accept, budget_bytes=config.receive_memory_bytes
        )
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {config.listen_host}:{config.listen_port}: {error.strerror}",
            remedy="set listen_host and listen_port to an address of this machine that is free",
        ) from error


def status(config: ProcessServerConfig, streams: Streams, server: LinkServer) -> ProcessServerStatus:
    return ProcessServerStatus(
        listen_port=server.port,
        spool_capacity_bytes=config.spool_limit_bytes,
        spool_free_bytes=free_bytes(config.spool_directory, streams.space),
        machines=streams.status(),
    )
