"""What a long history costs in space: undo files against the overwritten bytes themselves, text-like and random content apart."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from bench.chain import Chain, Role
from bench.ground import GIBIBYTE, MEBIBYTE, SMALL, Ground, machine_facts, random_filled, run, text_like
from bench.history import EXTENT_BYTES, History, digest, place_disk, undo_bytes
from bench.results import Bound, Result
from failback.model.policy import ReplicationPolicy

SIZE = (1 if SMALL else 4) * GIBIBYTE
CHURN = 250_000_000 if SMALL else 5_000_000_000
POINTS = 12 if SMALL else 250
BORG_EVERY = 1 if SMALL else 10
"""borg reads the whole disk for each archive: it archives every tenth point only, which lets it off lightly."""


def text_filled(path: Path, size_bytes: int, text: bytes) -> None:
    with path.open("wb") as stream:
        for number in range(size_bytes // len(text)):
            turn = (number * 7919) % len(text)
            stream.write(text[turn:] + text[:turn])


class Borg:
    """Archives of the mirror in a deduplicating, compressing repository, as blocks of 64 KiB."""

    def __init__(self, directory: Path, mirror: Path) -> None:
        self._directory, self._mirror = directory, mirror
        self._environment = dict(os.environ, BORG_BASE_DIR=str(directory.parent / "borg-base"))
        self._environment["BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK"] = "yes"
        run("borg", "init", "-e", "none", str(directory), env=self._environment)
        self.archive(-1)
        self.first_bytes = self.size_bytes

    def archive(self, point: int) -> None:
        if (point + 1) % BORG_EVERY == 0:
            run("borg", "create", "--compression", "zstd,1", "--chunker-params", "fixed,65536", "--files-cache", "disabled",
                f"{self._directory}::point-{point}", str(self._mirror), env=self._environment)  # fmt: skip

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._directory.rglob("*") if path.is_file())


def space(
    ground: Ground, name: str, fill: Callable[[Path], None], content: Callable[[random.Random], bytes]
) -> tuple[float, float, bool]:
    """Bytes of undo and of borg for each byte overwritten, and whether the disk is right at the end."""
    target = ground.volume(f"target-{name}", 2 * SIZE + 4 * CHURN)
    mirror = ground.on_disk / f"mirror-{name}.image"
    fill(mirror)
    chain = Chain(
        ground.on_disk / f"chain-{name}", "/dev/null", SIZE, spool=ground.on_disk / f"spool-{name}",
        journal=target / "journal", target=target / "store", roles=(Role.MASTER_TARGET,),
        policy=ReplicationPolicy(name="bench", redo_window_seconds=10),
    )  # fmt: skip
    with chain:
        place_disk(chain, mirror)
        before = undo_bytes(chain.journal)
        borg = Borg(ground.on_disk / f"borg-{name}", mirror)
        told = History(chain, mirror, content).send(CHURN, POINTS, set(), borg.archive)
        used = undo_bytes(chain.journal) - before
        equal = digest(chain.replica_path) == digest(mirror)
    chain.remove()
    mirror.unlink()
    return used / told.raw_bytes, (borg.size_bytes - borg.first_bytes) / told.raw_bytes, equal


def bench() -> Result:
    machine = machine_facts()
    with Ground() as ground:
        text = text_like(16 * MEBIBYTE, 5)

        def words(chance: random.Random) -> bytes:
            begin = chance.randrange(len(text) - EXTENT_BYTES)
            return text[begin : begin + EXTENT_BYTES]

        of_text, borg_text, text_equal = space(ground, "text", lambda path: text_filled(path, SIZE, text), words)
        of_random, borg_random, random_equal = space(
            ground, "random", lambda path: random_filled(path, SIZE), lambda _: os.urandom(EXTENT_BYTES)
        )
    figures = {
        "text_to_raw": round(of_text, 3), "random_to_raw": round(of_random, 3),
        "borg_text_to_raw": round(borg_text, 3), "borg_random_to_raw": round(borg_random, 3),
    }  # fmt: skip
    return Result(
        "history_space", (Bound("text_to_raw", 0.5),), [figures], text_equal and random_equal,
        "content that shifts in place; text that repeats over the disk is here, and borg (every tenth point at full size, every "
        "one at the small) stores it once, ours does not. borg keeps new content and ours old: both have every point asked for. "
        "One run: it is a size and not a time.",
        machine, {"size_bytes": SIZE, "churn_bytes_each": CHURN, "points": POINTS,
                  "peer": "raw journal (the bytes overwritten); " + run("borg", "--version")},
    )  # fmt: skip
