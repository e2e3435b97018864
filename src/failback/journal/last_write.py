"""What a group of batches finally writes: last write wins, by sector, zero and discard records included (D3). Pure.

``resolve`` takes the extent tables of consecutive batches, in stream order, and returns for each disk disjoint pieces
sorted by offset. Applying the pieces equals applying all extents one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from failback.errors import ProtocolError
from failback.model.stream import Operation
from failback.protocol.extents import DTYPE_FIELDS, SECTOR_BYTES

EXTENT_DTYPE = np.dtype(DTYPE_FIELDS)
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Disjoint pieces of one disk, sorted by ``offset``. ``source`` is the place in the group's joined payload (DATA)."""

    offset: Int64s
    length: Int64s
    source: Int64s
    operation: Int64s

    @property
    def end(self) -> Int64s:
        return self.offset + self.length


def extent_table(packed: bytes | memoryview) -> npt.NDArray[np.void]:
    return np.frombuffer(packed, dtype=EXTENT_DTYPE)


def check(packed: bytes | memoryview, sizes: dict[int, int], payload_raw_bytes: int) -> None:
    """Raise ProtocolError unless every extent lies on a known disk, inside it, sector by sector, and the payload fits."""
    table = extent_table(packed)
    if len(table) == 0:
        if payload_raw_bytes:
            raise ProtocolError("a batch without extents carries a payload")
        return
    offset, length = table["offset"].astype(np.uint64), table["length"].astype(np.uint64)
    if bool(np.any((offset % SECTOR_BYTES) != 0)) or bool(np.any((length % SECTOR_BYTES) != 0)) or not length.all():
        raise ProtocolError("an extent is empty or not made of whole sectors")
    if not bool(np.isin(table["operation"], [int(operation) for operation in Operation]).all()):
        raise ProtocolError("an extent has an unknown operation")
    for disk in np.unique(table["disk"]).tolist():
        if disk not in sizes:
            raise ProtocolError(f"an extent names disk {disk}, which the replica does not have")
        mine = table["disk"] == disk
        if bool(np.any(offset[mine] > sizes[disk])) or bool(np.any(offset[mine] + length[mine] > sizes[disk])):
            raise ProtocolError(f"an extent lies outside disk {disk} of {sizes[disk]} bytes")
    if int(length[table["operation"] == Operation.DATA].sum()) != payload_raw_bytes:
        raise ProtocolError("the payload of a batch does not have the length that its extents say")


def resolve(tables: list[npt.NDArray[np.void]]) -> dict[int, Pieces]:
    """Pieces by disk index. Sources count through the payloads of all tables, joined in order."""
    joined = np.concatenate(tables) if tables else np.empty(0, EXTENT_DTYPE)
    length = joined["length"].astype(np.int64)
    carried = np.where(joined["operation"] == Operation.DATA, length, 0)
    source = np.cumsum(carried) - carried
    offset = joined["offset"].astype(np.int64)
    operation = joined["operation"].astype(np.int64)
    result: dict[int, Pieces] = {}
    for disk in np.unique(joined["disk"]).tolist():
        mine = np.flatnonzero(joined["disk"] == disk)
        pieces = Pieces(offset[mine], length[mine], source[mine], operation[mine])
        result[disk] = _merge_empty(_disjoint(pieces))
    return result


def _disjoint(pieces: Pieces) -> Pieces:
    order = np.argsort(pieces.offset, kind="stable")
    start, end = pieces.offset[order], pieces.end[order]
    if bool(np.all(start[1:] >= end[:-1])):
        return _take(pieces, order)
    bounds = np.unique(np.concatenate([start, end]))
    owner = np.full(len(bounds) - 1, -1, np.int64)
    low = np.searchsorted(bounds, pieces.offset).tolist()
    high = np.searchsorted(bounds, pieces.end).tolist()
    for index in range(len(low)):  # stream order: the later one takes the sectors over
        owner[low[index] : high[index]] = index
    changes = np.flatnonzero(np.diff(owner)) + 1
    first = np.concatenate([[0], changes])
    last = np.concatenate([changes, [len(owner)]])
    keep = owner[first] >= 0
    first, last = first[keep], last[keep]
    who = owner[first]
    begin = bounds[first]
    return Pieces(begin, bounds[last] - begin, pieces.source[who] + begin - pieces.offset[who], pieces.operation[who])


def _take(pieces: Pieces, order: Int64s) -> Pieces:
    return Pieces(pieces.offset[order], pieces.length[order], pieces.source[order], pieces.operation[order])


def _merge_empty(pieces: Pieces) -> Pieces:
    """Join neighbours that carry no data and do the same: a fresh disk's zeroes become few long holes."""
    count = len(pieces.offset)
    if count < 2:
        return pieces
    same = (
        (pieces.offset[1:] == pieces.end[:-1])
        & (pieces.operation[1:] == pieces.operation[:-1])
        & (pieces.operation[1:] != Operation.DATA)
    )
    first = np.concatenate([[0], np.flatnonzero(~same) + 1])
    last = np.concatenate([first[1:], [count]]) - 1
    return Pieces(
        pieces.offset[first],
        pieces.end[last] - pieces.offset[first],
        pieces.source[first],
        pieces.operation[first],
    )
