"""Both servers real, one behind the other: fixtures and an agent for tests of the chain. Disks and batches are those of
``journal_driver``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import journal_driver as driver
import master_target_site
import process_server_site
from process_server_doubles import make_hello

from failback.model.ids import DiskId
from failback.protocol.messages import Hello, StreamDisk


class ChainAgent(process_server_site.Agent):
    """Sends the disks of ``journal_driver`` and says truly what it still holds."""

    def _hello(self) -> Hello:
        disks = tuple(StreamDisk(DiskId(f"disk-{index}"), index, size) for index, size in driver.SIZES.items())
        plain = make_hello(self.machine_id, self.epoch)
        return Hello(plain.machine_id, plain.epoch, plain.software, 1, 1, disks, *self._known, self.spooled + 1)


@asynccontextmanager
async def master_target(directory: Path) -> AsyncIterator[master_target_site.Site]:
    built = master_target_site.Site(directory / "master-target")
    built.start()
    try:
        yield built
    finally:
        await built.close()


@asynccontextmanager
async def process_server(directory: Path, target: master_target_site.Site) -> AsyncIterator[process_server_site.Site]:
    """Before that master target, with its authority."""
    (directory / "process-server").mkdir()
    built = process_server_site.Site(directory / "process-server", authority=target.authority)
    built.server_id = target.server_id
    await built.start()
    built.target_id, built.target_port = target.target_id, target.port
    try:
        yield built
    finally:
        await built.close()
