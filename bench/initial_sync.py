"""First copy of a half-full disk: time against nbdcopy over TLS to nbdkit (one hop), and against nbdcopy without TLS."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from bench.chain import Authority, Chain, Role
from bench.ground import GIBIBYTE, PAIRS, SMALL, Ground, forget, half_full, machine_facts, process, run, same, sparse
from bench.results import Bound, Result
from failback.model.components import SyncMode

SIZE = (1 if SMALL else 8) * GIBIBYTE


def nbdkit_certificates(directory: Path) -> Path:
    authority = Authority(directory)
    for name, role in (("server", Role.PROCESS_SERVER), ("client", Role.MOBILITY)):
        identity = authority.identity(name, role)
        os.link(identity.certificate_path, directory / f"{name}-cert.pem")
        os.link(identity.key_path, directory / f"{name}-key.pem")
    os.link(directory / "ca.pem", directory / "ca-cert.pem")
    return directory


def nbdcopy(device: str, target: Path, size: int, certificates: Path | None, megabits: int = 0) -> tuple[float, float]:
    """Seconds from the start of nbdcopy until the copy is flushed, and processor seconds of both ends."""
    used = _children_cpu()
    seconds = _nbdcopy(device, target, size, certificates, megabits)
    return seconds, _children_cpu() - used


def _children_cpu() -> float:
    """Of children that ended."""
    times = os.times()
    return times.children_user + times.children_system


def _nbdcopy(device: str, target: Path, size: int, certificates: Path | None, megabits: int) -> float:
    sparse(target, size)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    secured = [f"--tls-certificates={certificates}", "--tls=require", "--tls-verify-peer"] if certificates else []
    slowed = (["--filter=rate"], [f"rate={megabits * 1_000_000}", "burstiness=0.1"]) if megabits else ([], [])
    server = (
        "nbdkit",
        "-f",
        "-i",
        "127.0.0.1",
        "-p",
        str(port),
        *secured,
        *slowed[0],
        "file",
        f"file={target}",
        *slowed[1],
    )
    with process(*server):
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.01)
        scheme, query = ("nbds", f"?tls-certificates={certificates}") if certificates else ("nbd", "")
        began = time.monotonic()
        run("nbdcopy", "--destination-is-zero", "--flush", device, f"{scheme}://localhost:{port}/{query}")
        return time.monotonic() - began


def ours(
    ground: Ground, device: str, target: Path, number: int, *, megabits: int = 0
) -> tuple[float, bool, dict[str, Any]]:
    chain = Chain(
        ground.on_disk / f"chain-{number}", device, SIZE, spool=ground.on_disk / f"spool-{number}",
        journal=target / f"journal-{number}", target=target / f"store-{number}", megabits=megabits,
    )  # fmt: skip
    with chain:
        chain.attach(create=True)
        before = chain.cpu_seconds()
        began = time.monotonic()
        chain.protect(SyncMode.FULL)
        chain.synced()
        seconds = time.monotonic() - began
        figures = {f"cpu_{role}": round(used - before[role], 2) for role, used in chain.cpu_seconds().items()}
        figures["sent_megabytes"] = round(chain.agent["bytes_sent"] / 1e6, 1)
        figures["written_ratio"] = round(sum(chain.physical_bytes().values()) / (SIZE / 2), 2)
        figures["peak_megabytes"] = {role: round(peak) for role, peak in chain.peak_megabytes().items()}
    equal = same(device, chain.replica_path, SIZE)
    chain.remove()
    return seconds, equal, figures


def bench() -> Result:
    machine = machine_facts()
    with Ground() as ground:
        image = ground.on_disk / "source.image"
        half_full(image, SIZE)
        device = ground.loop(image)
        target = ground.volume("target", 3 * SIZE + GIBIBYTE)
        certificates = nbdkit_certificates(ground.on_disk / "certificates")
        runs, equal = [], True
        for number in range(PAIRS):
            seconds, is_same, figures = ours(ground, device, target, number)
            equal &= is_same
            times, cpu = {}, {}
            for name, secured in (("tls", certificates), ("plain", None)):
                copy = target / "copy.img"
                forget(Path(device))
                times[name], cpu[name] = nbdcopy(device, copy, SIZE, secured)
                equal &= same(device, copy, SIZE)
                copy.unlink()
            runs.append(
                {
                    "ratio_to_tls": round(seconds / times["tls"], 3),
                    "ratio_to_plain": round(seconds / times["plain"], 3),
                    "seconds": round(seconds, 2),
                    "tls_seconds": round(times["tls"], 2),
                    "plain_seconds": round(times["plain"], 2),
                    "cpu_ratio_to_tls": round(
                        sum(v for k, v in figures.items() if k.startswith("cpu_")) / cpu["tls"], 3
                    ),
                    "tls_cpu_seconds": round(cpu["tls"], 2),
                    "plain_cpu_seconds": round(cpu["plain"], 2),
                    **figures,
                }
            )
            print(runs[-1], flush=True)
    return Result(
        "initial_sync", (Bound("ratio_to_tls", 1.0), Bound("ratio_to_plain", 2.0)), runs, equal,
        "a link slower than the loopback, a loaded source, or disks slower than this one's page cache; our time includes "
        "attaching the capture and its self-test, two hops instead of one, and a journal that can take the copy back.",
        machine, {"size_bytes": SIZE, "peer": run("nbdcopy", "--version") + ", " + run("nbdkit", "--version")},
    )  # fmt: skip
