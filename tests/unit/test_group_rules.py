"""Who may be in a replication group, and the barrier of a common mark: pure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from failback.errors import ConflictError, NotSupportedError
from failback.model.groups import HoldAction, HoldPhase, HoldStep
from failback.model.ids import GroupId, MachineId, MarkId
from failback.protection import group_rules as rules

GROUP = GroupId("g")
MEMBERS = tuple(
    rules.MemberFacts(f"item-{name}", name, MachineId(name), "Linux", "mt", True, True, "g", 7) for name in "abc"
)


def step(phase: HoldPhase, **fields: object) -> HoldStep:
    return HoldStep(phase, GROUP, **{"epoch": 7, "mark_id": MarkId("m"), **fields})  # type: ignore[arg-type]


# --- membership -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "code"),
    [
        ({"group_id": "other"}, ConflictError, "AlreadyInGroup"),
        ({"replicating": False}, ConflictError, "NotReplicating"),
        ({"machine_id": ""}, ConflictError, "NotReplicating"),
        ({"os_family": "Windows"}, NotSupportedError, "GroupNeedsOneOperatingSystem"),
        ({"master_target_id": "another"}, NotSupportedError, "GroupNeedsOneMasterTarget"),
    ],
)
def test_rules_of_membership(change: dict[str, str], kind: type[Exception], code: str) -> None:
    new = replace(MEMBERS[0], name="new", group_id="")
    rules.check_new_member(new, MEMBERS)
    with pytest.raises(kind) as caught:
        rules.check_new_member(replace(new, **change), MEMBERS)  # type: ignore[arg-type]
    assert caught.value.code == code  # type: ignore[attr-defined]


def test_what_keeps_a_group_without_marks() -> None:
    assert rules.what_is_missing(MEMBERS) == ""
    assert "1 of at least 2" in rules.what_is_missing(MEMBERS[:1])
    assert rules.what_is_missing((replace(MEMBERS[0], replicating=False), *MEMBERS[1:])) == "a does not replicate"
    assert "not protected yet" in rules.what_is_missing((replace(MEMBERS[0], protected=False), *MEMBERS[1:]))
    assert "master targets" in rules.what_is_missing((replace(MEMBERS[0], master_target_id="x"), *MEMBERS[1:]))


# --- the barrier ------------------------------------------------------------------------------------------------------


def test_nobody_passes_before_everybody_arrived() -> None:
    round_ = rules.begin(MarkId("m"), MEMBERS)
    wanted = (HoldAction.HOLD, HoldAction.MARK, HoldAction.RELEASE)
    for phase, action in zip((HoldPhase.PREPARED, HoldPhase.HELD, HoldPhase.MARKED), wanted, strict=True):
        for member in MEMBERS:
            assert rules.answer(round_, phase) is None
            round_ = rules.arrive(round_, member.machine_id, step(phase, ring=5))
        assert rules.answer(round_, phase) is action
    for member in MEMBERS:
        assert not round_.succeeded
        round_ = rules.arrive(round_, member.machine_id, step(HoldPhase.RELEASED, held_milliseconds=9.0))
    assert round_.succeeded and not round_.void
    assert all(mark == rules.Marked(7, 5, 0.0, 9.0) for mark in round_.marks.values())


def test_a_reason_releases_everybody() -> None:
    round_ = rules.begin(MarkId("m"), MEMBERS)
    for member in MEMBERS[:2]:
        round_ = rules.arrive(round_, member.machine_id, step(HoldPhase.PREPARED))
    round_ = rules.arrive(round_, MachineId("c"), step(HoldPhase.RELEASED, reason="a gap is open"))
    assert round_.void == "c: a gap is open"
    assert rules.answer(round_, HoldPhase.PREPARED) is HoldAction.RELEASE
    for member in MEMBERS[:2]:
        round_ = rules.arrive(round_, member.machine_id, step(HoldPhase.RELEASED))
    assert round_.complete and not round_.succeeded


def test_another_epoch_makes_the_mark_void() -> None:
    round_ = rules.begin(MarkId("m"), MEMBERS)
    assert "epoch 8" in rules.arrive(round_, MachineId("a"), step(HoldPhase.PREPARED, epoch=8)).void


steps = st.tuples(
    st.sampled_from([member.machine_id for member in MEMBERS]),
    st.sampled_from(rules.ORDER),
    st.sampled_from(["", "", "", "", "broken"]),
)


@given(st.lists(steps, max_size=30))
def test_whatever_is_said_a_point_needs_every_hold_from_before_the_first_mark_to_after_the_last(
    said: list[tuple[MachineId, HoldPhase, str]],
) -> None:
    round_ = rules.begin(MarkId("m"), MEMBERS)
    history: list[tuple[MachineId, HoldPhase, str]] = []
    for machine, phase, reason in said:
        fresh = rules.ORDER.index(phase) > rules.ORDER.index(round_.at[machine])
        round_ = rules.arrive(round_, machine, step(phase, reason=reason))
        if fresh:
            history.append((machine, phase, reason))
    if not round_.succeeded:
        return
    assert not any(reason for _, _, reason in history)
    when = {(machine, phase): place for place, (machine, phase, _) in enumerate(history)}
    last_held = max(when[member.machine_id, HoldPhase.HELD] for member in MEMBERS)
    last_marked = max(when[member.machine_id, HoldPhase.MARKED] for member in MEMBERS)
    first_marked = min(when[member.machine_id, HoldPhase.MARKED] for member in MEMBERS)
    first_released = min(when[member.machine_id, HoldPhase.RELEASED] for member in MEMBERS)
    assert last_held < first_marked <= last_marked < first_released
