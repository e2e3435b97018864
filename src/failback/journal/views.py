"""The open views of one journal: which point, what is kept for it, and the way to a place between two points (D15).

An open view *pins* its point: neither that point nor a newer one is dropped while it is open, so that the undo files which
it reads stay as they are (``merge`` is the only one that changes closed files). Older points go on being thinned. Pins
live in memory: a process that ends has no views, and thinning goes on.

A place between two points is the earlier point with the redo up to there written to a layer, so that the redo need not
be kept. *Latest* makes the applied place a point first, when it is consistent, and needs no redo.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from failback.block.device import BlockDevice
from failback.errors import ConflictError, NotFoundError
from failback.journal import last_write, scrub
from failback.journal.applier import Payloads, decode, payload_of, write_pieces
from failback.journal.catalogue import Catalogue, CataloguedPoint, Interval
from failback.journal.choosing import Lost, choose
from failback.journal.layer import Room
from failback.journal.overwriting import RETURN_FILE
from failback.journal.redo import RedoLog
from failback.journal.rollback import Destination, Progress
from failback.journal.run_table import UndoIndex
from failback.journal.scrub import Proven
from failback.journal.undo import Durable, UndoDamagedError, UndoFolder, cuts
from failback.journal.view import View
from failback.model.points import PointChoice, RecoveryPoint

DEFAULT_QUOTA_BYTES = 1 << 40
RESERVE_BYTES = 256 << 20
"""What layers leave free on the retention volume: replication comes first."""


@dataclass(frozen=True, slots=True)
class ViewedJournal:
    """What views need of a journal. ``lock`` keeps points from being dropped; ``lost`` says which cannot be reached."""

    folder: UndoFolder
    catalogue: Catalogue
    redo: RedoLog
    lock: threading.RLock
    devices: Callable[[], Mapping[int, BlockDevice]]
    lost: Callable[[], Lost]
    on_damage: Callable[[UndoDamagedError], None]


class OpenView:
    """All disks at one place, by index. Close it: while it is open its point and newer ones are kept."""

    def __init__(
        self, destination: Destination, disks: Mapping[int, View], room: Room, unpin: Callable[[], None]
    ) -> None:
        self.destination = destination
        self.disks = disks
        self._room = room
        self._unpin = unpin

    @property
    def point(self) -> RecoveryPoint:
        return self.destination.point

    def only(self, disk: int) -> View:
        """One disk of it; closing that closes all. Raises NotFoundError."""
        if disk not in self.disks:
            self.close()
            raise NotFoundError(f"the replica has no disk {disk}")
        view = self.disks[disk]
        view.on_close = self.close
        return view

    @property
    def layer_bytes(self) -> int:
        return self._room.used_bytes

    def close(self) -> None:
        for view in self.disks.values():
            view.close()
        self._unpin()


class Views:
    def __init__(self, journal: ViewedJournal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._pins: dict[object, int] = {}
        self._opening = 0

    def open(
        self, choice: PointChoice, *, writable: bool = False, quota_bytes: int = DEFAULT_QUOTA_BYTES,
        progress: Progress = lambda done, total: None,
    ) -> OpenView:  # fmt: skip
        """Raises NotFoundError, ConflictError (abandoned; disks not open), IntegrityError (lost), OutOfSpaceError."""
        journal, pin = self._journal, object()
        with journal.lock:  # no point is being dropped now
            if not journal.devices():
                raise ConflictError("the replica's disks are not open", remedy="wait until the replica is attached")
            self._pin(pin, -1, 1)  # all, until the place is known
        try:
            destination = self._choose(choice)
            self._pin(pin, destination.base_ordinal)
            return self._opened(destination, pin, writable, quota_bytes, progress)
        except UndoDamagedError as error:
            self._unpin(pin)
            journal.on_damage(error)
            raise
        except BaseException:
            self._unpin(pin)
            raise
        finally:
            self._pin(pin, None, -1)

    def _choose(self, choice: PointChoice) -> Destination:
        journal = self._journal
        applied = journal.catalogue.applied
        return choose(choice, journal.catalogue.points(), journal.redo, applied.ordinal, journal.lost())

    def _opened(
        self, destination: Destination, pin: object, writable: bool, quota_bytes: int, progress: Progress
    ) -> OpenView:
        journal = self._journal
        forward = destination.ordinal > destination.base_ordinal
        room = Room(journal.folder.directory, quota_bytes, RESERVE_BYTES)
        index = UndoIndex(_Files(journal.folder, journal.catalogue, destination.base_ordinal))
        disks = {
            number: View(number, device, index, room.layer() if writable or forward else None, journal.on_damage)
            for number, device in journal.devices().items()
        }
        view = OpenView(destination, disks, room, lambda: self._unpin(pin))
        try:
            if forward:
                self._redo_forward(destination, disks, progress)
                if not writable:
                    for disk in disks.values():
                        disk.seal()
        except BaseException:
            view.close()
            raise
        return view

    def _redo_forward(self, destination: Destination, disks: Mapping[int, View], progress: Progress) -> None:
        total = destination.ordinal - destination.base_ordinal
        for record in self._journal.redo.read_after(destination.base_ordinal, destination.ordinal):
            if record.item.header.extents_bytes == 0:
                continue
            batch = decode(record)
            payloads = Payloads([payload_of(batch)])
            for disk, pieces in last_write.resolve([last_write.extent_table(batch.extents)]).items():
                write_pieces(disks[disk], pieces, payloads)
            progress(record.ordinal - destination.base_ordinal, total)

    def _pin(self, pin: object, ordinal: int | None, opening: int = 0) -> None:
        with self._lock:
            self._opening += opening
            if ordinal is not None:
                self._pins[pin] = ordinal

    def _unpin(self, pin: object) -> None:
        with self._lock:
            self._pins.pop(pin, None)

    def prove(self, go_on: Callable[[int], bool]) -> Proven:
        """Read all closed undo and compare it with its checksums (``scrub``)."""
        return scrub.prove(self._journal.folder, self._journal.catalogue, self._journal.lock, go_on)

    # --- what is kept -----------------------------------------------------------------------------------------------

    @property
    def kept_from(self) -> int | None:
        """Points at this ordinal and newer ones are not dropped now; None: all may be."""
        with self._lock:
            return min(self._pins.values(), default=None)

    @property
    def opening(self) -> bool:
        """Whether a view is being opened: it may still need redo."""
        return self._opening > 0

    def check_droppable(self, points: Iterable[CataloguedPoint], point_id: str) -> None:
        """Raises ConflictError when a view keeps the point."""
        kept = self.kept_from
        if kept is not None and any(one.point.point_id == point_id and one.ordinal >= kept for one in points):
            raise ConflictError("a view of this recovery point or of an older one is open", code="PointInUse",
                                remedy="close the view first")  # fmt: skip


class _Files:
    """See :class:`failback.journal.run_table.UndoFiles`."""

    def __init__(self, folder: UndoFolder, catalogue: Catalogue, ordinal: int) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._ordinal = ordinal

    def generation(self) -> tuple[int, int]:
        return cuts(), self._catalogue.layout_changes

    def since_point(self) -> Sequence[Interval]:
        return [entry for entry in self._catalogue.intervals() if entry.first_ordinal >= self._ordinal]

    def return_file(self) -> tuple[str, Durable] | None:
        if not self._catalogue.get("rollback_phase"):
            return None
        return RETURN_FILE, self._catalogue.durable(RETURN_FILE)

    def path(self, name: str) -> Path:
        return self._folder.path(name)
