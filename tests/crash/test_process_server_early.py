"""Items go on from memory before they are spooled (decision 0010): what a process server that is killed then may not lose, mix up
or take twice, also when agent and master target are away or begin anew at that moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from process_server_doubles import make_batch, make_hello
from process_server_site import Agent, Site, eventually

from failback.errors import FailbackError
from failback.model.components import Role
from failback.protocol.messages import Batch
from failback.transport.link import open_link


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    built = Site(tmp_path)
    yield built
    await built.close()


def _batches(agent: Agent, first: int, last: int) -> list[Batch]:
    return [make_batch(agent.machine_id, sequence, payload_bytes=30_000) for sequence in range(first, last + 1)]


def _state(site: Site, agent: Agent) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        (site.directory / "spool" / agent.machine_id / "1" / "state.json").read_text()
    )
    return found


async def test_what_lands_in_time_is_never_written_and_is_acknowledged_as_spooled_too(site: Site) -> None:
    await site.start()
    agent = site.agent()
    await agent.send(*_batches(agent, 1, 1))
    await eventually(lambda: agent.landed == 1)
    for batch in _batches(agent, 2, 40):
        await agent.send(batch)
        await eventually(lambda batch=batch: agent.landed == batch.sequence)
    assert agent.spooled == 40
    written = sum(path.stat().st_size for path in (site.directory / "spool").rglob("*.items"))
    assert written < 40 * 30_000 / 4
    assert _state(site, agent)["forwards_early"] is True


async def test_killed_after_an_item_went_out_that_was_not_spooled(site: Site) -> None:
    site.faults = "forward.after_send=kill@25"
    await site.start()
    agent = site.agent()
    for batch in _batches(agent, 1, 60):
        await agent.send(batch)
    await eventually(lambda: site.killed)
    site.faults = ""
    site.launch()
    await site.listening()
    stream = await site.target.wait_for(agent.machine_id, 60)
    assert [item.decode() for item in stream.items] == _batches(agent, 1, 60)
    await eventually(lambda: agent.landed == 60)
    assert agent.forgotten == 0


async def test_after_a_kill_the_journal_says_first_what_landed(site: Site) -> None:
    """An agent that began anew would make other items under the same numbers: it is not heard before the journal was."""
    await site.start()
    agent = site.agent()
    await agent.send(*_batches(agent, 1, 1))
    await eventually(lambda: agent.landed == 1)  # the master target is linked
    await agent.send(*_batches(agent, 2, 10))
    await eventually(lambda: agent.landed == 10)
    site.kill()  # state.json may be a second old: it does not know item 10
    agent.stop()
    await site.target.close()
    site.launch()
    await site.listening()
    with pytest.raises(FailbackError) as raised:
        await open_link(site.endpoint, agent.identity, make_hello(agent.machine_id), expect=Role.PROCESS_SERVER)
    assert raised.value.code == "JournalNotHeard"
    await site.target.start(site.target_port)
    again = Agent(site, agent.machine_id)
    await eventually(lambda: again.spooled == 10, 40)
    await again.send(*_batches(again, 11, 20))
    stream = await site.target.wait_for(agent.machine_id, 20)
    assert [item.decode() for item in stream.items] == _batches(agent, 1, 20)


async def test_while_the_master_target_is_away_a_restarted_process_server_takes_items_at_once(site: Site) -> None:
    await site.start()
    agent = site.agent()
    await agent.send(*_batches(agent, 1, 10))
    await eventually(lambda: agent.landed == 10)
    await site.target.close()
    await agent.send(*_batches(agent, 11, 20))
    await eventually(lambda: agent.spooled == 20)
    await eventually(lambda: _state(site, agent)["forwards_early"] is False)
    await site.restart()
    await agent.send(*_batches(agent, 21, 30))
    await eventually(lambda: agent.spooled == 30, 40)
    await site.target.start(site.target_port)
    stream = await site.target.wait_for(agent.machine_id, 30)
    assert [item.decode() for item in stream.items] == _batches(agent, 1, 30)
    assert agent.forgotten == 0


async def test_a_clean_stop_leaves_everything_spooled(site: Site) -> None:
    await site.start()
    agent = site.agent()
    await agent.send(*_batches(agent, 1, 10))
    await eventually(lambda: agent.landed == 10)
    agent.stop()
    assert site._process is not None
    site._process.terminate()
    await asyncio.to_thread(site._process.wait, 20)
    assert _state(site, agent)["forwards_early"] is False
    assert _state(site, agent)["landed_sequence"] == 10
    site.launch()
    await site.listening()


async def test_an_agent_that_comes_back_finds_everything_that_arrived_spooled(site: Site) -> None:
    """Held back by the master target, not by age: what arrived may not be forgotten in favour of other items."""
    await site.start()
    agent = site.agent()
    await agent.send(*_batches(agent, 1, 3))
    await eventually(lambda: agent.landed == 3)
    site.target.flow.clear()
    await agent.send(*_batches(agent, 4, 9))
    await eventually(lambda: agent.sender.sent_sequence == 9)
    await asyncio.sleep(0.1)
    agent.stop()
    again = Agent(site, agent.machine_id)
    await eventually(lambda: again.spooled >= 3)
    await again.send(*_batches(again, again.spooled + 1, 12))
    site.target.flow.set()
    stream = await site.target.wait_for(agent.machine_id, 12)
    assert [item.decode() for item in stream.items] == _batches(agent, 1, 12)
