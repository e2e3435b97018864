"""Faults that aim: at a place in the code, at bytes on a disk, at yesterday's copy of the journal.

Beside the ordinary chaos, in half of the worlds, with chances of its own: the other half is what it is without it. What such
a fault destroys on purpose is noted in the world (``spools_lost``, ``journals_lost``), so that the judge does not ask for it;
everything else has to hold: nothing damaged is applied, no point lies, and in the end the replica is equal.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from failback.sim.plane import SERVERS

if TYPE_CHECKING:
    from failback.sim.world import World

PLACES = (
    ("agent", "capture.reread"), ("agent", "mobility.after_reread"), ("agent", "mobility.before_release"),
    ("master-target", "landing.before_ack"), ("master-target", "undo."), ("master-target", "apply."),
    (SERVERS[0], "spool.before_ack"), (SERVERS[0], "spool.after_sync"),
)  # fmt: skip


class Sabotage:
    def __init__(self, world: World, load_seconds: float) -> None:
        self._world = world
        self._chance = random.Random(f"sabotage of world {world.seed}")
        self._load_seconds = load_seconds
        self._copy: Path | None = None
        self.idle = self._chance.random() < 0.5

    async def run(self) -> None:
        end = self._world.loop.now + self._load_seconds
        actions: list[Callable[[], None]] = [
            self._aim, self._aim, self._aim, self._damage_redo, self._damage_spool, self._copy_journal, self._restore_journal,
        ]  # fmt: skip
        while not self.idle:
            await asyncio.sleep(self._chance.choice((0.5, 2.0, 5.0)) * self._chance.random() * 2)
            if self._world.loop.now >= end:
                break
            self._chance.choice(actions)()

    def _aim(self) -> None:
        """The process dies when it comes to a certain place."""
        name, place = self._chance.choice(PLACES)
        if place == "capture.reread":
            self._something_to_reread()
        self._world.light_fuse(name, self._chance.choice((1, 1, 2, 5)), power=False, at=place)

    def _something_to_reread(self) -> None:
        machine = self._world.machine
        place = self._chance.choice(machine.places)
        machine.mark(place, self._chance.randrange(place.disk.size_bytes // 512) * 512, 512)
        machine.count("drops")

    def _damage_spool(self) -> None:
        name = self._chance.choice(SERVERS)
        flipped = self._flip(name, sorted((self._world.root / name).rglob("*.items")))
        if flipped is not None:
            self._world.spool_is_lost(flipped.parent)

    def _damage_redo(self) -> None:
        """The newest segment: what was landed and perhaps not applied yet."""
        found = sorted((self._world.root / "master-target").rglob("*.redo"))
        if self._flip("master-target", found[-1:]) is not None:
            self._world.journal_is_lost()

    def _flip(self, name: str, paths: list[Path]) -> Path | None:
        paths = [path for path in paths if path.stat().st_size > 512]
        if not paths or name not in self._world.lives:
            return None
        self._world.kill(name)
        path = self._chance.choice(paths)
        content = bytearray(path.read_bytes())
        at = self._chance.randrange(512, len(content)) if self._chance.random() < 0.5 else len(content) - 1
        content[at] ^= 0x5A
        path.write_bytes(content)
        self._world.note(f"a byte of {path.name} is flipped at {at} of {len(content)}")
        return path

    def _copy_journal(self) -> None:
        world = self._world
        if world.journal is not None and world.journal.started and "master-target" in world.lives:
            world.kill("master-target")
            self._copy = world.root / "copy"
            shutil.rmtree(self._copy, ignore_errors=True)
            shutil.copytree(world.root / "master-target", self._copy)
            world.note("the journal is copied")

    def _restore_journal(self) -> None:
        """The retention volume comes back from the copy; the disks and the master target's own memory do not (D7)."""
        world = self._world
        if self._copy is None or "master-target" not in world.lives:
            return
        world.kill("master-target")
        journal = world.root / "master-target"
        shutil.rmtree(journal)
        os.rename(self._copy, journal)
        self._copy = None
        world.files.is_durable(journal)
        world.journal_is_lost()
        world.note("the journal is restored from the copy")
