"""Many small pieces in one call: the same bytes as one call after the other, the same errors, with the C library and without."""

import importlib.util
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from failback.block import scattered
from failback.block.faulty import Failing
from failback.block.raw import RawDevice
from failback.errors import FailbackError, StorageError
from failback.journal import last_write, undo, undo_packing
from failback.journal.applier import Payloads, write_pieces
from failback.journal.format import UNDO_BLOCK_BYTES, UNDO_RECORD_BYTES, RunKind, UndoCodec, parse_undo_record
from failback.model.stream import Operation
from failback.protocol.extents import EXTENT
from failback.runtime import faults, native

SIZE = 8 << 20
BUILD = Path(__file__).resolve().parents[2] / "build_capture.py"


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """As ``make`` does: the library of this very source."""
    found = importlib.util.spec_from_file_location("build_capture", BUILD)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    assert module.compile_native_library() == native.PATH


@pytest.fixture(params=["C library", "Python"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "Python":
        monkeypatch.setenv("FAILBACK_NATIVE", "off")
    native.library.cache_clear()
    request.addfinalizer(native.library.cache_clear)
    assert (native.library() is None) == (request.param == "Python")
    return str(request.param)


@pytest.fixture
def device(tmp_path: Path) -> RawDevice:
    path = tmp_path / "disk"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return RawDevice(path)


def group(seed: int) -> tuple[last_write.Pieces, Payloads, bytearray]:
    """A random group of batches, and what it makes of the disk."""
    chance = random.Random(seed)
    disk = bytearray(random.Random(1).randbytes(SIZE))
    tables, payloads = [], []
    for _ in range(4):
        rows, payload = [], b""
        for _ in range(chance.randint(0, 60)):
            length = 512 * chance.randint(1, 24)
            offset = 512 * chance.randint(0, (SIZE - length) // 512)
            operation = chance.choice([Operation.DATA] * 5 + [Operation.ZERO])
            content = chance.randbytes(length) if operation is Operation.DATA else bytes(length)
            disk[offset : offset + length] = content
            payload += content if operation is Operation.DATA else b""
            rows.append(EXTENT.pack(0, int(operation), 0, length, offset))
        tables.append(last_write.extent_table(b"".join(rows)))
        payloads.append(memoryview(payload))
    return last_write.resolve(tables)[0], Payloads(payloads), disk


@pytest.mark.parametrize("seed", range(8))
def test_a_group_is_written_as_extent_after_extent(ways: str, device: RawDevice, seed: int) -> None:
    pieces, payloads, wanted = group(seed)
    assert write_pieces(device, pieces, payloads) == int(pieces.length.sum())
    assert device.read(0, SIZE) == bytes(wanted)


def test_a_wrapped_device_is_written_too(ways: str, device: RawDevice) -> None:
    pieces, payloads, wanted = group(3)
    write_pieces(Failing(device, after=10_000), pieces, payloads)
    assert device.read(0, SIZE) == bytes(wanted)


def test_an_armed_fault_sees_every_piece(ways: str, device: RawDevice) -> None:
    pieces, payloads, _ = group(3)
    faults.arm("apply.mid=error@7")
    try:
        with pytest.raises(OSError, match=r"apply\.mid"):
            write_pieces(device, pieces, payloads)
    finally:
        faults.arm("")


@pytest.mark.parametrize("ids", [[0, 1, 2], [5, 9, 10, 300, 2047], list(range(100, 140)), [2040, 2041, 2046, 2047]])
def test_blocks_are_read_as_they_are(ways: str, device: RawDevice, ids: list[int]) -> None:
    content = np.full((len(ids), UNDO_BLOCK_BYTES), 0xAA, np.uint8)
    undo.read_blocks(device, np.array(ids, np.int64), content)
    for number, block in enumerate(ids):
        assert content[number].tobytes() == device.read(block * UNDO_BLOCK_BYTES, UNDO_BLOCK_BYTES)


def test_behind_a_cut_last_block_and_in_holes_there_are_zeroes(ways: str, tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"x" * (3 * UNDO_BLOCK_BYTES + 512))
    os.truncate(path, 40 * UNDO_BLOCK_BYTES + 512)
    short = RawDevice(path)
    ids = np.arange(41)
    content = np.full((41, UNDO_BLOCK_BYTES), 0xAA, np.uint8)
    undo.read_blocks(short, ids, content)
    assert content.tobytes() == path.read_bytes() + bytes(UNDO_BLOCK_BYTES - 512)
    content = np.full((2, UNDO_BLOCK_BYTES), 0xAA, np.uint8)
    undo.read_blocks(short, np.array([0, 40]), content)
    assert content[0].tobytes() == b"x" * UNDO_BLOCK_BYTES
    assert not content[1].any()


def test_blocks_are_written_back(ways: str, device: RawDevice) -> None:
    ids = np.array([0, 1, 7, 100, 101, 2047])
    content = np.random.default_rng(5).integers(0, 256, (len(ids), UNDO_BLOCK_BYTES), np.uint8)
    assert undo.write_blocks(device, ids, content) == content.nbytes
    found = np.empty_like(content)
    undo.read_blocks(device, ids, found)
    assert np.array_equal(found, content)


def test_a_file_that_ends_too_soon_is_named(ways: str, device: RawDevice) -> None:
    os.truncate(device.path, SIZE // 2)
    with pytest.raises(StorageError, match="ends at"):
        undo.read_blocks(device, np.array([0, 1500]), np.empty((2, UNDO_BLOCK_BYTES), np.uint8))


def test_a_piece_behind_the_end_is_refused(ways: str, device: RawDevice) -> None:
    column = [np.array([value]) for value in (SIZE - 512, 1024, 0, int(Operation.DATA))]
    with pytest.raises(FailbackError, match="outside the disk"):
        write_pieces(device, last_write.Pieces(*column), Payloads([memoryview(bytes(1024))]))


def test_a_failed_write_says_where_and_why(tmp_path: Path) -> None:
    """The kernel refuses to write behind the process's limit for a file."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    program = f"""
import numpy as np, resource, signal
from pathlib import Path
from failback.block import scattered
from failback.block.raw import RawDevice
from failback.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
device = RawDevice(Path({str(path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({SIZE // 2}, {resource.RLIM_INFINITY}))
memory = np.ones(4096, np.uint8)
offsets = np.array([0, {SIZE // 2 + 4096}, 8192])
assert scattered.can(device)
try:
    scattered.write(device, offsets, np.full(3, 4096), np.full(3, memory.ctypes.data))
except StorageError as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert f"at {SIZE // 2 + 4096}: File too large" in done.stdout, done.stderr
    assert path.read_bytes()[:4096] == b"\1" * 4096


def test_a_piece_that_lies_in_no_buffer_is_noticed() -> None:
    memory = scattered.Memory([b"a" * 100, b"", b"b" * 50])
    inside = memory.addresses(np.array([0, 99, 100]), np.array([100, 1, 50]))
    assert inside is not None
    assert len(inside) == 3
    assert memory.addresses(np.array([90]), np.array([20])) is None  # across two
    assert memory.addresses(np.array([140]), np.array([20])) is None  # behind the last
    assert scattered.Memory([]).addresses(np.array([0]), np.array([1])) is None


@pytest.mark.parametrize(("kind", "codec"), [("text", UndoCodec.ZSTD), ("random", UndoCodec.RAW)])
def test_a_record_is_compressed_where_a_sample_shrinks(kind: str, codec: UndoCodec) -> None:
    chance = np.random.default_rng(2)
    content = chance.integers(0, 4 if kind == "text" else 256, (200, UNDO_BLOCK_BYTES), np.uint8)
    content[17] = 0
    parts, runs = undo_packing.pack_record(0, np.arange(200) * 2, content, 1)
    header = parse_undo_record(bytes(parts[0][:UNDO_RECORD_BYTES]))
    assert header is not None
    assert header.codec is codec
    assert header.raw_bytes == 199 * UNDO_BLOCK_BYTES
    assert int((runs["kind"] == int(RunKind.ZERO)).sum()) == 1


def test_memory_of_chunks_is_used_again() -> None:
    memory = undo_packing.ChunkMemory()
    first = memory.take()
    memory.give_back(first)
    assert memory.take() is first
    assert memory.take() is not first
