"""Enrolling components: a signing request with the passphrase or a one-time token becomes a component and a certificate.

Find-or-create: the same hardware in the same role gets the same component id again, with a new certificate; hardware that is
the live side of an item (a machine that came home and was installed anew) gets its item's agent id. Every attempt is audited.
Enrolling again revokes the certificates of before; a renewal, which shows a valid one, does not (docs/decisions/0018).
"""

from __future__ import annotations

import asyncio

from sqlalchemy import select
from sqlalchemy.orm import Session

from failback.configuration_server.database import Database, certificates, components, events, items
from failback.configuration_server.database.access import audit
from failback.configuration_server.database.certificates import CertificateRow
from failback.configuration_server.database.components import (
    ComponentRow,
    EnrolmentTokenRow,
    PassphraseRow,
    all_components,
)
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.enrolment import secrets
from failback.configuration_server.enrolment.authority import Authority, Issued
from failback.configuration_server.registry.admission import known
from failback.configuration_server.registry.news import News
from failback.errors import AuthenticationError, ConfigurationError, ConflictError
from failback.model.components import Enrolled, Enrolment, Renewal, Role
from failback.model.ids import ComponentId, new_id
from failback.runtime import faults, logs
from failback.runtime.clock import Clock, SystemClock

log = logs.get(__name__)

TOO_MANY_ATTEMPTS = "TooManyAttempts"
TOKEN_LIFE_SECONDS = 24 * 3600.0
LONGEST_TOKEN_LIFE_SECONDS = 30 * 24 * 3600.0


class EnrolmentDesk:
    def __init__(self, database: Database, news: News, authority: Authority, clock: Clock | None = None) -> None:
        self._database = database
        self._news = news
        self._authority = authority
        self._clock = clock or SystemClock()
        self._limit = secrets.FailureLimit(self._clock)
        self._checking = asyncio.Semaphore(1)  # one argon2 at a time: it takes 19 MiB

    async def enrol(self, request: Enrolment, address: str) -> Enrolled:
        """Raises AuthenticationError (wrong secret; code TooManyAttempts when slowed down) and ConfigurationError."""
        self._check_limit(address)
        if request.role is Role.CONFIGURATION_SERVER:
            raise ConfigurationError("a configuration server does not enrol at another one")
        if not request.hardware_id or len(request.hardware_id) > 64 or len(request.hostname) > 255:
            raise ConfigurationError("the enrolment lacks a usable hardware id or host name")
        async with self._checking:
            self._check_limit(address)  # of those that came together, only the first few are heard
            try:
                await self._check_secret(request)
            except AuthenticationError as error:
                self._limit.failed(address)
                log.warning("enrolment refused", address=address, hostname=request.hostname, reason=error.message)
                reason = error.message
                await self._database.run(lambda session: self._audit(session, request, address, "refused", reason))
                raise
        enrolled = await self._database.run(lambda session: self._enrol(session, request, address))
        faults.point("enrolment.stored")
        await self._announce_denied(enrolled.component_id)
        log.info("enrolled", role=request.role.value, component_id=enrolled.component_id, hostname=request.hostname)
        return enrolled

    async def renew(self, component_id: str, role: Role, serial: str, request: Renewal) -> Enrolled:
        """Another certificate for the owner of a valid one (of ``serial``), which stays valid until its end.

        Raises AuthenticationError (unknown or revoked component, a revoked certificate) and ConflictError (a copy on other
        hardware than the live side's, D2).
        """

        def work(session: Session) -> Enrolled:
            row = known(session, component_id, role, serial)
            item = items.of_machine(session, component_id) if role is Role.MOBILITY else None
            live = (item.live_hardware_id() if item is not None else "") or row.hardware_id
            if role is Role.MOBILITY and request.hardware_id.lower() != live.lower():
                raise ConflictError(
                    f"component {component_id} runs on other hardware: a copy does not get a certificate of its own",
                    remedy="none while the original is the live side",
                )
            enrolled = self._certify(session, row, request.csr_pem, role, request.addresses)
            audit(session, self._clock.wall_ns(), component_id, "renew certificate", row.hostname)
            return enrolled

        enrolled = await self._database.run(work)
        faults.point("renewal.stored")
        log.info("certificate renewed", role=role.value, component_id=component_id)
        return enrolled

    async def revoke(self, role: Role | None, name_or_id: str, *, caller: str = "") -> str:
        """Shut a component out: none of its certificates counts, and it cannot enrol again. Returns its id.

        Raises NotFoundError and ConflictError (this server itself).
        """

        def work(session: Session) -> str:
            row = components.find_any(session, name_or_id, role)
            if row.role == Role.CONFIGURATION_SERVER.value:
                raise ConflictError("this server cannot revoke itself", remedy="name another component")
            now = self._clock.wall_ns()
            count = certificates.revoke_all(session, row.component_id, now, f"revoked by {caller}")
            row.revoked = True
            self._tell(session, row, "ComponentRevoked", "Warning",
                       f"The {row.role} {row.hostname} was revoked by {caller or 'an administrator'}: none of its {count} "
                       "certificates counts any more, and its links are cut.")  # fmt: skip
            audit(session, now, caller, "revoke component", row.hostname, detail=row.component_id)
            return row.component_id

        component_id = await self._database.run(work)
        await self._announce_denied(component_id)
        return component_id

    async def readmit(self, role: Role | None, name_or_id: str, *, caller: str = "") -> str:
        """Let a revoked component enrol again, with a passphrase or token; its old certificates stay revoked."""

        def work(session: Session) -> str:
            row = components.find_any(session, name_or_id, role)
            row.revoked = False
            self._tell(session, row, "ComponentReadmitted", "OK", f"The {row.role} {row.hostname} may enrol again.")
            audit(session, self._clock.wall_ns(), caller, "readmit component", row.hostname, detail=row.component_id)
            return row.component_id

        component_id = await self._database.run(work)
        await self._announce_denied(component_id)
        return component_id

    async def _announce_denied(self, component_id: str) -> None:
        """Everybody refuses what was revoked from now on, not at the next heartbeat."""
        everybody = await self._database.look(lambda session: [row.component_id for row in all_components(session)])
        self._news.announce(component_id, *everybody)

    def _check_limit(self, address: str) -> None:
        wait = self._limit.wait_seconds(address)
        if wait > 0:
            raise AuthenticationError(
                f"too many failed enrolments from {address}: try again in {wait:.0f} s", code=TOO_MANY_ATTEMPTS
            )

    async def make_token(
        self, role: Role | None = None, life_seconds: float = TOKEN_LIFE_SECONDS, *, caller: str = ""
    ) -> str:
        """A one-time token; it is shown once and stored as a hash. Raises ConfigurationError."""
        if role is Role.CONFIGURATION_SERVER:
            raise ConfigurationError("a configuration server does not enrol at another one")
        if not life_seconds <= LONGEST_TOKEN_LIFE_SECONDS:
            raise ConfigurationError(f"a token lives at most {LONGEST_TOKEN_LIFE_SECONDS:.0f} s")
        token = secrets.new_token()
        now = self._clock.wall_ns()
        row = EnrolmentTokenRow(
            token_id=new_id(), token_sha256=secrets.token_digest(token), role=role.value if role else "",
            created_wall_ns=now, expires_wall_ns=now + int(life_seconds * 1e9),
        )  # fmt: skip

        def work(session: Session) -> None:
            session.add(row)
            audit(session, now, caller, "make enrolment token", row.role or "any role", detail=row.token_id)

        await self._database.run(work)
        return token

    async def _check_secret(self, request: Enrolment) -> None:
        if request.token:
            await self._database.look(lambda session: self._token(session, request))
            return
        if not request.passphrase:
            raise AuthenticationError("the enrolment carries neither a passphrase nor a token", remedy=_REMEDY)
        hashes = await self._database.look(_active_hashes)
        matches = [
            await asyncio.to_thread(secrets.passphrase_matches, one, request.passphrase.strip()) for one in hashes
        ]
        if not any(matches):
            raise AuthenticationError("the passphrase is wrong", remedy=_REMEDY)

    def _token(self, session: Session, request: Enrolment) -> EnrolmentTokenRow:
        digest = secrets.token_digest(request.token)
        row = session.scalars(select(EnrolmentTokenRow).where(EnrolmentTokenRow.token_sha256 == digest)).first()
        if row is None:
            raise AuthenticationError("the enrolment token is not known", remedy=_REMEDY)
        if row.expires_wall_ns <= self._clock.wall_ns():
            raise AuthenticationError("the enrolment token has expired", remedy="make a new token")
        if row.role and row.role != request.role.value:
            raise AuthenticationError(f"the enrolment token is for a {row.role}", remedy="make a token for this role")
        if row.used_wall_ns:
            user = session.get(ComponentRow, row.used_by) if row.used_by else None
            if user is None or (user.hardware_id, user.role) != (request.hardware_id.lower(), request.role.value):
                raise AuthenticationError("the enrolment token was used already", remedy="make a new token")
        return row

    def _enrol(self, session: Session, request: Enrolment, address: str) -> Enrolled:
        row = self._find_or_create(session, request)
        if row.revoked:
            raise AuthenticationError("this component was removed here", remedy="ask the administrator to readmit it")
        if row.enrolled_wall_ns:
            self._tell_again(session, row, request, address)
        now = self._clock.wall_ns()
        certificates.revoke_all(session, row.component_id, now, "the component was enrolled again")
        enrolled = self._certify(session, row, request.csr_pem, request.role, request.addresses)
        row.hostname, row.version = request.hostname, request.version[:255]
        row.addresses = list(request.addresses) or row.addresses
        row.enrolled_wall_ns = now
        session.flush()
        if request.token:
            token = self._token(session, request)
            token.used_wall_ns, token.used_by = self._clock.wall_ns(), row.component_id
        self._audit(session, request, address, "accepted", f"component {row.component_id}")
        return enrolled

    def _certify(
        self, session: Session, row: ComponentRow, csr_pem: str, role: Role, addresses: tuple[str, ...]
    ) -> Enrolled:
        """Issue and record; the newest certificate stands in the component's row."""
        issued: Issued = self._authority.issue(csr_pem, row.component_id, role, addresses)
        row.certificate_serial, row.certificate_expiry_wall_ns = issued.serial, issued.expiry_wall_ns
        session.flush()
        session.add(
            CertificateRow(
                serial=issued.serial, component_id=row.component_id, issued_wall_ns=self._clock.wall_ns(),
                expiry_wall_ns=issued.expiry_wall_ns,
            )
        )  # fmt: skip
        return Enrolled(ComponentId(row.component_id), issued.certificate_pem, self._authority.ca_pem)

    def _find_or_create(self, session: Session, request: Enrolment) -> ComponentRow:
        hardware_id = request.hardware_id.lower()
        statement = select(ComponentRow).where(
            ComponentRow.role == request.role.value, ComponentRow.hardware_id == hardware_id
        )
        row = session.scalars(statement).first()
        if row is None and request.role is Role.MOBILITY:
            row = _agent_of_live_side(session, hardware_id)
        if row is not None:
            return row
        row = ComponentRow(
            component_id=new_id(), role=request.role.value, hostname=request.hostname, hardware_id=hardware_id,
            version=request.version[:255], addresses=list(request.addresses), status={}, twin_status={},
        )  # fmt: skip
        session.add(row)
        events.record(
            session, self._clock.wall_ns(), "ComponentEnrolled", f"The {request.role.value} {request.hostname} was enrolled.",
            event_type="ServerHealth", component_id=row.component_id, subject=request.hostname,
        )  # fmt: skip
        return row

    def _tell_again(self, session: Session, row: ComponentRow, request: Enrolment, address: str) -> None:
        """A known component has another certificate now: an installation anew, or somebody who has the passphrase."""
        item = items.of_machine(session, row.component_id) if request.role is Role.MOBILITY else None
        events.record(
            session, self._clock.wall_ns(), "ComponentEnrolledAgain",
            f"The {request.role.value} {row.hostname} was enrolled again, by {request.hostname} at {address}: it has a new "
            "certificate, and those of before were revoked. Make a new passphrase if nobody of yours did that.",
            severity="Warning", event_type="ServerHealth", component_id=row.component_id, subject=row.hostname,
            item_id=item.item_id if item is not None else None,
        )  # fmt: skip

    def _tell(self, session: Session, row: ComponentRow, code: str, severity: str, sentence: str) -> None:
        item = items.of_machine(session, row.component_id) if row.role == Role.MOBILITY.value else None
        events.record(
            session, self._clock.wall_ns(), code, sentence, severity=severity, event_type="ServerHealth",
            component_id=row.component_id, subject=row.hostname, item_id=item.item_id if item is not None else None,
        )  # fmt: skip

    def _audit(self, session: Session, request: Enrolment, address: str, outcome: str, detail: str) -> None:
        target = f"{request.role.value} {request.hostname}"
        audit(session, self._clock.wall_ns(), request.hardware_id, "enrol", target, address=address, outcome=outcome,
              detail=detail)  # fmt: skip


_REMEDY = "copy the passphrase from the configuration server's state directory (enrolment-passphrase)"


def _active_hashes(session: Session) -> list[str]:
    return list(session.scalars(select(PassphraseRow.argon2_hash).where(PassphraseRow.retired_wall_ns == 0)))


def _agent_of_live_side(session: Session, hardware_id: str) -> ComponentRow | None:
    """The agent of the one item whose live side is this hardware."""
    statement = select(ItemRow).where(
        ItemRow.machine_id.is_not(None),
        (ItemRow.cloud_hardware_id == hardware_id) | (ItemRow.on_premises_hardware_id == hardware_id),
    )
    found = [item for item in session.scalars(statement) if item.live_hardware_id().lower() == hardware_id]
    return session.get(ComponentRow, found[0].machine_id) if len(found) == 1 else None
