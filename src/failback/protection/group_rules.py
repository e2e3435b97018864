"""Replication groups: who may be a member, and when a common mark is a recovery point (D19; asr.md rows 39, 40). Pure.

A round is one try of a common mark. Its barrier lets nobody go on before everybody has arrived:

    armed -> PREPARE -> prepared -> HOLD -> held -> MARK -> marked -> RELEASE -> released

The first mark is ordered when the last member is held, and the first release when the last member is marked. So a member
that reports ``released`` without a reason was held from before the first mark order until after the last mark reply. Only
if all members do, the mark is a group point; any reason, a member that is late or one that came with another epoch makes it
void, and everybody is released.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from failback.errors import ConflictError, NotSupportedError
from failback.model.groups import HoldAction, HoldPhase, HoldStep
from failback.model.ids import MachineId, MarkId

MINIMUM_FREQUENCY_SECONDS = 1
LEAST_MEMBERS = 2

ORDER = (HoldPhase.ARMED, HoldPhase.PREPARED, HoldPhase.HELD, HoldPhase.MARKED, HoldPhase.RELEASED)
_NEXT = {
    HoldPhase.ARMED: HoldAction.PREPARE,
    HoldPhase.PREPARED: HoldAction.HOLD,
    HoldPhase.HELD: HoldAction.MARK,
    HoldPhase.MARKED: HoldAction.RELEASE,
    HoldPhase.RELEASED: HoldAction.WAIT,
}

# --- membership -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """An item as the rules of a group see it."""

    item_id: str
    name: str
    machine_id: MachineId
    os_family: str
    master_target_id: str
    replicating: bool
    protected: bool
    """Its first pass is over: points can be made."""
    group_id: str = ""
    epoch: int = 0


def check_new_member(candidate: MemberFacts, members: Sequence[MemberFacts]) -> None:
    """Raise with the rule that the candidate breaks."""
    if candidate.group_id:
        raise ConflictError(
            f"{candidate.name} is in a replication group already",
            code="AlreadyInGroup",
            remedy="remove it there first: failback group remove",
        )
    if not candidate.replicating or not candidate.machine_id:
        raise ConflictError(
            f"{candidate.name} does not replicate",
            code="NotReplicating",
            possible_causes="it was not reprotected yet, or it is home",
            remedy=f"failback reprotect {candidate.name}, then add it to the group",
        )
    for member in members:
        _check_family(candidate, member)
        if candidate.master_target_id != member.master_target_id:
            raise NotSupportedError(
                f"{candidate.name} replicates to another master target than {member.name}",
                code="GroupNeedsOneMasterTarget",
                possible_causes="machines on several master targets have no common point in time",
                remedy="reprotect it to the group's master target",
            )


def _check_family(candidate: MemberFacts, member: MemberFacts) -> None:
    if candidate.os_family.lower() != member.os_family.lower():
        raise NotSupportedError(
            f"{candidate.name} runs {candidate.os_family or 'an unknown system'}, {member.name} runs "
            f"{member.os_family or 'an unknown system'}",
            code="GroupNeedsOneOperatingSystem",
            possible_causes="a replication group holds machines of one operating system family",
            remedy="make a group for each family",
        )


def what_is_missing(members: Sequence[MemberFacts]) -> str:
    """Why no common mark can be made now; empty when one can be tried."""
    if len(members) < LEAST_MEMBERS:
        return f"the group has {len(members)} of at least {LEAST_MEMBERS} machines"
    for member in members:
        if not member.replicating:
            return f"{member.name} does not replicate"
        if not member.protected:
            return f"{member.name} is not protected yet"
    targets = {member.master_target_id for member in members}
    if len(targets) > 1:
        return "the machines replicate to different master targets: they have no common point in time"
    families = {member.os_family.lower() for member in members}
    return "the machines run different operating systems" if len(families) > 1 else ""


# --- one round --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Marked:
    """Where a member's mark lies and how long the member stood still."""

    epoch: int
    ring: int = 0
    enter_milliseconds: float = 0.0
    held_milliseconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Round:
    """``at``: the last phase that each member has said. ``void``: why this mark is none."""

    mark_id: MarkId
    members: Mapping[MachineId, str]
    """Names, for sentences."""
    epochs: Mapping[MachineId, int]
    at: Mapping[MachineId, HoldPhase]
    marks: Mapping[MachineId, Marked] = field(default_factory=dict)
    void: str = ""

    @property
    def complete(self) -> bool:
        return all(phase is HoldPhase.RELEASED for phase in self.at.values())

    @property
    def succeeded(self) -> bool:
        return self.complete and not self.void

    def behind(self, phase: HoldPhase) -> list[str]:
        """Names of the members that have not said ``phase`` yet."""
        rank = ORDER.index(phase)
        return sorted(name for machine, name in self.members.items() if ORDER.index(self.at[machine]) < rank)


def begin(mark_id: MarkId, members: Iterable[MemberFacts]) -> Round:
    listed = list(members)
    return Round(
        mark_id,
        {member.machine_id: member.name for member in listed},
        {member.machine_id: member.epoch for member in listed},
        {member.machine_id: HoldPhase.ARMED for member in listed},
    )


def arrive(known: Round, machine: MachineId, step: HoldStep) -> Round:
    """The round after a member said a step of it. A step said twice changes nothing."""
    reached, said = ORDER.index(known.at[machine]), ORDER.index(step.phase)
    if said <= reached:
        return known
    name = known.members[machine]
    now = replace(known, at={**known.at, machine: step.phase})
    if step.phase is HoldPhase.MARKED:
        mark = Marked(step.epoch, step.ring)
        now = replace(now, marks={**known.marks, machine: mark})
    if step.phase is HoldPhase.RELEASED and machine in known.marks:
        mark = replace(
            known.marks[machine], enter_milliseconds=step.enter_milliseconds, held_milliseconds=step.held_milliseconds
        )
        now = replace(now, marks={**known.marks, machine: mark})
    if step.reason:
        return spoil(now, f"{name}: {step.reason}")
    if step.epoch != known.epochs[machine]:
        return spoil(now, f"{name} began a new stream (epoch {step.epoch}, not {known.epochs[machine]})")
    if said > reached + 1:  # a phase was left out: nobody asked for that
        return spoil(now, f"{name} went from {ORDER[reached].value} to {step.phase.value}")
    if step.phase is HoldPhase.RELEASED and now.behind(HoldPhase.MARKED) and not now.void:
        return spoil(now, f"{name} was released before every machine was marked")
    return now


def spoil(known: Round, reason: str) -> Round:
    """The first reason stays."""
    return known if known.void else replace(known, void=reason)


def answer(known: Round, phase: HoldPhase) -> HoldAction | None:
    """What a member that said ``phase`` shall do now; None: wait for the others."""
    if phase is HoldPhase.RELEASED:
        return HoldAction.WAIT
    if known.void:
        return HoldAction.RELEASE if phase is not HoldPhase.ARMED else HoldAction.WAIT
    return None if known.behind(phase) else _NEXT[phase]
