"""``failback serve mobility --config FILE``: the mobility service of one protected machine.

Everything that a freeze needs is imported before serving, and no byte code is ever written: under a frozen root file system
a write blocks for ever (D18).
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

from failback.errors import ConfigurationError
from failback.mobility.config import MobilityConfig, load
from failback.mobility.reconcile import Reconciler
from failback.mobility.selftest import remove_leftovers
from failback.model.components import MobilityAssignment, Role
from failback.model.ids import MachineId
from failback.protection import figures
from failback.runtime import logs, loop_watch, service
from failback.transport.control import ControlLoop
from failback.transport.exposition import Exposition
from failback.transport.identity import enrol_if_needed

log = logs.get(__name__)

THREAD_STACK_BYTES = 512 << 10


def serve(config_path: Path) -> int:
    """Run in the foreground; returns the exit status."""
    sys.dont_write_bytecode = True
    threading.stack_size(THREAD_STACK_BYTES)  # a freeze locks every page that is mapped
    logs.configure("mobility")
    try:
        config = load(config_path)
    except ConfigurationError as error:
        log.error(error.message, code=error.code, remedy=error.remedy)
        return 2
    logs.configure("mobility", level=config.log_level)
    return service.run(lambda stop: _main(config, stop))


async def _main(config: MobilityConfig, stop: asyncio.Event) -> None:
    enrolling = asyncio.create_task(enrol_if_needed(config.state_directory, config.configuration_server, Role.MOBILITY))
    stopping = asyncio.create_task(stop.wait())
    service.notify_ready()
    await asyncio.wait({enrolling, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not enrolling.done():
        enrolling.cancel()
        return
    identity = await enrolling
    await asyncio.to_thread(remove_leftovers)
    log.info("serving", component_id=identity.component_id, url=config.configuration_server.url)
    control: ControlLoop[MobilityAssignment] | None = None

    def changed() -> None:
        if control is not None:
            control.nudge()

    reconciler = Reconciler(config, identity, changed)
    control = ControlLoop(
        identity, config.configuration_server, status=reconciler.status, assignment_kind=MobilityAssignment,
        apply_assignment=reconciler.apply, orders=reconciler.orders(),
        assignment_file=config.runtime_directory / "assignment.json",
    )  # fmt: skip
    exposition = Exposition(lambda: figures.of_agent(MachineId(identity.component_id), reconciler.status()))
    await exposition.start(config.metrics_listen)
    async with loop_watch.watched(), asyncio.TaskGroup() as tasks:
        working = tasks.create_task(reconciler.run(), name="reconciler")
        tasks.create_task(control.run(stop), name="control")
        await stopping
        exposition.close()
        working.cancel()
