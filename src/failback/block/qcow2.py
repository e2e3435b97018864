"""A qcow2 image through qemu-storage-daemon: one daemon an image, NBD on a unix socket.

The daemon holds QEMU's own image locks. It outlives a killed master target; the next opening finds it by the socket in its
command line (there from its first moment, unlike a pid file), stops it cleanly and starts a fresh one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from failback.block.faulty import Wrapping
from failback.block.nbd import NbdDevice
from failback.errors import ConflictError, NotSupportedError, StorageError
from failback.runtime import faults

_DAEMON = "qemu-storage-daemon"
_EXPORT = "disk"
_START_SECONDS = 15.0
_STOP_SECONDS, _KILL_SECONDS = 30.0, 5.0


class Qcow2Device(Wrapping):
    """``runtime_directory`` holds the socket; keep it short (108 bytes for a socket's path) and the same over restarts."""

    def __init__(self, path: Path, runtime_directory: Path) -> None:
        self.path = path
        runtime_directory.mkdir(parents=True, exist_ok=True)
        name = hashlib.blake2b(str(path).encode(), digest_size=8).hexdigest()
        self._socket = runtime_directory / f"{name}.sock"
        _stop_left_over(self._socket)
        self._process = _start(path, self._socket)
        faults.point("qcow2.after_start")
        try:
            super().__init__(self._connect())
        except BaseException:
            self._stop()
            raise

    def _connect(self) -> NbdDevice:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            if self._process.poll() is not None:
                reason = (
                    (self._process.stderr.read() if self._process.stderr else b"").decode("utf-8", "replace").strip()
                )
                if "lock" in reason:
                    raise ConflictError(f"{self.path} is in use: {reason}", code="DiskInUse",
                                        remedy="power the on-premises machine off and try again")  # fmt: skip
                raise StorageError(f"qemu-storage-daemon cannot open {self.path}: {reason}")
            if self._socket.exists():
                with contextlib.suppress(StorageError):
                    return NbdDevice(self._socket, _EXPORT)
            if time.monotonic() > deadline:
                raise StorageError(f"qemu-storage-daemon did not serve {self.path} in {_START_SECONDS:.0f} s")
            time.sleep(0.02)

    @property
    def lost(self) -> bool:
        """The daemon ended by itself (killed, crashed): every call fails from now on."""
        return self._process.poll() is not None

    def close(self) -> None:
        super().close()
        self._stop()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()
        self._socket.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other images may still be open there
            self._socket.parent.rmdir()


def _start(path: Path, socket_path: Path) -> subprocess.Popen[bytes]:
    protocol = {"driver": "file", "node-name": "file", "filename": str(path), "locking": "on", "discard": "unmap"}
    layer = {"driver": "qcow2", "node-name": "disk", "file": "file", "discard": "unmap"}
    server = {"addr": {"type": "unix", "path": str(socket_path)}}
    export = {"type": "nbd", "id": "export", "node-name": "disk", "name": _EXPORT, "writable": True}
    command = [_DAEMON]
    for option, value in (
        ("--blockdev", protocol),
        ("--blockdev", layer),
        ("--nbd-server", server),
        ("--export", export),
    ):
        command += [option, json.dumps(value)]
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                start_new_session=True)  # fmt: skip
    except FileNotFoundError as error:
        raise NotSupportedError("qcow2 disks need qemu-storage-daemon", remedy="apt install qemu-system-x86") from error


def daemons(socket_path: Path) -> list[int]:
    """Processes that serve an image on this socket."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                program, *options = (entry / "cmdline").read_bytes().split(b"\0")
                if program.endswith(_DAEMON.encode()) and any(_names(option, socket_path) for option in options):
                    found.append(int(entry.name))
    return found


def _names(option: bytes, socket_path: Path) -> bool:
    return json.dumps(str(socket_path)).encode() in option


def _stop_left_over(socket_path: Path) -> None:
    """End the daemon of a killed master target, if it still runs: politely, so that it flushes; then not."""
    for number, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        deadline = time.monotonic() + seconds
        for pid in daemons(socket_path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while daemons(socket_path) and time.monotonic() < deadline:
            time.sleep(0.02)
    socket_path.unlink(missing_ok=True)


def grow(path: Path, size_bytes: int) -> None:
    """Make an image larger that nobody has open. Raises StorageError with qemu-img's reason."""
    done = subprocess.run(
        ["qemu-img", "resize", "-q", "-f", "qcow2", str(path), str(size_bytes)], capture_output=True, check=False
    )
    if done.returncode:
        raise StorageError(f"cannot enlarge {path}: {done.stderr.decode('utf-8', 'replace').strip()}")
    _sync_file(path)


def create(path: Path, size_bytes: int) -> None:
    """Create an empty qcow2 image. Raises StorageError with qemu-img's reason."""
    done = subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size_bytes)], capture_output=True, check=False,
        umask=0o077,  # a machine's disk is nobody else's to read
    )  # fmt: skip
    if done.returncode:
        raise StorageError(f"cannot create {path}: {done.stderr.decode('utf-8', 'replace').strip()}")
    _sync_file(path)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
