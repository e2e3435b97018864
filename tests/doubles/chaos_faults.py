"""The faults of a chaos round: each is a coroutine on a :class:`ChaosSite`, heals itself, and is counted by its name.

``SMALL`` come all the time (kills, cuts); ``LARGE`` come one at a time, in an order drawn from the seed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

from chaos_site import AGENT, MASTER_TARGET, ROLES, ChaosSite

from failback.model.components import SyncMode

Fault = Callable[[ChaosSite], Awaitable[None]]
HELD_SECONDS = 10.0


def journal_directory(site: ChaosSite) -> Path:
    return site.retention.path / "failback" / site.world.machine_id


async def kill_one(site: ChaosSite) -> None:
    site.kill(site.chance.choice((AGENT, site.server, MASTER_TARGET)))


async def kill_all(site: ChaosSite) -> None:
    site.kill(*ROLES)


async def cut(site: ChaosSite) -> None:
    proxy = site.chance.choice((site.to_server[site.server], site.to_target[site.server]))
    kind = site.chance.choice(("cut", "in a frame", "half-close", "stall", "refuse"))
    site.note(f"link: {kind}")
    if kind == "cut":
        proxy.cut()
    elif kind == "in a frame":
        proxy.cut_within(site.chance.choice((10, 1000, 100_000)))
    elif kind == "half-close":
        proxy.half_close()
    elif kind == "stall":
        await proxy.stall(site.chance.choice((0.5, 3.0)))
    else:
        await proxy.refuse(site.chance.choice((0.5, 2.0)))


async def full_disk(site: ChaosSite) -> None:
    """The retention volume or the spool's fills up; a moment later there is room again and all goes on by itself."""
    volume = site.chance.choice((site.retention, site.spools[site.server]))
    site.note(f"{volume.path.name} is full")
    try:
        volume.fill()
        await asyncio.sleep(6)
        if site.chance.random() < 0.5:
            site.kill(MASTER_TARGET if volume is site.retention else site.server)
            await asyncio.sleep(2)
    finally:
        volume.free()
    await site.healthy()


async def step_clocks(site: ChaosSite) -> None:
    """One role's clock, or everybody's, goes an hour forward or back, and returns later."""
    names = ROLES if site.chance.random() < 0.5 else (site.chance.choice(ROLES),)
    seconds = site.chance.choice((3600, -3600))
    site.note(f"clock {seconds:+d} s: {', '.join(names)}")
    for name in names:
        site.parts[name].step_clock(seconds)
    await asyncio.sleep(5)
    for part in site.parts.values():
        part.step_clock(0)
    await asyncio.sleep(2)


async def move(site: ChaosSite) -> None:
    """The process server dies with its spool, the machine moves to the other one, the old one comes back with the spool."""
    site.away.add(site.server)
    site.kill(site.server)
    before = site.move()
    await site.until(lambda: site.parts[AGENT].plane.status.get("epoch") == site.epoch, 60)
    site.away.discard(before)
    await site.healthy()


async def lose_spool(site: ChaosSite) -> None:
    await site.healthy()
    site.away.add(site.server)
    site.kill(site.server)
    shutil.rmtree(site.spools[site.server].path / "spool", ignore_errors=True)
    site.note(f"the spool of {site.server} is lost")
    site.away.discard(site.server)
    await site.healthy()


async def restore_old_copy(site: ChaosSite) -> None:
    """The retention volume comes back from a copy: noticed, compared by hash (D7)."""
    await site.healthy()
    journal, copy = journal_directory(site), site.directory / "old-copy"
    newest = site.newest_point()
    site.away.add(MASTER_TARGET)
    site.kill(MASTER_TARGET)
    await asyncio.to_thread(shutil.copytree, journal, copy)
    site.away.discard(MASTER_TARGET)
    await site.until(lambda: site.newest_point() not in ("", newest), 120)  # now the copy is an old one
    await site.healthy()
    site.away.add(MASTER_TARGET)
    site.kill(MASTER_TARGET)
    await asyncio.to_thread(shutil.rmtree, journal)
    await asyncio.to_thread(shutil.move, copy, journal)
    site.note("the journal is an old copy")
    repairs = site.counts["repair JournalReplaced"]
    site.away.discard(MASTER_TARGET)
    await site.until(lambda: site.counts["repair JournalReplaced"] > repairs, 60)
    await site.healthy()


def _flip(site: ChaosSite, paths: list[Path], newest_bytes: int) -> bool:
    """One byte of the end of one of the files; False when there is none to flip."""
    paths = [path for path in paths if path.stat().st_size > 4096]
    if not paths:
        return False
    path = site.chance.choice(paths)
    size = path.stat().st_size
    offset = site.chance.randint(max(0, size - newest_bytes), size - 1)
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 0x5A]))
        stream.flush()
        os.fsync(stream.fileno())
    site.note(f"a byte of {path.name} is flipped at {offset} of {size}")
    return True


async def damage_redo(site: ChaosSite) -> None:
    """While nothing is applied (the disks are at a point), so that what is damaged was landed and is still needed."""
    await site.healthy()
    await site.order("prepare-point", choice={"selector": "latest", "value": ""}, after_mark="")
    await asyncio.sleep(3)
    site.away.add(MASTER_TARGET)
    site.kill(MASTER_TARGET)
    newest = sorted((journal_directory(site) / "redo").glob("*.redo"))[-1:]
    _flip(site, newest, 256 << 10)
    site.away.discard(MASTER_TARGET)
    await site.order("resume-replica")
    await site.healthy()


async def damage_spool(site: ChaosSite) -> None:
    """While the master target is away, so that the damaged items are still needed."""
    site.away.add(MASTER_TARGET)
    site.kill(MASTER_TARGET)
    await asyncio.sleep(2)
    site.away.add(site.server)
    site.kill(site.server)
    _flip(site, sorted((site.spools[site.server].path / "spool").rglob("*.items")), 64 << 10)
    site.away -= {MASTER_TARGET, site.server}
    await site.healthy()


async def damage_undo(site: ChaosSite) -> None:
    """Points that need it are not offered any more; all else goes on."""
    site.away.add(MASTER_TARGET)
    site.kill(MASTER_TARGET)
    _flip(site, sorted((journal_directory(site) / "undo").glob("*.undo")), 1 << 30)
    site.away.discard(MASTER_TARGET)
    await site.healthy()


async def hold_writes(site: ChaosSite) -> None:
    """The cloud's disk holds every write for ten seconds while blocks are read again (D8): the file system under the loop
    device is frozen, so that writes hang in flight."""
    await site.healthy()
    site.note(f"writes of the source hang for {HELD_SECONDS:g} s during a comparison")
    site.issue(SyncMode.COMPARE, "compared while writes hang")
    await site.until(lambda: site.parts[AGENT].plane.status.get("epoch") == site.epoch, 60)
    frozen = site.source_directory
    await asyncio.to_thread(subprocess.run, ["fsfreeze", "-f", str(frozen)], check=True)
    try:
        await asyncio.sleep(HELD_SECONDS)
    finally:
        await asyncio.to_thread(subprocess.run, ["fsfreeze", "-u", str(frozen)], check=True)
    await site.healthy()


SMALL: tuple[tuple[int, Fault], ...] = ((6, kill_one), (1, kill_all), (4, cut))
LARGE: tuple[Fault, ...] = (full_disk, step_clocks, move, lose_spool, restore_old_copy, damage_redo, damage_spool,
                            damage_undo, hold_writes)  # fmt: skip
