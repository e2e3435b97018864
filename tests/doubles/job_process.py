"""One of several server processes on one database: ``job_process.py URL DIRECTORY NAME`` runs the real engine until killed.

A job of it appends ``NAME`` to ``one``, then waits in its second step, where ``two-NAME`` appears, until ``go`` is there. The
step goes on to write even when it was superseded meanwhile, which the fence has to refuse (``refused-NAME``).
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from failback.configuration_server.app import jobs_url
from failback.configuration_server.database import Database
from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.jobs.engine import JobEngine
from failback.configuration_server.jobs.executor import DbosExecutor
from failback.configuration_server.jobs.processes import Processes
from failback.configuration_server.jobs.scenario import Scenario, Task
from failback.errors import StaleEpochError


async def main(url: str, directory: Path, name: str) -> None:
    async def one(_context: StepContext) -> dict[str, str]:
        with (directory / "one").open("a") as stream:
            stream.write(f"{name}\n")
        return {"by": name}

    async def two(context: StepContext) -> dict[str, str]:
        (directory / f"two-{name}").touch()
        while not (directory / "go").exists():
            await asyncio.sleep(0.1)
        try:
            await context.change_item(lambda row: setattr(row, "friendly_name", f"written by {name}"))
        except StaleEpochError:
            (directory / f"refused-{name}").touch()
            raise
        return {"by": name}

    scenario = Scenario("Count", "Counting", (Task("One", "first", one), Task("Two", "second", two)))
    database = Database(url)
    processes = Processes(database, f"process-{name}", beat_seconds=0.5, dead_seconds=10.0)
    executor = DbosExecutor(jobs_url(url, directory), processes.process_id)
    engine = JobEngine(database, {"Count": scenario}, executor, processes=processes)
    await engine.open()
    if name == "first":
        await engine.start("Count", "item", {}, "key")
    (directory / f"open-{name}").touch()
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
