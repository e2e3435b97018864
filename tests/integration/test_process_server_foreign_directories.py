"""A process server deletes spools that are not assigned, and nothing else that lies in its spool directory."""

import uuid
from pathlib import Path

from failback.model.components import ProcessServerAssignment
from failback.model.ids import MachineId
from failback.process_server.assignment import delete_spool, plan, spools_on_disk

MACHINE = str(uuid.uuid4())


def test_what_is_no_spool_is_left_alone(tmp_path: Path) -> None:
    """For instance spool_directory = "/var/lib", where postgresql/15 lies."""
    elsewhere = tmp_path / "elsewhere" / "3"
    spools = tmp_path / "spools"
    kept = [spools / "postgresql" / "15", spools / "deleted-photos" / "2024", spools / MACHINE.upper() / "1", elsewhere]
    gone = [spools / MACHINE / "2", spools / f"deleted-{MACHINE}-1"]
    for directory in (*kept, *gone):
        directory.mkdir(parents=True)
        (directory / "data").write_bytes(b"data")
    (spools / str(uuid.uuid4())).symlink_to(elsewhere.parent)
    found = spools_on_disk(spools)
    assert found == {(MachineId(MACHINE), 2)}
    for key in plan(found, ProcessServerAssignment()).delete:
        delete_spool(spools, key)
    assert all((directory / "data").exists() for directory in kept)
    assert not any(directory.exists() for directory in gone)
