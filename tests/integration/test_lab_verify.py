"""The demo's judges must condemn what is wrong: differing disks, lost rows, damaged files, dirty file systems."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from failback.lab import image, processes, servers, verify, witness
from failback.lab.guest import ledger
from failback.lab.layout import Layout
from failback.lab.witness import Heard

SIDE = "0a0f3d5e-5d1c-4b52-8f3e-6c1e5ed9e002"


@pytest.fixture
def data_disk(tmp_path: Path) -> Path:
    content = tmp_path / "content"
    content.mkdir()
    ledger.seed(content, 40, SIDE)
    disk = tmp_path / "data.raw"
    image.make_ext4(disk, "ledger-data", 32 << 20, content)
    return disk


def heard(content: verify.LedgerContent) -> list[Heard]:
    return [Heard(number, checksum, SIDE, float(number)) for number, checksum in content.rows.items()]


def test_whole_ledger_is_read_from_the_image(data_disk: Path, tmp_path: Path) -> None:
    content = verify.read_ledger(data_disk, tmp_path / "scratch")
    assert content.problem == ""
    assert sorted(content.rows) == list(range(1, 41))
    assert verify.lost(heard(content), content) == []
    assert verify.file_system_problem(data_disk) == ""


def test_lost_and_altered_commits_are_named(data_disk: Path, tmp_path: Path) -> None:
    content = verify.read_ledger(data_disk, tmp_path / "scratch")
    told = [*heard(content), Heard(41, "beyond", SIDE, 41.0), Heard(7, "another checksum", SIDE, 42.0)]
    assert verify.lost(told, content) == [7, 41]


@pytest.mark.parametrize(
    ("statement", "problem"),
    [("DELETE FROM entries WHERE number = 9", "row 9 is missing"),
     ("UPDATE entries SET payload = x'00' WHERE number = 5", "row 5 does not match")],
)  # fmt: skip
def test_holes_and_wrong_rows_are_problems(tmp_path: Path, statement: str, problem: str) -> None:
    content = tmp_path / "content"
    content.mkdir()
    ledger.seed(content, 20, SIDE)
    connection = ledger.open_database(content)
    connection.execute(statement)
    connection.close()
    disk = tmp_path / "data.raw"
    image.make_ext4(disk, "ledger-data", 32 << 20, content)
    assert problem in verify.read_ledger(disk, tmp_path / "scratch").problem


def test_difference_of_one_byte_is_seen(data_disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(data_disk.read_bytes())
    assert verify.compare_disks(data_disk, other).identical
    with other.open("r+b") as stream:
        stream.seek(5 * 4096 + 17)
        byte = stream.read(1)
        stream.seek(5 * 4096 + 17)
        stream.write(bytes([byte[0] ^ 1]))
    difference = verify.compare_disks(data_disk, other)
    assert (difference.identical, difference.first_byte, difference.bytes_differing) == (False, 5 * 4096, 4096)
    with other.open("ab") as stream:
        stream.write(b"x")
    assert verify.compare_disks(data_disk, other).sizes[1] == data_disk.stat().st_size + 1


def test_damaged_file_system_is_a_problem(data_disk: Path) -> None:
    with data_disk.open("r+b") as stream:
        stream.seek(1024 + 1024 * 4)
        stream.write(bytes(8192))
    assert verify.file_system_problem(data_disk) != ""


def test_files_are_put_read_and_judged(tmp_path: Path) -> None:
    good = b"content of a good file"
    name = f"00000020-{hashlib.sha256(good).hexdigest()}.bin"
    empty = tmp_path / "empty"
    empty.mkdir()
    disk = tmp_path / "system.raw"
    image.make_ext4(disk, "ledger-root", 32 << 20, empty)
    place = f"/var/lib/ledger/{ledger.FILES}/"
    image.put_files(disk, {place + name: (good, 0o600)}, tmp_path / "scratch")
    assert image.read_file(disk, place + name, tmp_path / "out") == good
    assert verify.damaged_files(disk, tmp_path / "judge") == (1, [])
    image.put_files(disk, {place + name: (b"altered", 0o600)}, tmp_path / "scratch")
    assert verify.damaged_files(disk, tmp_path / "judge") == (1, [name])
    assert verify.file_system_problem(disk) == ""


def test_witness_writes_a_commit_before_it_answers(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "lab")
    layout.logs.mkdir(parents=True)
    ports = servers.choose_ports()
    process = servers.start_witness(layout, ports)
    try:
        servers.await_listening(layout, process, ports[servers.WITNESS])
        teller = ledger.Witness("127.0.0.1", ports[servers.WITNESS])
        for number in (1, 2, 3):
            teller.tell(number, f"sum-{number}", SIDE)
            newest = witness.newest(layout.witness_file, SIDE)
            assert newest is not None
            assert (newest.number, newest.checksum) == (number, f"sum-{number}")
        assert teller.channel is not None
        teller.channel.close()
    finally:
        processes.stop(process)
    assert not processes.alive(process)
    processes.stop(process)
