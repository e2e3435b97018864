"""The points that this master target serves by NBD: opened and closed by orders, ended by their lease or with the replica.

Each view has a unix socket of its own, which only root may use; the export's name is the disk's index. Where the
configuration names an address, clients elsewhere get the same by TLS: there the export is called ``VIEW/INDEX``, and only
a certificate with the view's id as its common name may open it. Views live in memory: after a restart there are none, their
layers are gone with their files, and thinning goes on. One that ended stays listed for a while with the reason.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from failback.block.nbd_options import Export
from failback.block.nbd_server import NbdServer
from failback.errors import ConfigurationError, ConflictError
from failback.journal.views import OpenView
from failback.master_target.replica import Replica
from failback.model import orders
from failback.model.components import ViewExport, ViewStatus
from failback.model.ids import MachineId
from failback.runtime import logs
from failback.runtime.clock import Clock, SystemClock
from failback.transport.identity import Identity

log = logs.get(__name__)

MOST_VIEWS = 32
LONGEST_LEASE_SECONDS = 7 * 86400.0
_ENDED_KEPT = 20
_QUOTA_SHARE = 4
"""Without a quota a layer may take this part (a quarter) of what is free on the retention volume now."""


@dataclass(slots=True)
class _Served:
    status: ViewStatus
    opened: OpenView
    server: NbdServer
    socket_path: Path

    def close(self) -> None:
        self.server.close()
        self.socket_path.unlink(missing_ok=True)
        self.opened.close()


class ServedViews:
    """Methods block and may be called from any thread."""

    def __init__(self, runtime_directory: Path, clock: Clock | None = None) -> None:
        self._directory = runtime_directory
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._served: dict[str, _Served] = {}
        self._ended: list[ViewStatus] = []
        self._opening: dict[MachineId, threading.Lock] = {}
        self._refused: set[MachineId] = set()
        self._remote: NbdServer | None = None
        self._remote_port = 0
        self.on_news: Callable[[], None] = lambda: None
        for left in runtime_directory.glob("view-*.sock"):  # of a killed master target
            left.unlink(missing_ok=True)

    def listen(self, host: str, port: int, identity: Identity) -> None:
        """Serve clients elsewhere too. Raises ConfigurationError."""
        try:
            listener = socket.create_server((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host}:{port} for views: {error.strerror}",
                remedy="set view_listen_host and view_listen_port to an address of this machine that is free",
            ) from error
        self._remote_port = listener.getsockname()[1]
        self._remote = NbdServer(listener, self._find_remote, lambda: (), identity.server_context)

    def _find_remote(self, name: str, peer: str) -> Export | None:
        view_id, _, index = name.partition("/")
        with self._lock:
            served = self._served.get(view_id)
        if served is None or peer != view_id or not index.isdigit() or int(index) not in served.opened.disks:
            return None
        return Export(name, served.opened.disks[int(index)], served.status.writable)

    # --- opening and ending -----------------------------------------------------------------------------------------

    def open(self, arguments: orders.OpenView, replica: Replica, progress: Callable[[int, int], None]) -> ViewStatus:
        """Open the view, or give the one of this id another lease. Raises what :meth:`Views.open` does."""
        machine_id = arguments.replica_of
        expires = self._clock.wall_ns() + int(min(arguments.lease_seconds, LONGEST_LEASE_SECONDS) * 1e9)
        with self._opening.setdefault(machine_id, threading.Lock()):
            with self._lock:
                known = self._served.get(arguments.view_id)
                if known is not None:
                    known.status = replace(known.status, expires_wall_ns=expires)
                    return self._now(known)
                if len(self._served) >= MOST_VIEWS:
                    raise ConflictError(f"{MOST_VIEWS} views are open on this master target", code="TooManyViews",
                                        remedy="close one of them")  # fmt: skip
                self._refused.discard(machine_id)

            def report(done: int, total: int) -> None:
                if machine_id in self._refused:
                    raise ConflictError("the replica is being given back: the view is not opened", code="ViewEnded")
                progress(done, total)

            served = self._serve(arguments, replica, expires, report)
            with self._lock:
                self._served[arguments.view_id] = served
        log.info("view is open", machine=machine_id, view=arguments.view_id, point=served.status.point.point_id,
                 writable=arguments.writable)  # fmt: skip
        self.on_news()
        return self._now(served)

    def _serve(
        self, arguments: orders.OpenView, replica: Replica, expires_wall_ns: int, report: Callable[[int, int], None]
    ) -> _Served:
        quota_bytes = arguments.quota_bytes or _free_bytes(replica.journal.directory) // _QUOTA_SHARE
        opened = replica.open_view(arguments.choice, arguments.writable, quota_bytes, report)
        path = self._directory / f"view-{arguments.view_id}.sock"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            before = os.umask(0o177)  # a machine's disk is nobody else's to read
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen()
        except OSError as error:
            opened.close()
            raise ConfigurationError(f"cannot serve a view on {path}: {error.strerror}") from error
        local = {str(index): Export(str(index), disk, arguments.writable) for index, disk in opened.disks.items()}
        server = NbdServer(listener, lambda name, _: local.get(name), lambda: list(local))
        exports = tuple(
            ViewExport(disk.disk_id, disk.index, disk.size_bytes, f"nbd+unix:///{disk.index}?socket={path}")
            for disk in replica.journal.catalogue.disks
        )
        status = ViewStatus(
            view_id=arguments.view_id, machine_id=arguments.replica_of, point=opened.point, writable=arguments.writable,
            opened_wall_ns=self._clock.wall_ns(), expires_wall_ns=expires_wall_ns, exports=exports,
            remote_port=self._remote_port, quota_bytes=quota_bytes if arguments.writable else 0,
        )  # fmt: skip
        return _Served(status, opened, server, path)

    def close_view(self, view_id: str, reason: str = "closed") -> None:
        """One that is not open is closed."""
        with self._lock:
            served = self._served.pop(view_id, None)
        if served is None:
            return
        if self._remote is not None:
            for index in served.opened.disks:
                self._remote.end(f"{view_id}/{index}")
        last = replace(self._now(served), ended=reason, connections=0)
        served.close()
        with self._lock:
            self._ended = [*self._ended, last][-_ENDED_KEPT:]
        log.info("view ended", view=view_id, machine=served.status.machine_id, reason=reason)
        self.on_news()

    def end_of(self, machine_id: MachineId, reason: str) -> None:
        """End all views of the machine: its disks are about to be let go, or its retention volume is full."""
        self._refused.add(machine_id)
        with self._opening.setdefault(machine_id, threading.Lock()):
            with self._lock:
                mine = [key for key, served in self._served.items() if served.status.machine_id == machine_id]
            for view_id in mine:
                self.close_view(view_id, reason)

    def expire(self) -> None:
        """End those whose lease is over."""
        now = self._clock.wall_ns()
        with self._lock:
            over = [key for key, served in self._served.items() if served.status.expires_wall_ns <= now]
        for view_id in over:
            self.close_view(view_id, "its lease is over")

    def close(self) -> None:
        """The process ends."""
        with self._lock:
            views = list(self._served)
        for view_id in views:
            with contextlib.suppress(OSError):
                self.close_view(view_id, "the master target stopped")
        if self._remote is not None:
            self._remote.close()

    # --- status -----------------------------------------------------------------------------------------------------

    def _now(self, served: _Served) -> ViewStatus:
        view_id = served.status.view_id
        connections = sum(served.server.connections(str(index)) for index in served.opened.disks)
        if self._remote is not None:
            connections += sum(self._remote.connections(f"{view_id}/{index}") for index in served.opened.disks)
        return replace(served.status, layer_bytes=served.opened.layer_bytes, connections=connections)

    def statuses(self) -> tuple[ViewStatus, ...]:
        with self._lock:
            served, ended = list(self._served.values()), list(self._ended)
        return (*(self._now(one) for one in served), *ended)


def _free_bytes(directory: Path) -> int:
    facts = os.statvfs(directory)
    return facts.f_bavail * facts.f_frsize
