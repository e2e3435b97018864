"""Assignments are a pure function of the items, and only a wanted stream gets one."""

from dataclasses import replace

import pytest

from failback.model.components import DiskFacts, Endpoint, SourceDisk, SyncMode
from failback.model.ids import ComponentId, DiskId, GroupId, MachineId, PassId
from failback.model.policy import ReplicationPolicy
from failback.protection import assignment as rules

PROCESS_SERVER, MASTER_TARGET = ComponentId("ps"), ComponentId("mt")
MACHINE = rules.ProtectedMachine(
    machine_id=MachineId("m1"),
    live_hardware_id="cloud-hardware",
    replicating=True,
    epoch=3,
    epoch_floor=0,
    group_id=GroupId(""),
    pass_id=PassId("p1"),
    process_server_id=PROCESS_SERVER,
    master_target_id=MASTER_TARGET,
    process_server=Endpoint("192.0.2.1", 9443, PROCESS_SERVER),
    master_target=Endpoint("192.0.2.2", 9444, MASTER_TARGET),
    policy=ReplicationPolicy("failback"),
    disks=(SourceDisk(DiskId("d1"), 0, "serial-a", 1 << 30, SyncMode.COMPARE),),
)


def test_the_three_parts_are_told_of_one_stream() -> None:
    agent = rules.mobility_assignment(MACHINE.machine_id, MACHINE)
    assert agent.active and agent.epoch == 3 and agent.process_server == MACHINE.process_server
    assert agent.disks == MACHINE.disks and agent.pass_id == "p1"
    [route] = rules.process_server_assignment(PROCESS_SERVER, [MACHINE]).machines
    assert (route.machine_id, route.epoch, route.master_target) == ("m1", 3, MACHINE.master_target)
    [replica] = rules.master_target_assignment(MASTER_TARGET, [MACHINE]).replicas
    assert (replica.machine_id, replica.epoch, replica.process_server_id) == ("m1", 3, PROCESS_SERVER)


@pytest.mark.parametrize(
    "unwanted",
    [{"replicating": False}, {"epoch": 0}, {"epoch": 3, "epoch_floor": 4}],
    ids=["not replicating", "no epoch yet", "below the floor"],
)
def test_an_unwanted_stream_is_told_to_nobody(unwanted: dict[str, int]) -> None:
    machine = replace(MACHINE, **unwanted)
    assert not rules.mobility_assignment(machine.machine_id, machine).active
    assert rules.process_server_assignment(PROCESS_SERVER, [machine]).machines == ()
    assert rules.master_target_assignment(MASTER_TARGET, [machine]).replicas == ()


def test_others_servers_get_nothing_of_it() -> None:
    assert rules.process_server_assignment(ComponentId("another"), [MACHINE]).machines == ()
    assert rules.master_target_assignment(ComponentId("another"), [MACHINE]).replicas == ()


def test_a_route_needs_an_address() -> None:
    assert rules.process_server_assignment(PROCESS_SERVER, [replace(MACHINE, master_target=None)]).machines == ()


def test_a_change_of_side_is_news_even_with_the_same_words() -> None:
    silent = rules.silent(MACHINE.machine_id)
    assert rules.fingerprint(silent, "cloud-hardware") != rules.fingerprint(silent, "onprem-hardware")
    assert rules.fingerprint(silent, "cloud-hardware") == rules.fingerprint(
        rules.silent(MACHINE.machine_id), "cloud-hardware"
    )


def test_the_order_of_machines_is_no_news() -> None:
    other = replace(MACHINE, machine_id=MachineId("m0"))
    one = rules.process_server_assignment(PROCESS_SERVER, [MACHINE, other])
    two = rules.process_server_assignment(PROCESS_SERVER, [other, MACHINE])
    assert rules.fingerprint(one) == rules.fingerprint(two)


def _known(disk_id: str, index: int, serial: str = "", size: int = 10, system: bool = False) -> rules.KnownDisk:
    return rules.KnownDisk(DiskId(disk_id), index, serial, size, system)


def test_disks_are_matched_by_serial_then_system_then_size() -> None:
    known = [_known("a", 0, system=True, size=20), _known("b", 1, serial="DATA1"), _known("c", 2, size=30)]
    reported = [
        DiskFacts("/dev/vdc", "path-c", 30, False),
        DiskFacts("/dev/vdb", "serial:data1", 10, False),
        DiskFacts("/dev/vda", "path-a", 20, True),
    ]
    assert rules.match_disks(known, reported) == {"a": "path-a", "b": "serial:data1", "c": "path-c"}


def test_an_ambiguous_disk_is_not_guessed() -> None:
    known = [_known("a", 0, size=10), _known("b", 1, size=10)]
    reported = [DiskFacts("/dev/vda", "x", 10, False), DiskFacts("/dev/vdb", "y", 10, False)]
    assert rules.match_disks(known, reported) == {}
    assert rules.match_disks([known[0]], reported) == {}
    assert rules.match_disks(known, reported[:1]) == {}


def test_a_serial_that_begins_another_one_is_not_that_one() -> None:
    known = [_known("a", 0, serial="disk1"), _known("b", 1, serial="disk10")]
    reported = [DiskFacts("/dev/vda", "serial:disk10", 10, False), DiskFacts("/dev/vdb", "serial:disk1", 10, False)]
    assert rules.match_disks(known, reported) == {"a": "serial:disk1", "b": "serial:disk10"}


def test_virtio_tells_only_the_first_twenty_bytes_of_a_serial() -> None:
    known = [_known("a", 0, serial="0123456789-0123456789-tail")]
    assert rules.match_disks(known, [DiskFacts("/dev/vda", "serial:0123456789-012345678", 10, True)]) == {
        "a": "serial:0123456789-012345678"
    }
