"""The process ``failback serve master-target --config FILE``.

Opens the replicas that were attached (locks taken again) before it listens, starts with the assignment that it remembers,
and goes on while the configuration server is away. A kill at any moment loses nothing that was acknowledged.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from failback.errors import ConfigurationError
from failback.master_target import volumes
from failback.master_target.config import MasterTargetConfig
from failback.master_target.intake import Intake
from failback.master_target.orders import Orders
from failback.master_target.replicas import Replicas
from failback.model.components import MasterTargetAssignment, MasterTargetStatus, Role
from failback.protection import figures
from failback.runtime import config as configuration
from failback.runtime import host, logs, niceness, service
from failback.transport.control import ControlLoop
from failback.transport.exposition import Exposition
from failback.transport.identity import Identity, enrol_if_needed
from failback.transport.link import LinkServer, serve_links

log = logs.get(__name__)

_THREADS = 32
"""For landing (short) and orders (long), of all machines."""


def serve(config_path: Path) -> int:
    """Run until SIGTERM; the exit status."""
    try:
        config = configuration.load(config_path, MasterTargetConfig)
    except ConfigurationError as error:
        logs.configure("master-target")
        log.error(error.message, code=error.code, remedy=error.remedy)
        return 2
    logs.configure("master-target", level=config.log_level, as_json=config.log_json)
    niceness.set_of_all_threads(max(niceness.own(), config.niceness))
    return service.run(lambda stop: _main(config, stop))


async def _main(config: MasterTargetConfig, stop: asyncio.Event) -> None:
    config.state_directory.mkdir(parents=True, exist_ok=True)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="work"))
    volumes.warn_of_neighbours(config)
    replicas = Replicas(config)
    await asyncio.to_thread(replicas.restore)  # the fence first, whoever is away
    identity = await _enrol(config, stop)
    if identity is None:
        return
    intake = Intake(replicas)
    server = await _listen(config, identity, intake)
    control: ControlLoop[MasterTargetAssignment]

    async def apply_assignment(assignment: MasterTargetAssignment) -> None:
        replicas.assign(assignment)
        intake.drop_unassigned()

    orders = Orders(replicas, intake)
    control = ControlLoop(
        identity,
        config.configuration_server,
        status=lambda: status(config, replicas, server),
        assignment_kind=MasterTargetAssignment,
        apply_assignment=apply_assignment,
        orders=orders.work(),
        assignment_file=config.state_directory / "assignment.json",
    )
    loop = asyncio.get_running_loop()

    def nudge_from_thread() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(control.nudge)

    replicas.on_news = nudge_from_thread
    log.info("master target listens", host=config.listen_host, port=server.port, component=identity.component_id)
    exposition = Exposition(lambda: figures.of_master_target(identity.component_id, status(config, replicas, server)))
    await exposition.start(config.metrics_listen)
    service.notify_ready()
    if config.view_listen_host:
        replicas.views.listen(config.view_listen_host, config.view_listen_port, identity)
    replicas.scrubs.start()
    minding = [asyncio.create_task(replicas.retry()), asyncio.create_task(replicas.expire_views())]
    try:
        await control.run(stop)
    finally:
        exposition.close()
        for task in minding:
            task.cancel()
        await server.close()
        await asyncio.to_thread(replicas.close)


async def _enrol(config: MasterTargetConfig, stop: asyncio.Event) -> Identity | None:
    """The identity; None when a stop signal came first."""
    enrolling = asyncio.create_task(
        enrol_if_needed(config.state_directory, config.configuration_server, Role.MASTER_TARGET)
    )
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([enrolling, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not enrolling.done():
        enrolling.cancel()
        return None
    return enrolling.result()


async def _listen(config: MasterTargetConfig, identity: Identity, intake: Intake) -> LinkServer:
    try:
        return await serve_links(
            config.listen_host, config.listen_port, identity, intake.accept, budget_bytes=config.receive_memory_bytes
        )
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {config.listen_host}:{config.listen_port}: {error.strerror}",
            remedy="set listen_host and listen_port to an address of this machine that is free",
        ) from error


def status(config: MasterTargetConfig, replicas: Replicas, server: LinkServer) -> MasterTargetStatus:
    return MasterTargetStatus(
        listen_port=server.port,
        retention_volumes=replicas.volume_facts(),
        datastores=volumes.all_facts(config.datastores),
        replicas=replicas.statuses(),
        views=replicas.views.statuses(),
        disk_ids=host.disk_identities(),
        root_on_lvm=host.root_on_lvm(),
    )
