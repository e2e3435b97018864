"""When a stream has ended for good, what may be re-sent instead of compared, and how often a repair begins by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from failback.model.components import MobilityStatus, ReplicaStatus, SpooledMachine
from failback.model.ids import MachineId, PassId
from failback.model.stream import GapCause
from failback.protection import repair_rules
from failback.protection.repair_rules import Parts
from failback.protection.states import State

MACHINE, PASS = MachineId("m"), PassId("p")
AGENT = MobilityStatus(capture="capturing", epoch=4, pass_id=PASS, sync_done=True, landed_sequence=90)
SERVER = SpooledMachine(MACHINE, 4, True, True, 95, 90, 0)
TARGET = ReplicaStatus(MACHINE, "attached", 4, "i", 92, 0, 90, True)


@pytest.mark.parametrize("code", sorted(repair_rules.ENDING_CODES))
def test_any_part_may_end_the_stream_of_the_epoch_in_force(code: str) -> None:
    problem = f"{code}: lost: a thing"
    for parts in (
        Parts(replace(AGENT, problem=problem), SERVER, TARGET),
        Parts(AGENT, replace(SERVER, problem=problem), TARGET),
        Parts(None, None, replace(TARGET, problem=problem)),
    ):
        assert repair_rules.ended(4, parts) == repair_rules.StreamEnd(code, "lost: a thing")
        assert repair_rules.ended(5, parts) is None  # news of an epoch that is over already


def test_what_passes_by_itself_ends_nothing() -> None:
    assert repair_rules.ended(4, Parts(AGENT, SERVER, TARGET)) is None
    assert repair_rules.ended(4, Parts()) is None
    away = replace(SERVER, problem="master target: connection refused")
    full = replace(TARGET, problem="OutOfSpace: the retention volume is full")
    assert repair_rules.ended(4, Parts(AGENT, away, full)) is None


def test_a_replica_of_a_later_epoch_means_that_the_database_is_an_old_copy() -> None:
    later = replace(TARGET, epoch=6)
    end = repair_rules.ended(4, Parts(AGENT, SERVER, later))
    assert end is not None and end.code == repair_rules.DATABASE_BEHIND and "epoch 6" in end.sentence
    assert (
        repair_rules.ended(4, Parts(AGENT, SERVER, replace(later, state="released"))) is None
    )  # another machine runs on it
    assert repair_rules.ended(6, Parts(AGENT, SERVER, later)) is None


def test_the_master_target_names_the_cause() -> None:
    parts = Parts(
        AGENT, replace(SERVER, problem="ItemsMissing: an echo"), replace(TARGET, problem="RedoDamaged: record 7")
    )
    assert repair_rules.ended(4, parts) == repair_rules.StreamEnd("RedoDamaged", "record 7")


def test_a_change_of_process_server_alone_is_re_sent() -> None:
    def reason(state: State = State.PROTECTED, pass_id: PassId = PASS, **parts: object) -> str:
        return repair_rules.resend_is_enough(
            state, 4, pass_id, replace(Parts(AGENT, SERVER, TARGET), **parts)  # type: ignore[arg-type]
        )  # fmt: skip

    assert reason() == ""
    lost = replace(SERVER, problem="ItemsMissing: the spool is gone")
    assert reason(process_server=lost, agent=replace(AGENT, problem="ItemsMissing: the spool is gone")) == ""
    assert reason(process_server=None) == ""
    compared = [
        reason(State.REPLICATING),
        reason(pass_id=PassId("another")),
        reason(agent=None),
        reason(agent=replace(AGENT, capture="failed")),
        reason(agent=replace(AGENT, epoch=3)),
        reason(agent=replace(AGENT, sync_done=False)),
        reason(agent=replace(AGENT, gap=GapCause.MISSED.name.lower())),
        reason(agent=replace(AGENT, problem="JournalReplaced: another one")),
        reason(master_target=None),
        reason(master_target=replace(TARGET, epoch=3)),
        reason(master_target=replace(TARGET, landed_sequence=89)),
        reason(master_target=replace(TARGET, problem="RedoDamaged: record 7")),
        reason(master_target=replace(TARGET, state="rolled-back")),
    ]
    assert all(compared), compared


def test_repairs_by_themselves_are_bounded() -> None:
    hour = repair_rules.REPAIR_WINDOW_NS
    assert repair_rules.may_begin(10 * hour, [])
    assert repair_rules.may_begin(10 * hour, [9 * hour, 9 * hour + 1, 10 * hour - 5])
    assert not repair_rules.may_begin(10 * hour, [9 * hour + 1, 9 * hour + 2, 10 * hour - 5])
