"""A component's certificate follows itself: renewed at two thirds of its life, enrolled again when it has expired.

:func:`due` decides from three times; :class:`CertificateKeeper` does it, as long as the component lives. Streams are not
touched: a connection lives on with the certificate of its handshake, the next one shows the new certificate. Whatever
fails is tried again after a while; a component whose certificate is over works on as far as its links carry it (an agent keeps
tracking every write) and waits for a secret to enrol with: a new one-time token in ``token_file`` is enough.
"""

from __future__ import annotations

import asyncio
import enum
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from failback.errors import FailbackError, PeerError
from failback.runtime import logs
from failback.transport import identity as identities
from failback.transport.https import ControlConfig
from failback.transport.identity import Identity

log = logs.get(__name__)

LONGEST_PAUSE_SECONDS = 3600.0
SHORTEST_PAUSE_SECONDS = 0.5
_VERSION_TAG, _UTC_TIME_TAG = 0xA0, 0x17


class Due(enum.Enum):
    NOTHING = "nothing"
    RENEW = "renew"
    """It is valid, and two thirds of its life are over."""
    ENROL = "enrol"
    """It has expired: only a secret helps."""


@dataclass(frozen=True, slots=True)
class Validity:
    begin: datetime
    end: datetime

    @property
    def life(self) -> timedelta:
        return self.end - self.begin


def due(validity: Validity, now: datetime) -> Due:
    if now >= validity.end:
        return Due.ENROL
    return Due.RENEW if now >= validity.begin + validity.life * 2 / 3 else Due.NOTHING


def pause_seconds(validity: Validity) -> float:
    """Between two looks: often enough to have twenty tries in the last third, at most an hour."""
    return min(LONGEST_PAUSE_SECONDS, max(SHORTEST_PAUSE_SECONDS, validity.life.total_seconds() / 60))


def validity_of(identity: Identity) -> Validity:
    """Raises OSError and ValueError for a certificate that cannot be read."""
    return parse_validity(ssl.PEM_cert_to_DER_cert(identity.certificate_path.read_text(encoding="ascii")))


def parse_validity(der: bytes) -> Validity:
    """From an X.509 certificate (RFC 5280, 4.1). By hand: the library for it would double an agent's memory.

    Raises ValueError.
    """
    try:
        content = _value(_value(der, 0)[0], 0)[0]  # Certificate, TBSCertificate
        at = 0
        if content[at] == _VERSION_TAG:
            at = _value(content, at)[1]
        for _ in range(3):  # serial number, signature algorithm, issuer
            at = _value(content, at)[1]
        validity = _value(content, at)[0]
        begin, after = _value(validity, 0)
        return Validity(_moment(validity[0], begin), _moment(validity[after], _value(validity, after)[0]))
    except IndexError:
        raise ValueError("the certificate is cut off") from None


def _value(der: bytes, at: int) -> tuple[bytes, int]:
    """(content of the element at ``at``, where the next one begins)."""
    length, begin = der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + count], "big"), begin + count
    return der[begin : begin + length], begin + length


def _moment(tag: int, text: bytes) -> datetime:
    """UTCTime (two digits of the year, 1950 to 2049) or GeneralizedTime."""
    digits = text.decode("ascii")
    if tag == _UTC_TIME_TAG:
        digits = ("19" if digits[:2] >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


class CertificateKeeper:
    """``run`` until cancelled. ``look`` is one round and says whether another certificate is in use now."""

    def __init__(self, identity: Identity, config: ControlConfig) -> None:
        self._identity = identity
        self._config = config
        self._told = ""

    async def run(self) -> None:
        while True:
            pause = LONGEST_PAUSE_SECONDS
            try:
                pause = pause_seconds(await asyncio.to_thread(validity_of, self._identity))
                await self.look()
            except (FailbackError, OSError, ValueError) as error:
                self._tell(error)
                pause = min(pause, 60.0)
            await asyncio.sleep(pause)

    async def look(self) -> bool:
        """Raises FailbackError (away, refused), OSError (the identity's disk)."""
        wanted = due(await asyncio.to_thread(validity_of, self._identity), datetime.now(UTC))
        if wanted is Due.NOTHING:
            return False
        if wanted is Due.RENEW:
            await asyncio.to_thread(identities.renew, self._identity, self._config)
        elif identities.may_enrol(self._config):
            await asyncio.to_thread(identities.enrol_again, self._identity, self._config)
        else:
            raise PeerError(
                "this component's certificate has expired: it cannot reach the configuration server, nor open links",
                code="CertificateExpired",
                remedy="put a one-time token (failback component token) into its token_file: it enrols again by itself",
            )
        self._identity.reload()
        self._told = ""
        log.info("another certificate is in use", reason=wanted.value, component_id=self._identity.component_id)
        return True

    def _tell(self, error: Exception) -> None:
        if str(error) != self._told:
            self._told = str(error)
            log.warning("the certificate is not renewed yet", reason=str(error), remedy=getattr(error, "remedy", ""))
