"""1 % of a disk's 4 KiB blocks were written while nobody copied, but what was written is known: only that is sent.

Ours: the mobility service is killed (the kernel goes on tracking), the blocks are written, and the service starts again. The
time is from its start until all is applied on the replica and flushed. Peers: a QEMU dirty bitmap copied by libnbd, and
``btrfs send`` of a snapshot against the one before; the faster of the two counts.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.chain import Chain, Role
from bench.ground import GIBIBYTE, PAIRS, SMALL, Ground, fio, forget, half_full, machine_facts, process, run, same
from bench.results import Bound, Result
from failback.model.components import SyncMode

SIZE = (1 if SMALL else 8) * GIBIBYTE
WRITTEN = SIZE // 100
BLOCK = 4096


def write_blocks(seed: int, **where: object) -> None:
    """1 % of the blocks, at random, incompressible."""
    fio("changes", **where, rw="randwrite", bs="4k", size=SIZE, io_size=WRITTEN, iodepth=16, randseed=seed, end_fsync=1)


@contextlib.contextmanager
def served(socket: Path, *command: str) -> Iterator[None]:
    """An NBD server on a unix socket for the time of the context."""
    socket.unlink(missing_ok=True)
    with process(*command):
        deadline = time.monotonic() + 20
        while not socket.exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not listen")
            time.sleep(0.005)
        yield


class QemuPeer:
    """A qcow2 source with a persistent bitmap for each pair, and a raw target behind nbdkit."""

    def __init__(self, ground: Ground, image: Path, target: Path) -> None:
        self.source, self.copy = ground.on_disk / "source.qcow2", target / "qemu.img"
        self._sockets = ground.on_disk / "source.socket", ground.on_disk / "target.socket"
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(image), str(self.source))
        run("cp", "--sparse=always", str(image), str(self.copy))

    def _server(self, *options: str) -> tuple[str, ...]:
        return ("qemu-nbd", "-f", "qcow2", "--cache=none", "--aio=native", "-t", "-e", "4", "-x", "disk",
                "-k", str(self._sockets[0]), *options, str(self.source))  # fmt: skip

    def seconds(self, number: int) -> tuple[float, int]:
        """Seconds and bytes copied."""
        source, target = self._sockets
        bitmap = f"pair{number}"
        run("qemu-img", "bitmap", "--add", str(self.source), bitmap)
        with served(source, *self._server()):
            write_blocks(number, ioengine="nbd", uri=f"nbd+unix:///disk?socket={source}")
        for path in (self.source, self.copy):
            forget(path)
        began = time.monotonic()
        with (
            served(source, *self._server("-r", "-B", bitmap)),
            served(target, "nbdkit", "-f", "-U", str(target), "file", f"file={self.copy}"),
        ):
            told = run(
                "/usr/bin/python3", str(Path(__file__).with_name("dirty_copy.py")),
                f"nbd+unix:///disk?socket={source}", f"nbd+unix:///?socket={target}", bitmap,
            )  # fmt: skip
            seconds = time.monotonic() - began
        run("qemu-img", "bitmap", "--remove", str(self.source), bitmap)
        return seconds, int(told)

    def equal(self) -> bool:
        done = subprocess.run(
            ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(self.source), str(self.copy)],
            check=False, capture_output=True,
        )  # fmt: skip
        return done.returncode == 0


class BtrfsPeer:
    """A subvolume with the disk as a file, and snapshots of it received on another btrfs."""

    def __init__(self, ground: Ground, image: Path) -> None:
        self.source, self.target = (ground.volume(f"btrfs-{name}", 2 * SIZE + GIBIBYTE, "btrfs") for name in ("a", "b"))
        run("btrfs", "subvolume", "create", str(self.source / "live"))
        self.file = self.source / "live" / "disk.img"
        run("cp", "--sparse=always", str(image), str(self.file))
        self._newest = self._snapshot("first")
        self._send(None, self._newest)

    def _snapshot(self, name: str) -> Path:
        run("btrfs", "subvolume", "snapshot", "-r", str(self.source / "live"), str(self.source / name))
        run("sync", "-f", str(self.source))
        return self.source / name

    def _send(self, parent: Path | None, snapshot: Path) -> None:
        known = ["-p", str(parent)] if parent is not None else []
        with subprocess.Popen(
            ["btrfs", "send", "-q", *known, str(snapshot)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as sending:
            subprocess.run(["btrfs", "receive", "-q", str(self.target)], stdin=sending.stdout, check=True)
        if sending.returncode:
            raise RuntimeError(f"btrfs send: {sending.returncode}")
        run("sync", "-f", str(self.target))

    def seconds(self, number: int) -> float:
        write_blocks(number, filename=self.file)
        forget(self.file)
        began = time.monotonic()
        snapshot = self._snapshot(f"pair{number}")
        self._send(self._newest, snapshot)
        seconds = time.monotonic() - began
        self._newest = snapshot
        return seconds

    def equal(self) -> bool:
        return same(self.file, self.target / self._newest.name / "disk.img", SIZE)


def ours(ground: Ground, device: str, image: Path, target: Path, number: int) -> tuple[float, bool, dict[str, float]]:
    chain = Chain(
        ground.on_disk / f"chain-{number}", device, SIZE, spool=ground.on_disk / f"spool-{number}",
        journal=target / f"journal-{number}", target=target / f"store-{number}",
    )  # fmt: skip
    with chain:
        run("cp", "--sparse=always", str(image), str(chain.target / "disk-0.img"))
        chain.attach(create=False)
        chain.protect(SyncMode.NONE)
        chain.capturing()
        chain.in_step()
        agent = chain.processes.pop(Role.MOBILITY)
        agent.kill()
        agent.wait()
        write_blocks(number, filename=device)
        before = chain.cpu_seconds()
        began = time.monotonic()
        chain.restart(Role.MOBILITY)
        chain.in_step()
        seconds = time.monotonic() - began
        figures = {f"cpu_{name}": round(used - before.get(name, 0), 2) for name, used in chain.cpu_seconds().items()}
        figures["wire_megabytes"] = round(chain.agent["bytes_sent"] / 1e6, 1)
    equal = same(device, chain.replica_path, SIZE)
    chain.remove()
    return seconds, equal, figures


def bench() -> Result:
    machine = machine_facts()
    runs, equal = [], True
    with Ground() as ground:
        image = ground.on_disk / "source.image"
        half_full(image, SIZE)
        target = ground.volume("target", 3 * SIZE + GIBIBYTE)
        qemu, btrfs = QemuPeer(ground, image, target), BtrfsPeer(ground, image)
        device = ground.loop(image)
        for number in range(PAIRS):
            seconds, is_same, figures = ours(ground, device, image, target, number)
            qemu_seconds, qemu_bytes = qemu.seconds(number)
            btrfs_seconds = btrfs.seconds(number)
            equal = equal and is_same and qemu.equal() and btrfs.equal()
            runs.append(
                {
                    "ratio": round(seconds / min(qemu_seconds, btrfs_seconds), 3),
                    "seconds": round(seconds, 2),
                    "qemu_seconds": round(qemu_seconds, 2),
                    "btrfs_seconds": round(btrfs_seconds, 2),
                    "written_megabytes": round(WRITTEN / 1e6, 1),
                    "qemu_copied_megabytes": round(qemu_bytes / 1e6, 1),
                    **figures,
                }
            )
            print(runs[-1], flush=True)
    return Result(
        "resync_tracked", (Bound("ratio", 1.0),), runs, equal,
        "a bitmap finer than QEMU's default of 64 KiB, or an outage of the link. Ours includes the start of the mobility service "
        "and a journal; the peers have neither TLS nor a second hop, and btrfs needs no network at all.",
        machine, {"size_bytes": SIZE, "peer": run("qemu-nbd", "--version").splitlines()[0] + ", " + run("btrfs", "--version")},
    )  # fmt: skip
