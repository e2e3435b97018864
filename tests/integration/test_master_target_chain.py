"""Agent's sender -> real process server -> real master target: both processes are killed under load, and the replica is right."""

from __future__ import annotations

import asyncio
import socket
import uuid
from pathlib import Path

import journal_driver as driver
import process_server_site
import xxhash
from master_target_site import MACHINE, Sender
from master_target_site import Site as TargetSite
from process_server_doubles import FixedControlPlane
from process_server_site import eventually

from failback.model import orders
from failback.model.components import Endpoint, ProcessServerAssignment, Role, RoutedMachine
from failback.model.ids import ComponentId, PassId
from failback.model.points import PointChoice, PointSelector
from failback.model.stream import MarkKind
from failback.protocol.messages import Digests
from failback.transport.sender import StreamSender

SEED = 21
MARK = str(uuid.UUID(int=97))


class _Server(process_server_site.Site):
    """The real process server beside a real master target, with that one's authority."""

    def __init__(self, target: TargetSite) -> None:
        directory = target.directory / "ps"
        directory.mkdir()
        self.directory, self.authority, self.agents = directory, target.authority, []
        self.faults, self._process = "", None
        self.plane = FixedControlPlane(target.authority.identity("plane-2", Role.CONFIGURATION_SERVER))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        state = directory / "state"
        target.authority.identity(target.server_id, Role.PROCESS_SERVER, state / "identity")
        (directory / "ps.toml").write_text(
            f'state_directory = "{state}"\nspool_directory = "{directory / "spool"}"\nlisten_host = "127.0.0.1"\n'
            f'listen_port = {self.port}\n[configuration_server]\nurl = "{self.plane.url}"\n'
            f'ca_file = "{target.authority.directory / "ca.pem"}"\nheartbeat_seconds = 0.2\n'
        )
        endpoint = Endpoint("127.0.0.1", target.port, ComponentId(target.target_id))
        self.plane.assign(ProcessServerAssignment((RoutedMachine(MACHINE, 1, endpoint),)))
        self.launch()

    def stop(self) -> None:
        self.kill()
        self.plane.close()


def _sender(target: TargetSite, server: _Server) -> Sender:
    """The agent: its own certificate, to the process server."""
    sender = target.sender(1)
    sender.stop()
    endpoint = Endpoint("127.0.0.1", server.port, ComponentId(target.server_id))
    stream = StreamSender(endpoint, target.authority.identity(MACHINE, Role.MOBILITY), sender.items,
                          expect=Role.PROCESS_SERVER, first_backoff_seconds=0.05, longest_backoff_seconds=0.3)  # fmt: skip
    sender._task = asyncio.get_running_loop().create_task(stream.run())
    return sender


async def test_from_end_to_end_with_kills(tmp_path: Path) -> None:
    target = TargetSite(tmp_path)
    target.start()
    server = _Server(target)
    try:
        target.make_disks(SEED)
        attached = await target.attach()
        target.assign(1)
        sender = _sender(target, server)
        for sequence in range(1, 40):
            await sender.send(driver.make_batch(SEED, sequence))
            await asyncio.sleep(0.01)
            if sequence in (10, 25):
                await server.restart()
            if sequence in (17, 25):
                target.kill()
        expected = driver.Model(SEED, driver.initial(SEED)).advance(39)
        key, block, size = 7, 65536, driver.SIZES[0]
        pieces = [expected[0][place : place + block] for place in range(0, size, block)]
        table = b"".join(xxhash.xxh3_128_digest(piece, key) for piece in pieces)
        await sender.send(Digests(MACHINE, 1, 40, 39_000, PassId(str(uuid.UUID(int=4))), 0, block, 0, key, table))
        await eventually(lambda: 40 in sender.replies, 30)
        assert sender.replies[40].count == len(pieces) and not any(sender.replies[40].differing)
        await sender.send(driver.make_batch(SEED, 41, mark=(MarkKind.FINAL, MARK)))
        await target.landed(sender, 41)
        assert sender.incarnation == attached.incarnation
        await target.prepare(PointChoice(PointSelector.LATEST), MARK)
        model = driver.Model(SEED, driver.initial(SEED))
        model.advance(39)
        model.sequence = 40  # the digests
        assert target.images(fenced=True) == model.advance(41)
        await target.plain(orders.RELEASE_REPLICA)
    finally:
        server.stop()
        await target.close()
