"""Certificates that count for nothing any more, although they were issued and have not expired.

The configuration server tells every component the whole list with its heartbeats (level-triggered, recognised by its
digest). It is kept beside the identity, so that a component that starts while the configuration server is away refuses them
too. Every link is checked at its handshake; when the list changes, links that live are looked at again (``listen``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from failback.errors import AuthenticationError, FailbackError
from failback.model.components import DeniedCertificates
from failback.runtime import logs, records
from failback.runtime.durable_files import PUBLIC, replace_file

if TYPE_CHECKING:
    from failback.transport.identity import PeerIdentity

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class _Lookup:
    digest: str
    serials: frozenset[str]
    components: frozenset[str]


class DenyList:
    """The list as this component knows it; lives in the event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _lookup(_read(path))
        self._listeners: list[Callable[[], None]] = []

    @property
    def digest(self) -> str:
        """What tells one list from another; empty while none was received."""
        return self._known.digest

    def check(self, peer: PeerIdentity) -> None:
        """Raises AuthenticationError for a peer whose certificate, or which itself, was revoked."""
        if peer.serial in self._known.serials or str(peer.component_id) in self._known.components:
            raise AuthenticationError(
                f"the certificate of {peer.role.value} {peer.component_id} was revoked",
                code="CertificateRevoked",
                possible_causes="it was enrolled again elsewhere, or an administrator revoked it",
                remedy="failback component list; enrol it again with a one-time token if it is yours",
            )

    def take(self, denied: DeniedCertificates) -> None:
        """The server's list from now on. What cannot be stored counts all the same until the next start."""
        if denied.digest == self.digest:
            return
        self._known = _lookup(denied)
        log.info("list of revoked certificates", serials=len(denied.serials), components=len(denied.components))
        try:
            replace_file(self._path, json.dumps(records.encode(denied)).encode("ascii"), PUBLIC)
        except OSError as error:
            log.error("the list of revoked certificates cannot be stored", path=self._path, reason=str(error))
        for listener in list(self._listeners):
            listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` after every change; the function returned ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)


def _lookup(denied: DeniedCertificates) -> _Lookup:
    return _Lookup(denied.digest, frozenset(denied.serials), frozenset(denied.components))


def _read(path: Path) -> DeniedCertificates:
    try:
        return records.decode(records.parse_json(path.read_text(encoding="ascii")), DeniedCertificates, str(path))
    except FileNotFoundError:
        return DeniedCertificates()
    except (OSError, ValueError, FailbackError) as error:
        log.warning("the list of revoked certificates cannot be read and is asked for anew", reason=str(error))
        return DeniedCertificates()
