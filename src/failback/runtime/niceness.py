"""Giving way to other programs of the machine: every thread's nice value, lowered and raised again while the process runs.

``set_of_all_threads(10)`` lets programs of ordinary priority go first; threads that begin later inherit it from the one that
begins them. Going back to a lower value needs CAP_SYS_NICE: ``can_return`` tells before anybody gives way for ever.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

_TASKS = Path("/proc/self/task")
_STATUS = Path("/proc/self/status")
_CAP_SYS_NICE = 23


def set_of_all_threads(niceness: int) -> bool:
    """-20 (first) to 19. False when the kernel refused: then some threads have it and some have not."""
    refused = False
    for task in os.listdir(_TASKS):
        try:
            os.setpriority(os.PRIO_PROCESS, int(task), niceness)
        except ProcessLookupError:  # a thread that has just ended
            continue
        except PermissionError:
            refused = True
    return not refused


def own() -> int:
    """Of the calling thread."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def can_return(niceness: int) -> bool:
    """Whether a thread that gave way may go back to ``niceness``."""
    if resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20 - niceness:
        return True
    effective = next((line for line in _STATUS.read_text().splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_NICE & 1)
