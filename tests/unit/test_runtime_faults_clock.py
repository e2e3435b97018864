"""Fault points act when and only when armed; times keep their nanoseconds through text."""

from __future__ import annotations

import subprocess
import sys

import pytest

from failback import errors
from failback.runtime import clock, faults


@pytest.fixture(autouse=True)
def _disarmed() -> object:
    yield
    faults.arm("")


def test_an_error_fault_acts_at_its_passage_only() -> None:
    faults.arm("spool.before_sync=error@2")
    faults.point("spool.before_sync")
    with pytest.raises(OSError, match=r"spool\.before_sync"):
        faults.point("spool.before_sync")
    faults.point("spool.before_sync")
    faults.point("another.point")


def test_a_kill_fault_kills_like_sigkill() -> None:
    program = "from failback.runtime import faults\nfaults.point('a')\nprint('alive')"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"FAILBACK_FAULTS": "a=kill"}, capture_output=True, check=False
    )
    assert done.returncode == -9
    assert done.stdout == b""


@pytest.mark.parametrize("text", ["a", "a=explode", "a=kill@x"])
def test_a_bad_specification_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        faults.arm(text)


def test_times_survive_text() -> None:
    moment = 1_795_400_123_456_789_000
    assert clock.from_iso(clock.iso(moment)) == moment
    assert clock.from_iso("1970-01-01T01:00:00+01:00") == 0
    assert clock.from_iso("1970-01-01T00:00:01") == 1_000_000_000


def test_an_error_keeps_its_class_and_remedy_over_the_wire() -> None:
    error = errors.OutOfSpaceError("the retention volume is full", remedy="extend it")
    again = errors.from_dict(error.as_dict())
    assert type(again) is errors.OutOfSpaceError
    assert (again.message, again.remedy, again.retryable) == (error.message, "extend it", True)
    foreign = errors.from_dict({"code": "78093", "message": "off"})
    assert (foreign.code, foreign.message) == ("78093", "off")
