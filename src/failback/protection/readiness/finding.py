"""What a readiness check says: a verdict in one sentence about one object, with a remedy when it is not a pass.

A rule names what it saw (:func:`passed`, :func:`failed`, :func:`warned`, :func:`skipped`); the check's name, its stable
code and the ordinary remedy stand in its row of the registry and are filled in by ``registry.evaluate``. A warning does not
keep anything from being done; not-applicable says why nothing could be judged.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from failback.errors import PreconditionError


class Verdict(enum.Enum):
    PASS = "pass"
    WARNING = "warning"
    FAIL = "fail"
    NOT_APPLICABLE = "not-applicable"


CONNECTIVITY = "connectivity"
"""The names of all checks of a way between two components begin with it."""


@dataclass(frozen=True, slots=True)
class Check:
    """``subject`` is the object that was looked at; ``remedy`` and ``code`` are empty unless it failed or warns.

    ``rows``: the rows of docs/readiness.md that this finding answers.
    """

    name: str
    subject: str
    verdict: Verdict
    sentence: str
    remedy: str = ""
    code: str = ""
    rows: tuple[str, ...] = ()

    @property
    def blames(self) -> bool:
        return self.verdict in (Verdict.FAIL, Verdict.WARNING)


def passed(subject: str, sentence: str, name: str = "") -> list[Check]:
    return [Check(name, subject, Verdict.PASS, sentence)]


def failed(subject: str, sentence: str, remedy: str = "", code: str = "", name: str = "") -> list[Check]:
    """An empty remedy or code is that of the row."""
    return [Check(name, subject, Verdict.FAIL, sentence, remedy, code)]


def warned(subject: str, sentence: str, remedy: str = "", code: str = "", name: str = "") -> list[Check]:
    return [Check(name, subject, Verdict.WARNING, sentence, remedy, code)]


def skipped(subject: str, sentence: str, name: str = "") -> list[Check]:
    return [Check(name, subject, Verdict.NOT_APPLICABLE, sentence)]


def judged(good: bool, subject: str, yes: str, no: str) -> list[Check]:
    """``yes`` as a pass or ``no`` as a failure."""
    return passed(subject, yes) if good else failed(subject, no)


def ready(checks: Iterable[Check]) -> bool:
    return all(check.verdict is not Verdict.FAIL for check in checks)


def first_failure(checks: Iterable[Check]) -> PreconditionError | None:
    """The first failed check as an error whose code is the check's; None when nothing failed.

    All findings that failed stand in its causes with their codes, so that a job shows what the API shows.
    """
    wrong = [check for check in checks if check.verdict is Verdict.FAIL]
    if not wrong:
        return None
    first = wrong[0]
    more = f" ({len(wrong) - 1} more checks failed)" if len(wrong) > 1 else ""
    return PreconditionError(
        first.sentence + more,
        code=first.code or PreconditionError.code,
        remedy=first.remedy,
        possible_causes="; ".join(f"{check.sentence} [{check.code}]" for check in wrong[1:]),
        retryable=True,
    )


def may_pass_soon(checks: Iterable[Check]) -> bool:
    """Whether all that failed are ways between components: one end may only be starting again."""
    wrong = [check for check in checks if check.verdict is Verdict.FAIL]
    return bool(wrong) and all(check.name.startswith(CONNECTIVITY) for check in wrong)


def spoken_size(count: int) -> str:
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def version_key(version: str) -> tuple[int, ...]:
    """``0.10.2.dev1`` -> (0, 10, 2): the leading numbers; what follows them does not order versions."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
