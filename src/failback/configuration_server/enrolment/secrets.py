"""Making and checking secrets: the enrolment passphrase (argon2id), one-time tokens and bearer tokens (SHA-256).

A passphrase may be chosen by a person, so its hash is slow; tokens have 256 random bits, so theirs need not be.
:class:`FailureLimit` slows down guessing: an address with too many failures in a minute is not even heard.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import defaultdict, deque

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from failback.runtime.clock import Clock

# OWASP's second profile: 19 MiB, so that a burst of enrolments does not take the server's memory.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
_GROUPS, _GROUP_LENGTH = 6, 5


def new_passphrase() -> str:
    """Six groups of five letters and digits that are hard to mistake for one another (about 148 bits)."""
    groups = ("".join(secrets.choice(_ALPHABET) for _ in range(_GROUP_LENGTH)) for _ in range(_GROUPS))
    return "-".join(groups)


def hash_passphrase(passphrase: str) -> str:
    return _HASHER.hash(passphrase)


def passphrase_matches(argon2_hash: str, passphrase: str) -> bool:
    try:
        return _HASHER.verify(argon2_hash, passphrase)
    except (VerificationError, InvalidHashError):
        return False


def new_token() -> str:
    return secrets.token_urlsafe(32)


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8")).hexdigest()


class FailureLimit:
    """At most ``failures`` failures per address in ``seconds``; successes do not count. Thread-safe, bounded memory."""

    def __init__(self, clock: Clock, failures: int = 5, seconds: float = 60.0, addresses: int = 10_000) -> None:
        self._clock = clock
        self._failures = failures
        self._seconds = seconds
        self._addresses = addresses
        self._lock = threading.Lock()
        self._times: dict[str, deque[float]] = defaultdict(deque)

    def wait_seconds(self, address: str) -> float:
        """0 when the address may try now, else how long it has to wait."""
        with self._lock:
            times = self._times.get(address)
            if not times:
                return 0.0
            now = self._clock.monotonic()
            while times and now - times[0] >= self._seconds:
                times.popleft()
            if not times:
                del self._times[address]
                return 0.0
            return self._seconds - (now - times[0]) if len(times) >= self._failures else 0.0

    def failed(self, address: str) -> None:
        with self._lock:
            if address not in self._times and len(self._times) >= self._addresses:
                self._times.pop(next(iter(self._times)))
            times = self._times[address]
            times.append(self._clock.monotonic())
            while len(times) > self._failures:
                times.popleft()
