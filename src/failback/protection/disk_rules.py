"""What became of a protected machine's disks: which grew, which joined, which are gone. Pure.

The agent reports all that could be captured; an item protects some of it. Disks that were there and not protected when the
replication began (a cloud's scratch disk, say) are *others* and stay so: only what appears later joins. A disk that is gone
leaves only after it stayed away, because a path may fail for a moment. A disk that became smaller is no change that can be
followed: the mobility service says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from failback.model.components import DiskFacts
from failback.model.ids import DiskId

SETTLED_SECONDS = {"grown": 3.0, "joined": 10.0, "gone": 60.0}
"""How long a change has to be seen, without a break, before it is followed."""


@dataclass(frozen=True, slots=True)
class ProtectedDisk:
    disk_id: DiskId
    device_match: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DiskChanges:
    """``grown`` maps the disk to its new size; ``joined`` are facts of disks that nobody protects yet."""

    grown: dict[DiskId, int] = field(default_factory=dict)
    joined: tuple[DiskFacts, ...] = ()
    gone: tuple[DiskId, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.grown or self.joined or self.gone)

    def names(self) -> frozenset[str]:
        """``kind:size:which`` of each: what a change is recognised by when it is looked at again."""
        return frozenset(
            {_name("grown", size, disk_id) for disk_id, size in self.grown.items()}
            | {_name("joined", facts.size_bytes, facts.device_match) for facts in self.joined}
            | {_name("gone", 0, disk_id) for disk_id in self.gone}
        )

    def only(self, names: Iterable[str]) -> DiskChanges:
        wanted = set(names)
        return DiskChanges(
            {disk_id: size for disk_id, size in self.grown.items() if _name("grown", size, disk_id) in wanted},
            tuple(each for each in self.joined if _name("joined", each.size_bytes, each.device_match) in wanted),
            tuple(disk_id for disk_id in self.gone if _name("gone", 0, disk_id) in wanted),
        )


def _name(kind: str, size_bytes: int, which: str) -> str:
    return f"{kind}:{size_bytes}:{which}"


def settled_seconds(name: str) -> float:
    return SETTLED_SECONDS[name.partition(":")[0]]


def others(protected: Iterable[ProtectedDisk], reported: Iterable[DiskFacts]) -> list[str]:
    """Matches of disks that are there and not protected."""
    known = {disk.device_match for disk in protected}
    return sorted({facts.device_match for facts in reported} - known)


def changes(
    protected: Iterable[ProtectedDisk], reported: Iterable[DiskFacts], known_others: Iterable[str]
) -> DiskChanges:
    """Nothing when the agent reports no disk at all (it is starting), or not one that is protected (another machine)."""
    protected, found = list(protected), {facts.device_match: facts for facts in reported}
    if not any(disk.device_match in found for disk in protected):
        return DiskChanges()
    known = {disk.device_match for disk in protected} | set(known_others)
    return DiskChanges(
        grown={
            disk.disk_id: found[disk.device_match].size_bytes
            for disk in protected
            if disk.device_match in found and found[disk.device_match].size_bytes > disk.size_bytes
        },
        joined=tuple(facts for match, facts in sorted(found.items()) if match not in known),
        gone=tuple(disk.disk_id for disk in protected if disk.device_match not in found),
    )


def sentence(machine: str, found: DiskChanges, labels: dict[DiskId, str]) -> str:
    """For an event: what changed and what happens now."""
    parts = [f"{labels[disk_id]} grew to {size} bytes" for disk_id, size in found.grown.items()]
    parts += [f"{facts.device} of {facts.size_bytes} bytes was added" for facts in found.joined]
    parts += [f"{labels[disk_id]} is gone" for disk_id in found.gone]
    after = ["the replica follows under a new epoch", "points wait until it is consistent again"]
    if found.joined:
        after.append("a disk that joined has to be attached to the on-premises machine by hand after a failback")
    if found.gone:
        after.append("the replica of a disk that is gone is kept for the points from before")
    return f"The disks of {machine} changed: {', '.join(parts)}; {', '.join(after)}."
