"""What an installation needs before it can serve, found or made at every start.

The CA, the enrolment passphrase (``enrolment-passphrase``), the administrator's bearer token (``administrator.token``), one
that reads metrics (``metrics.token``), this server's own component row and certificate, and the failback policy. Files are
written before the database knows their hashes, so a crash between the two only makes the next start read the file again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from failback import __version__
from failback.configuration_server.config import ServerConfig
from failback.configuration_server.database import Database
from failback.configuration_server.database.access import METRICS, ApiTokenRow
from failback.configuration_server.database.components import ComponentRow, PassphraseRow
from failback.configuration_server.database.policies import FAILBACK_POLICY_NAME, PolicyRow
from failback.configuration_server.enrolment import secrets
from failback.configuration_server.enrolment.authority import Authority
from failback.model.components import Role
from failback.model.ids import new_id
from failback.runtime import faults, host, logs
from failback.runtime.clock import Clock
from failback.runtime.durable_files import replace_file

log = logs.get(__name__)

PASSPHRASE_FILE = "enrolment-passphrase"
TOKEN_FILE = "administrator.token"
ADMINISTRATOR = "administrator"
METRICS_TOKEN_FILE = "metrics.token"


@dataclass(frozen=True, slots=True)
class Installation:
    component_id: str
    authority: Authority
    certificate_path: Path
    key_path: Path


def bootstrap(config: ServerConfig, database: Database, clock: Clock) -> Installation:
    """Find or make everything. Raises ConfigurationError."""
    directory = config.state_directory
    authority = Authority.open(directory / "ca")
    authority.component_life = timedelta(days=config.certificate_days)
    passphrase = _secret_file(directory / PASSPHRASE_FILE, secrets.new_passphrase)
    token = _secret_file(directory / TOKEN_FILE, secrets.new_token)
    metrics_token = _secret_file(directory / METRICS_TOKEN_FILE, secrets.new_token)
    faults.point("bootstrap.files_written")
    with database.write() as session:
        now = clock.wall_ns()
        _keep_passphrase(session, passphrase, now)
        _keep_token(session, ADMINISTRATOR, token, now)
        _keep_token(session, METRICS, metrics_token, now)
        _keep_policy(session, config.crash_consistent_seconds, now)
        component_id = _keep_component(session, config, now)
    faults.point("bootstrap.stored")
    certificate_path, key_path = authority.issue_server(directory / "server", component_id, config.addresses)
    log.info(
        "installation is ready", ca_file=authority.ca_path, enrolment_file=directory / PASSPHRASE_FILE,
        administrator_file=directory / TOKEN_FILE,
    )  # fmt: skip
    return Installation(component_id, authority, certificate_path, key_path)


def _secret_file(path: Path, make: object) -> str:
    """The secret in the file; a fresh one is written (mode 0600) when there is none."""
    if path.exists():
        found = path.read_text(encoding="utf-8").strip()
        if found:
            return found
    assert callable(make)
    secret = str(make())
    replace_file(path, (secret + "\n").encode("utf-8"))
    return secret


def _keep_passphrase(session: Session, passphrase: str, now: int) -> None:
    """The file decides: an edited file retires the passphrase of before."""
    active = list(session.scalars(select(PassphraseRow).where(PassphraseRow.retired_wall_ns == 0)))
    if any(secrets.passphrase_matches(row.argon2_hash, passphrase) for row in active):
        return
    for row in active:
        row.retired_wall_ns = now
    session.add(PassphraseRow(argon2_hash=secrets.hash_passphrase(passphrase), created_wall_ns=now))


def _keep_token(session: Session, name: str, token: str, now: int) -> None:
    """The file decides. The name is the access too."""
    digest = secrets.token_digest(token)
    statement = select(ApiTokenRow).where(ApiTokenRow.name == name, ApiTokenRow.revoked_wall_ns == 0)
    active = list(session.scalars(statement))
    if any(row.token_sha256 == digest for row in active):
        return
    for row in active:
        row.revoked_wall_ns = now
    session.add(ApiTokenRow(token_id=new_id(), name=name, access=name, token_sha256=digest, created_wall_ns=now))


def _keep_policy(session: Session, crash_consistent_seconds: int, now: int) -> None:
    row = session.get(PolicyRow, FAILBACK_POLICY_NAME)
    if row is None:
        row = PolicyRow(name=FAILBACK_POLICY_NAME, editable=False, created_wall_ns=now)
        session.add(row)
    row.crash_consistent_seconds = crash_consistent_seconds


def _keep_component(session: Session, config: ServerConfig, now: int) -> str:
    """This server's own row: there is one per database, whatever hardware it runs on now."""
    row = session.scalars(select(ComponentRow).where(ComponentRow.role == Role.CONFIGURATION_SERVER.value)).first()
    facts = host.gather()
    if row is None:
        row = ComponentRow(
            component_id=new_id(), role=Role.CONFIGURATION_SERVER.value, hostname=facts.hostname,
            hardware_id=facts.hardware_id, enrolled_wall_ns=now, status={}, twin_status={}, version=__version__,
        )  # fmt: skip
        session.add(row)
    row.hostname, row.hardware_id, row.version = facts.hostname, facts.hardware_id, __version__
    row.os_family, row.os_version, row.kernel = facts.os_family, facts.os_version, facts.kernel
    row.addresses = list(config.addresses)
    row.last_heartbeat_wall_ns = now
    return row.component_id
