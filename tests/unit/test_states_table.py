"""The state table of an item: the circle closes, nothing leads out of it by accident, and refusals give their reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from failback.errors import ConflictError
from failback.protection.operations import Direction, Operation, Side
from failback.protection.states import (
    INITIAL_DIRECTION_OF_IMPORT,
    INITIAL_STATE_OF_IMPORT,
    TABLE,
    Event,
    State,
    active_location,
    advance,
    allowed_operations,
    direction_after,
    direction_of,
    live_side,
    require,
    running_side,
    why_not,
)


def walk(*events: Event) -> tuple[State, Direction]:
    state, direction = INITIAL_STATE_OF_IMPORT, INITIAL_DIRECTION_OF_IMPORT
    for event in events:
        state, direction = advance(state, event), direction_after(direction, event)
    return state, direction


def test_an_imported_item_runs_in_the_cloud_and_may_be_reprotected() -> None:
    state, direction = walk()
    assert live_side(state, direction) is Side.CLOUD
    assert allowed_operations(state, direction) == (Operation.REPROTECT, Operation.DISABLE)
    assert (state.value, active_location(state), direction.provider) == (
        "UnplannedFailoverCommitted",
        "Recovery",
        "InMageAzureV2",
    )


def test_the_way_home_has_the_words_of_the_wire() -> None:
    home = [Event.REPROTECT_STARTED, Event.REPLICA_CONSISTENT, Event.FAILED_OVER, Event.FAILOVER_COMMITTED]
    steps = [walk(*home[:n]) for n in range(1, 5)]
    seen = [(s.value, active_location(s), d.provider, running_side(s, d)) for s, d in steps]
    assert seen == [
        ("UnprotectedStatesBegin", "Primary", "InMage", Side.CLOUD),
        ("Protected", "Primary", "InMage", Side.CLOUD),
        ("UnplannedFailoverCommitPendingStatesBegin", "Recovery", "InMage", Side.ON_PREMISES),
        ("UnplannedFailoverCommitted", "Recovery", "InMage", Side.ON_PREMISES),
    ]
    assert [live_side(s, d) for s, d in steps] == [Side.CLOUD, Side.CLOUD, Side.CLOUD, Side.ON_PREMISES]


def test_a_cancelled_failover_runs_in_the_cloud_again_and_replicates_anew() -> None:
    state, direction = walk(
        Event.REPROTECT_STARTED, Event.REPLICA_CONSISTENT, Event.FAILED_OVER, Event.FAILOVER_CANCELLED
    )
    assert state is State.REPLICATING
    assert live_side(state, direction) is Side.CLOUD


def test_an_abandoned_reprotect_leaves_the_item_as_it_was() -> None:
    assert walk(Event.REPROTECT_STARTED, Event.REPROTECT_ABANDONED) == walk()


@given(st.lists(st.sampled_from(list(Event)), max_size=30))
def test_no_history_moves_the_machine_except_a_failover_or_its_cancel(events: list[Event]) -> None:
    state, direction = walk()
    for event in events:
        if event not in TABLE[state]:
            with pytest.raises(ConflictError):
                advance(state, event)
            continue
        ran, spoke = running_side(state, direction), live_side(state, direction)
        state, direction = advance(state, event), direction_after(direction, event)
        if state is State.DISABLED:
            return
        assert (running_side(state, direction) is not ran) == (event in (Event.FAILED_OVER, Event.FAILOVER_CANCELLED))
        assert (live_side(state, direction) is not spoke) == (event is Event.FAILOVER_COMMITTED)


def test_a_lost_source_may_be_failed_over_before_the_first_pass_is_over() -> None:
    state = State.REPLICATING
    assert why_not(Operation.FAILOVER, state, Direction.TO_ON_PREMISES) != ""
    assert why_not(Operation.FAILOVER, state, Direction.TO_ON_PREMISES, source_lost=True) == ""
    assert why_not(Operation.FAILOVER, State.COMMITTED, Direction.TO_ON_PREMISES, source_lost=True) != ""


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("operation", list(Operation))
def test_every_operation_is_allowed_or_says_why_not(state: State, operation: Operation) -> None:
    reason = why_not(operation, state, Direction.TO_ON_PREMISES)
    if operation in allowed_operations(state, Direction.TO_ON_PREMISES):
        assert reason == ""
        require(operation, state, Direction.TO_ON_PREMISES)
    else:
        assert reason.endswith(".")
        with pytest.raises(ConflictError, match="not possible now"):
            require(operation, state, Direction.TO_ON_PREMISES)


def test_a_running_job_forbids_everything_and_is_named() -> None:
    assert allowed_operations(State.PROTECTED, Direction.TO_ON_PREMISES, "job 7 (Failover)") == ()
    assert "job 7 (Failover)" in why_not(
        Operation.FAILOVER, State.PROTECTED, Direction.TO_ON_PREMISES, "job 7 (Failover)"
    )


def test_a_machine_that_is_home_is_not_reprotected_to_the_cloud_yet() -> None:
    reason = why_not(Operation.REPROTECT, State.COMMITTED, Direction.TO_ON_PREMISES)
    assert "runs on premises" in reason


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("direction", list(Direction))
def test_the_direction_follows_from_the_live_side(state: State, direction: Direction) -> None:
    expected = Direction.TO_ON_PREMISES if state is State.COMMIT_PENDING else direction
    assert direction_of(state, live_side(state, direction)) is expected


@pytest.mark.parametrize("live", list(Side))
def test_a_failover_home_is_shown_at_home_whoever_was_heard_from(live: Side) -> None:
    state = State.COMMIT_PENDING
    assert running_side(state, direction_of(state, live)) is Side.ON_PREMISES
