"""Every error that Failback raises on purpose, in one tree.

::

    FailbackError
    ├── ConfigurationError      a file or an argument is wrong; nothing was started
    ├── NotSupportedError       this machine, kernel or driver cannot do it; says what to do instead
    ├── AuthenticationError     an unknown, expired or wrong certificate, passphrase or token
    ├── PermissionDeniedError   who calls is known, but may not do this
    ├── NotFoundError           the named thing does not exist
    ├── ConflictError           the thing is in a state in which this cannot be done
    ├── PeerError               the other side is away, too slow or speaks another version (retryable)
    ├── ProtocolError           a peer sent what the protocol forbids; the link is closed, nothing is lost
    ├── StaleEpochError         a stream or a job owner of an older epoch or generation (D2, D6)
    ├── IntegrityError          stored or received bytes do not match their checksum
    ├── StorageError            a disk, a spool or a retention volume cannot do its part
    │   └── OutOfSpaceError     it is full; what was acknowledged is safe
    ├── FabricError             the hypervisor or the cloud refused
    ├── FreezeError             a file system could not be frozen, or a freeze lease was lost (D20)
    └── PreconditionError       a readiness check failed; carries the check's name

Rules: an error carries a stable ``code`` (also the ARM error code), one sentence of what happened, ``possible_causes``
and a ``remedy`` for the person on call. ``retryable`` says whether the same call may succeed later without a change.
Codes that Azure Site Recovery prints for the same condition are used where one exists (95226, 78052, 78093, 8061).
"""

from __future__ import annotations


class FailbackError(Exception):
    """Base of the tree. ``str(error)`` is the sentence; ``code``, ``possible_causes`` and ``remedy`` go with it."""

    code: str = "InternalError"
    retryable: bool = False

    def __init__(self, message: str, *, code: str | None = None, remedy: str = "", possible_causes: str = "",
                 retryable: bool | None = None) -> None:  # fmt: skip
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.possible_causes = possible_causes
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable

    def as_dict(self) -> dict[str, str]:
        """The wire form used between our own parts and stored with a job's task."""
        return {
            "code": self.code,
            "message": self.message,
            "possible_causes": self.possible_causes,
            "remedy": self.remedy,
            "retryable": "yes" if self.retryable else "no",
        }


class ConfigurationError(FailbackError):
    code = "InvalidConfiguration"


class NotSupportedError(FailbackError):
    code = "NotSupported"


class AuthenticationError(FailbackError):
    code = "AuthenticationFailed"


class PermissionDeniedError(FailbackError):
    code = "AuthorizationFailed"


class NotFoundError(FailbackError):
    code = "ResourceNotFound"


class ConflictError(FailbackError):
    code = "Conflict"


class PeerError(FailbackError):
    code = "PeerUnavailable"
    retryable = True


class ProtocolError(FailbackError):
    code = "ProtocolViolation"


class StaleEpochError(FailbackError):
    code = "StaleEpoch"


class IntegrityError(FailbackError):
    code = "IntegrityCheckFailed"


class StorageError(FailbackError):
    code = "StorageFailed"


class OutOfSpaceError(StorageError):
    code = "OutOfSpace"
    retryable = True


class FabricError(FailbackError):
    code = "FabricFailed"


class FreezeError(FailbackError):
    code = "FreezeFailed"


class PreconditionError(FailbackError):
    code = "PreconditionFailed"


def from_dict(fields: dict[str, str]) -> FailbackError:
    """Rebuild an error that another part reported with :meth:`FailbackError.as_dict`; unknown codes stay readable."""
    code = fields.get("code", FailbackError.code)
    classes = {cls.code: cls for cls in _walk(FailbackError)}
    cls = classes.get(code, FailbackError)
    return cls(
        fields.get("message", "the other part reported an error without a message"),
        code=code,
        remedy=fields.get("remedy", ""),
        possible_causes=fields.get("possible_causes", ""),
        retryable=fields.get("retryable") == "yes",
    )


def _walk(cls: type[FailbackError]) -> list[type[FailbackError]]:
    found = [cls]
    for child in cls.__subclasses__():
        found.extend(_walk(child))
    return found
