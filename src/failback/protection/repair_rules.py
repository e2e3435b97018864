"""When a stream has ended for good, and what the epoch that follows has to do (D6, D7). Pure.

A stream ends for good when one of its three parts says so under the epoch in force: items that were acknowledged are missing,
a spool or the redo is damaged, a journal is not the one that acknowledged. What was lost is not known then, so the disks are
compared by hash. One loss is known exactly: a process server that is given up takes only what it had not passed on, and
those blocks stand in the agent's unlanded map; :func:`resend_is_enough` says when that may be relied on (docs/decisions).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from failback.model.components import MobilityStatus, ReplicaStatus, SpooledMachine
from failback.model.ids import PassId
from failback.protection.states import State

DATABASE_BEHIND = "DatabaseBehind"
ENDING_CODES = frozenset({"JournalReplaced", "RedoDamaged", "ItemsMissing", "SpoolDamaged"})
"""What only a new epoch cures."""
JOURNAL_LACKS = "the journal lacks items that had landed"
MOST_REPAIRS = 3
REPAIR_WINDOW_NS = 3600 * 1_000_000_000
"""No more than so many repairs begin by themselves in so much time: a loss that comes again and again needs a person."""


@dataclass(frozen=True, slots=True)
class StreamEnd:
    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Parts:
    """What the three parts of a stream say about it; None for a part that was not heard of."""

    agent: MobilityStatus | None = None
    process_server: SpooledMachine | None = None
    master_target: ReplicaStatus | None = None


def ended(epoch: int, parts: Parts) -> StreamEnd | None:
    """Why the stream of ``epoch`` cannot go on; None while it can. The master target's word comes first: it is the cause."""
    agent, spooled, replica = parts.agent, parts.process_server, parts.master_target
    said = (
        replica.problem if replica is not None and replica.epoch == epoch else "",
        spooled.problem if spooled is not None and spooled.epoch == epoch else "",
        agent.problem if agent is not None and agent.epoch == epoch else "",
    )
    for problem in said:
        code, colon, sentence = problem.partition(":")
        if colon and code in ENDING_CODES:
            return StreamEnd(code, sentence.strip())
    if replica is not None and replica.state == "attached" and replica.epoch > epoch:
        sentence = f"the master target holds epoch {replica.epoch}, later than {epoch}: this database is from before it"
        return StreamEnd(DATABASE_BEHIND, sentence)
    return None


def resend_is_enough(  # noqa: PLR0911 - one return for each reason against it
    state: State, epoch: int, pass_id: PassId, parts: Parts
) -> str:
    """Empty when a change of process server loses nothing but unlanded blocks that the agent still knows, else why not."""
    agent, replica = parts.agent, parts.master_target
    end = ended(epoch, Parts(agent, None, replica))
    if state is not State.PROTECTED:
        return "the pass before was not over"
    if agent is None or agent.epoch != epoch or agent.capture != "capturing":
        return "the mobility service does not capture under this epoch"
    if agent.pass_id != pass_id or not agent.sync_done or agent.gap == "missed":
        return "the mobility service compares disks"
    if end is not None and end.code != "ItemsMissing":
        return f"the stream ended: {end.sentence}"
    if replica is None or replica.state != "attached" or replica.epoch != epoch or replica.stands_still:
        return "the master target does not hold the stream of this epoch"
    if replica.landed_sequence < agent.landed_sequence:
        return JOURNAL_LACKS
    return ""


def may_begin(now_wall_ns: int, earlier_wall_ns: Iterable[int]) -> bool:
    """Whether another repair may begin by itself, after those at the times given."""
    return sum(now_wall_ns - earlier < REPAIR_WINDOW_NS for earlier in earlier_wall_ns) < MOST_REPAIRS
