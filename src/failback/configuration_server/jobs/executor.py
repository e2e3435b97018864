"""DBOS as the executor of jobs: it runs them on threads, records each task's outcome, and runs an interrupted job again.

It is told no more than (job id, attempt) and the names of tasks; the rows of :mod:`store` are the truth. Traps that this
module closes (facts: control-plane-experiments.md section 3):

* the application version is a constant of ours: DBOS's default is a hash of the source, and with it a job begun before an
  update would never go on after it;
* the executor id is stable, because DBOS gives a dead executor's workflows to nobody else;
* a step may run twice, so :meth:`Runner.run_task` finds what is recorded already;
* a stop of this server raises :class:`Stopped`, a BaseException, through the workflow: DBOS then records no outcome, and
  the job goes on at the next start.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
from typing import Protocol

from dbos import DBOS, DBOSConfig, SetWorkflowID

from failback.configuration_server.jobs.scenario import SUCCEEDED

APPLICATION_NAME = "failback-jobs"
APPLICATION_VERSION = "1"
"""Raised only together with a migration of unfinished jobs; a scenario may gain tasks at its end without that."""


class Stopped(BaseException):
    """This server stops, or lost the job to a newer owner: leave without recording anything."""


class Runner(Protocol):
    """What the executor runs; all calls block on an executor thread."""

    def claim(self, job_id: str, attempt: int) -> tuple[int, tuple[str, ...]] | None:
        """Become the owner: (generation, names of the tasks in order); None when there is nothing (more) to do."""
        ...

    def run_task(self, job_id: str, generation: int, name: str) -> str:
        """Run one task and return the state that it ended in."""
        ...

    def run_undo(self, job_id: str, generation: int, name: str, state: str) -> str:
        """Undo after ``name`` ended in ``state``; returns the state that the job ends in."""
        ...

    def finish(self, job_id: str, generation: int, state: str) -> None: ...


_runner: Runner | None = None


def _running() -> Runner:
    if _runner is None:
        raise Stopped
    return _runner


@DBOS.step(name="failback.task")
def _task(job_id: str, generation: int, name: str) -> str:
    return _running().run_task(job_id, generation, name)


@DBOS.step(name="failback.undo")
def _undo(job_id: str, generation: int, name: str, state: str) -> str:
    return _running().run_undo(job_id, generation, name, state)


@DBOS.step(name="failback.finish")
def _finish(job_id: str, generation: int, state: str) -> None:
    _running().finish(job_id, generation, state)


@DBOS.workflow(name="failback.job", max_recovery_attempts=None)
def _job(job_id: str, attempt: int) -> str:
    claimed = _running().claim(job_id, attempt)
    if claimed is None:
        return "superseded"
    generation, names = claimed
    state = SUCCEEDED
    for name in names:
        state = _task(job_id, generation, name)
        if state != SUCCEEDED:
            state = _undo(job_id, generation, name, state)
            break
    _finish(job_id, generation, state)
    return state


def _submit(job_id: str, attempt: int, taking_over: str) -> None:
    workflow_id = f"{job_id}:{attempt}:{taking_over}" if taking_over else f"{job_id}:{attempt}"
    if DBOS.get_workflow_status(workflow_id) is None:
        with SetWorkflowID(workflow_id):
            DBOS.start_workflow(_job, job_id, attempt)


class DbosExecutor:
    """One a process (DBOS is a singleton). ``system_database_url``: a file of its own beside ours, or PostgreSQL."""

    def __init__(self, system_database_url: str, executor_id: str) -> None:
        self._config: DBOSConfig = {
            "name": APPLICATION_NAME,
            "application_version": APPLICATION_VERSION,
            "executor_id": executor_id,
            "system_database_url": system_database_url,
            "run_admin_server": False,
            "log_level": "WARNING",
        }  # type: ignore[typeddict-unknown-key]

    def launch(self, runner: Runner) -> None:
        """Start, and begin to run again what was interrupted. Blocks for about 0.1 s."""
        global _runner
        _runner = runner
        handlers = list(logging.getLogger().handlers)
        DBOS(config=self._config)
        DBOS.launch()
        logging.getLogger().handlers[:] = handlers

    def submit(self, job_id: str, attempt: int, taking_over: str = "") -> None:
        """Run the attempt unless it is known already; ``taking_over`` names another try of it, by another process.

        Blocks briefly; not to be called on an event loop's thread.
        """
        contextvars.Context().run(
            _submit, job_id, attempt, taking_over
        )  # a caller within a step must not look like its child

    def stop(self) -> None:
        """Stop; blocks until DBOS's own threads ended. Interrupted jobs stay recorded as running."""
        global _runner
        _runner = None
        with contextlib.suppress(Stopped):
            DBOS.destroy()
