"""Where the command line sends its token."""

from pathlib import Path

import pytest

from failback.cli import settings
from failback.errors import ConfigurationError

REST = {"ca_file": "/ca.pem", "token_file": "/token"}


@pytest.mark.parametrize("server", ["http://cs.example", "HTTP://cs.example:80", "ftp://cs.example"])
def test_the_token_never_travels_in_the_clear(server: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not an https"):
        settings.find({"server": server, **REST}, {"HOME": str(tmp_path)})


@pytest.mark.parametrize("server", ["cs.example", "https://cs.example", "https://cs.example/"])
def test_https_is_meant(server: str, tmp_path: Path) -> None:
    assert settings.find({"server": server, **REST}, {"HOME": str(tmp_path)}).server == "https://cs.example"
