"""A damaged catalogue keeps a replica out of service and says why; with the folder moved away a new journal begins."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import journal_driver as driver
from master_target_site import MACHINE, Site
from process_server_site import eventually

SEED = 31


async def test_a_damaged_catalogue_is_shown_and_never_used(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.start()
    try:
        site.make_disks(SEED)
        attached = await site.attach()
        site.assign(1)
        sender = site.sender(1)
        for sequence in range(1, 12):
            await sender.send(driver.make_batch(SEED, sequence))
        await site.landed(sender, 11)
        sender.stop()
        images = site.images(fenced=True)
        assert site.process is not None
        site.process.kill()
        site.process.wait()
        folder = site.retention / "failback" / MACHINE
        path = folder / "catalogue.sqlite"
        with closing(sqlite3.connect(path)) as connection:  # what lies in the write-ahead log would hide the damage
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        content = path.read_bytes()
        assert b"sequence" in content
        at = content.rindex(b'"sequence"')
        path.write_bytes(content[: at + 3] + b"x" + content[at + 4 :])  # one byte of the applied position's name
        site.launch()
        await eventually(lambda: "CatalogueDamaged" in site.replica().get("problem", ""), 40)
        assert site.images(fenced=True) == images, "nothing is written to the disks"

        site.process.kill()
        site.process.wait()
        folder.rename(tmp_path / "moved-away")
        site.launch()
        again = await site.attach()
        assert again.incarnation != attached.incarnation
        await eventually(lambda: site.replica().get("incarnation") == again.incarnation, 40)
    finally:
        await site.close()
