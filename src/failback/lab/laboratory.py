"""A lab from nothing to a running machine, and back to nothing.

``up`` records each thing in the state file right after it started it; ``down`` removes what the file names and what the
fixed names of the two sites hold, in any state and as often as wanted. ``up`` on a lab that was left half-way (a crash, a
kill) takes it down first.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from failback.errors import ConflictError, FailbackError, PeerError
from failback.fabric.kvm.driver import KvmFabric
from failback.lab import agent_bundle, image, machine, processes, requirements, servers, sites, state, witness
from failback.lab.commands import Commands
from failback.lab.guest import ledger
from failback.lab.layout import (
    CLOUD_UUID,
    DATA_SERIAL,
    HOST_AS_SEEN_BY_GUESTS,
    MACHINE_NAME,
    ONPREM_URI,
    ONPREM_UUID,
    SYSTEM_SERIAL,
    Layout,
)
from failback.lab.machine import Disk
from failback.lab.processes import Recorded
from failback.lab.state import LabState

Say = Callable[[str], None]

CLOUD_DAEMON = "cloud libvirtd"
DATA_DISK_BYTES = 256 << 20
ROWS_BEFORE_FAILOVER = 500
PAUSE_BETWEEN_COMMITS_SECONDS = 0.05
_BOOT_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Part:
    """One line of ``failback lab status``."""

    name: str
    running: bool
    detail: str


def up(layout: Layout, say: Say) -> LabState:
    """Everything running and the cloud machine committing. Does nothing on a lab that is up."""
    requirements.require(layout)
    with state.locked(layout):
        found = state.load(layout)
        if found is not None:
            if found.ready and all(processes.alive(recorded) for recorded in found.processes):
                say("the lab is up already")
                return found
            say("a lab was left behind here; removing it first")
            _remove(layout, found)
        if sites.stranger(ONPREM_URI, ONPREM_UUID, layout.directory):
            raise ConflictError(
                "another lab runs on this machine", remedy="failback lab down --directory DIRECTORY of that one"
            )
        return _build(layout, say)


def down(layout: Layout, say: Say) -> None:
    """Stop and remove everything; what it cannot remove is an error, what is not there is not."""
    with state.locked(layout):
        found = state.load(layout)
        if found is None and not layout.directory.exists():
            say("there is no lab here")
            return
        _remove(layout, found or LabState())
        say("the lab is gone; the guest image stays in the cache")
    layout.lock_file.unlink(missing_ok=True)


def status(layout: Layout) -> list[Part]:
    """What of the lab runs now; empty when there is none."""
    found = state.load(layout)
    if found is None:
        return []
    parts = [
        Part(recorded.name, processes.alive(recorded), f"pid {recorded.pid}, log {recorded.log or '-'}")
        for recorded in found.processes
    ]
    for site, uri, uuid in (("cloud", layout.cloud_uri, CLOUD_UUID), ("onprem", ONPREM_URI, ONPREM_UUID)):
        try:
            power = KvmFabric(uri).power_state(uuid).value
        except FailbackError as error:
            power = error.message
        parts.append(Part(f"machine {MACHINE_NAME} at {site}", power == "On", power))
    return parts


def restart_role(layout: Layout, role: str, environment: dict[str, str] | None = None) -> Recorded:
    """Start a role again that was killed. Raises PeerError when it does not come up."""
    found = state.load(layout)
    if found is None or found.ports is None:
        raise PeerError("there is no lab here", remedy="failback lab up")
    previous = found.process(role)
    if previous is not None:
        processes.stop(previous)
    recorded = servers.start_role(layout, role, environment)
    state.save(layout, found.with_process(recorded))
    servers.await_listening(layout, recorded, found.ports[role])
    return recorded


def await_commit(layout: Layout, side: str, after: int, seconds: float = _BOOT_SECONDS) -> witness.Heard:
    """The first commit of a side with a number above ``after``. Raises PeerError with the machine's console."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for heard in witness.read(layout.witness_file):
            if heard.side == side and heard.number > after:
                return heard
        time.sleep(0.2)
    site = "cloud" if side == CLOUD_UUID else "onprem"
    raise PeerError(
        f"the ledger at {site} committed nothing within {seconds:.0f} s; its console ends with:\n"
        + processes.tail(layout.console(site), 12),
        code="LabGuest",
        remedy=f"look into {layout.console(site)}",
    )


def _build(layout: Layout, say: Say) -> LabState:
    bundle = agent_bundle.build(layout.cache, say)
    guest = image.build(layout.cache, bundle, say)
    current = LabState(started_wall_ns=time.time_ns(), ports=servers.choose_ports())
    ports = current.ports or {}
    state.save(layout, current)
    for directory in (layout.logs, layout.boot, layout.onprem_datastore, layout.cloud_datastore):
        directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(guest.kernel, layout.boot / "vmlinuz")
    shutil.copy(guest.initial_ram_disk, layout.boot / "initrd")

    def started(recorded: Recorded) -> Recorded:
        nonlocal current
        current = current.with_process(recorded)
        state.save(layout, current)
        return recorded

    say("starting the configuration server")
    servers.write_configurations(layout, ports)
    started(servers.start_witness(layout, ports))
    configuration_server = started(servers.start_role(layout, servers.CONFIGURATION_SERVER))
    servers.await_listening(layout, configuration_server, ports[servers.CONFIGURATION_SERVER])
    servers.await_file(servers.passphrase_file(layout), configuration_server)
    say("starting the process server and the master target; two sites")
    roles = [started(servers.start_role(layout, role)) for role in (servers.PROCESS_SERVER, servers.MASTER_TARGET)]
    sites.ensure_system_daemon(layout.directory / "onprem-site", layout.logs / "onprem-libvirtd.log", started)
    site_log = layout.logs / "cloud-libvirtd.log"
    started(sites.start_isolated(CLOUD_DAEMON, layout.cloud_site, layout.socket_directory, site_log))
    say("making the machine's disks: as they were at the failover, and the cloud's copies")
    make_disks(layout, guest, ports)
    define_machines(layout)
    for recorded in roles:
        servers.await_listening(layout, recorded, ports[recorded.name])
    say("booting the cloud machine")
    KvmFabric(layout.cloud_uri).power_on(CLOUD_UUID)
    await_commit(layout, CLOUD_UUID, ROWS_BEFORE_FAILOVER)
    say("waiting for the mobility service inside it")
    Commands(layout, ports).await_components()
    current = replace(current, ready=True)
    state.save(layout, current)
    say("the lab is up: the ledger commits in the cloud")
    return current


def make_disks(layout: Layout, guest: image.GuestImage, ports: dict[str, int]) -> None:
    """The on-premises disks, then the cloud's copies of them (which the cloud machine goes on to change)."""
    scratch = layout.directory / "scratch"
    scratch.mkdir(exist_ok=True)
    machine.copy_sparse(guest.system_disk, layout.onprem_system_extent)
    workload = (
        f"WITNESS_HOST={HOST_AS_SEEN_BY_GUESTS}\nWITNESS_PORT={ports[servers.WITNESS]}\n"
        f"PAUSE_SECONDS={PAUSE_BETWEEN_COMMITS_SECONDS}\n"
    )
    files = {
        "/etc/ledger.conf": (workload.encode(), 0o644),
        "/etc/failback/mobility.toml": (servers.mobility_configuration(ports).encode(), 0o600),
        "/etc/failback/ca.pem": (servers.ca_file(layout).read_bytes(), 0o644),
        "/etc/failback/passphrase": (servers.passphrase_file(layout).read_bytes(), 0o600),
    }
    image.put_files(layout.onprem_system_extent, files, scratch)
    machine.write_vmdk_descriptor(layout.onprem_system_disk, layout.onprem_system_extent)
    content = scratch / "data"
    content.mkdir(exist_ok=True)
    ledger.seed(content, ROWS_BEFORE_FAILOVER, ONPREM_UUID)
    image.make_ext4(layout.onprem_data_disk, "ledger-data", DATA_DISK_BYTES, content)
    shutil.rmtree(scratch)
    machine.copy_sparse(layout.onprem_system_extent, layout.cloud_system_disk)
    machine.copy_sparse(layout.onprem_data_disk, layout.cloud_data_disk)


def define_machines(layout: Layout) -> None:
    """The same machine at both sites, powered off, under different hardware ids."""
    machines = (
        ("onprem", ONPREM_URI, ONPREM_UUID, layout.onprem_system_extent, layout.onprem_data_disk),
        ("cloud", layout.cloud_uri, CLOUD_UUID, layout.cloud_system_disk, layout.cloud_data_disk),
    )
    for site, uri, uuid, system_disk, data_disk in machines:
        text = machine.definition(
            name=MACHINE_NAME, uuid=uuid, site=site, console=layout.console(site),
            kernel=layout.boot / "vmlinuz", initial_ram_disk=layout.boot / "initrd",
            disks=(Disk(system_disk, "vda", SYSTEM_SERIAL), Disk(data_disk, "vdb", DATA_SERIAL)),
        )  # fmt: skip
        machine.define(uri, text)


def _remove(layout: Layout, found: LabState) -> None:
    for recorded in reversed(found.processes):
        if "libvirtd" not in recorded.name:
            processes.stop(recorded)
    sites.remove_domain(layout.cloud_uri, CLOUD_UUID)
    sites.remove_domain(ONPREM_URI, ONPREM_UUID, layout.directory)
    sites.kill_leftover_machines(layout.cloud_site / "run", CLOUD_UUID, layout.directory)
    sites.kill_leftover_machines(Path("/run/libvirt"), ONPREM_UUID, layout.directory)
    for recorded in reversed(found.processes):
        processes.stop(recorded)
    for directory in (layout.directory, layout.socket_directory):
        shutil.rmtree(directory, ignore_errors=False) if directory.exists() else None
