"""``failback/clients`` (ours): who may sign in with a secret, and under which role; ``failback/audit``: who changed what.

A secret is made here, shown once in the answer that made the client, and kept as argon2id. Deleting a client ends its tokens.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.api.arm import Vault, VaultOf, envelope, filters, listed, timestamp
from failback.configuration_server.api.faults import FaultRoute
from failback.configuration_server.api.paging import Key, PageOf
from failback.configuration_server.api.services import Services
from failback.configuration_server.api.sign_in import note
from failback.configuration_server.database import access
from failback.configuration_server.database.access import ApiClientRow, AuditRow
from failback.configuration_server.enrolment import secrets
from failback.errors import ConfigurationError, ConflictError, NotFoundError
from failback.model.ids import new_id

LONGEST_NAME = 63


class ClientProperties(BaseModel):
    role: Literal["reader", "operator", "administrator"] = Field(default="reader")


class ClientRequest(BaseModel):
    properties: ClientProperties = Field(default_factory=ClientProperties)


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix="/failback", route_class=FaultRoute, tags=["access"])

    @routes.get("/clients")
    async def list_clients(vault: VaultOf) -> dict[str, Any]:
        rows = await services.database.look(access.clients)
        return listed(_client(vault, row) for row in rows)

    @routes.put("/clients/{name}")
    async def create_client(vault: VaultOf, request: Request, name: str, body: ClientRequest) -> dict[str, Any]:
        if not name.isascii() or not name.replace("-", "").isalnum() or len(name) > LONGEST_NAME:
            raise ConfigurationError(
                f"{name!r} is not a name for a client", code="InvalidName",
                remedy=f"use 1 to {LONGEST_NAME} letters, digits and hyphens",
            )  # fmt: skip
        secret = secrets.new_token()
        hashed = await asyncio.to_thread(secrets.hash_passphrase, secret)

        def work(session: Session) -> ApiClientRow:
            if access.client_named(session, name) is not None:
                raise ConflictError(
                    f"there is a client {name!r} already", code="ClientExists",
                    remedy="delete it first, or use another name: a secret is shown only when it is made",
                )  # fmt: skip
            row = ApiClientRow(
                client_id=new_id(), name=name, role=body.properties.role, secret_argon2=hashed,
                created_wall_ns=services.clock.wall_ns(), created_by=request.state.caller, deleted_wall_ns=0,
                last_sign_in_wall_ns=0,
            )  # fmt: skip
            session.add(row)
            note(session, services.clock, request, "create client", name, detail=f"{row.role} {row.client_id}")
            return row

        made = _client(vault, await services.database.run(work))
        made["properties"]["secret"] = secret
        return made

    @routes.delete("/clients/{name}")
    async def delete_client(request: Request, name: str) -> Response:
        def work(session: Session) -> None:
            row = access.client_named(session, name)
            if row is None:
                raise NotFoundError(f"there is no client {name!r}", remedy="failback client list")
            access.delete_client(session, row, services.clock.wall_ns())
            note(session, services.clock, request, "delete client", row.name, detail=row.client_id)

        await services.database.run(work)
        return Response(status_code=204)

    @routes.get("/audit")
    async def list_audit(
        vault: VaultOf, page: PageOf, wanted: Annotated[str | None, Query(alias="$filter")] = None
    ) -> dict[str, Any]:
        after, size = page.after(int), services.page_rows
        rows = await services.database.look(lambda session: _audit_rows(session, wanted, after, size + 1))
        return page.listed(rows, size, lambda row: (row.audit_id,), lambda row: _entry(vault, row))

    return routes


def _client(vault: Vault, row: ApiClientRow) -> dict[str, Any]:
    properties = {
        "clientId": row.client_id,
        "role": row.role,
        "created": timestamp(row.created_wall_ns),
        "createdBy": row.created_by,
        "lastSignIn": timestamp(row.last_sign_in_wall_ns) if row.last_sign_in_wall_ns else None,
    }
    return envelope(vault.resource("failback", "clients", row.name), "failback/clients", properties)


def _audit_rows(session: Session, wanted: str | None, after: Key | None, limit: int) -> list[AuditRow]:
    value = filters(wanted)
    statement = select(AuditRow).order_by(AuditRow.audit_id.desc()).limit(limit)
    if after is not None:
        statement = statement.where(AuditRow.audit_id < after[0])
    for name, column in (
        ("actor", AuditRow.actor), ("action", AuditRow.action), ("target", AuditRow.target), ("outcome", AuditRow.outcome)
    ):  # fmt: skip
        if value(name):
            statement = statement.where(column == value(name))
    return list(session.scalars(statement))


def _entry(vault: Vault, row: AuditRow) -> dict[str, Any]:
    properties = {
        "time": timestamp(row.wall_ns),
        "actor": row.actor,
        "address": row.address,
        "action": row.action,
        "target": row.target,
        "outcome": row.outcome,
        "detail": row.detail,
    }
    return envelope(vault.resource("failback", "audit", str(row.audit_id)), "failback/audit", properties)
