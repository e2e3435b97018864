"""What must hold in every world, whatever happens to it.

1. Acknowledged as landed means in the journal, after any crash; acknowledged as spooled means in the spool or in the journal.
2. No acknowledgement is ever taken back (within one epoch, one journal, and unless the world destroyed a disk on purpose).
3. Every published point equals the source at that place of its ring, byte for byte; *before reprotect* the disks as found.
4. Where the applied place lies in no gap, the replica's disks equal the source at that place.
5. Epochs in the journal never fall; no record of an epoch follows one of a higher epoch.
6. A batch in a gap is never a point, and the timeline shows a gap for it.
7. The capture ring is released only up to what the spool or the journal holds durably.
8. When the faults are over, the replica becomes equal to the source and a point is published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from failback.journal.journal import Journal
from failback.model.points import PointKind, RecoveryPoint
from failback.model.stream import GapCause
from failback.protocol.layout import FrameType
from failback.sim.kernel import Ring


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True, slots=True)
class _Beginning:
    """A stream that went on at ``first_sequence`` of an epoch; its positions are the ring's plus ``base``."""

    epoch: int
    first_sequence: int
    base: int
    ring: Ring


@dataclass(slots=True)
class Judge:
    found: dict[int, bytes]
    """The replica's disks before anything was replicated."""
    beginnings: list[_Beginning] = field(default_factory=list)
    judged: set[str] = field(default_factory=set)
    points_judged: int = 0
    places_judged: int = 0
    _highest: dict[tuple[str, int, str], int] = field(default_factory=dict)
    _snapshots: dict[int, tuple[int, int, dict[int, bytearray]]] = field(default_factory=dict)
    """Of a ring: how much of its history, up to which place, gives which content (places mostly grow)."""
    _begun: dict[tuple[int, int, int], _Beginning] = field(default_factory=dict)
    """The beginning that a place belongs to, as it was when the place was first seen: a later one under the same epoch, whose
    items never landed, does not take it over."""

    # --- the source at a place --------------------------------------------------------------------------------------

    def stream_begins(self, epoch: int, first_sequence: int, base: int, ring: Ring) -> None:
        self.beginnings.append(_Beginning(epoch, first_sequence, base, ring))

    def source_at(self, epoch: int, sequence: int, position: int) -> tuple[dict[int, bytearray], dict[int, bytearray]]:
        """(content, mask) of each disk; where the mask is 1 the moment is not decided by the position."""
        known = [b for b in self.beginnings if b.epoch == epoch and b.first_sequence <= sequence]
        if not known:
            raise Violation(f"item {sequence} of epoch {epoch} belongs to no stream that ever began")
        begin = self._begun.setdefault((epoch, sequence, position), known[-1])
        place = position - begin.base
        mask = {disk: bytearray(len(data) // 512) for disk, data in begin.ring.before.items()}
        first, upto, content = self._snapshots.get(begin.ring.ring_id, (0, 0, {}))
        if not content or upto >= place:
            first, content = 0, {disk: bytearray(data) for disk, data in begin.ring.before.items()}
        for index in range(first, len(begin.ring.history)):
            change = begin.ring.history[index]
            if change.position > place:
                break
            first = index + 1
            content[change.disk][change.offset : change.offset + len(change.data)] = change.data
            if change.silent and change.position == place:
                sector, count = change.offset // 512, len(change.data) // 512
                mask[change.disk][sector : sector + count] = b"\x01" * count
        self._snapshots[begin.ring.ring_id] = (first, place, content)
        return content, mask

    def _compare(self, what: str, actual: Mapping[int, bytes | bytearray], place: tuple[int, int, int]) -> None:
        content, mask = self.source_at(*place)
        for disk, wanted in content.items():
            if actual[disk] == wanted:
                continue
            for sector in range(len(wanted) // 512):
                at = sector * 512
                if actual[disk][at : at + 512] != wanted[at : at + 512] and not mask[disk][sector]:
                    versions = self._versions(place, disk, at, bytes(actual[disk][at : at + 512]))
                    raise Violation(
                        f"{what} differs from the source at {place}: disk {disk}, sector {sector}; {versions}"
                    )

    def _versions(self, place: tuple[int, int, int], disk: int, at: int, found: bytes) -> str:
        """The sector's history near the place, for whoever looks for the reason."""
        known = [b for b in self.beginnings if b.epoch == place[0] and b.first_sequence <= place[1]][-1]
        lines = [f"place {place[2] - known.base} of ring {known.ring.ring_id}, versions"]
        for change in known.ring.history:
            if change.disk == disk and change.offset <= at < change.offset + len(change.data):
                content = change.data[at - change.offset : at - change.offset + 512]
                name = f"{change.position}{' silent' if change.silent else ''}"
                lines.append(f"[{name}]" if content == found else name)
        return " ".join(lines[:1] + lines[-12:])

    # --- acknowledgements -------------------------------------------------------------------------------------------

    def at_least(self, holder: str, holds: int, claimed: int, epoch: int) -> None:
        """``holder`` has to hold what was acknowledged of it."""
        if holds < claimed:
            raise Violation(f"epoch {epoch}: {claimed} was acknowledged, {holder} holds {holds}")

    def released(self, epoch: int, position: int, durable: int) -> None:
        """Records that were released are never seen again: the spool or the journal has to hold them."""
        if position > durable:
            raise Violation(f"epoch {epoch}: the ring is released up to {position}, only {durable} is durable")

    def never_back(self, who: str, epoch: int, journal: str, value: int) -> None:
        key = (who, epoch, journal)
        before = self._highest.get(key, 0)
        if value < before:
            raise Violation(f"{who} went back from {before} to {value} in epoch {epoch}")
        self._highest[key] = value

    def forget(self, who: str) -> None:
        """The world destroyed what this one held."""
        self._highest = {key: value for key, value in self._highest.items() if key[0] != who}

    # --- the journal ------------------------------------------------------------------------------------------------

    def points(self, journal: Journal, *, again: bool = False) -> None:
        for point in journal.points():
            if not point.abandoned and (again or point.point_id not in self.judged):
                self.judged.add(point.point_id)
                self._point(journal, point)

    def _point(self, journal: Journal, point: RecoveryPoint) -> None:
        self.points_judged += 1
        actual: dict[int, bytes] = {}
        for disk in journal.catalogue.disks:
            view = journal.view(point.point_id, disk.index)
            actual[disk.index] = view.read(0, disk.size_bytes)
            view.close()
        self.at_point("the view", point, actual)

    def at_point(self, what: str, point: RecoveryPoint, actual: Mapping[int, bytes | bytearray]) -> None:
        if point.kind is PointKind.BEFORE_REPROTECT:
            if any(actual[disk] != content for disk, content in self.found.items()):
                raise Violation(f"{what} of the point before reprotect is not the disks as found")
            return
        what = f"{what} of a point ({point.kind.value})"
        self._compare(what, actual, (point.epoch, point.sequence, point.ring))

    def applied(self, journal: Journal, actual: Mapping[int, bytes | bytearray]) -> None:
        """The replica's disks, when everything written is durable and nothing is rolled back."""
        applied = journal.applied
        if applied.ordinal and not applied.gap and applied.epoch:
            self.places_judged += 1
            self._compare("the replica", actual, (applied.epoch, applied.sequence, applied.ring))

    def redo(self, journal: Journal) -> None:
        """The whole redo log: epochs, sequences, gaps and points."""
        points = {
            entry.ordinal for entry in journal.catalogue.points() if entry.point.kind is not PointKind.BEFORE_REPROTECT
        }
        before = (0, 0)
        gap_seen = False
        for record in journal.redo.read_after(journal.redo.first_ordinal - 1):
            header = record.item.header
            now = (header.epoch, header.sequence)
            if now <= before or (now[0] == before[0] and now[1] != before[1] + 1):
                raise Violation(f"record {now} follows record {before} in the journal")
            if header.epoch != before[0] and header.sequence != 1:
                raise Violation(f"epoch {header.epoch} begins with item {header.sequence} in the journal")
            before = now
            if header.type is FrameType.BATCH and header.gap is not GapCause.NONE:
                gap_seen = gap_seen or record.ordinal <= journal.applied.ordinal
                if record.ordinal in points:
                    raise Violation(f"record {record.ordinal} lies in a gap ({header.gap.name}) and is a point")
        if gap_seen and not journal.gaps():
            raise Violation("batches in a gap were applied and the timeline shows none")
