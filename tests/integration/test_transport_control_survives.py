"""The control loop outlives answers it does not understand, and orders and files that fail unexpectedly."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from answering_server import Answers, component, listening

from failback.configuration_server.enrolment.authority import Authority
from failback.model.components import HeartbeatReply, Order, ProcessServerAssignment, ProcessServerStatus, Role
from failback.model.ids import ComponentId, OrderId
from failback.runtime import records
from failback.transport.control import ControlLoop
from failback.transport.https import ControlConfig
from failback.transport.identity import Identity


def _reply(**changes: Any) -> bytes:
    reply: dict[str, Any] = records.encode(HeartbeatReply(1, 0, None, (), "expected"))
    return json.dumps({**reply, **changes}).encode()


GOOD = _reply(assignment_generation=3, assignment=records.encode(ProcessServerAssignment()))
REFUSED = json.dumps({"error": {"code": "InvalidConfiguration", "message": "heartbeat: status: key 'x' is missing"}})
ODD_ASSIGNMENT = _reply(assignment_generation=2, assignment={"machines": "none"})


@contextmanager
def _server(directory: Path) -> Iterator[tuple[Answers, Identity, ControlConfig]]:
    authority = Authority.open(directory / "ca")
    component(authority, Role.PROCESS_SERVER, directory / "identity")
    who = Identity(ComponentId("c1"), Role.PROCESS_SERVER, directory / "identity")
    with listening(*authority.issue_server(directory / "server", "the-server", ("127.0.0.1",))) as answers:
        yield answers, who, ControlConfig(answers.url, authority.ca_path, heartbeat_seconds=0.2)


async def _until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("status", "content"),
    [(400, REFUSED.encode()), (404, b"{}"), (413, b"{}"), (200, b"[]"), (200, b"{}"), (200, ODD_ASSIGNMENT)],
)
async def test_an_answer_that_is_not_understood_ends_nothing(tmp_path: Path, status: int, content: bytes) -> None:
    applied: list[ProcessServerAssignment] = []

    async def apply(assignment: ProcessServerAssignment) -> None:
        applied.append(assignment)

    with _server(tmp_path) as (answers, who, config):
        answers.status, answers.content = status, content
        stop = asyncio.Event()
        loop = ControlLoop(
            who, config, status=ProcessServerStatus, assignment_kind=ProcessServerAssignment, apply_assignment=apply,
            orders={},
        )  # fmt: skip
        running = asyncio.create_task(loop.run(stop))
        await _until(lambda: answers.count >= 2 or running.done())
        assert not running.done(), running.exception()
        answers.status, answers.content = 200, GOOD
        await _until(lambda: bool(applied) or running.done())
        stop.set()
        await running


async def test_an_order_and_a_file_that_fail_unexpectedly_end_nothing(tmp_path: Path) -> None:
    async def apply(_: ProcessServerAssignment) -> None:
        """Taken."""

    async def broken(_order: Order, _progress: object) -> dict[str, Any]:
        raise RuntimeError("nobody thought of this")

    order = Order(OrderId("o1"), "broken", 1, {})
    with _server(tmp_path) as (answers, who, config):
        answers.content = _reply(orders=[records.encode(order)], **{
            name: json.loads(GOOD)[name] for name in ("assignment", "assignment_generation")})  # fmt: skip
        stop = asyncio.Event()
        loop = ControlLoop(
            who, config, status=ProcessServerStatus, assignment_kind=ProcessServerAssignment, apply_assignment=apply,
            orders={"broken": broken}, assignment_file=tmp_path / "missing" / "assignment.json",
        )  # fmt: skip
        running = asyncio.create_task(loop.run(stop))

        def told() -> bool:
            reports = json.loads(answers.received or b"{}").get("reports", [])
            return any(report["state"] == "failed" for report in reports)

        await _until(lambda: told() or running.done())
        assert not running.done(), running.exception()
        assert "nobody thought of this" in answers.received.decode()
        stop.set()
        await running
