"""Monitoring passes over the real database with a hand-driven clock: one event per change."""

import asyncio

import pytest
from sqlalchemy import select

from failback.configuration_server.database import Database, events, items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.events import EventRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.database.orders import OrderRow
from failback.configuration_server.database.points import PointRow
from failback.configuration_server.monitors.watch import Monitors
from failback.configuration_server.registry import News
from failback.model.components import MobilityStatus, Role
from failback.runtime import records

START_NS = 1_700_000_000 * 10**9


class HandClock:
    def __init__(self) -> None:
        self.seconds = 100.0
        self.wall = START_NS

    def monotonic(self) -> float:
        return self.seconds

    def wall_ns(self) -> int:
        return self.wall

    def pass_seconds(self, seconds: float) -> None:
        self.seconds += seconds
        self.wall += int(seconds * 1e9)


class World:
    def __init__(self, database_url: str) -> None:
        self.clock = HandClock()
        self.database = Database(database_url)
        self.database.upgrade()
        self.monitors = Monitors(self.database, News(), alarm_seconds=60.0, pause_seconds=1.0, clock=self.clock)
        status = records.encode(MobilityStatus(capture="capturing", self_test="passed", pass_id="p", sync_done=True))  # type: ignore[arg-type]
        with self.database.write() as session:
            for role in (Role.MOBILITY, Role.PROCESS_SERVER, Role.MASTER_TARGET):
                session.add(
                    ComponentRow(
                        component_id=role.value, role=role.value, hostname=f"{role.value}-host", version="1",
                        hardware_id="hw", addresses=[], status=status if role is Role.MOBILITY else {}, twin_status={},
                        last_heartbeat_wall_ns=START_NS,
                    )
                )  # fmt: skip
            session.flush()
            session.add(
                ItemRow(
                    item_id="item", name="ledger", friendly_name="ledger", machine_id="mobility", pass_id="p",
                    cloud_hardware_id="hw", replicating=True, epoch=1, protection_state="Protected",
                    process_server_id="process-server", master_target_id="master-target",
                )
            )  # fmt: skip
        self.hear()

    def hear(self, *roles: str) -> None:
        with self.database.write() as session:
            for row in session.scalars(select(ComponentRow)):
                if not roles or row.role in roles:
                    row.last_heartbeat_wall_ns = self.clock.wall

    def codes(self) -> list[str]:
        with self.database.read() as session:
            return [row.code for row in session.scalars(select(EventRow).order_by(EventRow.event_id))]

    def item(self) -> ItemRow:
        with self.database.read() as session:
            return items.get(session, "item")


@pytest.fixture
def world(database_url: str):  # type: ignore[no-untyped-def]
    made = World(database_url)
    yield made
    made.database.close()


async def test_all_well_makes_no_event(world: World) -> None:
    await world.monitors.watch_once()
    assert world.codes() == [] and world.item().replication_health == "Normal"
    assert await world.monitors.watch_once() == 0, "nothing is written when nothing changed"


async def test_a_lost_component_is_told_once_and_its_return_once(world: World) -> None:
    world.clock.pass_seconds(61)
    world.hear("mobility", "master-target")
    for _ in range(3):
        await world.monitors.watch_once()
    assert sorted(world.codes()) == ["ComponentLost", "ServersLost"]
    assert world.item().replication_health == "Warning"
    with world.database.read() as session:
        [verdict] = events.verdicts_on(session, "process-server")
    assert "process-server-host" in verdict.sentence and verdict.remedy
    world.hear()
    for _ in range(2):
        await world.monitors.watch_once()
    assert sorted(world.codes()) == ["ComponentLost", "ComponentReturned", "ServersLost", "ServersReturned"]
    assert world.item().replication_health == "Normal"


async def test_a_lost_agent_is_critical_for_its_item(world: World) -> None:
    world.clock.pass_seconds(61)
    world.hear("process-server", "master-target")
    await world.monitors.watch_once()
    assert world.item().replication_health == "Critical" and "AgentLost" in world.codes()


async def test_silence_while_this_server_was_away_is_no_alarm(world: World) -> None:
    world.clock.pass_seconds(3600)
    world.monitors = Monitors(world.database, News(), alarm_seconds=60.0, pause_seconds=1.0, clock=world.clock)
    await world.monitors.watch_once()
    assert world.codes() == []
    world.clock.pass_seconds(61)
    await world.monitors.watch_once()
    assert world.codes().count("ComponentLost") == 3


async def test_a_wall_clock_that_steps_forward_reports_nobody_as_lost(world: World) -> None:
    await world.monitors.watch_once()
    world.clock.wall += 7200 * 10**9
    await world.monitors.watch_once()
    assert "ComponentLost" not in world.codes()


async def test_an_old_newest_point_exceeds_the_rpo_threshold(world: World) -> None:
    with world.database.write() as session:
        session.add(
            PointRow(item_id="item", point_id="p1", machine_id="mobility", kind="CrashConsistent", wall_ns=START_NS)
        )
    world.clock.pass_seconds(901)
    world.hear()
    await world.monitors.watch_once()
    assert world.codes() == ["RpoExceeded"]
    with world.database.write() as session:
        items.get(session, "item").replicating = False
    await world.monitors.watch_once()
    assert world.codes() == ["RpoExceeded"] and world.item().replication_health == "None"
    with world.database.read() as session:
        assert events.verdicts_on(session, "item") == [], "a rule that does not apply any more leaves no verdict"


async def test_a_twin_that_runs_is_reported_unless_it_is_coming_home(world: World) -> None:
    def see_twin(state: str) -> None:
        world.hear()
        with world.database.write() as session:
            agent = session.get(ComponentRow, "mobility")
            assert agent is not None
            agent.twin_hardware_id, agent.twin_last_seen_wall_ns = "hw-home", world.clock.wall
            items.get(session, "item").protection_state = state

    see_twin("UnplannedFailoverCommitPendingStatesBegin")
    await world.monitors.watch_once()
    assert world.codes() == []
    see_twin("Protected")
    await world.monitors.watch_once()
    assert world.codes() == ["TwinPoweredOn"]
    world.clock.pass_seconds(61)
    world.hear()
    await world.monitors.watch_once()
    assert world.codes() == ["TwinPoweredOn", "TwinGone"]


async def test_old_orders_and_events_are_forgotten_but_the_newest_order_of_a_component_stays(world: World) -> None:
    with world.database.write() as session:
        for n, finished in ((1, True), (2, True), (3, False)):
            session.add(
                OrderRow(
                    order_id=f"o{n}", key=f"k{n}", component_id="mobility", kind="probe", generation=n % 3, arguments={},
                    result={}, given_wall_ns=START_NS + n, finished_wall_ns=START_NS + n if finished else 0,
                )
            )  # fmt: skip
        events.record(session, START_NS, "Old", "long ago")
    world.clock.pass_seconds(91 * 86_400)
    running = asyncio.create_task(world.monitors.run())
    async with asyncio.timeout(10):
        while "Old" in world.codes():
            await asyncio.sleep(0.02)
    running.cancel()
    with world.database.read() as session:
        left = set(session.scalars(select(OrderRow.order_id)))
    assert left == {"o2", "o3"}, "the newest generation and the open one"
