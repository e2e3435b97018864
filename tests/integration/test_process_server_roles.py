"""The real process-server process between a real sender and a keeping master target, over TLS, told by a fixed control
plane: forwarding, resume, epochs, strangers, back-pressure, replaced journals, replies, probe, bounded memory."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from process_server_doubles import QUICK, make_batch, make_digests, make_hello
from process_server_site import Agent, Site, eventually

from failback.errors import FailbackError
from failback.model.components import Role
from failback.transport.link import open_link


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    built = Site(tmp_path)
    await built.start()
    yield built
    await built.close()


async def test_items_go_through_and_both_acknowledgements_come_back(site: Site) -> None:
    agent = site.agent()
    sent = [make_batch(agent.machine_id, n, payload_bytes=n * 10_000) for n in range(1, 40)]
    sent.append(make_digests(agent.machine_id, 40))  # type: ignore[arg-type]
    await agent.send(*sent)
    stream = await site.target.wait_for(agent.machine_id, 40)
    assert [item.decode() for item in stream.items] == sent
    await eventually(lambda: agent.landed == 40)
    await eventually(lambda: [reply.sequence for reply in agent.replies] == [40])
    assert agent.acks[-1].incarnation == "journal-1" and agent.acks[-1].landed_ring == 4000
    assert all(ack.landed_sequence <= ack.spooled_sequence for ack in agent.acks)
    assert stream.hellos[0].disks == make_hello(agent.machine_id).disks
    reported = {"landed_sequence": 40, "master_target_connected": True, "agent_connected": True, "problem": ""}
    await eventually(lambda: reported.items() <= site.machine_status(agent.machine_id).items())


async def test_it_spools_while_the_master_target_is_away_and_forwards_later_in_order(site: Site) -> None:
    agent = site.agent()
    await agent.send(*(make_batch(agent.machine_id, n) for n in range(1, 6)))
    await eventually(lambda: agent.landed == 5)
    await site.target.close()
    await agent.send(*(make_batch(agent.machine_id, n) for n in range(6, 31)))
    await eventually(lambda: agent.spooled == 30)
    assert agent.landed == 5
    await site.target.start(site.target_port)
    stream = await site.target.wait_for(agent.machine_id, 30)
    assert [item.header.sequence for item in stream.items] == list(range(1, 31))
    await eventually(lambda: agent.landed == 30)


async def test_strangers_and_wrong_epochs_are_refused(site: Site) -> None:
    agent = site.agent(start=False)

    async def refusal_of(identity_of: str, role: Role, **fields: int) -> str:
        identity = site.authority.identity(identity_of, role, site.directory / f"{identity_of}-{role.value}-x")
        with pytest.raises(FailbackError) as caught:
            await open_link(
                site.endpoint, identity, make_hello(agent.machine_id, **fields), expect=Role.PROCESS_SERVER, times=QUICK
            )
        return caught.value.code

    site.assign((agent.machine_id, 2))
    await eventually(lambda: site.machine_status(agent.machine_id))
    assert await refusal_of(str(uuid.uuid4()), Role.MOBILITY) == "NotYourStream"
    assert await refusal_of(agent.machine_id, Role.MASTER_TARGET) == "NotYourStream"
    assert await refusal_of(agent.machine_id, Role.MOBILITY, epoch=1) == "StaleEpoch"
    assert await refusal_of(agent.machine_id, Role.MOBILITY, epoch=3) == "EpochNotAssigned"
    site.assign()
    await eventually(lambda: not site.machine_status(agent.machine_id))
    assert await refusal_of(agent.machine_id, Role.MOBILITY, epoch=2) == "MachineNotAssigned"


async def test_a_higher_epoch_deletes_the_spool_and_begins_anew(site: Site) -> None:
    site.target.flow.clear()
    agent = site.agent()
    await agent.send(*(make_batch(agent.machine_id, n) for n in range(1, 4)))
    await eventually(lambda: agent.spooled == 3)
    assert site.spools() == [(agent.machine_id, "1")]
    site.assign((agent.machine_id, 2))
    await eventually(lambda: site.spools() == [(agent.machine_id, "2")])
    await eventually(lambda: "StaleEpoch" in [error.code for error in agent.refusals])
    agent.stop()
    site.target.flow.set()
    renewed = Agent(site, agent.machine_id, epoch=2)
    await renewed.send(make_batch(agent.machine_id, 1, epoch=2))
    await site.target.wait_for(agent.machine_id, 1, epoch=2)
    site.assign()
    await eventually(lambda: site.spools() == [])


@pytest.mark.parametrize("fault", ["another incarnation", "fell back"])
async def test_a_replaced_journal_ends_the_epoch_and_the_agent_hears_why(site: Site, fault: str) -> None:
    agent = site.agent()
    await agent.send(*(make_batch(agent.machine_id, n) for n in range(1, 9)))
    await eventually(lambda: agent.landed == 8)
    await site.target.close()
    if fault == "another incarnation":
        site.target.incarnation = "journal-2"
    else:
        stream = site.target.streams[(agent.machine_id, 1)]
        del stream.items[5:]
        stream.ring = 500
    await site.target.start(site.target_port)
    await eventually(lambda: "JournalReplaced" in [error.code for error in agent.refusals])
    assert not next(error for error in agent.refusals if error.code == "JournalReplaced").retryable
    await eventually(lambda: "JournalReplaced" in site.machine_status(agent.machine_id)["problem"])
    await site.restart()  # what was remembered is durable, or the agent remembers it
    await eventually(lambda: "JournalReplaced" in site.machine_status(agent.machine_id).get("problem", ""))
    assert site.target.streams[(agent.machine_id, 1)].landed == (8 if fault == "another incarnation" else 5)


async def test_the_bound_makes_the_agent_wait_and_loses_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path, spool_limit_bytes=4 << 20)
    await site.start()
    try:
        site.target.flow.clear()
        agent = site.agent()
        producing = asyncio.create_task(
            agent.send(*(make_batch(agent.machine_id, n, payload_bytes=500_000) for n in range(1, 41)))
        )
        await eventually(lambda: agent.spooled > 0)
        await asyncio.sleep(1.0)  # it has time to do wrong
        assert 0 < agent.spooled < 20 and agent.sender.linked
        on_disk = sum(path.stat().st_size for path in (tmp_path / "spool").rglob("*.items"))
        assert on_disk <= 4 << 20
        site.target.flow.set()
        stream = await site.target.wait_for(agent.machine_id, 40)
        assert [item.decode() for item in stream.items] == [
            make_batch(agent.machine_id, n, payload_bytes=500_000) for n in range(1, 41)
        ]
        await producing
        # unassigning a machine that waits for room works too
        site.target.flow.clear()
        more = asyncio.create_task(
            agent.send(*(make_batch(agent.machine_id, n, payload_bytes=500_000) for n in range(41, 81)))
        )
        await asyncio.sleep(0.7)
        site.assign()
        await eventually(lambda: site.spools() == [])
        more.cancel()
    finally:
        await site.close()


async def test_replies_wait_for_an_agent_that_is_away(site: Site) -> None:
    site.target.flow.clear()
    agent = site.agent()
    await agent.send(make_digests(agent.machine_id, 1))  # type: ignore[arg-type]
    await eventually(lambda: agent.spooled == 1)
    await eventually(lambda: site.machine_status(agent.machine_id).get("agent_connected") is True)
    agent.stop()
    await eventually(lambda: site.machine_status(agent.machine_id).get("agent_connected") is False)
    site.target.flow.set()
    await site.target.wait_for(agent.machine_id, 1)
    back = Agent(site, agent.machine_id)
    await eventually(lambda: [reply.sequence for reply in back.replies] == [1])
    assert back.landed == 1


async def test_a_damaged_spool_ends_the_epoch_and_nothing_damaged_is_forwarded(tmp_path: Path) -> None:
    site = Site(tmp_path, recent_memory_bytes=1)
    await site.start()
    try:
        await _damaged(site)
    finally:
        await site.close()


async def _damaged(site: Site) -> None:
    agent = site.agent()
    await agent.send(make_batch(agent.machine_id, 1))
    await eventually(lambda: agent.landed == 1)
    await site.target.close()
    await agent.send(*(make_batch(agent.machine_id, n) for n in range(2, 6)))
    await eventually(lambda: agent.spooled == 5)
    (path,) = (site.directory / "spool").rglob("*.items")
    content = bytearray(path.read_bytes())
    content[-2 * 5000] ^= 1  # in item 4
    path.write_bytes(content)
    await site.target.start(site.target_port)
    await eventually(lambda: "SpoolDamaged" in [error.code for error in agent.refusals])
    assert site.target.streams[(agent.machine_id, 1)].landed <= 3
    await eventually(lambda: "SpoolDamaged" in site.machine_status(agent.machine_id)["problem"])


async def test_the_newest_connection_of_a_machine_wins(site: Site) -> None:
    agent = site.agent()
    await agent.send(make_batch(agent.machine_id, 1))
    await eventually(lambda: agent.spooled == 1)
    link, welcome = await open_link(
        site.endpoint, agent.identity, make_hello(agent.machine_id), expect=Role.PROCESS_SERVER, times=QUICK
    )
    assert welcome.spooled_sequence == 1
    await eventually(lambda: any("took over" in error.message for error in agent.refusals))
    agent.stop()
    await link.close()


async def test_probe_order(site: Site) -> None:
    closed = "127.0.0.1:1"
    good = f"127.0.0.1:{site.target_port}"
    site.plane.orders = [
        {"order_id": "o1", "kind": "probe", "generation": 1, "arguments": {"targets": [good, closed, "nonsense"]}}
    ]
    await eventually(lambda: any(report["state"] == "succeeded" for report in site.plane.reports))
    failures = site.plane.reports[0]["result"]["failures"]
    assert failures[good] == "" and failures[closed] and failures["nonsense"]


async def test_many_machines_with_backlogs_stay_within_the_memory_bound(site: Site) -> None:
    site.target.flow.clear()
    agents = [Agent(site, str(uuid.uuid4()), start=False) for _ in range(24)]
    site.assign(*((agent.machine_id, 1) for agent in agents))
    for agent in agents:
        agent.start()
        await agent.send(*(make_batch(agent.machine_id, n, payload_bytes=4 << 20) for n in (1, 2, 3)))
    await eventually(lambda: all(agent.spooled == 3 for agent in agents), 60)
    assert site.resident_megabytes() < 300
    site.target.flow.set()
    for agent in agents:
        await site.target.wait_for(agent.machine_id, 3, seconds=60)
    assert site.peak_megabytes() < 300


async def test_the_remembered_assignment_serves_while_the_control_plane_is_away(site: Site) -> None:
    agent = site.agent()
    await agent.send(make_batch(agent.machine_id, 1))
    await eventually(lambda: agent.landed == 1)
    site.plane.close()
    await site.restart()
    await agent.send(make_batch(agent.machine_id, 2))
    await site.target.wait_for(agent.machine_id, 2)
