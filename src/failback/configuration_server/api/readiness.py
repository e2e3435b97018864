"""``readiness`` of an item (our extension), and gathering its facts: database, fabrics, connections tried by components.

``gather`` is also what a reprotect's prerequisite check calls. Fabrics are asked in threads and components by PROBE
orders, all at once, each with a deadline: what does not answer in time is a fact too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from sqlalchemy.orm import Session

from failback.configuration_server.api.arm import CONTAINER_PATH, VaultOf, last_segment
from failback.configuration_server.api.containers import ItemName
from failback.configuration_server.api.fabric_calls import ask
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.item_view import ItemView, item_row, view
from failback.configuration_server.api.services import Services, Surroundings
from failback.configuration_server.database import groups
from failback.configuration_server.database.components import ComponentRow, all_components, find
from failback.configuration_server.registry.desired import endpoint
from failback.configuration_server.workflows.group_point import member_facts
from failback.configuration_server.workflows.inputs import ReprotectInputs
from failback.errors import FailbackError, NotFoundError
from failback.fabric.interfaces import FabricMachine
from failback.model import orders
from failback.model.components import MasterTargetStatus, Role, VolumeFacts
from failback.model.ids import new_id
from failback.protection.group_rules import MemberFacts
from failback.protection.readiness import (
    Check,
    ComponentFacts,
    DiskFacts,
    ProbedEdge,
    ReadinessFacts,
    evaluate,
    ready,
)
from failback.runtime import records


@dataclass(frozen=True, slots=True)
class ReprotectChoice:
    """What a reprotect would use; an empty server means the only one that is registered."""

    process_server: str = ""
    master_target: str = ""
    retention_volume: str = ""
    datastore: str = ""


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database says, read in one transaction."""

    item: ItemView
    process_server: ComponentRow | None
    master_target: ComponentRow | None
    target_status: MasterTargetStatus
    group_members: tuple[MemberFacts, ...]
    """The other members of its replication group."""


@dataclass(frozen=True, slots=True)
class _Side:
    """A machine as its fabric sees it now; ``problem`` is why the fabric does not answer."""

    machine: FabricMachine | None
    problem: str


@dataclass(frozen=True, slots=True)
class _Edge:
    component: ComponentRow | None
    source: str
    target: str
    purpose: str
    code: str


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=CONTAINER_PATH, route_class=FaultRoute, tags=["readiness"])

    @routes.get("/replicationProtectedItems/{item}/readiness")
    async def readiness(vault: VaultOf, item: ItemName, choice: Annotated[ReprotectChoice, Depends(_choice)]) -> Any:
        checks = evaluate(await gather(services, item, choice))
        return {"id": f"{vault.item(item)}/readiness", "ready": ready(checks), "value": records.encode(checks)}

    return routes


def _choice(
    process_server: Annotated[str, Query(alias="processServer")] = "",
    master_target: Annotated[str, Query(alias="masterTarget")] = "",
    retention_volume: Annotated[str, Query(alias="retentionVolume")] = "",
    datastore: str = "",
) -> ReprotectChoice:
    return ReprotectChoice(process_server, master_target, retention_volume, datastore)


async def gather(
    services: Surroundings, item: str, choice: ReprotectChoice, *, own_job_id: str = "", probe: bool = True
) -> ReadinessFacts:
    """The facts of the item by name or id. ``own_job_id`` is the job that asks: it is not "another job"."""
    known = await services.database.look(lambda session: _known(session, item, choice))
    row = known.item.row
    edges = _edges(services, known)
    cloud, home, probes = await asyncio.gather(
        _look_at(services, row.cloud_fabric, row.cloud_fabric_id),
        _look_at(services, row.on_premises_fabric, row.on_premises_fabric_id),
        _try_edges(services, edges) if probe else _untried(edges),
    )
    other_job = known.item.job is not None and known.item.job.job_id != own_job_id
    status = known.item.mobility
    return ReadinessFacts(
        item_name=row.name,
        state=known.item.state,
        direction=known.item.direction,
        running_job=known.item.running_job if other_job else "",
        has_on_premises_origin=bool(row.on_premises_fabric_id),
        cloud_machine=row.cloud_name or row.cloud_fabric_id,
        cloud_fabric=row.cloud_fabric,
        cloud_fabric_problem=cloud.problem,
        cloud_power=cloud.machine.power.value if cloud.machine else "",
        on_premises_machine=row.on_premises_name or row.on_premises_fabric_id,
        on_premises_fabric=row.on_premises_fabric,
        on_premises_fabric_problem=home.problem,
        on_premises_power=home.machine.power.value if home.machine else "",
        disks=_disks(known.item, cloud.machine, home.machine),
        source_os_family=row.os_family,
        agent=_component(services, known.item.agent),
        agent_self_test=status.self_test,
        agent_problem=status.capture_reason,
        process_server=_component(services, known.process_server),
        process_server_asked=choice.process_server,
        master_target=_component(services, known.master_target),
        master_target_asked=choice.master_target,
        master_target_disks=sum(
            len(replica.disks) for replica in known.target_status.replicas if replica.machine_id != row.machine_id
        ),
        retention_volume_asked=choice.retention_volume,
        retention_volume=volume_named(known.target_status.retention_volumes, choice.retention_volume),
        datastore_asked=choice.datastore,
        datastore=volume_named(known.target_status.datastores, choice.datastore) if choice.datastore else None,
        group=known.item.group.name if known.item.group else "",
        group_members=known.group_members,
        probes=(*_heard_edges(services, known), *probes),
        configuration_server_version=services.version,
        heartbeat_alarm_seconds=services.heartbeat_alarm_seconds,
    )


def preflight_of(services: Surroundings) -> Callable[[str, ReprotectInputs, str], Awaitable[Sequence[Check]]]:
    """What a reprotect's prerequisite check calls with its item, inputs and own job's id."""

    async def preflight(item_id: str, inputs: ReprotectInputs, own_job_id: str) -> Sequence[Check]:
        choice = ReprotectChoice(
            inputs.process_server_id, inputs.master_target_id, inputs.retention_volume, inputs.datastore
        )
        return evaluate(await gather(services, item_id, choice, own_job_id=own_job_id))

    return preflight


def _known(session: Session, item: str, choice: ReprotectChoice) -> _Known:
    row = item_row(session, last_segment(item))
    process_server = _server(session, Role.PROCESS_SERVER, choice.process_server or row.process_server_id or "")
    master_target = _server(session, Role.MASTER_TARGET, choice.master_target or row.master_target_id or "")
    status = records.decode(master_target.status or {}, MasterTargetStatus) if master_target else MasterTargetStatus()
    members = groups.members_of(session, row.group_id) if row.group_id else []
    others = tuple(member_facts(session, each) for each in members if each.item_id != row.item_id)
    return _Known(view(session, row), process_server, master_target, status, others)


def _server(session: Session, role: Role, asked: str) -> ComponentRow | None:
    """The server asked for; without a name the only one of its role; None when there is none (a check says so)."""
    if asked:
        try:
            return find(session, role, last_segment(asked))
        except NotFoundError:
            return None
    rows = [row for row in all_components(session, role) if not row.revoked]
    return rows[0] if len(rows) == 1 else None


def _component(services: Surroundings, row: ComponentRow | None) -> ComponentFacts | None:
    if row is None:
        return None
    heard = row.last_heartbeat_wall_ns
    return ComponentFacts(
        component_id=row.component_id,
        hostname=row.hostname,
        role=Role(row.role),
        version=row.version,
        os_family=row.os_family,
        seconds_since_heartbeat=max(0.0, (services.clock.wall_ns() - heard) / 1e9) if heard else None,
        clock_skew_seconds=row.clock_skew_seconds if heard else None,
    )


def volume_named(volumes: tuple[VolumeFacts, ...], asked: str) -> VolumeFacts | None:
    """By name or path; without a name the only one that may be used."""
    if asked:
        return next((volume for volume in volumes if asked in (volume.name, volume.path)), None)
    usable = [volume for volume in volumes if not volume.problem]
    return usable[0] if len(usable) == 1 else None


async def _look_at(services: Surroundings, fabric_name: str, fabric_id: str) -> _Side:
    site = services.fabrics.get(fabric_name)
    if site is None:
        return _Side(None, "it is not in the configuration server's configuration any more")
    try:
        return _Side(await ask(services, lambda: site.fabric.machine(fabric_id), fabric_name), "")
    except NotFoundError:
        return _Side(None, "")
    except FailbackError as error:
        return _Side(None, error.message)


def _disks(item: ItemView, cloud: FabricMachine | None, home: FabricMachine | None) -> tuple[DiskFacts, ...]:
    """Sizes as the fabrics say now, else as they were when the item was imported."""
    reported = {disk.device_match: disk.size_bytes for disk in item.mobility.disks}
    found = []
    for disk in item.row.disks:
        there = next((each for each in cloud.disks if each.target == disk.cloud_target), None) if cloud else None
        here = next((each for each in home.disks if each.target == disk.on_premises_target), None) if home else None
        seen = disk.device_match in reported if item.agent and item.mobility.disks else None
        source = reported.get(disk.device_match) or (there.size_bytes if there else 0) or disk.cloud_size_bytes
        found.append(
            DiskFacts(
                name=f"disk {disk.index} ({disk.serial or disk.cloud_target})",
                source_size_bytes=source or disk.size_bytes,
                target_size_bytes=here.size_bytes if here else disk.size_bytes,
                target_missing=here.missing if here else disk.create,
                seen_by_agent=seen,
            )
        )
    return tuple(found)


def _edges(services: Surroundings, known: _Known) -> list[_Edge]:
    """The connections that carry data, with the code that their failure has; a probe tries each."""
    agent, server, target = known.item.agent, known.process_server, known.master_target
    found: list[_Edge] = []
    found += _data_edge(agent, "agent", server, "agent to process server", "78186")
    found += _data_edge(server, "process server", target, "process server to master target", "Unreachable")
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


def _heard_edges(services: Surroundings, known: _Known) -> tuple[ProbedEdge, ...]:
    """The ways to this server: a heartbeat is the proof; without one the heartbeat's own check fails."""
    now, limit = services.clock.wall_ns(), services.heartbeat_alarm_seconds * 1e9
    found = []
    for row, word in (
        (known.item.agent, "agent"),
        (known.process_server, "process server"),
        (known.master_target, "master target"),
    ):
        alive = row is not None and row.last_heartbeat_wall_ns and now - row.last_heartbeat_wall_ns <= limit
        name = _name(row, word)
        found.append(
            ProbedEdge(name, "the configuration server", f"{word} to configuration server", "" if alive else None)
        )
    return tuple(found)


async def _untried(edges: list[_Edge]) -> tuple[ProbedEdge, ...]:
    return tuple(ProbedEdge(edge.source, edge.target, edge.purpose, None, edge.code) for edge in edges)


async def _try_edges(services: Surroundings, edges: list[_Edge]) -> tuple[ProbedEdge, ...]:
    """One PROBE order to each component that is alive; the others' edges stay untried (their heartbeat check fails)."""
    now = services.clock.wall_ns()
    limit = services.heartbeat_alarm_seconds * 1e9
    askable = {
        edge.component.component_id
        for edge in edges
        if edge.component
        and edge.component.last_heartbeat_wall_ns
        and now - edge.component.last_heartbeat_wall_ns < limit
    }
    by_component = {
        component_id: tuple(
            dict.fromkeys(
                edge.target for edge in edges if edge.component and edge.component.component_id == component_id
            )
        )
        for component_id in sorted(askable)
    }
    answers = await asyncio.gather(*(_probe(services, one, targets) for one, targets in by_component.items()))
    results = dict(zip(by_component, answers, strict=True))
    probed = []
    for edge in edges:
        known = results.get(edge.component.component_id) if edge.component else None
        failure = known.get(edge.target) if known is not None else None
        probed.append(ProbedEdge(edge.source, edge.target, edge.purpose, failure, edge.code))
    return tuple(probed)


async def _probe(services: Surroundings, component_id: str, targets: tuple[str, ...]) -> dict[str, str] | None:
    """``target -> failure`` (empty: it connects); None when the component did not answer in time."""
    try:
        result = await services.orders.carry_out(
            component_id, orders.PROBE, 0, orders.Probe(targets), f"probe {new_id()}", services.probe_seconds
        )
    except FailbackError:
        return None  # an edge that could not be tried is shown as such
    return dict(records.decode(result, orders.ProbeResult).failures)
