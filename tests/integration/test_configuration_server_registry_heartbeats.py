"""Heartbeats against the real database: assignments, twins, long polls, orders, points."""

import asyncio
import time
from typing import Any

import pytest

from failback.configuration_server.database import Database, components, items
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.database.points import gaps_of, points_of
from failback.configuration_server.registry import Cancelled, News, Orders, Registry, announce_item
from failback.errors import AuthenticationError, ConfigurationError, PeerError, StaleEpochError, StorageError
from failback.model import orders as kinds
from failback.model.components import (
    DiskFacts,
    Heartbeat,
    HeartbeatReply,
    MasterTargetStatus,
    MobilityAssignment,
    MobilityStatus,
    OrderReport,
    OrderState,
    ProcessServerAssignment,
    ProcessServerStatus,
    ReplicaStatus,
    Role,
)
from failback.model.ids import MachineId, PointId
from failback.model.points import Gap, PointKind, RecoveryPoint
from failback.runtime import records

CLOUD, HOME = "hw-cloud", "hw-home"
STATUS: dict[Role, Any] = {
    Role.MOBILITY: MobilityStatus(disks=(DiskFacts("/dev/vda", "serial:root", 100, True),)),
    Role.PROCESS_SERVER: ProcessServerStatus(listen_port=19443),
    Role.MASTER_TARGET: MasterTargetStatus(listen_port=19444),
}


class Desk:
    """A registry with one agent, process server, master target and replicating item, spoken to as components do."""

    def __init__(self, database_url: str) -> None:
        self.database = Database(database_url)
        self.database.upgrade()
        self.news = News()
        self.registry = Registry(self.database, self.news)
        self.orders = Orders(self.database, self.news)
        with self.database.write() as session:
            for role in (Role.MOBILITY, Role.PROCESS_SERVER, Role.MASTER_TARGET):
                session.add(
                    ComponentRow(
                        component_id=role.value, role=role.value, hostname=f"{role.value}-host", version="1",
                        hardware_id=CLOUD, addresses=["192.0.2.7"], status={}, twin_status={},
                    )
                )  # fmt: skip
            session.flush()
            disk = items.ItemDiskRow(disk_id="d1", index=0, path="/d1", size_bytes=100, is_system=True)
            session.add(
                ItemRow(
                    item_id="item", name="ledger", friendly_name="ledger", machine_id=Role.MOBILITY.value,
                    cloud_hardware_id=CLOUD, on_premises_hardware_id=HOME, replicating=True, epoch=1,
                    process_server_id=Role.PROCESS_SERVER.value, master_target_id=Role.MASTER_TARGET.value, disks=[disk],
                )
            )  # fmt: skip

    async def beat(
        self, role: Role, *, hardware: str = CLOUD, taken: int = 0, wait: float = 0.0,
        reports: tuple[OrderReport, ...] = (), status: Any = None, monotonic: float = 1.0,
    ) -> HeartbeatReply:  # fmt: skip
        heartbeat = Heartbeat(
            role, f"{role.value}-host", "1", hardware, "boot", "Linux", "debian 12", "6.1", time.time_ns(), monotonic, (),
            records.encode(status or STATUS[role]), reports, taken, wait,
        )  # fmt: skip
        return await self.registry.heartbeat(role.value, role, heartbeat, skew_seconds=0.25)

    def change(self, **columns: Any) -> None:
        with self.database.write() as session:
            item = items.get(session, "item")
            for name, value in columns.items():
                setattr(item, name, value)
        announce_item(self.news, item)

    def component(self, role: Role) -> ComponentRow:
        with self.database.read() as session:
            return components.get(session, role.value)


@pytest.fixture
def desk(database_url: str):  # type: ignore[no-untyped-def]
    made = Desk(database_url)
    yield made
    made.database.close()


async def test_an_assignment_is_sent_until_it_is_taken(desk: Desk) -> None:
    await desk.beat(Role.PROCESS_SERVER)
    first = await desk.beat(Role.MOBILITY)
    assert first.known_as == "expected" and first.assignment is not None
    told = records.decode(first.assignment, MobilityAssignment)
    assert told.active and told.process_server is not None and told.process_server.port == 19443
    assert told.disks[0].device_match == "serial:root", "the agent's disk was matched to the item's"
    again = await desk.beat(Role.MOBILITY, taken=first.assignment_generation)
    assert again.assignment is None and again.assignment_generation == first.assignment_generation
    assert desk.component(Role.MOBILITY).clock_skew_seconds == 0.25


async def test_generations_survive_a_restart_of_the_server(desk: Desk) -> None:
    first = await desk.beat(Role.MOBILITY)
    second = Registry(desk.database, News())
    desk.registry = second
    same = await desk.beat(Role.MOBILITY, taken=first.assignment_generation)
    assert (same.assignment, same.assignment_generation) == (None, first.assignment_generation)


async def test_a_component_that_knows_more_than_a_restored_database_is_told_anew(desk: Desk) -> None:
    reply = await desk.beat(Role.MOBILITY, taken=41)
    assert reply.assignment_generation == 42 and reply.assignment is not None


async def test_a_long_poll_ends_at_once_when_the_assignment_changes(desk: Desk) -> None:
    first = await desk.beat(Role.PROCESS_SERVER)
    waiting = asyncio.create_task(desk.beat(Role.PROCESS_SERVER, taken=first.assignment_generation, wait=20.0))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    began = time.monotonic()
    desk.change(epoch=2)
    reply = await waiting
    assert time.monotonic() - began < 2.0
    assert records.decode(reply.assignment, ProcessServerAssignment).machines[0].epoch == 2


async def test_a_long_poll_without_news_ends_in_time_and_at_shutdown(desk: Desk) -> None:
    first = await desk.beat(Role.MOBILITY)
    began = time.monotonic()
    await desk.beat(Role.MOBILITY, taken=first.assignment_generation, wait=0.3)
    assert 0.25 < time.monotonic() - began < 3.0
    current = (await desk.beat(Role.MOBILITY)).assignment_generation
    waiting = asyncio.create_task(desk.beat(Role.MOBILITY, taken=current, wait=20.0))
    await asyncio.sleep(0.1)
    desk.news.close()
    await asyncio.wait_for(waiting, 2.0)


async def test_a_twin_is_silenced_and_never_overwrites_the_live_side(desk: Desk) -> None:
    live = await desk.beat(Role.MOBILITY, status=MobilityStatus(capture="capturing", landed_sequence=77))
    await desk.orders.give(Role.MOBILITY.value, kinds.SELF_TEST, 0, {}, "k", "item")
    twin = await desk.beat(Role.MOBILITY, hardware=HOME, status=MobilityStatus(capture="idle"))
    assert twin.known_as == "other-hardware" and twin.orders == ()
    assert records.decode(twin.assignment, MobilityAssignment).active is False
    row = desk.component(Role.MOBILITY)
    assert row.status["landed_sequence"] == 77 and row.hardware_id == CLOUD
    assert row.twin_hardware_id == HOME and row.twin_last_seen_wall_ns > 0
    assert twin.assignment_generation == live.assignment_generation


async def test_after_a_change_of_side_the_old_side_is_the_twin(desk: Desk) -> None:
    twin = await desk.beat(Role.MOBILITY, hardware=HOME)
    desk.change(live_side="onprem")
    now_live = await desk.beat(Role.MOBILITY, hardware=HOME, taken=twin.assignment_generation)
    assert now_live.known_as == "expected" and now_live.assignment is not None, "the flip is news to it"
    assert (await desk.beat(Role.MOBILITY, hardware=CLOUD)).known_as == "other-hardware"


async def test_an_order_is_listed_until_its_result_came(desk: Desk) -> None:
    order_id = await desk.orders.give(Role.MOBILITY.value, kinds.SELF_TEST, 0, {}, "key-1", "item")
    assert order_id == await desk.orders.give(Role.MOBILITY.value, kinds.SELF_TEST, 0, {}, "key-1", "item")
    [order] = (await desk.beat(Role.MOBILITY)).orders
    assert order.order_id == order_id and order.kind == kinds.SELF_TEST
    awaited = asyncio.create_task(desk.orders.await_result(order_id, 10.0))
    running = OrderReport(order_id, OrderState.RUNNING, bytes_done=5, bytes_total=9)
    assert len((await desk.beat(Role.MOBILITY, reports=(running,))).orders) == 1
    assert (await desk.orders.read(order_id)).bytes_done == 5
    done = OrderReport(order_id, OrderState.SUCCEEDED, {"passed": True})
    assert (await desk.beat(Role.MOBILITY, reports=(done,), wait=10.0)).orders == (), "answered at once"
    assert (await awaited).result == {"passed": True}
    await desk.beat(Role.MOBILITY, reports=(OrderReport(order_id, OrderState.FAILED, error={"code": "late"}),))
    assert (await desk.orders.read(order_id)).state is OrderState.SUCCEEDED, "a repeated report changes nothing"


async def test_a_failed_order_raises_what_the_component_reported(desk: Desk) -> None:
    order_id = await desk.orders.give(Role.MASTER_TARGET.value, kinds.RELEASE_REPLICA, 0, {}, "key-2", "item")
    error = StorageError("the disk is gone", remedy="attach it").as_dict()
    await desk.beat(Role.MASTER_TARGET, reports=(OrderReport(order_id, OrderState.FAILED, error=error),))
    with pytest.raises(StorageError, match="the disk is gone") as caught:
        await desk.orders.await_result(order_id, 1.0)
    assert caught.value.remedy == "attach it"


async def test_waiting_for_a_result_is_bounded_and_cancellable(desk: Desk) -> None:
    order_id = await desk.orders.give(Role.MOBILITY.value, kinds.SELF_TEST, 0, {}, "key-3", "item")
    with pytest.raises(PeerError, match="never heard"):
        await desk.orders.await_result(order_id, 0.1)
    with pytest.raises(Cancelled):
        await desk.orders.carry_out(
            Role.MOBILITY.value, kinds.SELF_TEST, 0, {}, "key-3", 5.0, item_id="item", cancelled=lambda: True
        )
    assert (await desk.beat(Role.MOBILITY)).orders == (), "a cancelled order is withdrawn"


async def test_a_stale_job_gives_no_orders_and_its_results_are_refused(desk: Desk) -> None:
    old = await desk.orders.give(Role.MOBILITY.value, kinds.SELF_TEST, 0, {}, "key-4", "item")
    desk.change(generation=2)
    with pytest.raises(StaleEpochError):
        await desk.orders.give(Role.MOBILITY.value, kinds.SELF_TEST, 1, {}, "key-5", "item")
    await desk.beat(Role.MOBILITY, reports=(OrderReport(old, OrderState.SUCCEEDED, {"passed": True}),))
    report = await desk.orders.read(old)
    assert report.state is OrderState.FAILED and report.error is not None and report.error["code"] == "StaleEpoch"
    new = await desk.orders.give(Role.MOBILITY.value, kinds.SELF_TEST, 2, {}, "key-4", "item")
    assert new != old, "a newer owner gets a fresh order in the place of a failed one"


async def test_a_newer_owner_takes_over_an_open_order(desk: Desk) -> None:
    old = await desk.orders.give(Role.MOBILITY.value, kinds.SELF_TEST, 0, {}, "key-6", "item")
    desk.change(generation=1)
    assert old == await desk.orders.give(Role.MOBILITY.value, kinds.SELF_TEST, 1, {}, "key-6", "item")
    await desk.beat(Role.MOBILITY, reports=(OrderReport(old, OrderState.SUCCEEDED, {"passed": True}),))
    assert (await desk.orders.await_result(old, 1.0)).result == {"passed": True}


async def test_orders_go_only_to_roles_that_execute_them_and_reports_only_count_from_them(desk: Desk) -> None:
    with pytest.raises(ConfigurationError):
        await desk.orders.give(Role.PROCESS_SERVER.value, kinds.FREEZE_LEASE, 0, {}, "key-7", "item")
    order_id = await desk.orders.give(Role.MOBILITY.value, kinds.SELF_TEST, 0, {}, "key-8", "item")
    await desk.beat(Role.PROCESS_SERVER, reports=(OrderReport(order_id, OrderState.SUCCEEDED),))
    assert (await desk.orders.read(order_id)).state is OrderState.PENDING


async def test_a_probe_is_never_older_than_what_the_component_has_seen(desk: Desk) -> None:
    desk.change(generation=5)
    await desk.orders.give(Role.MOBILITY.value, kinds.SELF_TEST, 5, {}, "key-9", "item")
    await desk.orders.give(Role.MOBILITY.value, kinds.PROBE, 0, kinds.Probe(("a:1",)), "key-10")
    probes = [order for order in (await desk.beat(Role.MOBILITY)).orders if order.kind == kinds.PROBE]
    assert probes[0].generation == 5 and probes[0].arguments == {"targets": ["a:1"]}


async def test_points_and_gaps_of_a_replica_are_cached(desk: Desk) -> None:
    def status(points: int, gap_ended: int) -> MasterTargetStatus:
        made = tuple(
            RecoveryPoint(PointId(f"p{n}"), MachineId("mobility"), PointKind.CRASH_CONSISTENT, n * 10, 1, n, n)
            for n in range(1, points + 1)
        )
        replica = ReplicaStatus(
            MachineId("mobility"), "attached", 1, "inc", 5, 5, 5, True, gaps=(Gap("sync", 3, gap_ended),), points=made
        )
        return MasterTargetStatus(19444, replicas=(replica,))

    await desk.beat(Role.MASTER_TARGET, status=status(3, 0))
    with desk.database.read() as session:
        assert [point.point_id for point in points_of(session, "item")] == ["p3", "p2", "p1"]
        assert gaps_of(session, "item")[0].ended_wall_ns == 0
    await desk.beat(Role.MASTER_TARGET, status=status(1, 9))
    await desk.beat(Role.MASTER_TARGET)  # the replica was detached: its history stays
    with desk.database.read() as session:
        assert [point.point_id for point in points_of(session, "item")] == ["p1"]
        assert gaps_of(session, "item")[0].ended_wall_ns == 9


async def test_strangers_and_wrong_roles_are_refused(desk: Desk) -> None:
    heartbeat = Heartbeat(Role.MOBILITY, "h", "1", CLOUD, "b", "", "", "", 0, 0.0, (), {})
    with pytest.raises(AuthenticationError):
        await desk.registry.heartbeat("nobody", Role.MOBILITY, heartbeat, skew_seconds=0)
    with pytest.raises(AuthenticationError):
        await desk.registry.heartbeat(Role.PROCESS_SERVER.value, Role.MOBILITY, heartbeat, skew_seconds=0)
    with pytest.raises(ConfigurationError):
        bad = Heartbeat(Role.MOBILITY, "h", "1", CLOUD, "b", "", "", "", 0, 0.0, (), {"epoch": "x"})
        await desk.registry.heartbeat(Role.MOBILITY.value, Role.MOBILITY, bad, skew_seconds=0)


async def test_an_agent_that_enrols_after_the_import_is_matched(desk: Desk) -> None:
    desk.change(machine_id=None)
    reply = await desk.beat(Role.MOBILITY)
    assert records.decode(reply.assignment, MobilityAssignment).active
    with desk.database.read() as session:
        assert items.get(session, "item").machine_id == Role.MOBILITY.value


async def test_an_overtaken_heartbeat_does_not_bring_back_an_older_status(desk: Desk) -> None:
    await desk.beat(Role.MOBILITY, status=MobilityStatus(landed_sequence=9), monotonic=20.0)
    order_id = await desk.orders.give(Role.MOBILITY.value, kinds.SELF_TEST, 0, {}, "key-11", "item")
    done = OrderReport(order_id, OrderState.SUCCEEDED, {"passed": True})
    await desk.beat(Role.MOBILITY, status=MobilityStatus(landed_sequence=8), monotonic=19.0, reports=(done,))
    assert desk.component(Role.MOBILITY).status["landed_sequence"] == 9
    assert (await desk.orders.read(order_id)).state is OrderState.SUCCEEDED, "its reports still count"


async def test_a_disk_is_matched_anew_on_another_bus_but_never_while_it_replicates(desk: Desk) -> None:
    def match() -> str:
        with desk.database.read() as session:
            return items.get(session, "item").disks[0].device_match

    await desk.beat(Role.MOBILITY)
    assert match() == "serial:root"
    moved = MobilityStatus(disks=(DiskFacts("/dev/sda", "path:pci-7", 100, True),))
    await desk.beat(Role.MOBILITY, status=moved)
    assert match() == "serial:root"
    desk.change(replicating=False)
    await desk.beat(Role.MOBILITY, status=moved)
    assert match() == "path:pci-7"
