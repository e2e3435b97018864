"""The ways between components as readiness shows them: tried by PROBE orders, or proven by heartbeats.

Every component that is alive is asked at once, with a deadline; what does not answer in time could not be tried. The way to this
server needs no probe: a heartbeat that arrives proves it, also through addresses that only the component knows.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from failback.configuration_server.api.services import Surroundings
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.registry.desired import endpoint
from failback.errors import FailbackError
from failback.model import orders
from failback.model.ids import new_id
from failback.protection.readiness import ProbedEdge
from failback.protection.readiness import network as ways
from failback.runtime import records


@dataclass(frozen=True, slots=True)
class Ends:
    """The components at the ends of the ways; None where none was chosen or found."""

    agent: ComponentRow | None
    process_server: ComponentRow | None
    master_target: ComponentRow | None


@dataclass(frozen=True, slots=True)
class _Edge:
    component: ComponentRow | None
    source: str
    target: str
    purpose: str
    code: str


async def probed(services: Surroundings, ends: Ends, *, probe: bool) -> tuple[ProbedEdge, ...]:
    edges = _edges(ends)
    tried = await _try_edges(services, edges) if probe else _untried(edges)
    return (*_heard_edges(services, ends), *tried)


async def refresh(services: Surroundings, component_ids: tuple[str, ...]) -> None:
    """Have them report now: an order's result comes with a heartbeat that tells volumes, disks and points as they are."""
    await asyncio.gather(*(_probe(services, component_id, ()) for component_id in component_ids))


def alive(services: Surroundings, row: ComponentRow | None) -> bool:
    if row is None or not row.last_heartbeat_wall_ns:
        return False
    return services.clock.wall_ns() - row.last_heartbeat_wall_ns <= services.heartbeat_alarm_seconds * 1e9


def _edges(ends: Ends) -> list[_Edge]:
    """The connections that carry data, with the code that their failure has; a probe tries each."""
    agent, server, target = ends.agent, ends.process_server, ends.master_target
    found: list[_Edge] = []
    found += _data_edge(agent, "agent", server, ways.AGENT_TO_PROCESS_SERVER, "78186")
    found += _data_edge(server, "process server", target, ways.PROCESS_SERVER_TO_TARGET, "Unreachable")
    return found


def _data_edge(
    source: ComponentRow | None, word: str, target: ComponentRow | None, purpose: str, code: str
) -> list[_Edge]:
    place = endpoint(target)
    if place is None:
        return []
    return [_Edge(source, _name(source, word), f"{place.host}:{place.port}", purpose, code)]


def _name(row: ComponentRow | None, word: str) -> str:
    return row.hostname if row else f"the {word}"


def _heard_edges(services: Surroundings, ends: Ends) -> tuple[ProbedEdge, ...]:
    """The ways to this server: a heartbeat is the proof; without one the heartbeat's own check fails."""
    found = []
    for row, word, purpose in (
        (ends.agent, "agent", ways.AGENT_TO_CONTROL),
        (ends.process_server, "process server", ways.PROCESS_SERVER_TO_CONTROL),
        (ends.master_target, "master target", ways.MASTER_TARGET_TO_CONTROL),
    ):
        failure = "" if alive(services, row) else None
        found.append(ProbedEdge(_name(row, word), "the configuration server", purpose, failure))
    return tuple(found)


def _untried(edges: list[_Edge]) -> tuple[ProbedEdge, ...]:
    return tuple(ProbedEdge(edge.source, edge.target, edge.purpose, None, edge.code) for edge in edges)


async def _try_edges(services: Surroundings, edges: list[_Edge]) -> tuple[ProbedEdge, ...]:
    """One PROBE order to each component that is alive; the others' edges stay untried (their heartbeat check fails)."""
    targets: dict[str, list[str]] = {}
    for edge in edges:
        if edge.component is not None and alive(services, edge.component):
            wanted = targets.setdefault(edge.component.component_id, [])
            if edge.target not in wanted:
                wanted.append(edge.target)
    answers = await asyncio.gather(*(_probe(services, one, tuple(wanted)) for one, wanted in targets.items()))
    results = dict(zip(targets, answers, strict=True))
    found = []
    for edge in edges:
        result = results.get(edge.component.component_id) if edge.component else None
        failure = result.failures.get(edge.target) if result is not None else None
        took = result.milliseconds.get(edge.target) if result is not None else None
        found.append(ProbedEdge(edge.source, edge.target, edge.purpose, failure, edge.code, took))
    return tuple(found)


async def _probe(services: Surroundings, component_id: str, targets: tuple[str, ...]) -> orders.ProbeResult | None:
    """None when the component did not answer in time."""
    try:
        result = await services.orders.carry_out(
            component_id, orders.PROBE, 0, orders.Probe(targets), f"probe {new_id()}", services.probe_seconds
        )
    except FailbackError:
        return None  # an edge that could not be tried is shown as such
    return records.decode(result, orders.ProbeResult)
