"""The conversation's table and the numbers that have to fit, from both ends."""

from __future__ import annotations

import itertools
import uuid

import pytest

from failback.errors import FailbackError, OutOfSpaceError, ProtocolError, StaleEpochError
from failback.model.ids import NO_GROUP, MachineId, MarkId
from failback.model.stream import Codec, GapCause, MarkKind
from failback.protocol.connection import (
    CONVERSATION,
    SPOKEN_BY,
    Conversation,
    End,
    Event,
    State,
    negotiate,
    refusal,
    refused,
)
from failback.protocol.messages import Ack, Batch, DigestReply, Hello, Message, Ping, Refusal, Welcome

MACHINE = MachineId(str(uuid.UUID(int=1)))
HELLO = Hello(MACHINE, 4, "x", 1, 1, ())
WELCOME = Welcome(1, "x", 4, 0, 0, 0, 0, "")


def batch(sequence: int, end: int | None = None, epoch: int = 4, machine: MachineId = MACHINE) -> Batch:
    end = sequence * 10 if end is None else end
    return Batch(machine, NO_GROUP, epoch, sequence, 0, end, 0, 0, GapCause.NONE, MarkKind.NONE, MarkId(""),
                 Codec.RAW, 0, b"", b"")  # fmt: skip


def ack(spooled: int, landed: int = 0, incarnation: str = "", epoch: int = 4) -> Ack:
    return Ack(epoch, spooled, spooled * 10, landed, landed * 10, incarnation)


def opened(welcome: Welcome = WELCOME, hello: Hello = HELLO) -> Conversation:
    conversation = Conversation(End.RECEIVING)
    conversation.received(hello)
    conversation.sent(welcome)
    return conversation


def test_every_event_is_decided_in_every_living_state() -> None:
    assert set(CONVERSATION) == set(State) and set(SPOKEN_BY) == set(Event)
    assert CONVERSATION[State.CLOSED] == {}
    for state in set(State) - {State.CLOSED}:
        assert CONVERSATION[state][Event.REFUSAL] is State.CLOSED


def test_a_whole_conversation_from_both_ends() -> None:
    receiving, sending = Conversation(End.RECEIVING), Conversation(End.SENDING)
    downstream: list[Message] = [HELLO, batch(1), batch(2), Ping(1)]
    script = [(downstream[0], True), (WELCOME, False), (batch(1), True), (batch(2), True), (ack(1), False),
              (Ping(1), True), (ack(2, 2, "journal"), False), (Refusal("Conflict", "over"), False)]  # fmt: skip
    for message, from_sender in script:
        (sending.sent if from_sender else sending.received)(message)
        (receiving.received if from_sender else receiving.sent)(message)
    assert sending.state is receiving.state is State.CLOSED


@pytest.mark.parametrize(
    ("message", "state"),
    [
        (batch(1), State.NEW),
        (WELCOME, State.NEW),
        (batch(1), State.GREETED),
        (HELLO, State.GREETED),
        (HELLO, State.OPEN),
        (ack(0), State.OPEN),
        (WELCOME, State.OPEN),
        (Ping(1), State.CLOSED),
    ],
)
def test_what_the_sending_end_must_not_say(message: Message, state: State) -> None:
    conversation = Conversation(End.RECEIVING)
    if state is not State.NEW:
        conversation.received(HELLO)
    if state in (State.OPEN, State.CLOSED):
        conversation.sent(WELCOME)
    if state is State.CLOSED:
        conversation.sent(Refusal("x", "y"))
    assert conversation.state is state
    with pytest.raises(ProtocolError):
        conversation.received(message)


@pytest.mark.parametrize(
    "item",
    [batch(2), batch(0), batch(1, epoch=3), batch(1, epoch=5), batch(1, machine=MachineId(str(uuid.UUID(int=2))))],
)
def test_an_item_out_of_place_is_refused(item: Batch) -> None:
    with pytest.raises(ProtocolError):
        opened().received(item)


def test_sequences_go_on_after_the_welcome_without_hole_or_repetition() -> None:
    conversation = opened(Welcome(1, "x", 4, 7, 70, 5, 50, "journal"))
    conversation.received(batch(8))
    for wrong in (8, 10):
        with pytest.raises(ProtocolError) as caught:
            conversation.received(batch(wrong))
        assert caught.value.code == "OutOfOrder"
    with pytest.raises(ProtocolError, match="before its predecessor"):
        conversation.received(batch(9, end=79))
    conversation.received(batch(9, end=80))


def test_a_welcome_that_needs_items_which_the_sender_dropped_is_refused() -> None:
    hello = Hello(MACHINE, 4, "x", 1, 1, (), next_sequence=9)
    opened(Welcome(1, "x", 4, 8, 80, 0, 0, ""), hello)
    with pytest.raises(ProtocolError) as caught:
        opened(Welcome(1, "x", 4, 7, 70, 0, 0, ""), hello)
    assert caught.value.code == "ItemsMissing"


def test_acknowledgements_only_grow_and_never_run_ahead() -> None:
    good = [ack(1), ack(2, 1, "journal"), ack(3, 3, "journal")]
    bad = [ack(2, 2, "journal"), ack(3, 2, "journal"), ack(4, 3, "journal"), ack(3, 3, "other"), ack(3, 3),
           ack(3, 3, "journal", epoch=5)]  # fmt: skip
    for wrong in bad:
        conversation = opened()
        for sequence in (1, 2, 3):
            conversation.received(batch(sequence))
        for message in good:
            conversation.sent(message)
        with pytest.raises(ProtocolError):
            conversation.sent(wrong)
    with pytest.raises(ProtocolError, match="landed 2, spooled 1"):
        conversation = opened()
        conversation.received(batch(1))
        conversation.received(batch(2))
        conversation.sent(ack(1, 2))


def test_a_reply_belongs_to_digests_that_were_sent() -> None:
    conversation = opened()
    with pytest.raises(ProtocolError):
        conversation.sent(DigestReply(MACHINE, 4, 1, "p", 0, 0, 1, b"\0"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("lowest", "highest", "spoken"), [(1, 1, 1), (1, 9, 1), (0, 1, 1), (2, 9, 0), (0, 0, 0)])
def test_versions(lowest: int, highest: int, spoken: int) -> None:
    hello = Hello(MACHINE, 4, "x", lowest, highest, ())
    if spoken:
        assert negotiate(hello) == spoken
    else:
        with pytest.raises(ProtocolError) as caught:
            negotiate(hello)
        assert caught.value.code == "VersionMismatch"


@pytest.mark.parametrize("error", [OutOfSpaceError("full", remedy="wait"), StaleEpochError("over"),
                                   FailbackError("odd", code="Odd", retryable=True)])  # fmt: skip
def test_errors_survive_the_wire(error: FailbackError) -> None:
    back = refused(refusal(error))
    assert type(back) is type(error)
    assert (back.code, back.message, back.remedy, back.retryable) == (
        error.code, error.message, error.remedy, error.retryable,
    )  # fmt: skip


def test_no_sequence_of_messages_breaks_the_machine_otherwise_than_by_a_protocol_error() -> None:
    messages: list[Message] = [HELLO, WELCOME, batch(1), ack(0), Ping(1), Refusal("x", "y")]
    for script in itertools.product(range(len(messages)), (True, False), repeat=3):
        conversation = Conversation(End.SENDING)
        try:
            for index, sent in zip(script[::2], script[1::2], strict=True):
                (conversation.sent if sent else conversation.received)(messages[index])
        except ProtocolError:
            continue
        assert conversation.state in State
