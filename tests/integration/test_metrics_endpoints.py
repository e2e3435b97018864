"""Where metrics are read: a real process server's loopback port, and the configuration server with the right token only."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from process_server_doubles import make_batch
from process_server_site import Site, _free_port, eventually
from prometheus_client.parser import text_string_to_metric_families
from running_configuration_server import RunningConfigurationServer

from failback.model.components import Role
from failback.transport import identity


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[tuple[Site, int]]:
    made, port = Site(tmp_path), _free_port()
    await made.start()
    config = tmp_path / "ps.toml"
    config.write_text(f'metrics_listen = "127.0.0.1:{port}"\n' + config.read_text())
    await made.restart()
    yield made, port
    await made.close()


async def scrape(port: int) -> dict[tuple[str, ...], float]:
    def get() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            return str(answer.read().decode())

    text = await asyncio.to_thread(get)
    families = text_string_to_metric_families(text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


async def test_a_process_server_tells_its_own(site: tuple[Site, int]) -> None:
    running, port = site
    agent = running.agent()
    await agent.send(make_batch(agent.machine_id, 1))
    await eventually(lambda: agent.landed == 1)
    found = await scrape(port)
    assert found["failback_spool_size_bytes", running.server_id] == 1 << 30
    assert found["failback_forwarding", running.server_id, agent.machine_id] == 1
    for path, status in (("/", 404), ("/metrics/x", 404)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}{path}", timeout=20)
        assert refused.value.code == status
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]
    idle[0][1].write(b"G" * 100_000)
    for _, writer in idle:
        writer.close()
    async with asyncio.timeout(30):
        while True:
            try:
                assert await scrape(port)
                return
            except (OSError, http.client.HTTPException):  # the server has not seen all of them go yet
                await asyncio.sleep(0.1)


def get(server: RunningConfigurationServer, path: str, token: str) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=str(server.ca_file))
    request = urllib.request.Request(server.url + path, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, context=context, timeout=20) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_the_configuration_server_tells_all_to_who_has_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunningConfigurationServer(tmp_path) as server:
        monkeypatch.setenv("FAILBACK_HARDWARE_ID", "hw-metrics")
        who = await identity.enrol_if_needed(tmp_path / "state", server.control(), Role.MASTER_TARGET)
        token_file = server.state / "metrics.token"
        assert token_file.stat().st_mode & 0o777 == 0o600
        token = token_file.read_text().strip()
        assert get(server, "/metrics", "")[0] == get(server, "/metrics", "x" * 43)[0] == 401
        for allowed in (token, server.token):
            status, text = get(server, "/metrics", allowed)
            assert status == 200
            names = {family.name for family in text_string_to_metric_families(text)}
            assert "failback_component_up" in names and str(who.component_id) in text
        vault = "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v"
        assert get(server, f"{vault}/replicationFabrics", token)[0] == 401, "it reads metrics only"
        assert get(server, f"{vault}/replicationFabrics", server.token)[0] == 200
