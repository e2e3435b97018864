"""The conversation on one replication link as a table, and the numbers that have to fit. Sans-io: both ends use it.

A link has a sending end (which opened it) and a receiving end::

    NEW --Hello--> GREETED --Welcome--> OPEN --items downstream, answers upstream--> OPEN
    any --Refusal (either end)--> CLOSED

Ping and Pong may come in every state but CLOSED. Beside the order of messages a :class:`Conversation` holds what must
never go wrong unseen: one machine and one epoch on a link, item sequences without a hole from where the Welcome said,
ring positions that never fall, and acknowledgements that never fall, never run ahead of what was sent and never change
the journal's incarnation. Each end reports every message it sends and receives; a violation raises ProtocolError.
"""

from __future__ import annotations

import enum

from failback.errors import FailbackError, ProtocolError, from_dict
from failback.protocol import layout
from failback.protocol.items import RawItem
from failback.protocol.messages import (
    Ack,
    Batch,
    DigestReply,
    Digests,
    Hello,
    Item,
    Message,
    Ping,
    Pong,
    Refusal,
    Welcome,
)


class End(enum.Enum):
    SENDING = "sending"
    RECEIVING = "receiving"


class State(enum.Enum):
    NEW = "new"
    GREETED = "greeted"
    OPEN = "open"
    CLOSED = "closed"


class Event(enum.Enum):
    HELLO = "Hello"
    WELCOME = "Welcome"
    ITEM = "item"
    ANSWER = "Ack or DigestReply"
    LIVENESS = "Ping or Pong"
    REFUSAL = "Refusal"


CONVERSATION: dict[State, dict[Event, State]] = {
    State.NEW: {Event.HELLO: State.GREETED, Event.LIVENESS: State.NEW, Event.REFUSAL: State.CLOSED},
    State.GREETED: {Event.WELCOME: State.OPEN, Event.LIVENESS: State.GREETED, Event.REFUSAL: State.CLOSED},
    State.OPEN: {
        Event.ITEM: State.OPEN,
        Event.ANSWER: State.OPEN,
        Event.LIVENESS: State.OPEN,
        Event.REFUSAL: State.CLOSED,
    },
    State.CLOSED: {},
}

SPOKEN_BY: dict[Event, tuple[End, ...]] = {
    Event.HELLO: (End.SENDING,),
    Event.WELCOME: (End.RECEIVING,),
    Event.ITEM: (End.SENDING,),
    Event.ANSWER: (End.RECEIVING,),
    Event.LIVENESS: (End.SENDING, End.RECEIVING),
    Event.REFUSAL: (End.SENDING, End.RECEIVING),
}

_EVENTS: dict[type, Event] = {
    Hello: Event.HELLO,
    Welcome: Event.WELCOME,
    Batch: Event.ITEM,
    Digests: Event.ITEM,
    RawItem: Event.ITEM,
    Ack: Event.ANSWER,
    DigestReply: Event.ANSWER,
    Ping: Event.LIVENESS,
    Pong: Event.LIVENESS,
    Refusal: Event.REFUSAL,
}


def negotiate(hello: Hello) -> int:
    """The version to speak: the highest that both ends know. Raises ProtocolError (code VersionMismatch)."""
    version = min(hello.highest_version, layout.VERSION)
    if version < max(hello.lowest_version, layout.LOWEST_VERSION):
        raise ProtocolError(
            f"the peer (software {hello.software}) speaks protocol versions {hello.lowest_version} to "
            f"{hello.highest_version}, this side {layout.LOWEST_VERSION} to {layout.VERSION}",
            code="VersionMismatch",
            remedy="upgrade the older of the two",
        )
    return version


class Conversation:
    """One link's state. ``own`` is the end that this process is."""

    def __init__(self, own: End) -> None:
        self.own = own
        self.state = State.NEW
        self.hello: Hello | None = None
        self.last_sequence = 0
        """Sequence of the last item that passed, or that the Welcome named."""
        self._last_ring = 0
        self._acknowledged: Ack | None = None

    @property
    def takes_items(self) -> bool:
        """True when the peer may send items now."""
        return self.own is End.RECEIVING and self.state is State.OPEN

    def sent(self, message: Message | RawItem) -> None:
        """Call before a message is written. Raises ProtocolError when it must not be said now."""
        self._advance(message, self.own)

    def received(self, message: Message | RawItem) -> None:
        """Call with every message that arrived, before it is used. Raises ProtocolError."""
        self._advance(message, End.RECEIVING if self.own is End.SENDING else End.SENDING)

    def _advance(self, message: Message | RawItem, speaker: End) -> None:
        event = _EVENTS[type(message)]
        following = CONVERSATION[self.state].get(event)
        if following is None or speaker not in SPOKEN_BY[event]:
            raise ProtocolError(f"{event.value} from the {speaker.value} end of a link that is {self.state.value}")
        if isinstance(message, Hello):
            self.hello = message
        elif isinstance(message, Welcome):
            self._check_welcome(message)
        elif event is Event.ITEM:
            self._check_item(message)  # type: ignore[arg-type]  # the table of events says that it is one
        elif isinstance(message, Ack):
            self._check_ack(message)
        elif isinstance(message, DigestReply):
            self._check_digest_reply(message)
        self.state = following

    def _check_welcome(self, welcome: Welcome) -> None:
        hello = self.hello
        assert hello is not None
        if welcome.epoch != hello.epoch:
            raise ProtocolError(f"Welcome names epoch {welcome.epoch}, the stream is of epoch {hello.epoch}")
        if not hello.lowest_version <= welcome.version <= hello.highest_version:
            raise ProtocolError(f"Welcome chose version {welcome.version}", code="VersionMismatch")
        if welcome.spooled_sequence + 1 < hello.next_sequence:
            raise items_missing(welcome.spooled_sequence + 1, hello.next_sequence)
        self.last_sequence = welcome.spooled_sequence
        self._last_ring = welcome.spooled_ring
        self._check_ack(
            Ack(
                epoch=welcome.epoch,
                spooled_sequence=welcome.spooled_sequence,
                spooled_ring=welcome.spooled_ring,
                landed_sequence=welcome.landed_sequence,
                landed_ring=welcome.landed_ring,
                incarnation=welcome.incarnation,
            )
        )

    def _check_item(self, item: RawItem | Item) -> None:
        hello = self.hello
        assert hello is not None
        if isinstance(item, RawItem):
            named, end_position = item.header, item.header.end_position
            machine_id, epoch, sequence = named.machine_id, named.epoch, named.sequence
        else:
            machine_id, epoch, sequence = item.machine_id, item.epoch, item.sequence
            end_position = item.position if isinstance(item, Digests) else item.end_position
        if machine_id != hello.machine_id or epoch != hello.epoch:
            raise ProtocolError(
                f"item {sequence} belongs to machine {machine_id} epoch {epoch}, the link to machine "
                f"{hello.machine_id} epoch {hello.epoch}"
            )
        if sequence != self.last_sequence + 1:
            raise ProtocolError(
                f"item {sequence} came where item {self.last_sequence + 1} had to come", code="OutOfOrder"
            )
        if end_position < self._last_ring:
            raise ProtocolError(f"item {sequence} ends at {end_position}, before its predecessor at {self._last_ring}")
        self.last_sequence, self._last_ring = sequence, end_position

    def _check_ack(self, ack: Ack) -> None:
        hello = self.hello
        assert hello is not None
        if ack.epoch != hello.epoch:
            raise ProtocolError(f"an acknowledgement names epoch {ack.epoch}, the stream is of epoch {hello.epoch}")
        if ack.landed_sequence > ack.spooled_sequence or ack.spooled_sequence > self.last_sequence:
            raise ProtocolError(
                f"an acknowledgement says landed {ack.landed_sequence}, spooled {ack.spooled_sequence}; "
                f"the last item was {self.last_sequence}"
            )
        before = self._acknowledged
        if before is not None:
            fallen = ack.spooled_sequence < before.spooled_sequence or ack.landed_sequence < before.landed_sequence
            if fallen or ack.spooled_ring < before.spooled_ring or ack.landed_ring < before.landed_ring:
                raise ProtocolError(f"an acknowledgement went back from {before} to {ack}")
            if before.incarnation and ack.incarnation != before.incarnation:
                raise journal_replaced(before.incarnation, ack.incarnation)
        self._acknowledged = ack

    def _check_digest_reply(self, reply: DigestReply) -> None:
        hello = self.hello
        assert hello is not None
        if reply.machine_id != hello.machine_id or reply.epoch != hello.epoch or reply.sequence > self.last_sequence:
            raise ProtocolError(f"a reply to digests {reply.sequence} of epoch {reply.epoch} that were not sent here")


def items_missing(needed: int, held: int) -> ProtocolError:
    """The receiver needs items that the sender no longer holds: a link of the chain lost acknowledged items."""
    return ProtocolError(
        f"item {needed} is needed, but the sender holds items from {held} on",
        code="ItemsMissing",
        possible_causes="a spool or a journal was lost, or restored from an old copy",
        remedy="a new epoch re-sends the blocks that have not landed",
    )


def journal_replaced(known: str, offered: str) -> ProtocolError:
    """The journal is not the one that acknowledged (D7): it is compared by hash, never continued."""
    return ProtocolError(
        f"the journal at the master target is {offered or 'unknown'}, but {known} acknowledged before",
        code="JournalReplaced",
        possible_causes="the retention volume was replaced, or restored from an old copy",
        remedy="the machine's disks are compared by hash under a new epoch",
    )


def journal_fell_back(incarnation: str, known_landed: int, offered_landed: int) -> ProtocolError:
    """The right journal, but it lacks items that it had acknowledged as landed (D7)."""
    error = journal_replaced(incarnation, incarnation)
    return ProtocolError(
        f"journal {incarnation} offers position {offered_landed}, but it had acknowledged {known_landed}",
        code=error.code,
        possible_causes=error.possible_causes,
        remedy=error.remedy,
    )


def refusal(error: FailbackError) -> Refusal:
    return Refusal(error.code, error.message, error.remedy, error.retryable)


def refused(message: Refusal) -> FailbackError:
    """The error that the peer meant; its class follows the code where the code is that of a class."""
    error = from_dict({"code": message.code, "message": message.message, "remedy": message.remedy})
    error.retryable = message.retryable
    return error
