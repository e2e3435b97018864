"""A configuration server that runs for years renews its own certificate while it serves."""

import asyncio
import ssl
import stat
from pathlib import Path

import pytest
from fastapi import FastAPI

from failback.configuration_server import serving
from failback.configuration_server.config import ServerConfig
from failback.configuration_server.database import Database
from failback.configuration_server.enrolment import authority as authorities
from failback.configuration_server.enrolment.bootstrap import bootstrap
from failback.runtime.clock import SystemClock


async def test_new_connections_see_the_new_certificate_and_old_ones_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "RENEWAL_LOOK_SECONDS", 0.05)
    database = Database.in_directory(tmp_path)
    database.upgrade()
    installation = bootstrap(ServerConfig(tmp_path), database, SystemClock())
    trusting = ssl.create_default_context(cafile=str(installation.authority.ca_path))
    listening = serving.bind("127.0.0.1", 0)
    context = serving.tls_context(installation)
    server = serving.server_for(FastAPI(), installation, context)
    running = asyncio.create_task(server.serve([listening]))
    renewing = asyncio.create_task(serving.keep_certificate(installation, (), context))
    while not server.started:
        await asyncio.sleep(0.01)

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.getsockname()[1], ssl=trusting)
        return reader, writer, writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]

    reader, writer, first = await connect()
    await asyncio.sleep(0.3)
    _, early, same = await connect()
    early.close()
    assert same == first, "a good one is kept"

    monkeypatch.setattr(authorities, "RENEW_DAYS", authorities.CERTIFICATE_DAYS + 1)  # it ends soon
    async with asyncio.timeout(10):
        while True:
            _, later, serial = await connect()
            later.close()
            if serial != first:
                break
            await asyncio.sleep(0.05)
    writer.write(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await asyncio.wait_for(reader.readuntil(b"}"), 5)).startswith(b"HTTP/1.1 404")
    assert stat.S_IMODE(installation.key_path.stat().st_mode) == 0o600
    writer.close()
    renewing.cancel()
    server.should_exit = True
    await running
    database.close()
