"""The mobility service's TOML: the sample is valid, mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from failback.errors import ConfigurationError
from failback.mobility.config import Compression, load

ROOT = Path(__file__).resolve().parents[2]
SERVER = '[configuration_server]\nurl = "https://cs:443"\nca_file = "/etc/failback/ca.pem"\n'


def test_the_shipped_sample_is_valid_and_shows_the_defaults() -> None:
    config = load(ROOT / "deploy" / "mobility.toml")
    assert config.compression is Compression.AUTO and config.ring_megabytes == 64
    text = (ROOT / "deploy" / "mobility.toml").read_text()
    for key in ("disks", "exclude_disks", "pre_script", "post_script", "unacknowledged_megabytes", "pin_directory"):
        assert key in text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ring_megabytes = 48", "power of two"),
        ('compression = "gzip"', "not one of"),
        ('pre_script = "freeze.sh"', "absolute"),
        ("colour = 1", "unknown key"),
        ("unacknowledged_megabytes = 0", "at least 1"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "mobility.toml"
    path.write_text(f"{line}\n{SERVER}")
    with pytest.raises(ConfigurationError, match=says):
        load(path)
