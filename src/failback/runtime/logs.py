"""Logging of every role: one line an event, key=value or JSON, to standard error (the journal picks it up).

Uses the standard library so that a protected machine needs no more; servers may pass the records on to structlog.
Secrets never reach a log: fields named token, passphrase, secret, password or authorization are replaced. Neither do
control characters of a field (a host name that a peer chose may hold a line that looks like ours): they are escaped.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_SECRET = ("token", "passphrase", "secret", "password", "authorization")


class _Lines(logging.Formatter):
    def __init__(self, role: str, as_json: bool) -> None:
        super().__init__()
        self.role = role
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        safe = {key: "***" if any(word in key.lower() for word in _SECRET) else value for key, value in fields.items()}
        if self.as_json:
            line = json.dumps({"time": stamp, "level": record.levelname.lower(), "role": self.role,
                               "event": record.getMessage(), **safe}, default=str)  # fmt: skip
        else:
            pairs = " ".join(f"{key}={_printable(str(value))}" for key, value in safe.items())
            line = f"{stamp} {record.levelname:7} {self.role} {record.getMessage()} {pairs}".rstrip()
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def configure(role: str, *, level: str = "INFO", as_json: bool = False) -> None:
    """Set up the process's logging once, at start."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(role, as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


class Log:
    """``log.info("batch landed", sequence=7)``: an event in plain words and its fields."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        if self._logger.isEnabledFor(logging.DEBUG):
            self._logger.debug(event, extra={"fields": fields})

    def info(self, event: str, **fields: Any) -> None:
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: Any) -> None:
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, **fields: Any) -> None:
        self._logger.error(event, extra={"fields": fields})

    def exception(self, event: str, **fields: Any) -> None:
        self._logger.exception(event, extra={"fields": fields})


def get(name: str) -> Log:
    return Log(name)
