"""Lists in pages: at most ``page_rows`` values, then ``nextLink``, which names the last one by ``$skipToken``.

A page begins after a key, not after a count: rows that come or go meanwhile neither repeat a value nor leave one out.
``nextLink`` is the request's own URL with another token, so filters and api-version stay. The token is opaque to callers.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlencode

from fastapi import Depends, Request

from failback.configuration_server.api.forwarded import base_url
from failback.errors import ConfigurationError

T = TypeVar("T")
Key = tuple[int | str, ...]

TOKEN = "$skipToken"
_NAMES = ("$skiptoken", "skiptoken")


@dataclass(frozen=True, slots=True)
class Page:
    """Where the asked page begins, and how to name the one after it."""

    request: Request
    token: str

    def after(self, *kinds: type) -> Key | None:
        """The key of the last value of the page before, with parts of these types; None for the first page.

        Raises ConfigurationError for a token that this list did not give.
        """
        if not self.token:
            return None
        try:
            parts = json.loads(base64.urlsafe_b64decode(self.token.encode("ascii")))
        except (ValueError, binascii.Error, RecursionError):
            parts = None
        fits = isinstance(parts, list) and len(parts) == len(kinds)
        if not fits or any(type(part) is not kind for part, kind in zip(parts, kinds, strict=True)):
            raise ConfigurationError(
                "the skip token is not one of this list", code="InvalidSkipToken", remedy="follow nextLink as it is"
            )
        if any(isinstance(part, int) and not -(1 << 63) <= part < 1 << 63 for part in parts):
            raise ConfigurationError("the skip token is out of range", code="InvalidSkipToken")
        return tuple(parts)

    def listed(
        self, rows: Sequence[T], size: int, key: Callable[[T], Key], shape: Callable[[T], dict[str, Any]]
    ) -> dict[str, Any]:
        """The answer for rows of which one more than ``size`` was read, when there were as many."""
        shown = rows[:size]
        following = self._link(key(shown[-1])) if len(rows) > size else None
        return {"value": [shape(row) for row in shown], "nextLink": following}

    def of_all(
        self, rows: Sequence[T], size: int, key: Callable[[T], str], shape: Callable[[T], dict[str, Any]]
    ) -> dict[str, Any]:
        """The answer for a list that is in memory as a whole; its first page again when the token's value is gone."""
        last = self.after(str)
        names = [key(row) for row in rows]
        first = names.index(str(last[0])) + 1 if last is not None and last[0] in names else 0
        return self.listed(rows[first : first + size + 1], size, lambda row: (key(row),), shape)

    def _link(self, key: Key) -> str:
        token = base64.urlsafe_b64encode(json.dumps(key, separators=(",", ":")).encode()).decode("ascii")
        kept = [(name, value) for name, value in self.request.query_params.multi_items() if name.lower() not in _NAMES]
        path = quote(self.request.scope["path"])
        return f"{base_url(self.request)}{path}?{urlencode([*kept, (TOKEN, token)], safe='$')}"


def _page(request: Request) -> Page:
    said = {name.lower(): value for name, value in request.query_params.items()}
    return Page(request, next((said[name] for name in _NAMES if said.get(name)), ""))


PageOf = Annotated[Page, Depends(_page)]
