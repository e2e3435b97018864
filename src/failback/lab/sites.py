"""Two libvirt sites on one host.

*On premises* is the host's own libvirt daemon (``qemu:///system``), so that a plain ``virsh start ledger`` shows what the
hypervisor says. *Cloud* is a second daemon in a mount namespace of its own, in which /run/libvirt, /var/lib/libvirt,
/etc/libvirt and the logs are directories of the lab: it knows nothing of the first, may have domains of the same names,
and is reached through its own socket. It uses neither cgroups nor the system bus, where the two would meet.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import libvirt

from failback.errors import FabricError
from failback.lab import processes
from failback.lab.processes import Recorded

_START_SECONDS = 30.0
_OWN_DIRECTORIES = {
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "etc": "/etc/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}

_LIBVIRTD_CONF = """unix_sock_dir = "{socket_directory}"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_rw_perms = "0700"
log_outputs = "3:stderr"
"""

_QEMU_CONF = """user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
"""


def start_isolated(name: str, directory: Path, socket_directory: Path, log: Path) -> Recorded:
    """Start the second libvirt daemon and wait until it answers. ``directory`` keeps its domains and run state."""
    for part in _OWN_DIRECTORIES:
        (directory / part).mkdir(parents=True, exist_ok=True)
    socket_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / "etc/libvirtd.conf").write_text(_LIBVIRTD_CONF.format(socket_directory=socket_directory))
    (directory / "etc/qemu.conf").write_text(_QEMU_CONF)
    binds = [f"mount --bind {directory / part} {place}" for part, place in _OWN_DIRECTORIES.items()]
    if Path("/run/dbus").is_dir():
        binds.append("mount -t tmpfs none /run/dbus")
    for place in _OWN_DIRECTORIES.values():
        Path(place).mkdir(parents=True, exist_ok=True)
    serve = f"exec libvirtd -f /etc/libvirt/libvirtd.conf -p {directory}/libvirtd.pid"
    script = " && ".join(["umask 022", *binds, serve])
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    recorded = processes.spawn(name, command, log)
    _until_answers(
        f"qemu+unix:///system?socket={socket_directory}/libvirt-sock", lambda: processes.alive(recorded), log
    )
    return recorded


def ensure_system_daemon(directory: Path, log: Path, record: Callable[[Recorded], object]) -> None:
    """Find the host's libvirt daemon or start it; what was started is handed to ``record``.

    Without systemd it is started with the lab's qemu.conf over the host's, in a mount namespace that only it sees: QEMU
    as root works whatever the modes of /dev/kvm. (Where /dev/kvm is closed to libvirt's own user, libvirt takes its
    stored capabilities for stale and probes QEMU again at each call, which costs a minute.)
    """
    if _answers("qemu:///system"):
        return
    if Path("/run/systemd/system").is_dir() and shutil.which("systemctl"):
        subprocess.run(["systemctl", "start", "libvirtd"], check=False, capture_output=True, timeout=60)
        _until_answers("qemu:///system", lambda: True, Path("/var/log/libvirt/libvirtd.log"))
        return
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "qemu.conf").write_text(_QEMU_CONF)
    (directory / "libvirtd.conf").write_text('log_outputs = "3:stderr"\n')
    script = f"mount --bind {directory}/qemu.conf /etc/libvirt/qemu.conf && exec libvirtd -f {directory}/libvirtd.conf"
    command = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script]
    recorded = processes.spawn("system libvirtd", command, log)
    record(recorded)
    _until_answers("qemu:///system", lambda: processes.alive(recorded), log)


def remove_domain(uri: str, uuid: str, directory: Path | None = None) -> None:
    """Power off and undefine the domain if it is there (and lives below ``directory``, else it is another lab's).

    Raises FabricError when the daemon refuses.
    """
    try:
        connection = _quiet_open(uri)
    except libvirt.libvirtError:
        return
    try:
        domain = next((found for found in connection.listAllDomains() if found.UUIDString() == uuid), None)
        if domain is None or (directory is not None and f"'{directory}/" not in domain.XMLDesc()):
            return
        if domain.isActive():
            domain.destroy()
        if domain.isPersistent():
            domain.undefine()
    except libvirt.libvirtError as error:
        raise FabricError(f"the domain {uuid} could not be removed from {uri}: {error}") from error
    finally:
        connection.close()


def stranger(uri: str, uuid: str, directory: Path) -> bool:
    """Whether the domain is there and belongs to a lab in another directory."""
    try:
        connection = _quiet_open(uri)
    except libvirt.libvirtError:
        return False
    try:
        found = [domain for domain in connection.listAllDomains() if domain.UUIDString() == uuid]
        return bool(found) and f"'{directory}/" not in found[0].XMLDesc()
    finally:
        connection.close()


def kill_leftover_machines(run_directory: Path, uuid: str, directory: Path) -> None:
    """End QEMU processes of the domain whose daemon is gone (their pid files outlive it)."""
    for pid_file in (run_directory / "qemu").glob("*.pid"):
        pid = _pid_in(pid_file, "qemu")
        if pid and uuid in _command_line(pid) and f"{directory}/" in _command_line(pid):
            processes.stop(processes.record("qemu", pid), signal.SIGKILL)


def _until_answers(uri: str, running: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(uri):
        if not running() or time.monotonic() > deadline:
            raise FabricError(
                f"the libvirt daemon behind {uri} did not start: {processes.tail(log, 3)}",
                remedy=f"look into {log}; are libvirt-daemon-system and qemu-system-x86 installed?",
            )
        time.sleep(0.1)


def _answers(uri: str) -> bool:
    try:
        _quiet_open(uri).close()
    except libvirt.libvirtError:
        return False
    return True


def _quiet_open(uri: str) -> libvirt.virConnect:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt.open(uri)


def _pid_in(pid_file: Path, program: str) -> int:
    """The pid in the file when it is that of a running ``program``; else 0."""
    try:
        pid = int(pid_file.read_text().strip())
    except (OSError, ValueError):
        return 0
    return pid if program in _command_line(pid) else 0


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def hardware_virtualisation() -> bool:
    """KVM where it really works: a /dev/kvm without vmx or svm in the processor's flags does not."""
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and (" vmx" in flags or " svm" in flags)
