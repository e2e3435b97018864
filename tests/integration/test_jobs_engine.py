"""The job engine with its real executor: order, memory, errors, cancel, restart, one job an item, stop and go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from failback.configuration_server.app import jobs_url
from failback.configuration_server.database import Database, items, tables  # noqa: F401
from failback.configuration_server.database.jobs import JobRow
from failback.configuration_server.jobs import store
from failback.configuration_server.jobs.context import StepContext
from failback.configuration_server.jobs.engine import JobEngine
from failback.configuration_server.jobs.executor import DbosExecutor
from failback.configuration_server.jobs.scenario import FollowUp, Scenario, Skipped, Task
from failback.errors import ConflictError, FabricError, PeerError, StaleEpochError

Start = Callable[[list[Scenario]], Awaitable[JobEngine]]


@pytest.fixture
def database(database_url: str) -> Database:
    database = Database(database_url)
    database.upgrade()
    with database.write() as session:
        session.add(items.ItemRow(item_id="item", name="ledger", friendly_name="ledger", created_wall_ns=1))
        session.add(items.ItemRow(item_id="other", name="other", friendly_name="other", created_wall_ns=1))
    return database


@pytest.fixture
async def begin(database: Database, tmp_path: Path) -> AsyncIterator[Start]:
    opened: list[JobEngine] = []

    async def start(scenarios: list[Scenario]) -> JobEngine:
        executor = DbosExecutor(jobs_url(database.url, tmp_path), "test")
        engine = JobEngine(database, {each.name: each for each in scenarios}, executor, poll_seconds=0.02)
        await engine.open()
        opened.append(engine)
        return engine

    yield start
    for engine in opened:
        await engine.close()
    database.close()


def shown(database: Database, job_id: str) -> JobRow:
    with database.read() as session:
        return store.job(session, job_id)


def states(row: JobRow) -> dict[str, str]:
    return {task.name: task.state for task in row.tasks}


async def test_tasks_run_in_order_and_hand_results_on(database: Database, begin: Start) -> None:
    seen: list[str] = []

    async def one(context: StepContext) -> dict[str, int]:
        seen.append(context.name)
        return {"number": context.inputs["number"] + 1}

    async def two(context: StepContext) -> dict[str, int]:
        seen.append(context.name)
        return {"number": (await context.result_of("One"))["number"] + 1}

    async def nothing(_context: StepContext) -> None:
        raise Skipped("already done")

    group = Task("Group", "a group", children=(Task("Two", "second", two, task_type="JobTaskDetails"),))
    engine = await begin(
        [Scenario("Count", "Counting", (Task("One", "first", one), group, Task("Last", "last", nothing)))]
    )
    job_id = await engine.start("Count", "item", {"number": 1}, "key")
    assert await engine.wait(job_id, 10) == "Succeeded"
    assert await engine.start("Count", "item", {"number": 9}, "key") == job_id
    row = shown(database, job_id)
    assert seen == ["One", "Two"]
    assert states(row) == {"One": "Succeeded", "Group": "Succeeded", "Two": "Succeeded", "Last": "Other"}
    assert row.tasks[2].result["number"] == 3
    assert (row.tasks[1].task_type, row.tasks[2].task_type, row.tasks[3].state_description) == (
        "GroupTaskDetails",
        "JobTaskDetails",
        "Skipped",
    )


async def test_one_job_an_item(database: Database, begin: Start) -> None:
    gate = asyncio.Event()

    async def hold(_context: StepContext) -> None:
        await gate.wait()

    engine = await begin([Scenario("Hold", "Holding", (Task("Hold", "hold", hold),))])
    first = await engine.start("Hold", "item", {}, "a")
    with pytest.raises(ConflictError, match=first):
        await engine.start("Hold", "item", {}, "b")
    elsewhere = await engine.start("Hold", "other", {}, "c")
    gate.set()
    assert await engine.wait(first, 10) == await engine.wait(elsewhere, 10) == "Succeeded"
    assert await engine.wait(await engine.start("Hold", "item", {}, "b"), 10) == "Succeeded"


async def test_a_failed_job_goes_on_at_its_failed_task(database: Database, begin: Start) -> None:
    ran: list[str] = []
    broken = True

    async def good(context: StepContext) -> None:
        ran.append(context.name)

    async def bad(context: StepContext) -> None:
        ran.append(context.name)
        await context.remember("mark", lambda: f"mark {len(ran)}")
        if broken:
            raise FabricError("no memory left", code="8038", remedy="free memory", possible_causes="other machines")

    undone: list[str] = []

    async def undo(context: StepContext, state: str) -> None:
        undone.append(f"{context.name} {state} {await context.recall('mark')}")

    tasks = (Task("Good", "good", good), Task("Bad", "bad", bad), Task("After", "after", good))
    engine = await begin([Scenario("Try", "Trying", tasks, undo=undo)])
    job_id = await engine.start("Try", "item", {}, "a")
    assert await engine.wait(job_id, 10) == "Failed"
    row = shown(database, job_id)
    assert (row.errors[0].code, row.errors[0].recommended_action, row.errors[0].task_name) == (
        "8038",
        "free memory",
        "Bad",
    )
    assert undone == ["Bad Failed mark 2"]
    with pytest.raises(ConflictError):
        await engine.cancel(job_id)
    broken = False
    await engine.restart(job_id)
    assert await engine.wait(job_id, 10) == "Succeeded"
    assert ran == ["Good", "Bad", "Bad", "After"]
    assert shown(database, job_id).attempt == 2
    with pytest.raises(ConflictError):
        await engine.restart(job_id)


async def test_restart_goes_back_to_the_task_that_a_task_names(begin: Start) -> None:
    ran: list[str] = []

    async def step(context: StepContext) -> None:
        ran.append(context.name)
        if context.name == "Off" and context.attempt == 1:
            raise PeerError("not in time")

    tasks = (
        Task("Check", "check", step),
        Task("Freeze", "freeze", step),
        Task("Off", "off", step, restart_from="Freeze"),
    )
    engine = await begin([Scenario("Fail", "Failing over", tasks)])
    job_id = await engine.start("Fail", "item", {}, "a")
    assert await engine.wait(job_id, 10) == "Failed"
    await engine.restart(job_id)
    assert await engine.wait(job_id, 10) == "Succeeded"
    assert ran == ["Check", "Freeze", "Off", "Freeze", "Off"]


async def test_cancel_ends_a_wait_and_undoes(database: Database, begin: Start) -> None:
    undone: list[str] = []

    async def forever(context: StepContext) -> None:
        async def poll() -> str | None:
            return None

        await context.wait_until("waiting for a miracle", poll, seconds=60, late=lambda: PeerError("late"))

    async def undo(_context: StepContext, state: str) -> None:
        undone.append(state)

    engine = await begin([Scenario("Wait", "Waiting", (Task("Wait", "wait", forever),), undo=undo)])
    job_id = await engine.start("Wait", "item", {}, "a")
    while shown(database, job_id).tasks[0].state_description != "waiting for a miracle":
        await asyncio.sleep(0.02)
    await engine.cancel(job_id)
    assert await engine.wait(job_id, 10) == "Cancelled"
    assert undone == ["Cancelled"]
    assert shown(database, job_id).tasks[0].state == "Cancelled"


async def test_a_wait_ends_at_its_deadline_and_an_unexpected_error_is_recorded(
    database: Database, begin: Start
) -> None:
    async def late(context: StepContext) -> None:
        async def poll() -> str | None:
            return None

        await context.wait_until("waiting", poll, seconds=0.1, late=lambda: PeerError("nobody came", code="806"))

    async def defect(_context: StepContext) -> None:
        raise ZeroDivisionError("a defect")

    scenarios = [
        Scenario("Late", "Late", (Task("L", "l", late),)),
        Scenario("Defect", "Defect", (Task("D", "d", defect),)),
    ]
    engine = await begin(scenarios)
    first = await engine.start("Late", "item", {}, "a")
    assert await engine.wait(first, 10) == "Failed"
    second = await engine.start("Defect", "item", {}, "b")
    assert await engine.wait(second, 10) == "Failed"
    assert shown(database, first).errors[0].code == "806"
    assert "ZeroDivisionError" in shown(database, second).errors[0].message


async def test_a_follow_up_begins_with_the_end_of_its_job(database: Database, begin: Start) -> None:
    async def step(_context: StepContext) -> None:
        return None

    first = Scenario("First", "First", (Task("A", "a", step),), follow_up=FollowUp("Second", {"from": "first"}))
    engine = await begin([first, Scenario("Second", "Second", (Task("B", "b", step),))])
    job_id = await engine.start("First", "item", {}, "a")
    assert await engine.wait(job_id, 10) == "Succeeded"
    with database.read() as session:
        following = next(row for row in session.query(JobRow) if row.scenario == "Second")
    assert following.parent_job_id == job_id
    assert await engine.wait(following.job_id, 10) == "Succeeded"


async def test_a_stopped_engine_goes_on_at_its_next_start_and_fences_the_old_owner(
    database: Database, begin: Start
) -> None:
    contexts: list[StepContext] = []

    async def step(context: StepContext) -> None:
        contexts.append(context)
        await context.remember("id", lambda: f"drawn by {len(contexts)}")
        if len(contexts) == 1:
            await asyncio.sleep(60)

    scenario = Scenario("Stop", "Stopping", (Task("S", "s", step),))
    engine = await begin([scenario])
    job_id = await engine.start("Stop", "item", {}, "a")
    while not contexts or not await contexts[0].recall("id"):
        await asyncio.sleep(0.02)
    await engine.close()
    assert shown(database, job_id).state == "InProgress"
    again = await begin([scenario])
    assert await again.wait(job_id, 10) == "Succeeded"
    assert shown(database, job_id).tasks[0].result["remembered"] == {"id": "drawn by 1"}
    assert contexts[1].generation > contexts[0].generation
    with pytest.raises(StaleEpochError):
        await contexts[0].change_item(lambda item: setattr(item, "epoch", 99))
    assert shown(database, job_id).state == "Succeeded"
