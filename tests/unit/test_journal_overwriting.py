"""The pieces that let a rollback save, sync and overwrite at once: parts of the saved set, and a sync beside appends."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from failback.journal.format import UNDO_BLOCK_BYTES
from failback.journal.undo import REGION_BLOCKS, SavedBlocks, UndoFile, pack_record, pieces_of, read_records

MACHINE = "11111111-1111-4111-8111-111111111111"
INCARNATION = "22222222-2222-4222-8222-222222222222"


def record_of(*ids: int) -> bytes:
    content = np.full((len(ids), UNDO_BLOCK_BYTES), 7, np.uint8)
    return pack_record(0, np.array(ids, np.int64), content, 1)[0]


def test_a_part_of_the_saved_set_is_what_its_mask_says() -> None:
    chance = random.Random(5)
    blocks = SavedBlocks()
    mask = np.zeros(REGION_BLOCKS, np.bool_)
    mask[[chance.randrange(REGION_BLOCKS) for _ in range(9000)]] = True
    blocks.add_mask(0, 3, mask)
    for _ in range(300):
        begin = chance.randrange(REGION_BLOCKS)
        stop = min(REGION_BLOCKS, begin + chance.randrange(1, 600))
        assert (blocks.part(0, 3, begin, stop) == mask[begin:stop]).all()
    assert blocks.part(0, 3, 0, REGION_BLOCKS).sum() == mask.sum()
    assert not blocks.part(1, 3, 5, 50).any()
    assert len(blocks.part(1, 3, 5, 50)) == 45


def test_a_sync_beside_appends_calls_durable_only_what_was_there_when_it_began(tmp_path: Path) -> None:
    file = UndoFile(tmp_path / "000000000001.undo", MACHINE, INCARNATION, 1)
    file.append(record_of(1, 2))
    begun = file.appended
    file.append(record_of(9))
    file.sync(begun)
    assert file.durable == begun
    assert begun.records == 1
    file.sync(begun)  # again: nothing is taken back
    file.cut_back()
    file.close()
    again = UndoFile(tmp_path / "000000000001.undo", MACHINE, INCARNATION, 1, begun)
    assert again.saved.part(0, 0, 0, 12).nonzero()[0].tolist() == [1, 2]
    again.close()


def test_a_record_of_which_every_block_is_known_need_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "000000000001.undo"
    file = UndoFile(path, MACHINE, INCARNATION, 1)
    file.append(record_of(1, 2, 3))
    file.append(record_of(8, 9))
    file.sync()
    known = SavedBlocks()
    mask = np.zeros(REGION_BLOCKS, np.bool_)
    mask[[1, 2, 3, 9]] = True
    known.add_mask(0, 0, mask)
    first, second = read_records(path, file.durable)
    assert first.has_proven_table
    assert pieces_of(first, known, present=False) == []
    assert [piece.ids.tolist() for piece in pieces_of(second, known, present=False)] == [[8]]
    assert [piece.ids.tolist() for piece in pieces_of(first, known, present=True)] == [[1, 2, 3]]
    file.close()
