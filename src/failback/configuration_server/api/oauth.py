"""OAuth 2.0 client credentials (RFC 6749, 4.4) under the paths of Microsoft Entra ID, so that ``azure.identity`` signs in here.

Discovery (``/{tenant}/v2.0/.well-known/openid-configuration``) names the token endpoint, which changes a client's id and
secret for a bearer token of ``token_seconds``. Any tenant, scope and resource is accepted and echoed: one server is one
vault. Tokens are random words kept by their SHA-256, not signed documents: a deleted client is out at once, and several
servers on one database share them. Errors have the RFC's form, which is what MSAL reads.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from failback.configuration_server.api.forwarded import base_url
from failback.configuration_server.api.services import Services
from failback.configuration_server.database.access import (
    ApiClientRow,
    ApiTokenRow,
    audit,
    client_named,
    forget_expired_tokens,
)
from failback.configuration_server.enrolment import secrets
from failback.model.ids import new_id
from failback.runtime import logs

log = logs.get(__name__)

TENANT = "{tenant}"
DISCOVERY = f"/{TENANT}/v2.0/.well-known/openid-configuration"
DISCOVERY_V1 = f"/{TENANT}/.well-known/openid-configuration"
TOKEN = f"/{TENANT}/oauth2/v2.0/token"
TOKEN_V1 = f"/{TENANT}/oauth2/token"
KEYS = f"/{TENANT}/discovery/v2.0/keys"
_ENDINGS = tuple(path.removeprefix(f"/{TENANT}") for path in (DISCOVERY, DISCOVERY_V1, TOKEN, TOKEN_V1, KEYS))


def is_sign_in(path: str) -> bool:
    """Whether the path is one of ours, under any one tenant: those are asked without a token."""
    tenant, _, rest = path.removeprefix("/").partition("/")
    return bool(tenant) and f"/{rest}" in _ENDINGS


class Refusal(Exception):
    """An error of RFC 6749, 5.2."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.description = description
        self.status = status

    def answer(self) -> JSONResponse:
        headers = {"Cache-Control": "no-store"}
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="failback"'
        if self.status == 429:
            headers["Retry-After"] = "60"
        return JSONResponse({"error": self.error, "error_description": self.description}, self.status, headers)


@dataclass(frozen=True, slots=True)
class Credentials:
    client_id: str
    secret: str


def router(services: Services, token_seconds: float) -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    limit = secrets.FailureLimit(services.clock)
    checking = asyncio.Semaphore(1)  # one argon2 at a time: it takes 19 MiB

    @routes.get(DISCOVERY)
    @routes.get(DISCOVERY_V1)
    async def discovery(request: Request, tenant: str) -> dict[str, Any]:
        return _document(base_url(request), tenant)

    @routes.get(KEYS)
    async def keys(tenant: str) -> dict[str, Any]:
        return {"keys": []}

    @routes.post(TOKEN)
    @routes.post(TOKEN_V1)
    async def token(request: Request, tenant: str) -> JSONResponse:
        address = request.client.host if request.client else ""
        try:
            given = credentials(await request.body(), request.headers.get("authorization", ""))
            async with checking:
                if limit.wait_seconds(address):
                    raise Refusal("invalid_client", "too many wrong secrets from this address: wait a minute", 429)
                try:
                    client = await _checked(given)
                except Refusal:
                    limit.failed(address)
                    log.warning("sign-in refused", address=address, client=given.client_id[:64])
                    raise
            return await _granted(client, address)
        except Refusal as refusal:
            return refusal.answer()

    async def _checked(given: Credentials) -> ApiClientRow:
        """Who gave these. Raises Refusal."""
        row = await services.database.look(lambda session: client_named(session, given.client_id))
        known = row is not None and await asyncio.to_thread(secrets.passphrase_matches, row.secret_argon2, given.secret)
        if row is None or not known:
            raise Refusal("invalid_client", "the client id or its secret is wrong", 401)
        return row

    async def _granted(client: ApiClientRow, address: str) -> JSONResponse:
        made = secrets.new_token()

        def work(session: Session) -> None:
            now = services.clock.wall_ns()
            row = session.get(ApiClientRow, client.client_id)
            if row is None or row.deleted_wall_ns:
                raise Refusal("invalid_client", "the client was deleted", 401)
            row.last_sign_in_wall_ns = now
            forget_expired_tokens(session, row.client_id, now)
            session.add(
                ApiTokenRow(token_id=new_id(), name=row.name, access=row.role, client_id=row.client_id,
                            token_sha256=secrets.token_digest(made), created_wall_ns=now,
                            expires_wall_ns=now + int(token_seconds * 1e9))
            )  # fmt: skip
            audit(session, now, row.name, "sign in", row.client_id, address=address)

        await services.database.run(work)
        lasts = int(token_seconds)
        body = {"token_type": "Bearer", "expires_in": lasts, "ext_expires_in": lasts, "access_token": made}
        return JSONResponse(body, headers={"Cache-Control": "no-store", "Pragma": "no-cache"})

    return routes


def _document(server_url: str, tenant: str) -> dict[str, Any]:
    """OpenID Connect Discovery 1.0, section 3: what is required, and what we have."""
    here = f"{server_url}/{quote(tenant)}"
    return {
        "issuer": f"{here}/v2.0",
        "token_endpoint": f"{here}/oauth2/v2.0/token",
        "authorization_endpoint": f"{here}/oauth2/v2.0/authorize",
        "jwks_uri": f"{here}/discovery/v2.0/keys",
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": ["token"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "scopes_supported": ["https://failback/.default"],
    }


def credentials(body: bytes, authorization: str) -> Credentials:
    """The client's id and secret, from the form or the Authorization header. Raises Refusal."""
    try:
        form = parse_qs(body.decode("ascii"), max_num_fields=50)
    except ValueError:
        raise Refusal("invalid_request", "the body is not a form (application/x-www-form-urlencoded)") from None
    first = {name: values[0] for name, values in form.items()}
    if first.get("grant_type") != "client_credentials":
        raise Refusal("unsupported_grant_type", "only the grant type client_credentials is known here")
    identity, secret = first.get("client_id", ""), first.get("client_secret", "")
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            identity, _, secret = base64.b64decode(encoded, validate=True).decode("ascii").partition(":")
        except (binascii.Error, ValueError):
            raise Refusal("invalid_client", "the Authorization header is not Basic", 401) from None
        identity, secret = unquote(identity), unquote(secret)
    if not identity or not secret:
        raise Refusal("invalid_client", "client_id and client_secret are required", 401)
    return Credentials(identity[:255], secret[:1024])
