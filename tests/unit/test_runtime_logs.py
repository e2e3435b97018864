"""A line of the log is one line, whatever a peer calls itself, and holds no secret."""

import json
import logging

import pytest

from failback.runtime.logs import _Lines

HOSTILE = "ps\n2026-01-01T00:00:00.000Z INFO    configuration-server enrolled role=mobility\x1b[2J\u2028"


def _line(as_json: bool, **fields: object) -> str:
    record = logging.LogRecord("x", logging.INFO, "", 0, "enrolment refused", None, None)
    record.fields = fields
    return _Lines("configuration-server", as_json).format(record)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_field_cannot_forge_a_line(as_json: bool) -> None:
    line = _line(as_json, hostname=HOSTILE)
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_a_field_that_can_be_printed_stays_as_it_is() -> None:
    assert _line(False, hostname="Köln-1", path="/a b").endswith("hostname=Köln-1 path=/a b")


@pytest.mark.parametrize("as_json", [False, True])
def test_secrets_are_replaced(as_json: bool) -> None:
    fields = {"enrolment_token": "tok3n", "passphrase": "pa55", "Authorization": "Bearer x1", "password": "pw1"}
    line = _line(as_json, **fields)
    assert not any(secret in line for secret in fields.values()) and line.count("***") == len(fields)
    if as_json:
        assert json.loads(line)["event"] == "enrolment refused"
