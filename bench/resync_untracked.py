"""Two disks, 1 % of whose 4 KiB blocks differ at random and nobody knows which: our comparison by hash against rsync."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from bench.chain import Chain
from bench.ground import GIBIBYTE, PAIRS, SMALL, Ground, forget, half_full, machine_facts, run, same
from bench.results import Bound, Result
from failback.mobility import passes
from failback.model.components import SyncMode

SIZE = (1 if SMALL else 8) * GIBIBYTE
BLOCK = 4096


STREAM_BLOCK = 65536
REPLY_BYTES = 112
DIGEST = 16


def answer_bytes(chosen: list[int]) -> int:
    """What the master target answers: a frame with a bitmap for each table, digests of the pieces of differing blocks."""
    differing = len({number * BLOCK // STREAM_BLOCK for number in chosen})
    blocks = SIZE // STREAM_BLOCK
    return blocks // passes.CHUNK_BLOCKS * REPLY_BYTES + blocks // 8 + differing * (STREAM_BLOCK // BLOCK) * DIGEST


def change(path: Path, seed: int) -> list[int]:
    """Rewrites 1 % of the blocks with random content; returns which."""
    chosen = random.Random(seed).sample(range(SIZE // BLOCK), SIZE // BLOCK // 100)
    with path.open("r+b", buffering=0) as stream:
        for number in sorted(chosen):
            os.pwrite(stream.fileno(), os.urandom(BLOCK), number * BLOCK)
        os.fsync(stream.fileno())
    forget(path)
    return chosen


def rsync(source: str, copy: Path) -> tuple[float, int]:
    """Seconds and bytes on the wire, over a local pipe and without encryption: easier for the peer than a network."""
    began = time.monotonic()
    told = run(
        "rsync", "--inplace", "--no-whole-file", f"--block-size={BLOCK}", "--fsync", "--stats", "--ignore-times",
        source, str(copy), check=False,
    )  # fmt: skip
    if "Total bytes sent" not in told:
        raise RuntimeError(f"rsync: {told}")
    seconds = time.monotonic() - began
    numbers = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    wire = sum(int(numbers[name].strip().replace(",", "")) for name in ("Total bytes sent", "Total bytes received"))
    return seconds, wire


def bench() -> Result:
    machine = machine_facts()
    runs, equal = [], True
    with Ground() as ground:
        image = ground.on_disk / "source.image"
        half_full(image, SIZE)
        device = ground.loop(image)
        target = ground.volume("target", 3 * SIZE + GIBIBYTE)
        copy = target / "rsync.img"
        run("cp", "--sparse=always", str(image), str(copy))
        for number in range(PAIRS):
            chain = Chain(
                ground.on_disk / f"chain-{number}", device, SIZE, spool=ground.on_disk / f"spool-{number}",
                journal=target / f"journal-{number}", target=target / f"store-{number}",
            )  # fmt: skip
            with chain:
                run("cp", "--sparse=always", str(image), str(chain.target / "disk-0.img"))
                chosen = change(image, number)
                differing = len(chosen) * BLOCK
                forget(Path(device))
                forget(chain.target / "disk-0.img")
                chain.attach(create=False)
                before = chain.cpu_seconds()
                began = time.monotonic()
                chain.protect(SyncMode.COMPARE)
                chain.synced()
                seconds = time.monotonic() - began
                cpu = {f"cpu_{role}": round(used - before[role], 2) for role, used in chain.cpu_seconds().items()}
                sent = int(chain.agent["bytes_sent"]) + answer_bytes(chosen)
            equal &= same(device, chain.replica_path, SIZE)
            chain.remove()
            forget(copy)
            peer_seconds, peer_bytes = rsync(str(image), copy)
            equal &= same(device, copy, SIZE)
            runs.append(
                {
                    "ratio": round(seconds / peer_seconds, 3),
                    "wire_to_differing": round(sent / differing, 3),
                    "seconds": round(seconds, 2),
                    "rsync_seconds": round(peer_seconds, 2),
                    "wire_megabytes": round(sent / 1e6, 1),
                    "rsync_wire_megabytes": round(peer_bytes / 1e6, 1),
                    "differing_megabytes": round(differing / 1e6, 1),
                    **cpu,
                }
            )
            print(runs[-1], flush=True)
    return Result(
        "resync_untracked",
        (Bound("ratio", 0.4), Bound("wire_to_differing", 1.3)), runs, equal,
        "differences that lie together (they cost fewer bytes for both), or a network between rsync's two ends: it runs over "
        "a local pipe without encryption, ours over two TLS links.",
        machine, {"size_bytes": SIZE, "peer": run("rsync", "--version").splitlines()[0]},
    )  # fmt: skip
