"""The job engine: starts, cancels and restarts durable jobs, and runs their steps on this process's event loop.

``start`` is find-or-create by key: a caller that repeats a request gets the same job. One job works on an item at a time.
Each execution of a job claims a new generation of its item first; whatever an older execution still tries (a write, an order)
is then refused. After a crash or a stop, :meth:`JobEngine.open` goes on with every unfinished job at its unfinished task.

    engine = JobEngine(database, scenarios, DbosExecutor(url, executor_id))
    await engine.open()
    job_id = await engine.start("UnplannedFailover", item_id, inputs, key)
    state = await engine.wait(job_id)
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from sqlalchemy.orm import Session

from failback.configuration_server.database.engine import Database
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.jobs import scenario as words
from failback.configuration_server.jobs import store
from failback.configuration_server.jobs.context import JobCancelled, StepContext
from failback.configuration_server.jobs.executor import Runner, Stopped
from failback.configuration_server.jobs.processes import Processes
from failback.configuration_server.jobs.scenario import FollowUp, Scenario, Skipped
from failback.errors import ConfigurationError, ConflictError, FailbackError, StaleEpochError
from failback.runtime import faults, logs
from failback.runtime.clock import Clock, SystemClock

T = TypeVar("T")

CANCELLING = "Cancelling"
RETRY_SECONDS = 2.0

log = logs.get(__name__)


class Executor(Protocol):
    """What the engine needs of an executor: :class:`~failback.configuration_server.jobs.executor.DbosExecutor`."""

    def launch(self, runner: Runner) -> None: ...

    def submit(self, job_id: str, attempt: int, taking_over: str = "") -> None: ...

    def stop(self) -> None: ...


class JobEngine:
    """Everything public is for the event loop on which :meth:`open` ran."""

    def __init__(
        self, database: Database, scenarios: Mapping[str, Scenario], executor: Executor, *,
        clock: Clock | None = None, poll_seconds: float = 0.5, processes: Processes | None = None,
    ) -> None:  # fmt: skip
        """``processes``: others that share the database; None when this is the only one."""
        self._database = database
        self._scenarios = dict(scenarios)
        self._executor = executor
        self._clock: Clock = clock or SystemClock()
        self._poll_seconds = poll_seconds
        self._bridge: _Bridge | None = None
        self._processes = processes
        self._taking_over: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start the executor and go on with every unfinished job."""
        self._bridge = _Bridge(self, asyncio.get_running_loop())
        await asyncio.to_thread(self._executor.launch, self._bridge)
        if self._processes is not None:
            await self._processes.beat()
            self._taking_over = asyncio.create_task(self._take_over(self._processes), name="jobs of dead processes")
        for row in await self._database.look(store.unfinished):
            if self._processes is not None and row.owner != self._processes.process_id:
                continue  # taken over when its owner is dead
            log.info("unfinished job goes on", job=row.job_id, scenario=row.scenario, attempt=row.attempt)
            await asyncio.to_thread(self._executor.submit, row.job_id, row.attempt)

    async def close(self) -> None:
        """Interrupt what runs; it goes on at the next :meth:`open`."""
        if self._taking_over is not None:
            self._taking_over.cancel()
            await asyncio.gather(self._taking_over, return_exceptions=True)
            self._taking_over = None
        if self._bridge is not None:
            await self._bridge.stop()
            await asyncio.to_thread(self._executor.stop)
            self._bridge = None

    async def _take_over(self, processes: Processes) -> None:
        """Beat, and run the jobs of processes that do not beat any more."""
        asked: dict[str, int] = {}
        while True:
            await asyncio.sleep(processes.beat_seconds)
            try:
                await processes.beat()
                for row in await self._database.look(store.unfinished):
                    if row.owner == processes.process_id or not processes.may_take(row.owner, row.job_id):
                        asked.pop(row.job_id, None)
                    elif asked.get(row.job_id) != row.generation:
                        asked[row.job_id] = row.generation
                        log.warning("a dead process's job is taken over", job=row.job_id, owner=row.owner)
                        turn = f"{processes.process_id}:{row.generation}:{self._clock.wall_ns()}"
                        await asyncio.to_thread(self._executor.submit, row.job_id, row.attempt, turn)
            except Exception:  # a busy or restarting database: the next round looks again
                log.exception("a look for jobs of dead processes failed")

    # --- what callers ask for ---------------------------------------------------------------------------------------

    async def start(
        self, scenario: str, item_id: str, inputs: Mapping[str, Any], key: str, *, started_by: str = ""
    ) -> str:
        """Find or create the job of this key and run it; returns its id. Raises ConflictError naming the other job."""
        made = self._scenario(scenario)
        wall_ns = self._clock.wall_ns()
        row = await self._database.run(
            lambda session: store.create(session, made, item_id, inputs, key, wall_ns, started_by=started_by)
        )
        await self._submit(row)
        return row.job_id

    async def cancel(self, job_id: str) -> None:
        """Ask the job to stop; it does so where it waits, undoes what it can, and ends as Cancelled."""

        def ask(session: Session) -> None:
            row = store.job(session, job_id)
            if row.state in words.FINAL_STATES:
                raise ConflictError(
                    f"the job {row.friendly_name} is over ({row.state})", code="JobNotRunning",
                    remedy="nothing is to be cancelled; failback job show tells how it ended",
                )  # fmt: skip
            row.cancel_requested = True
            row.state = CANCELLING

        await self._database.run(ask)

    async def restart(self, job_id: str) -> None:
        """Run a failed job again from its failed task on; earlier results stay. A cancelled job goes on where it stopped,
        or from its beginning when the cancel undid what it had done."""

        def again(session: Session) -> JobRow:
            row = store.job(session, job_id)
            if row.state not in (words.FAILED, words.CANCELLED):
                raise ConflictError(
                    f"the job {row.friendly_name} is {row.state}: only a failed or cancelled job can be restarted",
                    code="JobNotFailed",
                    remedy=f"failback job show {job_id}",
                )
            store.reopen(session, row, self._scenario(row.scenario))
            row.owner = ""
            return row

        await self._submit(await self._database.run(again))

    async def resume(self, job_id: str) -> None:
        """Hand an unfinished job to the executor again, if it lost it. Raises ConflictError when the job is over."""
        row = await self._database.look(lambda session: store.job(session, job_id))
        if row.state in words.FINAL_STATES:
            raise ConflictError(
                f"the job {row.friendly_name} is over ({row.state}): it is not suspended",
                code="JobNotSuspended",
                remedy="a failed job is restarted: failback job restart",
            )
        await self._submit(row)

    async def wait(self, job_id: str, seconds: float = 3600.0) -> str:
        """Wait until the job ends; returns its state then, or the present state after ``seconds``."""
        deadline = self._clock.monotonic() + seconds
        while True:
            state: str = await self._database.look(lambda session: store.job(session, job_id).state)
            if state in words.FINAL_STATES or self._clock.monotonic() >= deadline:
                return state
            await asyncio.sleep(min(0.2, self._poll_seconds))

    # --- what the executor runs -------------------------------------------------------------------------------------

    async def claim(self, job_id: str, attempt: int) -> tuple[int, tuple[str, ...]] | None:
        wall_ns = self._clock.wall_ns()

        def take(session: Session) -> tuple[int, str] | None:
            row = store.job(session, job_id)
            if row.state in words.FINAL_STATES or row.attempt != attempt or row.item_id is None:
                return None
            if self._processes is not None:
                if row.owner and not self._processes.may_take(row.owner, job_id):
                    return None  # a process that lives runs it
                row.owner = self._processes.process_id
            store.take_over(session, row)
            row.state = CANCELLING if row.cancel_requested else words.IN_PROGRESS
            row.started_wall_ns = row.started_wall_ns or wall_ns
            return row.generation, row.scenario

        taken = await self._database.run(take)
        if taken is None:
            return None
        return taken[0], tuple(leaf.name for leaf in self._scenario(taken[1]).leaves())

    async def run_task(self, job_id: str, generation: int, name: str) -> str:
        """Run one step unless its end is recorded already; returns Succeeded, Failed or Cancelled."""
        before = await self._database.run(
            lambda session: store.begin_task(session, job_id, generation, name, self._clock.wall_ns())
        )
        if before in (words.SUCCEEDED, words.OTHER):
            return words.SUCCEEDED
        faults.point(f"job.{name}.before")
        context, scenario = await self._context(job_id, generation, name)
        step = scenario.leaf(name).step
        assert step is not None
        result: Mapping[str, Any] = {}
        error: FailbackError | None = None
        state, description = words.SUCCEEDED, ""
        try:
            await context.checkpoint()
            result = await step(context) or {}
        except Skipped as skipped:
            state, description, result = words.OTHER, "Skipped", {"reason": str(skipped)}
        except JobCancelled:
            state, description = words.CANCELLED, "Cancelled"
        except FailbackError as failure:
            await self._still_owner(job_id, generation, failure)
            state, description, error = words.FAILED, failure.message, failure
        except Exception as failure:  # the border of one step: the job fails and says so, the engine goes on
            log.exception("a step failed in an unexpected way", job=job_id, task=name)
            state, description, error = words.FAILED, repr(failure), _unexpected(failure)
        faults.point(f"job.{name}.after")
        end = store.TaskEnd(state, result, description, error)
        await self._database.run(
            lambda session: store.end_task(session, job_id, generation, name, end, self._clock.wall_ns())
        )
        faults.point(f"job.{name}.recorded")
        return words.SUCCEEDED if state == words.OTHER else state

    async def run_undo(self, job_id: str, generation: int, name: str, state: str) -> str:
        """Run the scenario's undo; an undo that fails makes the job a failed one, with both errors."""
        context, scenario = await self._context(job_id, generation, name)
        context.cancellable = False
        if scenario.undo is None:
            return state
        faults.point("job.undo.before")
        try:
            await scenario.undo(context, state)
        except Exception as failure:  # the border of an undo: its error is recorded with the job's own
            known = failure if isinstance(failure, FailbackError) else _unexpected(failure)
            await self._still_owner(job_id, generation, known)
            log.exception("an undo failed", job=job_id, task=name)
            end = store.TaskEnd(words.FAILED, None, known.message, known)
            await self._database.run(
                lambda session: store.end_task(session, job_id, generation, name, end, self._clock.wall_ns())
            )
            state = words.FAILED
        faults.point("job.undo.after")
        return state

    async def finish(self, job_id: str, generation: int, state: str) -> None:
        """End the job and, after a success, begin the one that follows it, in one transaction."""
        wall_ns = self._clock.wall_ns()

        def end(session: Session) -> JobRow | None:
            row = store.job(session, job_id)
            if row.state in words.FINAL_STATES:
                return None
            store.finish(session, job_id, generation, state, wall_ns)
            follow_up = self._scenario(row.scenario).follow_up if state == words.SUCCEEDED else _asked(row)
            if follow_up is None or row.item_id is None:
                return None
            made = self._scenario(follow_up.scenario)
            return store.create(
                session, made, row.item_id, follow_up.inputs, f"{made.name} after {job_id}:{row.attempt}", wall_ns,
                started_by=row.started_by, parent_job_id=job_id,
            )  # fmt: skip

        following = await self._database.run(end)
        faults.point("job.finish.after")
        log.info("job ended", job=job_id, state=state)
        if following is not None:
            await self._submit(following)

    async def _submit(self, row: JobRow) -> None:
        if row.state not in words.FINAL_STATES:
            await asyncio.to_thread(self._executor.submit, row.job_id, row.attempt)

    async def _still_owner(self, job_id: str, generation: int, failure: FailbackError) -> None:
        """Leave without a record when the failure comes of having been superseded."""
        if isinstance(failure, StaleEpochError):
            row = await self._database.look(lambda session: store.job(session, job_id))
            if row.generation != generation:
                raise Stopped

    async def _context(self, job_id: str, generation: int, name: str) -> tuple[StepContext, Scenario]:
        row = await self._database.look(lambda session: store.owned(session, job_id, generation))
        scenario = self._scenario(row.scenario)
        assert row.item_id is not None
        context = StepContext(
            self._database, self._clock, job_id, row.item_id, row.scenario, name, dict(row.inputs), generation, row.attempt,
            scenario.leaf(name).cancellable, self._poll_seconds,
        )  # fmt: skip
        return context, scenario

    def _scenario(self, name: str) -> Scenario:
        found = self._scenarios.get(name)
        if found is None:
            raise ConfigurationError(f"there is no workflow {name!r}", remedy=f"known: {', '.join(self._scenarios)}")
        return found


class _Bridge:
    """The executor's threads call here; the work is done on the event loop."""

    def __init__(self, engine: JobEngine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop
        self._running: set[concurrent.futures.Future[Any]] = set()
        self._stopped = threading.Event()

    def claim(self, job_id: str, attempt: int) -> tuple[int, tuple[str, ...]] | None:
        return self._on_loop(lambda: self._engine.claim(job_id, attempt))

    def run_task(self, job_id: str, generation: int, name: str) -> str:
        return self._on_loop(lambda: self._engine.run_task(job_id, generation, name))

    def run_undo(self, job_id: str, generation: int, name: str, state: str) -> str:
        return self._on_loop(lambda: self._engine.run_undo(job_id, generation, name, state))

    def finish(self, job_id: str, generation: int, state: str) -> None:
        self._on_loop(lambda: self._engine.finish(job_id, generation, state))

    def _on_loop(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run it to its end. A failure of the engine itself (a busy database, say) is tried again until the stop: what
        a step failed with is recorded already and never arrives here."""
        while not self._stopped.is_set():
            future = asyncio.run_coroutine_threadsafe(work(), self._loop)
            self._running.add(future)
            try:
                return future.result()
            except (concurrent.futures.CancelledError, StaleEpochError) as left:
                raise Stopped from left
            except Exception as failure:  # the engine's own (a busy database): what a step raises never arrives here
                log.error("the job engine failed and tries again", error=repr(failure))
                self._stopped.wait(RETRY_SECONDS)
            finally:
                self._running.discard(future)
        raise Stopped

    async def stop(self) -> None:
        """Cancel what runs and let it wind up."""
        self._stopped.set()
        running = [asyncio.wrap_future(future) for future in list(self._running)]
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _asked(row: JobRow) -> FollowUp | None:
    """The job that the undo of this attempt asked for."""
    details = dict(row.custom_details)
    asked = details.pop(store.FOLLOW_UP, None)
    row.custom_details = details
    return FollowUp(asked["scenario"], asked["inputs"]) if asked else None


def _unexpected(failure: Exception) -> FailbackError:
    return FailbackError(
        f"an unexpected error: {failure!r}",
        possible_causes="a defect of this program, or a failed database",
        remedy="look at the configuration server's log at this time, then restart the job",
    )
