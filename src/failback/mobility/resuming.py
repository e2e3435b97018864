"""Where a stream goes on (D11), and what its assignment asks for beyond changes (D6, D8): decided once, at its beginning.

Everything here is safe to repeat: an agent that dies anywhere in it decides the same, or more (blocks read again, disks
compared), the next time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from failback.mobility import assemble, passes
from failback.mobility.capture.source import Source
from failback.mobility.capture.values import Counters
from failback.mobility.memory import MemoryFile
from failback.mobility.outstanding import Outstanding, generation_of, spool_lost
from failback.model.components import MobilityAssignment, SyncMode
from failback.model.stream import GapCause
from failback.protocol.messages import Welcome
from failback.runtime import logs

log = logs.get(__name__)

Call = Callable[..., Awaitable[Any]]
"""Runs blocking work in the capture's own thread."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """``base`` is added to ring positions. ``cause``: what holds points back from the start. ``produced``: the ring's end after
    everything was decided."""

    base: int
    outstanding: Outstanding
    fresh_ring: bool
    cause: GapCause
    counters: Counters
    dirty_blocks: int
    produced: int


def is_handed_over(session: Source, memory: MemoryFile, assignment: MobilityAssignment) -> bool:
    """Whether what was known of the disks in an earlier ring is known in this one: of all disks that no pass reads anyway."""
    if not session.predecessor_ring or memory.value.ring_id != session.predecessor_ring:
        return False
    passing = assignment.pass_id and not (
        memory.value.pass_done and (memory.value.epoch, memory.value.pass_id) == (assignment.epoch, assignment.pass_id)
    )
    return all(
        session.is_carried(disk.index) or (passing and disk.sync is not SyncMode.NONE) for disk in assignment.disks
    )


async def resume(session: Source, memory: MemoryFile, assignment: MobilityAssignment, welcome: Welcome,
                 call: Call) -> Resumed:  # fmt: skip
    """Raises ``ItemsMissing`` when the process server stands before what it had acknowledged."""
    moved = is_handed_over(session, memory, assignment)
    fresh = memory.value.ring_id != session.ring_id and not moved  # also when an earlier process made the ring and died
    cause = GapCause.NONE
    known = memory.value.epoch == assignment.epoch
    # what is held there is no prefix of this ring: send all of it (D6)
    others = known and memory.value.others_spooled
    if not known or others:
        resend = await call(session.mark_unlanded_dirty)
        cause = GapCause.RESEND if resend or others else cause
        log.info("blocks that had not landed are read again", blocks=resend)
    if others:  # until a consistent place landed: what is sent again passes places that the replica left behind
        memory.update(position_base=welcome.spooled_ring - session.cursor())
    if not known:
        memory.update(epoch=assignment.epoch, pass_id="", pass_done=False, incarnation=welcome.incarnation,
                      position_base=welcome.spooled_ring - session.cursor(), full_marked=(), compared_blocks={},
                      others_spooled=False)  # fmt: skip
    elif fresh:
        memory.update(position_base=welcome.spooled_ring - session.cursor(), full_marked=(), compared_blocks={})
    elif moved:
        log.info("tracking goes on in a new ring", ring=session.ring_id, before=session.predecessor_ring)
        kept = {index: block for index, block in memory.value.compared_blocks.items() if session.is_carried(int(index))}
        memory.update(position_base=welcome.spooled_ring - session.cursor(), compared_blocks=kept,
                      full_marked=tuple(filter(session.is_carried, memory.value.full_marked)))  # fmt: skip
    base = memory.value.position_base
    position = welcome.spooled_ring - base
    if position < session.cursor():  # the unlanded map stays as it is: a new epoch reads those blocks again (D6)
        raise spool_lost(welcome.spooled_sequence)
    await call(assemble.skip, session, position)
    if welcome.landed_sequence:
        low = generation_of(welcome.spooled_sequence + 1)
        await call(session.clear_unlanded_generations, low, generation_of(welcome.landed_sequence))
    missed = await call(session.missed)
    if missed:
        log.error("the capture missed writes of unknown extent: every disk is compared", runs=missed)
        memory.update(compare_all=True, compared_blocks={})
        await call(session.acknowledge_missed, missed)
    counters = await call(session.counters)
    dirty = await call(session.dirty_blocks)
    if dirty and cause is GapCause.NONE:
        cause = GapCause.OVERFLOW
    return Resumed(
        base=base, outstanding=Outstanding(welcome.spooled_sequence, welcome.landed_sequence, position), fresh_ring=fresh,
        cause=cause, counters=counters, dirty_blocks=dirty, produced=session.produced_position(),
    )  # fmt: skip


def decide_pass(session: Source, memory: MemoryFile, assignment: MobilityAssignment,
                resumed: Resumed) -> tuple[passes.Decided, dict[int, int]]:  # fmt: skip
    """The assignment's pass unless it is done; a comparison of everything where nothing can be known (D11). Also the block of
    each disk below which everything is answered already. Remembers what must not be forgotten."""
    stored, fresh = memory.value, resumed.fresh_ring
    same = stored.pass_id == assignment.pass_id
    decided = passes.decide(
        assignment, done=same and stored.pass_done, fresh_ring=fresh, compare_all=stored.compare_all,
        sent_before=resumed.outstanding.spooled_sequence > 0,
    )  # fmt: skip
    begin_at = {int(index): block for index, block in stored.compared_blocks.items()} if same and not fresh else {}
    # a new epoch may come without this pass before it is over: what only comparing tells stays due
    comparing = decided.start and any(mode is SyncMode.COMPARE for _, mode in decided.modes)
    memory.update(compare_all=decided.compare_all or comparing, ring_id=session.ring_id)
    if not same:
        memory.update(pass_id=assignment.pass_id, pass_done=False, compared_blocks={}, full_marked=())
    return decided, begin_at
