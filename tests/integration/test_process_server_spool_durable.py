"""What a spool calls spooled is on the disk, also when the process that wrote it was killed before its sync (D5)."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from process_server_doubles import make_batch

from failback.model.ids import MachineId
from failback.process_server.spool import Spool
from failback.protocol.frames import RawItem, encode

MACHINE = MachineId(str(uuid.UUID(int=5)))


def _item(sequence: int) -> RawItem:
    return RawItem.from_buffer(b"".join(bytes(part) for part in encode(make_batch(MACHINE, sequence))))


def test_items_of_a_killed_process_are_synced_before_they_are_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "machine" / "1"
    directory.parent.mkdir()
    spool = Spool.open(directory, MACHINE, 1)
    spool.append([_item(1), _item(2)])
    spool.close()
    (segment,) = directory.glob("*.items")
    with segment.open("ab") as stream:  # written, and killed before the sync
        stream.write(_item(3).buffer)
    synced: list[int] = []

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fdatasync", note)
    monkeypatch.setattr(os, "fsync", note)
    again = Spool.open(directory, MACHINE, 1)
    assert again.spooled_sequence == 3
    assert segment.stat().st_ino in synced
    again.close()
