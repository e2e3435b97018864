"""A mark on its way into the stream, and where it came to lie (D3, D18, D20)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from failback.errors import FailbackError
from failback.model.ids import MarkId
from failback.model.stream import GapCause, MarkKind


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a mark lies; ``gap`` not NONE means that no point may be made there and the mark was not sent."""

    sequence: int
    ring: int
    gap: GapCause


@dataclass(slots=True)
class Mark:
    """``number`` finds its record in the ring; ``placed`` is done when its batch is handed over, or nobody waits any more."""

    kind: MarkKind
    mark_id: MarkId
    number: int
    check: Callable[[], None]
    """Raises when the machine is not held still any more: the mark then is none."""
    placed: asyncio.Future[Placed]
    position: int | None = None
    """Where it lies already (a common mark is put while the machine is held, and sent afterwards)."""

    def still_valid(self) -> bool:
        """Asked when the mark's place is fixed and nothing is sent yet: held still now means held still there too."""
        if self.placed.done():
            return False
        try:
            self.check()
        except FailbackError as error:
            self.placed.set_exception(error)
            return False
        return True
