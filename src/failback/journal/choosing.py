"""From an operator's choice to a place in the journal (D15).

Points are offered while they are catalogued and not abandoned. *Latest* and a time are the newest
consistent batch end (at or before it): between two points as long as the redo from the earlier one on is still there,
else the point itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from failback.errors import ConflictError, IntegrityError, NotFoundError, ProtocolError
from failback.journal.catalogue import CataloguedPoint
from failback.journal.recent_redo import RedoRecord
from failback.journal.redo import RedoLog
from failback.journal.rollback import Destination
from failback.model.ids import PointId, new_id
from failback.model.points import PointChoice, PointKind, PointSelector, RecoveryPoint
from failback.model.stream import GapCause
from failback.protocol.layout import FrameType
from failback.runtime import logs

log = logs.get(__name__)

_END_OF_TIME_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class Lost:
    """Points up to ``until_ordinal`` need undo that is damaged."""

    until_ordinal: int = -1
    reason: str = ""

    def error(self, sentence: str) -> IntegrityError:
        return IntegrityError(
            f"{sentence}: {self.reason}", code="UndoDamaged",
            possible_causes="the retention volume lost or changed bytes that were durable",
            remedy="choose a newer recovery point; check the retention volume",
        )  # fmt: skip


def choose(
    choice: PointChoice, points: Sequence[CataloguedPoint], redo: RedoLog, applied_ordinal: int, lost: Lost
) -> Destination:
    """``points`` oldest first. Raises NotFoundError and ConflictError with what there is instead, and IntegrityError."""
    living = [entry for entry in points if not entry.point.abandoned and entry.ordinal > lost.until_ordinal]
    if choice.selector is PointSelector.TIME:
        return _at_time(choice, living, redo, applied_ordinal, lost)
    if choice.selector is PointSelector.LATEST:
        return _newest(choice, living, redo, applied_ordinal, lost)
    elif choice.selector is PointSelector.LATEST_APP_CONSISTENT:
        wanted = [entry for entry in living if entry.point.kind in (PointKind.APP_CONSISTENT, PointKind.FINAL)]
    else:
        if any(entry.point.point_id == choice.value and entry.point.abandoned for entry in points):
            raise ConflictError(f"recovery point {choice.value} was abandoned by a commit to an older point")
        wanted = [entry for entry in living if entry.point.point_id == choice.value]
        if not wanted and any(entry.point.point_id == choice.value for entry in points):
            raise lost.error(f"recovery point {choice.value} cannot be reached")
    if not wanted:
        raise NotFoundError(
            f"there is no recovery point for {choice.selector.value} {choice.value}".rstrip(),
            code="RecoveryPointNotFound",
            remedy="list the recovery points and choose one of them",
        )
    entry = wanted[-1]
    return Destination(choice, entry.point, entry.ordinal, entry.ordinal)


def _newest(
    choice: PointChoice, living: Sequence[CataloguedPoint], redo: RedoLog, applied_ordinal: int, lost: Lost
) -> Destination:
    """The newest consistent batch end: behind the newest point too, when a gap began after it."""
    return _at_time(
        PointChoice(PointSelector.TIME, str(_END_OF_TIME_NS)), living, redo, applied_ordinal, lost, asked=choice
    )


def _at_time(
    choice: PointChoice,
    living: Sequence[CataloguedPoint],
    redo: RedoLog,
    applied_ordinal: int,
    lost: Lost,
    *,
    asked: PointChoice | None = None,
) -> Destination:
    try:
        wall_ns = int(choice.value)
    except ValueError:
        raise NotFoundError(f"{choice.value!r} is no time in nanoseconds", code="RecoveryPointNotFound") from None
    bases = [entry for entry in living if entry.point.wall_ns <= wall_ns]
    if not bases and lost.reason:
        raise lost.error("no recovery point that is as old as that can be reached")
    if not bases:
        raise NotFoundError("no recovery point is as old as that", code="RecoveryPointNotFound",
                            remedy="choose a later time")  # fmt: skip
    base = bases[-1]
    choice = asked or choice
    found = Destination(choice, base.point, base.ordinal, base.ordinal)
    if redo.first_ordinal > base.ordinal + 1:
        return found
    for record in _readable(redo, base.ordinal, applied_ordinal):
        header = record.item.header
        if header.wall_ns > wall_ns:
            break
        if header.type is FrameType.BATCH and header.gap is GapCause.NONE:
            point = RecoveryPoint(PointId(new_id()), base.point.machine_id, PointKind.CRASH_CONSISTENT, header.wall_ns,
                                  header.epoch, header.sequence, header.end_position)  # fmt: skip
            found = Destination(choice, point, base.ordinal, record.ordinal)
    return found


def _readable(redo: RedoLog, after_ordinal: int, applied_ordinal: int) -> Iterator[RedoRecord]:
    """The applied records behind a point, up to the first that is damaged: further forward no place can be reached."""
    try:
        for record in redo.read_after(after_ordinal, applied_ordinal):
            record.item.verify()
            yield record
    except (IntegrityError, ProtocolError) as error:
        log.warning("redo behind a recovery point cannot be read", reason=error.message)
