"""Proves the undo of every replica now and then, one after the other, at a bounded rate, in a thread of its own.

What is due is decided from the catalogue (``undo_proven``), so that a restart forgets nothing; ``request`` makes one due now.
The disks themselves are compared with the machines' by the agents' scrubs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from failback.errors import FailbackError
from failback.master_target.replica import ATTACHED, Replica
from failback.model.ids import MachineId
from failback.runtime import logs

log = logs.get(__name__)

LOOK_SECONDS = 10.0


class UndoScrubs:
    """``replicas`` gives those that are open now. ``every_seconds`` 0: only on request."""

    def __init__(
        self, replicas: Callable[[], Iterable[Replica]], every_seconds: float, bytes_per_second: float
    ) -> None:
        self._replicas = replicas
        self._every_ns = int(every_seconds * 1e9)
        self._rate = max(bytes_per_second, 1.0)
        self._requested: set[MachineId] = set()
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="undo scrub", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def request(self, machine_id: MachineId) -> None:
        self._requested.add(machine_id)
        self._news.set()

    def close(self) -> None:
        self._stopping.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for replica in list(self._replicas()):
                if not self._stopping.is_set() and self._is_due(replica):
                    self._prove(replica)
            self._news.wait(LOOK_SECONDS)
            self._news.clear()

    def _is_due(self, replica: Replica) -> bool:
        try:
            if replica.state != ATTACHED:
                return False
            if replica.journal.machine_id in self._requested:
                return True
            return bool(self._every_ns) and abs(time.time_ns() - replica.undo_proven_wall_ns) >= self._every_ns
        except FailbackError:  # it is being closed
            return False

    def _prove(self, replica: Replica) -> None:
        machine_id = replica.journal.machine_id
        self._requested.discard(machine_id)
        try:
            found = replica.prove_undo(self._pace)
        except (FailbackError, OSError) as error:
            log.warning("the undo of a replica could not be proven", machine=machine_id, reason=str(error))
            return
        log.info(
            "undo was proven", machine=machine_id, bytes=found.read_bytes, damaged=len(found.damaged), whole=found.whole
        )

    def _pace(self, count: int) -> bool:
        return not self._stopping.wait(count / self._rate)
