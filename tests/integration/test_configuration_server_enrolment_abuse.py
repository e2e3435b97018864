"""What somebody can do with the enrolment desk: guess only slowly, and not take a component's place unseen."""

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from sqlalchemy import select

from failback.configuration_server import serving
from failback.configuration_server.config import ServerConfig
from failback.configuration_server.database import Database
from failback.configuration_server.database.access import AuditRow
from failback.configuration_server.database.events import EventRow
from failback.configuration_server.enrolment.bootstrap import bootstrap
from failback.configuration_server.enrolment.desk import EnrolmentDesk
from failback.configuration_server.registry import News
from failback.errors import AuthenticationError, ConfigurationError, FailbackError
from failback.model.components import Enrolment, Role
from failback.runtime.clock import SystemClock
from failback.transport import identity


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.in_directory(tmp_path)
    opened.upgrade()
    yield opened
    opened.close()


@pytest.fixture
def desk(database: Database, tmp_path: Path) -> EnrolmentDesk:
    installation = bootstrap(ServerConfig(tmp_path), database, SystemClock())
    return EnrolmentDesk(database, News(), installation.authority)


def _request(passphrase: str, role: Role = Role.MOBILITY, hostname: str = "ledger") -> Enrolment:
    return Enrolment(role, hostname, identity.key_and_request(role)[1], "hw-1", "1", passphrase=passphrase)


async def test_guesses_that_come_together_are_slowed_down_too(desk: EnrolmentDesk, database: Database) -> None:
    request = _request("wrong")
    tried = await asyncio.gather(*(desk.enrol(request, "192.0.2.66") for _ in range(40)), return_exceptions=True)
    codes = [error.code for error in tried if isinstance(error, AuthenticationError)]
    assert (codes.count("AuthenticationFailed"), codes.count("TooManyAttempts")) == (5, 35)
    with database.read() as session:
        refused = session.scalars(select(AuditRow).where(AuditRow.outcome == "refused")).all()
    assert len(refused) == 5, "the audit cannot be flooded either"


async def test_a_second_enrolment_of_the_same_hardware_is_seen(
    desk: EnrolmentDesk, database: Database, tmp_path: Path
) -> None:
    passphrase = (tmp_path / "enrolment-passphrase").read_text().strip()
    first = await desk.enrol(_request(passphrase), "192.0.2.1")
    second = await desk.enrol(_request(passphrase, hostname="intruder"), "192.0.2.66")
    assert first.component_id == second.component_id
    with database.read() as session:
        seen = session.scalars(select(EventRow).order_by(EventRow.event_id)).all()
        audited = session.scalars(select(AuditRow).where(AuditRow.address == "192.0.2.66")).all()
    assert [(event.code, event.severity) for event in seen] == [
        ("ComponentEnrolled", "OK"),
        ("ComponentEnrolledAgain", "Warning"),
    ]
    assert "ledger" in seen[1].description and "intruder at 192.0.2.66" in seen[1].description
    assert seen[1].component_id == first.component_id
    assert [row.outcome for row in audited] == ["accepted"]


async def test_nobody_becomes_a_configuration_server(desk: EnrolmentDesk, tmp_path: Path) -> None:
    passphrase = (tmp_path / "enrolment-passphrase").read_text().strip()
    with pytest.raises(ConfigurationError, match="does not enrol"):
        await desk.enrol(_request(passphrase, Role.CONFIGURATION_SERVER), "192.0.2.1")
    with pytest.raises(FailbackError, match="does not enrol"):
        await desk.make_token(Role.CONFIGURATION_SERVER)


async def test_a_connection_that_says_nothing_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "FIRST_REQUEST_SECONDS", 0.3)
    database = Database.in_directory(tmp_path)
    database.upgrade()
    installation = bootstrap(ServerConfig(tmp_path), database, SystemClock())
    listening = serving.bind("127.0.0.1", 0)
    server = serving.server_for(FastAPI(), installation)
    running = asyncio.create_task(server.serve([listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    context = ssl.create_default_context(cafile=str(installation.authority.ca_path))
    port = listening.getsockname()[1]
    silent, _ = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    half, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
    asking, asker = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    asker.write(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await asking.readuntil(b"}")).startswith(b"HTTP/1.1 404")
    async with asyncio.timeout(10):
        assert await silent.read() == b"" and await half.read() == b""
    asker.write(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
    again = await asyncio.wait_for(asking.readuntil(b"}"), 5)
    assert again.startswith(b"HTTP/1.1 404"), "one that has asked stays"
    for each in (writer, asker):
        each.close()
    server.should_exit = True
    await running
    database.close()


def test_a_secret_that_others_may_read_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "passphrase"
    path.write_text("pass-phrase-text\n")
    path.chmod(0o600)
    assert identity._secret(path) == "pass-phrase-text" and not caplog.records
    path.chmod(0o644)
    assert identity._secret(path) == "pass-phrase-text"
    [record] = caplog.records
    assert record.levelname == "WARNING" and "pass-phrase-text" not in str(record.__dict__)
