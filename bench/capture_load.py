"""What the benches of a loaded source share: the counters of the capture program, a source with the chain running, what was
captured of what was written, the peer that mirrors inside QEMU."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bench.chain import Chain
from bench.ground import PAIRS, Ground, forget, process, random_filled, same
from failback.mobility.capture import libbpf
from failback.mobility.capture.pins import Control
from failback.model.components import SyncMode
from failback.model.policy import ReplicationPolicy

T = TypeVar("T")
RING_MEGABYTES = 256
"""A second of the rate and more: the ring holds what has not landed, so a smaller one turns a lag below the bound into a gap."""
COUNTERS = ("bytes_written", "bytes_dropped", "drops", "skipped", "overlaps", "write_errors", "untracked", "bios")


def counters(pins: Path) -> dict[str, int]:
    """The kernel program's own counters, through their pin."""
    (pin,) = [path for path in pins.iterdir() if "bss" in path.name or "control" in path.name]
    descriptor = libbpf.open_pin(pin)
    try:
        control = Control(descriptor)
        found = {name: control.get(name) for name in COUNTERS}
        control.close()
        return found
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def protected(
    ground: Ground, device: str, image: Path, size: int, name: str, *, elsewhere: Path | None = None, **fields: Any
) -> Iterator[Chain]:
    """The chain running with a replica in step; spool, journal and target in tmpfs (they stand for other machines' disks)
    unless ``elsewhere`` is named. Redo is kept for 10 s only, so that memory suffices."""
    memory = (elsewhere or ground.in_memory) / name
    fields.setdefault("policy", ReplicationPolicy(name="bench", redo_window_seconds=10))
    chain = Chain(
        ground.on_disk / f"chain-{name}", device, size, spool=memory / "spool", journal=memory / "journal",
        target=memory / "store", **fields,
    )  # fmt: skip
    try:
        with chain:
            chain.attach(create=True)
            chain.protect(SyncMode.FULL)
            chain.synced()
            forget(image)
            yield chain
    finally:
        chain.remove()


@dataclass
class Watch:
    """What happened on the source while a load ran; a context manager around the load."""

    chain: Chain
    block_bytes: int = 4096
    """Of the load: what a write that was only marked dirty counts."""
    gaps: set[str] = field(default_factory=set)
    backlog: list[tuple[float, int]] = field(default_factory=list)
    lags: list[dict[str, float]] = field(default_factory=list)

    def __enter__(self) -> Watch:
        self._before = counters(self.chain.pins)
        self._cpu = self.chain.cpu_seconds()
        self._physical = self.chain.physical_bytes()
        self._landed = int(self.chain.agent["bytes_sent"])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._began = time.monotonic()
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._stop.wait(0.25):
            agent = self.chain.agent
            if agent.get("gap"):
                self.gaps.add(agent["gap"])
            self.backlog.append((time.monotonic() - self._began, int(agent.get("backlog_bytes", 0))))
            if agent.get("lag"):
                self.lags.append(agent["lag"])

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began
        self._stop.set()
        self._thread.join()
        after = counters(self.chain.pins)
        self.risen = {name: after[name] - self._before[name] for name in COUNTERS}
        self.cpu = {role: round(used - self._cpu[role], 2) for role, used in self.chain.cpu_seconds().items()}

    def settle(self) -> None:
        """After the load: wait until all is landed and applied, and note how long that took."""
        began = time.monotonic()
        self.chain.in_step()
        self.drain_seconds = time.monotonic() - began

    def figures(self) -> dict[str, Any]:
        written = max(1, self.risen["bytes_written"])
        lost = self.risen["bytes_dropped"] + self.risen["skipped"] * self.block_bytes
        physical = sum(self.chain.physical_bytes().values()) - sum(self._physical.values())
        third = max(1, len(self.backlog) // 3)
        first, last = ([size for _, size in part] for part in (self.backlog[:third], self.backlog[-third:]))
        return {
            "captured_fraction": round(1 - lost / written, 6),
            "landed_to_written": round((int(self.chain.agent["bytes_sent"]) - self._landed) / written, 3),
            "physically_written_to_protected": round(physical / written, 3),
            "backlog_first_third_megabytes": round(sum(first) / max(1, len(first)) / 1e6, 2),
            "backlog_last_third_megabytes": round(sum(last) / max(1, len(last)) / 1e6, 2),
            "drain_seconds": round(self.drain_seconds, 2),
            **{f"cpu_{role}": used for role, used in self.cpu.items()},
            "gaps": sorted(self.gaps), "risen": {name: n for name, n in self.risen.items() if n},
        }  # fmt: skip

    def complaints(self) -> list[str]:
        figures = self.figures()
        found = []
        if figures["captured_fraction"] < 0.999:
            found.append(f"only {figures['captured_fraction']:.2%} of the bytes were captured as records")
        first, last = figures["backlog_first_third_megabytes"], figures["backlog_last_third_megabytes"]
        if last > 2 * first + 16:
            found.append(f"the backlog grew from {first} MB to {last} MB")
        return found


@dataclass
class Pairs:
    """What the alternating pairs of a bench gave: the ``Result``'s runs, contents and complaints."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    equal: bool = True
    complaints: list[str] = field(default_factory=list)


def bare_and_captured(
    size_bytes: int, load: Callable[[str], T], compare: Callable[[T, T], dict[str, Any]],
    peer: Callable[[Ground, Path, int], tuple[dict[str, Any], bool]] | None = None,
) -> Pairs:  # fmt: skip
    """Pair by pair: ``load`` on the bare device, then with the chain running, then the ``peer`` on the same image. The servers,
    which stand for other machines, give way to the load as the mobility service does.

    ``compare`` makes the pair's figures of the two; a peer gets the image and the pair's number, and says its own figures and
    whether its copy is equal.
    """
    found = Pairs()
    with Ground() as ground:
        image = ground.on_disk / "source.image"
        random_filled(image, size_bytes)
        device = ground.loop(image)
        load(device)  # the image's extents settle
        for number in range(PAIRS):
            bare = load(device)
            with protected(ground, device, image, size_bytes, f"pair-{number}", server_niceness=10,
                           ring_megabytes=RING_MEGABYTES) as chain:  # fmt: skip
                with Watch(chain) as watch:
                    captured = load(device)
                watch.settle()
                found.equal &= same(device, chain.replica_path, size_bytes)
                figures = compare(bare, captured) | watch.figures() | {"lag": chain.agent.get("lag")}
                found.complaints += [text for text in watch.complaints() if text not in found.complaints]
            if peer is not None:
                theirs, equal = peer(ground, image, number)
                figures |= theirs
                found.equal &= equal
            found.runs.append(figures)
            print(figures, flush=True)
    return found


class QemuDisk:
    """The source image served by qemu-storage-daemon on a local socket, and mirrored when asked."""

    def __init__(self, directory: Path, image: Path) -> None:
        self.directory, self.image = directory, image
        directory.mkdir()
        self.uri = f"nbd+unix:///disk?socket={directory}/nbd"

    @contextlib.contextmanager
    def serving(self, target: Path | None, size: int) -> Iterator[QemuDisk]:
        """``target``: mirror to it in the background, after a first copy."""
        for name in ("nbd", "qmp"):
            (self.directory / name).unlink(missing_ok=True)
        command = [
            "qemu-storage-daemon",
            "--blockdev", f"driver=file,node-name=file,filename={self.image},cache.direct=on,aio=native",
            "--blockdev", "driver=raw,node-name=disk,file=file",
            "--nbd-server", f"addr.type=unix,addr.path={self.directory}/nbd",
            "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
            "--chardev", f"socket,id=qmp,path={self.directory}/qmp,server=on,wait=off", "--monitor", "chardev=qmp",
        ]  # fmt: skip
        if target is not None:
            command += ["--blockdev", f"driver=file,node-name=target,filename={target}"]
        with process(*command, log=self.directory / "log"):
            for _ in range(500):
                if (self.directory / "qmp").exists() and (self.directory / "nbd").exists():
                    break
                time.sleep(0.01)
            self._monitor = socket.socket(socket.AF_UNIX)
            self._monitor.connect(str(self.directory / "qmp"))
            self._stream = self._monitor.makefile("rw")
            self._stream.readline()
            self.command("qmp_capabilities")
            if target is not None:
                self.command("blockdev-mirror", **{"job-id": "mirror", "device": "disk", "target": "target", "sync": "full",
                                                   "copy-mode": "background"})  # fmt: skip
                self.until_ready()
            yield self
            self._monitor.close()

    def command(self, execute: str, **arguments: Any) -> Any:
        self._stream.write(json.dumps({"execute": execute, "arguments": arguments}) + "\n")
        self._stream.flush()
        while True:
            answer = json.loads(self._stream.readline())
            if "error" in answer:
                raise RuntimeError(f"{execute}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def until_ready(self) -> int:
        """Bytes that the mirror has still to copy when it first is, or again is, in step."""
        while True:
            (job,) = self.command("query-block-jobs")
            if job["ready"] and job["len"] == job["offset"]:
                return 0
            time.sleep(0.05)

    def backlog(self) -> int:
        (job,) = self.command("query-block-jobs")
        return int(job["len"] - job["offset"])

    def finish(self) -> None:
        """End the mirror with a copy that is complete (the load is over) and flushed."""
        self.until_ready()
        self.command("block-job-cancel", device="mirror")
        while self.command("query-block-jobs"):
            time.sleep(0.02)
