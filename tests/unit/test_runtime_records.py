"""The parsing border: dataclasses to tables and back, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from failback.errors import ConfigurationError
from failback.model.components import MobilityAssignment, SourceDisk, SyncMode
from failback.model.ids import DiskId, GroupId, MachineId, PassId, new_id
from failback.runtime import config, records


@dataclass(frozen=True)
class Listener:
    port: int
    timeout_seconds: float = 1.5


@dataclass(frozen=True)
class Sample:
    directory: Path
    listeners: tuple[Listener, ...] = ()
    name: str | None = None
    strict: bool = False


def test_an_assignment_survives_the_wire() -> None:
    disk = SourceDisk(DiskId(new_id()), 0, "serial-1", 1 << 30, SyncMode.COMPARE)
    assignment = MobilityAssignment(True, MachineId(new_id()), 3, GroupId(""), PassId(new_id()), None, (disk,))
    assert records.decode(records.encode(assignment), MobilityAssignment) == assignment


def test_a_file_becomes_a_dataclass(tmp_path: Path) -> None:
    path = tmp_path / "sample.toml"
    path.write_text('directory = "/srv"\n[[listeners]]\nport = 9443\ntimeout_seconds = 2\n', encoding="utf-8")
    assert config.load(path, Sample) == Sample(Path("/srv"), (Listener(9443, 2.0),))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('directory = "/srv"\nnmae = "x"\n', "unknown key 'nmae'"),
        ('name = "x"\n', "key 'directory' is missing"),
        ("directory = 3\n", "a path is expected"),
        ('directory = "/srv"\n[[listeners]]\nport = "9443"\n', "listeners[0]: port: int is expected, not str"),
        ('directory = "/srv"\nstrict = 1\n', "bool is expected, not int"),
        ("directory = \n", "not valid TOML"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "sample.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        config.load(path, Sample)
    assert sentence in caught.value.message


def test_a_message_of_a_newer_version_may_say_more() -> None:
    assert records.decode({"port": 1, "new": True}, Listener) == Listener(1)


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        config.load(tmp_path / "absent.toml", Sample)
