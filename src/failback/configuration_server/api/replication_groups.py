"""``replicationGroups``: machines that share recovery points (our extension: Azure's API only shows the group's id on items).

A group is made with PUT, changed by ``addMember`` and ``removeMember``, and ended by ``remove``: its machines stay protected,
each by itself. ``createRecoveryPoint`` makes a common mark now and answers when it is decided; it is listed as a point as soon as
every member's master target has published it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from failback.configuration_server.api.arm import Vault, VaultOf, envelope, last_segment, listed, timestamp
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.item_view import item_row
from failback.configuration_server.api.services import Services
from failback.configuration_server.api.sign_in import note
from failback.configuration_server.database import groups
from failback.configuration_server.database.groups import GroupPointRow, GroupRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.registry import announce_item
from failback.configuration_server.workflows.group_point import member_facts
from failback.errors import ConfigurationError, NotFoundError
from failback.model.ids import new_id
from failback.protection import group_rules as rules

GROUP_TYPE = "replicationGroups"
MAXIMUM_NAME = 63
_GROUPS = "/replicationGroups"
_GROUP = "/replicationGroups/{group}"


class _Wire(BaseModel):
    model_config = ConfigDict(populate_by_name=True, extra="ignore")


class GroupProperties(_Wire):
    """``members``: names of items that join; those already in stay. ``crashConsistentFrequencyInSeconds`` 0: the policy's."""

    members: list[str] = Field(default_factory=list)
    frequency_seconds: int | None = Field(default=None, alias="crashConsistentFrequencyInSeconds", ge=0, le=86_400)


class GroupRequest(_Wire):
    properties: GroupProperties = Field(default_factory=GroupProperties)


class MemberProperties(_Wire):
    member: str = Field(min_length=1)


class MemberRequest(_Wire):
    properties: MemberProperties


Change = Callable[[Session], list[ItemRow]]
"""What a request changes; returns the items whose machines are to be told."""


def router(services: Services) -> APIRouter:
    routes = APIRouter(route_class=FaultRoute, tags=["replication groups"])
    _reading(routes, services)
    _changing(routes, services)

    @routes.post(_GROUP + "/createRecoveryPoint")
    async def create_point(vault: VaultOf, request: Request, group: str) -> dict[str, Any]:
        row = await services.database.look(lambda session: groups.named(session, group))
        mark = await services.groups.make(row.group_id)
        await services.database.run(
            lambda session: note(session, services.clock, request, "create group point", row.name, detail=mark.point_id)
        )
        return _point(vault, row, mark)

    return routes


def _reading(routes: APIRouter, services: Services) -> None:
    @routes.get(_GROUPS)
    async def list_groups(vault: VaultOf) -> dict[str, Any]:
        def look(session: Session) -> list[dict[str, Any]]:
            return [_shown(vault, session, row) for row in groups.all_groups(session)]

        return listed(await services.database.look(look))

    @routes.get(_GROUP)
    async def get_group(vault: VaultOf, group: str) -> dict[str, Any]:
        return await _read(services, vault, group)

    @routes.get(_GROUP + "/recoveryPoints")
    async def list_points(vault: VaultOf, group: str, *, marks: str = "") -> dict[str, Any]:
        """Group points, newest first; with ``marks=all`` also those that are under way or void."""

        def look(session: Session) -> list[dict[str, Any]]:
            row = groups.named(session, group)
            states = () if marks == "all" else (groups.COMPLETE,)
            return [_point(vault, row, mark) for mark in groups.marks_of(session, row.group_id, *states)]

        return listed(await services.database.look(look))

    @routes.get(_GROUP + "/recoveryPoints/{point_id}")
    async def get_point(vault: VaultOf, group: str, point_id: str) -> dict[str, Any]:
        def look(session: Session) -> dict[str, Any]:
            row = groups.named(session, group)
            mark = session.get(GroupPointRow, point_id)
            if mark is None or mark.group_id != row.group_id:
                raise NotFoundError(f"{row.name} has no mark {point_id!r}", remedy=f"failback group points {row.name}")
            return _point(vault, row, mark)

        return await services.database.look(look)


def _changing(routes: APIRouter, services: Services) -> None:
    async def change(request: Request, action: str, group: str, work: Change) -> None:
        def changed(session: Session) -> list[ItemRow]:
            told = work(session)
            detail = ", ".join(item.name for item in told)
            note(session, services.clock, request, action, group, detail=detail)
            return told

        for item in await services.database.run(changed):
            announce_item(services.news, item)

    @routes.put(_GROUP)
    async def put(vault: VaultOf, request: Request, group: str, body: GroupRequest) -> dict[str, Any]:
        def work(session: Session) -> list[ItemRow]:
            row = _find_or_create(session, group, services.clock.wall_ns())
            if body.properties.frequency_seconds is not None:
                row.frequency_seconds = body.properties.frequency_seconds
            return [item for name in body.properties.members for item in _join(session, row, name)]

        await change(request, "create replication group", group, work)
        return await _read(services, vault, group)

    @routes.post(_GROUP + "/addMember")
    async def add(vault: VaultOf, request: Request, group: str, body: MemberRequest) -> dict[str, Any]:
        member = body.properties.member
        await change(
            request, "add to group", group, lambda session: _join(session, groups.named(session, group), member)
        )
        return await _read(services, vault, group)

    @routes.post(_GROUP + "/removeMember")
    async def remove_member(vault: VaultOf, request: Request, group: str, body: MemberRequest) -> dict[str, Any]:
        member = body.properties.member
        await change(
            request, "remove from group", group, lambda session: _leave(session, groups.named(session, group), member)
        )
        return await _read(services, vault, group)

    @routes.post(_GROUP + "/remove")
    async def remove(request: Request, group: str) -> dict[str, Any]:
        def work(session: Session) -> list[ItemRow]:
            row = groups.named(session, group)
            members = groups.members_of(session, row.group_id)
            for item in members:
                item.group_id = ""
            session.delete(row)
            return members

        await change(request, "remove replication group", group, work)
        return {}


def _find_or_create(session: Session, name: str, wall_ns: int) -> GroupRow:
    try:
        return groups.named(session, name)
    except NotFoundError:
        pass
    if not name.isascii() or not name.replace("-", "").isalnum() or len(name) > MAXIMUM_NAME:
        raise ConfigurationError(
            f"{name!r} is not a name for a group", code="InvalidName", remedy="use 1 to 63 letters, digits and hyphens"
        )
    row = GroupRow(group_id=new_id(), name=name, frequency_seconds=0, created_wall_ns=wall_ns)
    session.add(row)
    session.flush()
    return row


def _join(session: Session, row: GroupRow, name: str) -> list[ItemRow]:
    """The item becomes a member. Raises with the rule that forbids it; one that is a member already stays one."""
    item = item_row(session, last_segment(name))
    if item.group_id == row.group_id:
        return []
    members = [member_facts(session, each) for each in groups.members_of(session, row.group_id)]
    rules.check_new_member(member_facts(session, item), members)
    item.group_id = row.group_id
    session.flush()
    return [item]


def _leave(session: Session, row: GroupRow, name: str) -> list[ItemRow]:
    item = item_row(session, last_segment(name))
    if item.group_id != row.group_id:
        raise NotFoundError(f"{item.name} is not in {row.name}", remedy=f"failback group show {row.name}")
    item.group_id = ""
    session.flush()
    return [item]


async def _read(services: Services, vault: Vault, group: str) -> dict[str, Any]:
    return await services.database.look(lambda session: _shown(vault, session, groups.named(session, group)))


def _shown(vault: Vault, session: Session, row: GroupRow) -> dict[str, Any]:
    members = groups.members_of(session, row.group_id)
    newest = groups.marks_of(session, row.group_id, groups.COMPLETE)
    facts = [member_facts(session, item) for item in members]
    target = {member.master_target_id for member in facts}
    properties = {
        "groupId": row.group_id,
        "members": [
            {"name": item.name, "id": vault.item(item.name), "protectionState": item.protection_state}
            for item in members
        ],
        "crashConsistentFrequencyInSeconds": row.frequency_seconds,
        "osType": facts[0].os_family if facts else "",
        "masterTargetId": target.pop() if len(target) == 1 else None,
        "problem": rules.what_is_missing(facts) or row.problem,
        "problemSince": timestamp(row.problem_since_wall_ns) if row.problem_since_wall_ns else None,
        "recoveryPoints": len(newest),
        "newestRecoveryPointTime": timestamp(newest[0].wall_ns) if newest else None,
    }
    return envelope(vault.resource(GROUP_TYPE, row.name), GROUP_TYPE, properties)


def _point(vault: Vault, row: GroupRow, mark: GroupPointRow) -> dict[str, Any]:
    properties = {
        "recoveryPointTime": timestamp(mark.wall_ns),
        "recoveryPointType": "CrashConsistent",
        "state": mark.state,
        "reason": mark.reason,
        "heldMilliseconds": mark.held_milliseconds,
        "members": [
            {
                "name": each["name"],
                "enterMilliseconds": each["enter_milliseconds"],
                "heldMilliseconds": each["held_milliseconds"],
            }
            for each in mark.marks
        ],
    }
    resource = f"{vault.resource(GROUP_TYPE, row.name)}/recoveryPoints/{mark.point_id}"
    return envelope(resource, f"{GROUP_TYPE}/recoveryPoints", properties)
