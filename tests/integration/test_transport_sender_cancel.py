"""A sender that is stopped in the very moment in which its link breaks ends, and does not connect again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from process_server_doubles import Authority, make_hello

from failback.errors import PeerError
from failback.model.components import Endpoint, Role
from failback.model.ids import ComponentId
from failback.protocol.messages import Ack, Hello, Welcome
from failback.transport.link import Link, serve_links
from failback.transport.sender import HeldItems, StreamSender

MACHINE = "00000000-0000-0000-0000-00000000000a"
SERVER = "00000000-0000-0000-0000-00000000000b"


async def test_a_cancel_that_meets_a_breaking_link_is_not_lost(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    agent, server = authority.identity(MACHINE, Role.MOBILITY), authority.identity(SERVER, Role.PROCESS_SERVER)
    greeted = 0

    async def accept(link: Link, _: Hello) -> None:
        nonlocal greeted
        greeted += 1
        link.send_small(Welcome(1, "test", 1, 0, 0, 0, 0, ""))
        link.send_small(Ack(1, 0, 0, 0, 0, ""))
        await link.receive()

    async def nothing(_: object) -> None:
        return None

    serving = await serve_links("127.0.0.1", 0, server, accept)
    tasks: list[asyncio.Task[None]] = []

    async def cancelled_and_broken(_: object) -> None:
        """Runs in the receiving half: the link's error and the cancel reach the task group together."""
        tasks[0].cancel()
        raise PeerError("the link broke")

    try:
        endpoint = Endpoint("127.0.0.1", serving.port, ComponentId(SERVER))
        source = HeldItems(
            lambda: make_hello(MACHINE), limit_bytes=1 << 20, on_welcome=nothing, on_ack=cancelled_and_broken,
            on_digest_reply=nothing, on_refused=lambda _: None,
        )  # fmt: skip
        tasks.append(asyncio.create_task(StreamSender(endpoint, agent, source, expect=Role.PROCESS_SERVER).run()))
        done, _ = await asyncio.wait(tasks, timeout=10)
        assert done, "the sender went on"
        assert tasks[0].cancelled()
        assert greeted == 1
    finally:
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await serving.close()
