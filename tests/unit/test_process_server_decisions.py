"""What the process server decides without doing anything: which spools go, what is synced together."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from failback.model.components import Endpoint, ProcessServerAssignment, RoutedMachine
from failback.model.ids import NO_GROUP, ComponentId, MachineId, MarkId
from failback.model.stream import Codec, GapCause, MarkKind
from failback.process_server.assignment import plan
from failback.process_server.stream import groups
from failback.protocol.frames import RawItem, encode_item
from failback.protocol.messages import Batch

A, B, C = (MachineId(name) for name in "abc")


def routed(machine_id: MachineId, epoch: int) -> RoutedMachine:
    return RoutedMachine(machine_id, epoch, Endpoint("host", 9444, ComponentId("target")))


@pytest.mark.parametrize(
    ("found", "assigned", "deleted"),
    [
        ([], [], []),
        ([(A, 1)], [(A, 1)], []),
        ([(A, 1), (A, 2)], [(A, 2)], [(A, 1)]),
        ([(A, 3)], [(A, 2)], []),
        ([(A, 1), (B, 4), (C, 1)], [(A, 1), (C, 2)], [(B, 4), (C, 1)]),
        ([], [(A, 1)], []),
    ],
)
def test_spools_of_lower_epochs_and_of_machines_that_are_not_assigned_go(
    found: list[tuple[MachineId, int]],
    assigned: list[tuple[MachineId, int]],
    deleted: list[tuple[MachineId, int]],
) -> None:
    assignment = ProcessServerAssignment(tuple(routed(*pair) for pair in assigned))
    decided = plan(frozenset(found), assignment)
    assert list(decided.delete) == deleted
    assert decided.serve == assignment.machines


def item(sequence: int, payload_bytes: int) -> RawItem:
    return encode_item(
        Batch(MachineId(str(uuid.UUID(int=1))), NO_GROUP, 1, sequence, 0, 0, 0, 0, GapCause.NONE, MarkKind.NONE,
              MarkId(""), Codec.RAW, payload_bytes, b"", bytes(payload_bytes))
    )  # fmt: skip


@given(st.lists(st.integers(0, 3000), max_size=20), st.integers(1, 5000))
def test_groups_keep_the_order_and_the_limit(sizes: list[int], limit_bytes: int) -> None:
    items = [item(sequence, size) for sequence, size in enumerate(sizes, 1)]
    found = groups(items, limit_bytes)
    assert [one for group in found for one in group] == items
    for group in found:
        assert len(group) == 1 or sum(len(one.buffer) for one in group) <= limit_bytes
