"""Certificates that live: renewed and enrolled again by themselves, revoked everywhere, without a word to the streams."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from process_server_doubles import QUICK, KeepingMasterTarget, make_batch, make_hello
from running_configuration_server import RunningConfigurationServer

from failback.cli.client import Api
from failback.cli.settings import Settings
from failback.errors import AuthenticationError, ConflictError, FailbackError
from failback.model.components import (
    Endpoint,
    MasterTargetAssignment,
    MasterTargetStatus,
    ProcessServerAssignment,
    ProcessServerStatus,
    Role,
)
from failback.transport import identity as identities
from failback.transport.control import ControlLoop
from failback.transport.https import ControlConfig
from failback.transport.identity import Identity
from failback.transport.link import open_link
from failback.transport.renewal import validity_of
from failback.transport.sender import HeldItems, StreamSender

DAY = dt.timedelta(days=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConfigurationServer]:
    with RunningConfigurationServer(tmp_path_factory.mktemp("server"), "monitor_seconds = 0.5\n") as running:
        yield running


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def enrolled(server: RunningConfigurationServer, directory: Path, role: Role, monkeypatch: pytest.MonkeyPatch,
                   hardware_id: str = "") -> Identity:  # fmt: skip
    monkeypatch.setenv("FAILBACK_HARDWARE_ID", hardware_id or f"hw-{uuid.uuid4()}")
    return await identities.enrol_if_needed(directory, server.control(), role)


@asynccontextmanager
async def controlled(who: Identity, config: ControlConfig) -> AsyncIterator[None]:
    """The real control loop of a role that has nothing to do."""
    stop = asyncio.Event()

    async def apply(_assignment: object) -> None:
        return None

    is_target = who.role is Role.MASTER_TARGET
    loop: ControlLoop[Any] = ControlLoop(
        who, config, status=MasterTargetStatus if is_target else ProcessServerStatus,
        assignment_kind=MasterTargetAssignment if is_target else ProcessServerAssignment, apply_assignment=apply, orders={},
    )  # fmt: skip
    running = asyncio.create_task(loop.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(running, 30)


def aged(who: Identity, server: RunningConfigurationServer, begin: dt.timedelta, end: dt.timedelta) -> None:
    """Give the component a certificate of another age, of the same authority and for its own key."""
    ca_key = serialization.load_pem_private_key((server.state / "ca" / "key.pem").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    old = x509.load_pem_x509_certificate(who.certificate_path.read_bytes())
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(old.subject).issuer_name(old.issuer).public_key(old.public_key())
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    builder = (
        builder.serial_number(x509.random_serial_number()).not_valid_before(now + begin).not_valid_after(now + end)
    )
    who.certificate_path.write_bytes(builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    who.reload()


def serial(who: Identity) -> int:
    return x509.load_pem_x509_certificate(who.certificate_path.read_bytes()).serial_number


def api(server: RunningConfigurationServer) -> Api:
    return Api(Settings(server.url, server.ca_file, server.state / "administrator.token"))


async def test_renewed_in_time_while_the_stream_flows(
    server: RunningConfigurationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = KeepingMasterTarget(await enrolled(server, tmp_path / "target", Role.MASTER_TARGET, monkeypatch))
    port = await target.start()
    who = await enrolled(server, tmp_path / "sender", Role.PROCESS_SERVER, monkeypatch)
    aged(who, server, -300 * DAY, 65 * DAY)
    before = serial(who)
    machine = str(uuid.uuid4())
    items = HeldItems(lambda: make_hello(machine))
    sender = StreamSender(
        Endpoint("127.0.0.1", port, target.identity.component_id), who, items, expect=Role.MASTER_TARGET, times=QUICK
    )
    sending = asyncio.create_task(sender.run())
    await until(lambda: sender.linked)
    await items.send(make_batch(machine, 1))
    stream = target.streams[machine, 1]
    assert stream.links == 1
    async with controlled(who, server.control()):
        await until(lambda: serial(who) != before)
        await items.send(make_batch(machine, 2))
        await until(lambda: items.held_bytes == 0)
    assert stream.links == 1, "the link of before lives on"
    assert validity_of(who).end > dt.datetime.now(dt.UTC) + 360 * DAY
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    link, _ = await open_link(sender.endpoint, who, make_hello(machine), expect=Role.MASTER_TARGET, times=QUICK)
    await link.close()
    assert not list(who.directory.glob("next-*"))
    await target.close()


@pytest.mark.parametrize("point", ["identity.key_written", "identity.certificate_written", "identity.key_replaced"])
async def test_killed_in_a_renewal_the_identity_is_whole(
    server: RunningConfigurationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    who = await enrolled(server, tmp_path, Role.PROCESS_SERVER, monkeypatch)
    before = serial(who)
    code = (
        "import sys, pathlib; from failback.transport import identity; from failback.transport.https import ControlConfig;"
        "who = identity.load(pathlib.Path(sys.argv[1]));"
        "identity.renew(who, ControlConfig(sys.argv[2], pathlib.Path(sys.argv[3])))"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, str(who.directory), server.url, str(server.ca_file)],
        env={**os.environ, "FAILBACK_FAULTS": f"{point}=kill"}, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    again = identities.load(who.directory)
    assert again is not None
    again.client_context()  # key and certificate fit
    assert (serial(again) == before) is (point == "identity.key_written")
    await asyncio.to_thread(identities.renew, again, server.control())
    again.client_context()


async def test_an_expired_one_enrols_again_by_a_token(
    server: RunningConfigurationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = await enrolled(server, tmp_path / "state", Role.PROCESS_SERVER, monkeypatch)
    aged(who, server, -30 * DAY, -1 * DAY)
    token_file = tmp_path / "token"
    token_file.write_text("")
    token_file.chmod(0o600)
    config = ControlConfig(server.url, server.ca_file, None, token_file, 0.2)
    monkeypatch.setattr("failback.transport.renewal.LONGEST_PAUSE_SECONDS", 0.2)
    async with controlled(who, config):
        await asyncio.sleep(1.0)
        assert validity_of(who).end < dt.datetime.now(dt.UTC), "without a secret nothing is enrolled"
        with api(server) as caller:
            made = await asyncio.to_thread(caller.component_call, "/tokens", {"role": "process-server"})
        token_file.write_text(made["token"])
        await until(lambda: validity_of(who).end > dt.datetime.now(dt.UTC))
        with api(server) as caller:
            await until(lambda: _alive(caller, who))


def _alive(caller: Api, who: Identity) -> bool:
    fabric = caller.get("/replicationFabrics/configuration-server")["properties"]["customDetails"]
    [known] = [one for one in fabric["processServers"] if one["id"] == who.component_id]
    return bool(known["failback"]["alive"])


async def test_enrolling_again_revokes_the_one_of_before_everywhere(
    server: RunningConfigurationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target_who = await enrolled(server, tmp_path / "target", Role.MASTER_TARGET, monkeypatch)
    target = KeepingMasterTarget(target_who)
    port = await target.start()
    old = await enrolled(server, tmp_path / "old", Role.PROCESS_SERVER, monkeypatch, "hw-twice")
    async with controlled(target_who, server.control()):
        where = Endpoint("127.0.0.1", port, target_who.component_id)
        link, _ = await open_link(where, old, make_hello("m"), expect=Role.MASTER_TARGET, times=QUICK)
        new = await enrolled(server, tmp_path / "new", Role.PROCESS_SERVER, monkeypatch, "hw-twice")
        assert new.component_id == old.component_id
        await until(lambda: link.ended is not None)
        assert link.ended is not None and link.ended.code == "CertificateRevoked", "a living link is cut"
        await link.close()
        with pytest.raises(FailbackError, match="was revoked"):
            await open_link(where, old, make_hello("m"), expect=Role.MASTER_TARGET, times=QUICK)
        link, _ = await open_link(where, new, make_hello("m"), expect=Role.MASTER_TARGET, times=QUICK)
        await link.close()
    with pytest.raises(AuthenticationError, match="was revoked"):
        await asyncio.to_thread(identities.renew, old, server.control())
    again = Identity(target_who.component_id, target_who.role, target_who.directory)
    assert again.denied.digest, "a restart knows the list before the configuration server is heard"
    await target.close()


async def test_a_revoked_component_gets_nothing_until_it_is_readmitted(
    server: RunningConfigurationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target_who = await enrolled(server, tmp_path / "target", Role.MASTER_TARGET, monkeypatch, "hw-t")
    target = KeepingMasterTarget(target_who)
    port = await target.start()
    sender_who = await enrolled(server, tmp_path / "sender", Role.PROCESS_SERVER, monkeypatch, "hw-s")
    where = Endpoint("127.0.0.1", port, target_who.component_id)
    machine = str(uuid.uuid4())
    refusals: list[FailbackError] = []
    items = HeldItems(lambda: make_hello(machine), on_refused=refusals.append)
    sender = StreamSender(where, sender_who, items, expect=Role.MASTER_TARGET, times=QUICK)
    sending = asyncio.create_task(sender.run())
    async with controlled(sender_who, server.control()):
        await until(lambda: sender.linked)
        with api(server) as caller:
            await asyncio.to_thread(caller.component_call, "/revoke", {"component": target_who.component_id})
            # the target's own loop does not run here: it is the sender that refuses to talk to it
            await until(lambda: any(error.code == "CertificateRevoked" for error in refusals))
            assert not sender.linked
            monkeypatch.setenv("FAILBACK_HARDWARE_ID", "hw-t")
            with pytest.raises(AuthenticationError, match="removed"):
                await asyncio.to_thread(identities._enrol, tmp_path / "again", server.control(), Role.MASTER_TARGET)
            with pytest.raises(AuthenticationError):
                await asyncio.to_thread(identities.renew, target_who, server.control())
            with pytest.raises(FailbackError, match="cannot revoke itself"):
                await asyncio.to_thread(caller.component_call, "/revoke", {"component": _own_id(server)})
            await asyncio.to_thread(caller.component_call, "/readmit", {"component": target_who.component_id})
        with pytest.raises(AuthenticationError, match="was revoked"):
            await asyncio.to_thread(identities.renew, target_who, server.control())
        await asyncio.to_thread(identities.enrol_again, target_who, server.control())
        target_who.reload()
        await until(lambda: sender.linked)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await target.close()


def _own_id(server: RunningConfigurationServer) -> str:
    certificate = x509.load_pem_x509_certificate((server.state / "server" / "certificate.pem").read_bytes())
    [name] = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(name.value)


async def test_a_copy_on_other_hardware_renews_nothing(
    server: RunningConfigurationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = await enrolled(server, tmp_path, Role.MOBILITY, monkeypatch, "hw-original")
    monkeypatch.setenv("FAILBACK_HARDWARE_ID", "hw-copy")
    with pytest.raises(ConflictError, match="other hardware"):
        await asyncio.to_thread(identities.renew, who, server.control())
    monkeypatch.setenv("FAILBACK_HARDWARE_ID", "hw-original")
    await asyncio.to_thread(identities.renew, who, server.control())
