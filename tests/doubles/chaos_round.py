"""A round of chaos: a loaded machine, its replication, faults by chance from a seed, and the proof at the end.

The proof: fio's own checksums hold on the source; when everything is healed the replica's disks are those of the machine, bit
for bit; points drawn by chance are opened, mounted, recovered and counted (``chaos_points``): each holds every commit that was
acknowledged before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos_faults import SMALL, Fault, journal_directory
from chaos_load import Counting, FioLoops, PostgresLedger, SqliteLedger, fio_problem
from chaos_points import Opened, Witnessed, open_points
from chaos_site import AGENT, MASTER_TARGET, ChaosSite
from mobility_world import run

from failback.model.components import SyncMode
from failback.model.points import RecoveryPoint


@dataclass
class Report:
    """What was done and found; ``lost`` has to stay empty."""

    counts: Counter[str] = field(default_factory=Counter)
    points: int = 0
    points_with_commits: int = 0
    sqlite_rows: int = 0
    postgres_rows: int = 0
    witnessed: int = 0
    fio_loops: int = 0
    acknowledged: tuple[int, int] = (0, 0)
    lost: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return sum(count for name, count in self.counts.items() if name.startswith("kill "))

    def take(self, opened: Sequence[Opened]) -> None:
        for one in opened:
            self.points += 1
            self.points_with_commits += bool(one.sqlite and one.postgres)
            self.sqlite_rows += one.sqlite
            self.postgres_rows += one.postgres
            self.lost += [f"point {one.point.epoch}/{one.point.sequence}: {problem}" for problem in one.problems]

    def lines(self) -> list[str]:
        what = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        return [
            f"faults: {what}",
            f"kills: {self.kills}",
            f"fio loops written and verified: {self.fio_loops}",
            f"commits acknowledged: SQLite {self.acknowledged[0]}, PostgreSQL {self.acknowledged[1]}; marks: {self.witnessed}",
            f"points opened, mounted, recovered: {self.points} ({self.points_with_commits} with rows of both databases;"
            f" rows counted: SQLite {self.sqlite_rows}, PostgreSQL {self.postgres_rows})",
            f"lost: {len(self.lost)}", *self.lost,
        ]  # fmt: skip


class Load:
    """fio and SQLite on the first disk, PostgreSQL on the second."""

    def __init__(self, site: ChaosSite) -> None:
        self._mounts = [site.world.mount(number) for number in (0, 1)]
        self._postgres = PostgresLedger(self._mounts[1] / "data", site.directory / "postgres")
        self._postgres.create()
        self._sqlite = SqliteLedger(self._mounts[0] / "ledger.sqlite")
        self._postgres.start()
        self.counting = (
            Counting("SQLite", self._sqlite.commit, 0.01), Counting("PostgreSQL", self._postgres.commit, 0.01),
        )  # fmt: skip
        for each in self.counting:
            each.start()
        self.fio = FioLoops(self._mounts[0])
        self.fio.start()

    @property
    def acknowledged(self) -> tuple[int, int]:
        return self.counting[0].acknowledged, self.counting[1].acknowledged

    def stop(self) -> list[str]:
        """Everything written, file systems unmounted. Returns what the load complains about."""
        self.fio.stop()
        for each in self.counting:
            each.stop()
        self._sqlite.close()
        self._postgres.stop()
        problems = [self.fio.failure or fio_problem(self._mounts[0])]
        problems += [f"{each.name}: {each.failure!r}" for each in self.counting if each.failure is not None]
        for mount in self._mounts:
            _unmount(mount)
        return [problem for problem in problems if problem]


class Round:
    def __init__(self, site: ChaosSite, report: Report) -> None:
        self.site = site
        self.report = report
        self.witnessed: list[Witnessed] = []
        self._chance = random.Random(site.chance.getrandbits(64))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Supervision, repairs and marks beside."""
        tasks = [asyncio.create_task(work()) for work in (self.site.supervise, self.site.watch, self._marks)]
        try:
            yield
        finally:
            self._tell()
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            for error in done:
                if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
                    raise error

    def _tell(self) -> None:
        """What was done, also when the round fails."""
        self.report.counts.update(self.site.counts)
        for proxy in self.site.proxies:
            self.report.counts.update({f"link {name}": count for name, count in proxy.faults.items()})

    async def begin(self) -> None:
        site = self.site
        await site.attach()
        site.issue(SyncMode.COMPARE, "the beginning")
        self.load = await asyncio.to_thread(Load, site)
        await site.healthy()

    async def _marks(self) -> None:
        """Marks whose place in the stream is known, and how much was acknowledged before each was asked for."""
        world = self.site.world
        while True:
            await asyncio.sleep(self._chance.random() * 3)
            if not hasattr(self, "load"):
                continue
            sqlite, postgres = self.load.acknowledged
            order_id = world.order("app-consistent-mark", mark_id=str(uuid.uuid4()), limit_seconds=6.0)
            try:
                report = await world.result(order_id, 20)
            except AssertionError:  # the agent was away: nobody promised anything
                world.plane.orders = [order for order in world.plane.orders if order["order_id"] != order_id]
                continue
            if report["state"] == "succeeded":
                result = report["result"]
                self.witnessed.append(Witnessed(int(result["epoch"]), int(result["sequence"]), sqlite, postgres))

    async def chaos(self, kills: int, large: Sequence[Fault], seconds: float) -> None:
        """So many kills, and each of the large faults, while the load goes on; at most so long, but every large fault once."""
        site = self.site
        wanted = site_kills(site) + kills
        deadline = time.monotonic() + seconds
        beside = asyncio.create_task(self._large(large))
        try:
            while (site_kills(site) < wanted or not beside.done()) and time.monotonic() < deadline:
                await asyncio.sleep(self._chance.choice((0.3, 1.0, 2.5)))
                fault = self._chance.choices([act for _, act in SMALL], [weight for weight, _ in SMALL])[0]
                if site_kills(site) < wanted and not self._is_quiet():
                    await fault(site)
                if beside.done():
                    beside.result()
            await beside
        finally:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)

    def _is_quiet(self) -> bool:
        """A large fault waits for health: small ones rest for a while."""
        return self.site.waiting_since is not None and time.monotonic() - self.site.waiting_since > 8

    async def _large(self, large: Sequence[Fault]) -> None:
        for fault in large:
            await asyncio.sleep(self._chance.random() * 4)
            await fault(self.site)
            self.site.counts[fault.__name__.replace("_", " ")] += 1

    async def more_points(self, wanted: int, seconds: float = 300.0) -> None:
        """Old copies and damaged undo take points away, the latter when it is read: go on under load until enough new ones are
        offered, which no fault of before can take."""
        await self.site.healthy()
        before = {point.point_id for point in self._offered()}

        def enough() -> bool:
            return sum(point.point_id not in before for point in self._offered()) > wanted

        await self.site.until(enough, seconds)

    def _offered(self) -> list[RecoveryPoint]:
        replica = self.site.stream_parts().master_target
        return [point for point in replica.points if not point.abandoned] if replica is not None else []

    async def prove(self, points: int) -> None:
        """Heal, stop the load, compare, open points: the end of the round."""
        site, report = self.site, self.report
        site.away.clear()
        await site.healthy()
        report.lost += await asyncio.to_thread(self.load.stop)
        report.fio_loops += self.load.fio.loops
        await self._identical()
        site.away.add(MASTER_TARGET)
        site.parts[MASTER_TARGET].kill(signal.SIGTERM)
        found = await asyncio.to_thread(
            open_points, journal_directory(site), self.witnessed, self._chance, points, site.directory / "scratch"
        )
        site.away.discard(MASTER_TARGET)
        report.take(found)
        sqlite, postgres = self.load.acknowledged
        report.acknowledged = (report.acknowledged[0] + sqlite, report.acknowledged[1] + postgres)
        report.witnessed += len(self.witnessed)
        report.lost += [death for part in site.parts.values() for death in part.deaths]
        for part in site.parts.values():
            part.deaths.clear()

    async def _identical(self) -> None:
        """A last mark, landed and applied: then the replica's disks are the machine's."""
        site = self.site
        mark_id = str(uuid.uuid4())
        order = site.world.order("app-consistent-mark", mark_id=mark_id, limit_seconds=20.0)
        marked = await site.world.result(order, 60)
        assert marked["state"] == "succeeded", marked
        await site.order("prepare-point", choice={"selector": "latest", "value": ""}, after_mark=mark_id)
        for number, device in enumerate(site.world.devices):
            run("blockdev", "--flushbufs", device)
            fenced = site.datastore / f"disk{number}.raw.replica"
            compared = await asyncio.to_thread(_compare, fenced, device)
            if compared:
                self.report.lost.append(f"disk {number} of the replica differs: {compared}\n{site.report()}")
        await site.order("resume-replica")


def _unmount(mount: Path) -> None:
    """The agent may be freezing it for a mark just now."""
    for _ in range(100):
        done = subprocess.run(["umount", str(mount)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.2)
    raise AssertionError(done.stderr)


def site_kills(site: ChaosSite) -> int:
    return sum(count for name, count in site.counts.items() if name.startswith("kill "))


def _compare(replica: Path, device: str) -> str:
    done = subprocess.run(["cmp", str(replica), device], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


__all__ = ["AGENT", "Report", "Round", "site_kills"]
