"""The certificates that the configuration server really issues, on the links: each role on its own end and no other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from answering_server import component
from process_server_doubles import QUICK, KeepingMasterTarget, make_hello

from failback.configuration_server.enrolment.authority import Authority
from failback.errors import AuthenticationError, FailbackError
from failback.model.components import Endpoint, Role
from failback.model.ids import ComponentId
from failback.process_server.intake import check_peer
from failback.protocol.messages import Hello
from failback.transport.identity import Identity
from failback.transport.link import Link, open_link, serve_links

C1 = ComponentId("c1")


def _identity(authority: Authority, role: Role, directory: Path) -> Identity:
    component(authority, role, directory)
    return Identity(C1, role, directory)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "ca")


@pytest.mark.parametrize(
    ("sender", "receiver"),
    [(Role.MOBILITY, Role.PROCESS_SERVER), (Role.PROCESS_SERVER, Role.MASTER_TARGET)],
)
async def test_each_link_of_the_chain_opens(authority: Authority, tmp_path: Path, sender: Role, receiver: Role) -> None:
    target = KeepingMasterTarget(_identity(authority, receiver, tmp_path / "receiver"))
    port = await target.start()
    try:
        link, welcome = await open_link(
            Endpoint("127.0.0.1", port, C1), _identity(authority, sender, tmp_path / "sender"), make_hello("m"),
            expect=receiver, times=QUICK,
        )  # fmt: skip
        assert link.peer.role is receiver and welcome.incarnation == "journal-1"
        await link.close()
    finally:
        await target.close()


@pytest.mark.parametrize(
    ("poser", "sentence"),
    [
        (Role.MOBILITY, "certificate purpose"),
        (Role.MASTER_TARGET, "is master-target c1, not process-server"),
    ],
)
async def test_nobody_receives_in_the_place_of_a_process_server(
    authority: Authority, tmp_path: Path, poser: Role, sentence: str
) -> None:
    """Even under the right component id."""
    target = KeepingMasterTarget(_identity(authority, poser, tmp_path / "poser"))
    port = await target.start()
    try:
        with pytest.raises(AuthenticationError, match=sentence):
            await open_link(
                Endpoint("127.0.0.1", port, C1), _identity(authority, Role.MOBILITY, tmp_path / "agent"),
                make_hello("m"), expect=Role.PROCESS_SERVER, times=QUICK,
            )  # fmt: skip
        assert not target.streams
    finally:
        await target.close()


@pytest.mark.parametrize(("role", "machine"), [(Role.MOBILITY, "another"), (Role.PROCESS_SERVER, "c1")])
async def test_an_agent_speaks_for_its_own_machine_only(
    authority: Authority, tmp_path: Path, role: Role, machine: str
) -> None:
    async def accept(link: Link, hello: Hello) -> None:
        check_peer(link, hello)
        raise AssertionError("it was let in")

    server = await serve_links(
        "127.0.0.1", 0, _identity(authority, Role.PROCESS_SERVER, tmp_path / "server"), accept, times=QUICK
    )
    try:
        async with asyncio.timeout(10):
            with pytest.raises(FailbackError, match="may not send the stream") as caught:
                await open_link(
                    Endpoint("127.0.0.1", server.port, C1), _identity(authority, role, tmp_path / "sender"),
                    make_hello(machine), expect=Role.PROCESS_SERVER, times=QUICK,
                )  # fmt: skip
        assert caught.value.code == "NotYourStream"
    finally:
        await server.close()
