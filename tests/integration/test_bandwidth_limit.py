"""A limited machine: the real process server forwards no faster, and goes on at once when the limit is lifted."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from api_client import ITEM, VAULT, SiteProcess
from mobility_world import World, run
from process_server_doubles import make_batch
from process_server_site import Site, eventually

from failback.model.bandwidth import NO_LIMIT, BandwidthLimit
from failback.model.components import Endpoint, ProcessServerAssignment, RoutedMachine
from failback.model.ids import ComponentId, MachineId
from failback.transport.limits import Pacer

RATE = 400_000


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    await made.start()
    yield made
    await made.close()


def limited(site: Site, machine_id: str, limit: BandwidthLimit) -> None:
    target = Endpoint("127.0.0.1", site.target_port, ComponentId(site.target_id))
    site.plane.assign(ProcessServerAssignment((RoutedMachine(MachineId(machine_id), 1, target, limit),)))


async def test_the_process_server_forwards_no_faster_until_the_limit_is_lifted(site: Site) -> None:
    agent = site.agent(start=False)
    limited(site, agent.machine_id, BandwidthLimit(RATE))
    agent.start()
    await eventually(lambda: agent.sender.linked)
    began = time.monotonic()
    await agent.send(*(make_batch(agent.machine_id, sequence, payload_bytes=200_000) for sequence in range(1, 31)))
    await eventually(lambda: agent.spooled == 30)
    while agent.landed < 6:
        # never more than the rate allows, whatever the machine's speed
        landed_bytes, elapsed = agent.landed * 200_000, time.monotonic() - began
        assert landed_bytes <= RATE * elapsed + RATE * 0.25 + (256 << 10)
        await asyncio.sleep(0.02)
    assert time.monotonic() - began >= (6 * 200_000 - RATE * 0.25 - (256 << 10)) / RATE
    lifted = time.monotonic()
    limited(site, agent.machine_id, NO_LIMIT)
    await eventually(lambda: agent.landed == 30)
    assert time.monotonic() - lifted < 20 * 200_000 / RATE, "the rest did not wait for the limit"
    assert len(site.target.streams[agent.machine_id, 1].items) == 30 and agent.forgotten == 0
    assert site.target.streams[agent.machine_id, 1].links == 1, "the stream was not interrupted"


async def test_an_agents_link_is_limited_while_it_stays_alive(site: Site) -> None:
    agent = site.agent(start=False)
    pacer = Pacer(BandwidthLimit(RATE))
    agent.sender._pace = pacer.pace
    site.assign((agent.machine_id, 1))
    agent.start()
    await eventually(lambda: agent.sender.linked)
    agent.refusals.clear()
    began = time.monotonic()
    await agent.send(make_batch(agent.machine_id, 1, payload_bytes=1_600_000))
    await eventually(lambda: agent.spooled == 1)
    assert time.monotonic() - began >= (1_600_000 - RATE * 0.25 - (256 << 10)) / RATE
    assert pacer.figures().held_back and not agent.refusals


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteProcess]:
    with SiteProcess(tmp_path_factory.mktemp("plane")) as running:
        running.import_ledger()
        yield running


def patch(plane: SiteProcess, **bandwidth: Any) -> tuple[int, dict[str, Any]]:
    details = {"instanceType": "FailbackSettings", "bandwidth": bandwidth}
    status, body, _ = plane.call("PATCH", ITEM, {"properties": {"providerSpecificDetails": details}})
    return status, body


def test_settings_of_an_item(plane: SiteProcess) -> None:
    office = "mon,tue,wed,thu,fri 08:00-18:00 10MB/s"
    status, body = patch(plane, limit="50MB/s", schedule=["mon-fri 08:00-18:00 10MB/s"], timeZone="Europe/Berlin")
    assert status == 200
    shown = body["properties"]["providerSpecificDetails"]["failback"]["bandwidth"]
    assert shown["limit"] == "50MB/s" and shown["schedule"] == [office] and shown["timeZone"] == "Europe/Berlin"
    status, body = patch(plane, limit="none")
    shown = body["properties"]["providerSpecificDetails"]["failback"]["bandwidth"]
    assert shown["limit"] == "none" and shown["schedule"] == [office], "what is left out stays"
    for wrong in ({"limit": "fast"}, {"schedule": ["mon"]}, {"timeZone": "../etc/passwd"}, {"timeZone": "Nowhere"}):
        status, body = patch(plane, **wrong)
        assert (status, body["error"]["code"]) == (400, "InvalidBandwidth"), wrong
    assert (
        patch(plane, schedule=[])[1]["properties"]["providerSpecificDetails"]["failback"]["bandwidth"]["schedule"] == []
    )


def test_a_policys_limit_holds_where_a_machine_has_none_of_its_own(plane: SiteProcess) -> None:
    def policy(**bandwidth: Any) -> tuple[int, dict[str, Any]]:
        settings = {"replicationProviderSettings": {"bandwidth": bandwidth}}
        status, body, _ = plane.call("PATCH", f"{VAULT}/replicationPolicies/failback", {"properties": settings})
        return status, body

    def shown(body: dict[str, Any]) -> tuple[str, str]:
        found = body["properties"]["providerSpecificDetails"]["failback"]["bandwidth"]
        return found["limit"], found["from"]

    status, body = policy(limit="20MB/s", schedule=["daily 22:00-06:00 none"], timeZone="Europe/Berlin")
    assert status == 200 and body["properties"]["providerSpecificDetails"]["bandwidth"]["limit"] == "20MB/s"
    assert shown(patch(plane, limit="policy")[1]) == ("20MB/s", "policy")
    assert shown(patch(plane, limit="5MB/s")[1]) == ("5MB/s", "item")
    assert shown(patch(plane, limit="none")[1]) == ("none", "item"), "none by name is a limit of its own"
    assert shown(patch(plane, limit="policy")[1]) == ("20MB/s", "policy")
    assert policy(limit="none", schedule=[])[0] == 200
    status, body = policy(limit="fast")
    assert (status, body["error"]["code"]) == (400, "InvalidBandwidth")


@pytest.mark.skipif(os.geteuid() != 0, reason="capturing needs root")
async def test_the_real_agent_follows_its_limit_and_its_end_without_a_new_stream(tmp_path: Path) -> None:
    async with World(tmp_path, sizes=(32 << 20,)) as world:
        assigned = world.assignment()
        world.plane.assign(assigned)
        world.start()
        await world.synced(60)
        links = world.log().count("link is up")
        world.plane.assign(replace(assigned, bandwidth=BandwidthLimit(RATE)))
        await world.until(lambda: (world.plane.status.get("bandwidth") or {}).get("bytes_per_second") == RATE)
        sent, began = world.plane.status["bytes_sent"], time.monotonic()
        run("dd", "if=/dev/urandom", f"of={world.devices[0]}", "bs=64k", "count=64", "oflag=direct", "conv=notrunc")
        await world.until(lambda: world.plane.status["bandwidth"]["held_back"])
        await world.until(lambda: world.plane.status["bytes_sent"] - sent >= 1 << 20, 60)
        assert time.monotonic() - began >= ((1 << 20) - RATE * 0.25 - (256 << 10)) / RATE
        world.plane.assign(assigned)
        await world.until(lambda: world.plane.status["backlog_bytes"] == 0, 60)
        await world.settled(60)
        assert world.same() and world.log().count("link is up") == links, "the stream was not interrupted"
        figures = world.plane.status["figures"]
        assert figures["captured_bytes"] >= 4 << 20 and figures["ring_bytes"] == 16 << 20
