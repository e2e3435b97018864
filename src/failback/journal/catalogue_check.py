"""Is this catalogue one that we wrote? Looked at once, when a journal is opened, before anything is believed.

SQLite has no checksums: bytes that changed under it are values that nobody stored. A catalogue is taken when SQLite finds its
pages in order, every fact has its type, every row means something, and every undo file lies where undo files lie. Anything
else is ``CatalogueDamaged``: the journal is left alone, nothing of it is applied, cut or removed.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

from failback.errors import FailbackError, IntegrityError
from failback.journal import unproven
from failback.journal.catalogue import Applied, Catalogue
from failback.journal.damage import Damage
from failback.journal.rollback import RETURNING, ROLLED, ROLLING, Destination
from failback.model.points import PointKind, ReplicaDisk
from failback.runtime import records

_UNDO_FILE = re.compile(r"undo/\d{12}\.undo")
_LARGEST = 1 << 62

# Columns that hold whole numbers of at least 0 (the ordinal of "before reprotect" is 0; -1 stands for nothing there).
_NUMBERS = {
    "points": ("ordinal", "wall_ns", "epoch", "sequence", "ring", "abandoned"),
    "intervals": ("interval_id", "first_ordinal"),
    "undo_files": ("size_bytes", "records"),
    "gaps": ("started_wall_ns", "ended_wall_ns"),
    "marks": ("ordinal", "published"),
    "replies": ("epoch", "sequence", "disk_index", "first_block", "count"),
}
_TEXTS = {
    "points": ("point_id",),
    "intervals": ("file",),
    "undo_files": ("file", "damage"),
    "gaps": ("cause",),
    "marks": ("mark_id",),
    "replies": ("pass_id",),
}


def check(catalogue: Catalogue) -> None:
    """Raises IntegrityError (CatalogueDamaged) naming what is wrong, and StorageError."""
    found = catalogue.rows("PRAGMA quick_check")
    if found != [("ok",)]:
        raise _damaged(catalogue, f"SQLite finds: {found[0][0] if found else 'nothing'}")
    _check_facts(catalogue)
    for table, columns in _NUMBERS.items():
        for row in catalogue.rows(f"SELECT {', '.join(columns)} FROM {table}"):
            if not all(isinstance(value, int) and 0 <= value <= _LARGEST for value in row):
                raise _damaged(catalogue, f"a row of {table} holds {row}")
    for table, columns in _TEXTS.items():
        for row in catalogue.rows(f"SELECT {', '.join(columns)} FROM {table}"):
            if not all(isinstance(value, str) for value in row):
                raise _damaged(catalogue, f"a row of {table} holds {row}")
    _check_meaning(catalogue)


def _check_meaning(catalogue: Catalogue) -> None:
    kinds = {kind.value for kind in PointKind}
    for (kind,) in catalogue.rows("SELECT kind FROM points"):
        if kind not in kinds:
            raise _damaged(catalogue, f"a point is of kind {kind!r}")
    files = [file for (file,) in catalogue.rows("SELECT file FROM intervals")]
    if not files:
        raise _damaged(catalogue, "there is no interval")
    for file in files:
        if not _UNDO_FILE.fullmatch(file):
            raise _damaged(catalogue, f"an undo file is named {file!r}")
    for (differing,) in catalogue.rows("SELECT differing FROM replies"):
        if not isinstance(differing, bytes):
            raise _damaged(catalogue, "a reply to digests holds no bitmap")


def _uuid(value: Any) -> None:
    if str(uuid.UUID(value)) != value.lower():
        raise ValueError(value)


def _number(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise ValueError(value)


def _number_if_any(value: Any) -> None:
    if value is not None:
        _number(value)


def _cut_if_any(value: Any) -> None:
    if value is not None:
        for number in value:
            _number(number)
        if len(value) != 3:
            raise ValueError(value)


def _disks(value: Any) -> None:
    disks = [records.decode(disk, ReplicaDisk) for disk in value]
    if len({disk.index for disk in disks}) != len(disks) or any(disk.size_bytes < 0 for disk in disks):
        raise ValueError("disks")


def _applied(value: Any) -> None:
    applied = records.decode(value, Applied)
    for number in (applied.ordinal, applied.epoch, applied.sequence, applied.ring, applied.wall_ns):
        _number(number)


def _damage(value: Any) -> None:
    if value is not None:
        damage = records.decode(value, Damage)
        _number(damage.ordinal)
        _number(damage.epoch)


def _destination(value: Any) -> None:
    if value is not None:
        records.decode(value, Destination)


def _phase(value: Any) -> None:
    if value not in (None, "", ROLLING, ROLLED, RETURNING):
        raise ValueError(value)


def _state(value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(value)


def _names(value: Any) -> None:
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise ValueError(value)


def _yes_or_no(value: Any) -> None:
    if value not in (None, True, False):
        raise ValueError(value)


_FACTS: dict[str, Callable[[Any], None]] = {
    "machine_id": _uuid,
    "incarnation": _uuid,
    "disks": _disks,
    "state": _state,
    "epoch": _number,
    "applied": _applied,
    "after_pass": _yes_or_no,
    "damage": _damage,
    "rollback_phase": _phase,
    "rollback_destination": _destination,
    "created": _names,
    unproven.UNTIL: _number_if_any,
    unproven.CUT: _cut_if_any,
    unproven.PACE: _number_if_any,
}
_NEEDED = ("machine_id", "incarnation", "disks", "state", "epoch")


def _check_facts(catalogue: Catalogue) -> None:
    """Facts that this version does not know only have to be JSON: a newer one may have left them."""
    found: dict[str, Any] = {}
    for key, text in catalogue.rows("SELECT key, value FROM facts"):
        try:
            found[key] = records.parse_json(text)
            _FACTS.get(key, _anything)(found[key])
        except (ValueError, TypeError, AttributeError, FailbackError) as error:
            raise _damaged(catalogue, f"the fact {key!r} is {str(text)[:80]!r}") from error
    for key in _NEEDED:
        if key not in found:
            raise _damaged(catalogue, f"the fact {key!r} is missing")
    if found.get("rollback_phase") and not found.get("rollback_destination"):
        raise _damaged(catalogue, "a rollback is under way and nobody knows to where")


def _anything(_value: Any) -> None:
    return


def _damaged(catalogue: Catalogue, reason: str) -> IntegrityError:
    return IntegrityError(
        f"{catalogue.path} is damaged: {reason}",
        code="CatalogueDamaged",
        possible_causes="the retention volume lost or changed bytes that were durable",
        remedy="check the volume; then disable the item's protection and reprotect it: the disks are compared by hash",
    )
