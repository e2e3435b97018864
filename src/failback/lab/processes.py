"""Processes that a lab starts and outlives: recorded by pid and start time, so that a reused pid is never killed.

A record is written before the caller goes on; a lab that was killed therefore finds everything again and can stop it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """``start_ticks``: field 22 of /proc/PID/stat, what tells a process from a later one with the same pid."""

    name: str
    pid: int
    start_ticks: int
    command: tuple[str, ...] = ()
    log: str = ""


def start_ticks(pid: int) -> int:
    """0 when there is no such process (or only its zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


def alive(recorded: Recorded) -> bool:
    ticks = start_ticks(recorded.pid)
    return ticks != 0 and ticks == recorded.start_ticks


def record(name: str, pid: int, command: Sequence[str] = (), log: Path | None = None) -> Recorded:
    return Recorded(name, pid, start_ticks(pid), tuple(command), str(log) if log else "")


def spawn(name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Recorded:
    """Start a process in a session of its own, its output appended to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    recorded = record(name, process.pid, command, log)
    _children[process.pid] = process
    return recorded


def stop(recorded: Recorded, stop_signal: signal.Signals = signal.SIGTERM) -> None:
    """End the process (politely first) and wait until it is gone. Nothing happens when it is gone already."""
    deadline = time.monotonic() + _STOP_SECONDS
    sent = stop_signal
    while alive(recorded):
        _send(recorded.pid, sent)
        if _wait(recorded, min(deadline, time.monotonic() + (_STOP_SECONDS if sent is stop_signal else 2.0))):
            break
        sent = signal.SIGKILL
    child = _children.pop(recorded.pid, None)
    if child is not None:
        child.wait()


def tail(path: Path, lines: int = 15) -> str:
    """The end of a log, for an error's sentence."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


_children: dict[int, subprocess.Popen[bytes]] = {}
"""Children of this very process, to be reaped; those of an earlier one belong to init."""


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _wait(recorded: Recorded, deadline: float) -> bool:
    while time.monotonic() < deadline:
        child = _children.get(recorded.pid)
        if child is not None:
            child.poll()
        if not alive(recorded):
            return True
        time.sleep(0.05)
    return False
