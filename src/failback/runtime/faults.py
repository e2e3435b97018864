"""Named fault points: places where a test or an operator's drill makes the process die, fail or wait.

Shipped with the product because a crash that cannot be asked for is a crash that is never tested. Set
``FAILBACK_FAULTS="journal.after_append=kill@3,spool.before_sync=error"`` in the environment: the third passage of
``journal.after_append`` kills the process with SIGKILL, each passage of ``spool.before_sync`` raises OSError(EIO).
Actions: ``kill``, ``error``, ``sleep:SECONDS``; ``@N`` acts at the Nth passage only. Without the variable a passage
costs one truth test of a module global. A simulation looks at every passage itself (``watch``).
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Fault:
    action: str
    at: int  # 0: every passage
    passages: int = 0


_armed: dict[str, _Fault] = {}
_watcher: Callable[[str], None] | None = None


def arm(specification: str) -> None:
    """Replace the armed faults by those of the text; an empty text disarms all. Raises ValueError on a bad text."""
    armed: dict[str, _Fault] = {}
    for part in filter(None, (piece.strip() for piece in specification.split(","))):
        name, separator, action = part.partition("=")
        if not separator:
            raise ValueError(f"fault {part!r} has no action")
        action, _, count = action.partition("@")
        if action not in ("kill", "error") and not action.startswith("sleep:"):
            raise ValueError(f"fault {part!r} has an unknown action")
        armed[name] = _Fault(action, int(count) if count else 0)
    _armed.clear()
    _armed.update(armed)


def point(name: str) -> None:
    """Mark a fault point. Does nothing unless a fault of that name is armed."""
    if _armed or _watcher:
        _act(name)


def is_armed(name: str) -> bool:
    """Whether somebody wants to see each passage of the point: then work that would pass it in one go is done step by step."""
    return _watcher is not None or name in _armed


def watch(watcher: Callable[[str], None] | None) -> None:
    """Call ``watcher`` with the name at every passage; it may raise. None: nobody watches."""
    global _watcher
    _watcher = watcher


def _act(name: str) -> None:
    if _watcher is not None:
        _watcher(name)
    fault = _armed.get(name)
    if fault is None:
        return
    fault.passages += 1
    if fault.at and fault.passages != fault.at:
        return
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "error":
        raise OSError(errno.EIO, f"fault point {name}")
    else:
        time.sleep(float(fault.action.removeprefix("sleep:")))


arm(os.environ.get("FAILBACK_FAULTS", ""))
