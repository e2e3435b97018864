"""Giving orders and awaiting their results.

``give`` is find-or-create by ``key``: a step that runs again after a crash finds its order again. An order with an item is
fenced by the item's generation: a stale job can give none and gets no result (StaleEpochError). A restarted job (higher
generation) takes over an order that is still open, and gets a fresh one in the place of one that failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from failback.configuration_server.database import Database, components, items
from failback.configuration_server.database.orders import OrderRow
from failback.configuration_server.registry.news import News
from failback.configuration_server.registry.waiting import Cancelled, wait_for
from failback.errors import ConfigurationError, NotFoundError, PeerError, from_dict
from failback.model.components import OrderReport, OrderState, Role
from failback.model.ids import OrderId, new_id
from failback.model.orders import KINDS
from failback.runtime import logs, records
from failback.runtime.clock import Clock, SystemClock

log = logs.get(__name__)

Progress = Callable[[int, int], None]

WITHDRAWN = "Withdrawn"
"""Error code of an order that was taken back."""


class Orders:
    """The order book. All state is in the database."""

    def __init__(self, database: Database, news: News, clock: Clock | None = None) -> None:
        self._database = database
        self._news = news
        self._clock = clock or SystemClock()

    async def give(  # noqa: PLR0917 - the five that every order has
        self, component_id: str, kind: str, generation: int, arguments: object, key: str, item_id: str | None = None
    ) -> OrderId:
        """Give the order, or find it by its key. ``arguments`` is a dataclass of :mod:`failback.model.orders` or a dict.

        Without ``item_id`` (probes) the order is not fenced. Raises NotFoundError (no such component), ConfigurationError (a
        kind that the component's role does not execute), StaleEpochError (a newer job owns the item).
        """
        encoded = records.encode(arguments)

        def work(session: Session) -> str:
            return self._find_or_create(session, component_id, kind, generation, encoded, key, item_id)

        order_id = await self._database.run(work)
        self._news.announce(component_id)
        return OrderId(order_id)

    def _find_or_create(  # noqa: PLR0917
        self, session: Session, component_id: str, kind: str, generation: int, arguments: dict[str, Any], key: str,
        item_id: str | None,
    ) -> str:  # fmt: skip
        component = components.get(session, component_id)
        if Role(component.role) not in KINDS.get(kind, ()):
            raise ConfigurationError(f"a {component.role} does not execute the order {kind!r}")
        if item_id is not None:
            items.fenced(session, item_id, generation)
        else:
            generation = max(generation, _newest_generation(session, component_id))
        existing = session.scalars(select(OrderRow).where(OrderRow.key == key)).first()
        if existing is not None:
            if existing.state != OrderState.FAILED.value or existing.generation >= generation:
                existing.generation = max(existing.generation, generation)
                return existing.order_id
            existing.key = f"{existing.order_id} replaced"
            session.flush()
        if item_id is not None:
            self._supersede(session, component_id, kind, generation, item_id)
        row = OrderRow(
            order_id=new_id(), key=key, component_id=component_id, item_id=item_id, kind=kind, generation=generation,
            arguments=arguments, given_wall_ns=self._clock.wall_ns(),
        )  # fmt: skip
        session.add(row)
        log.info("order given", kind=kind, order_id=row.order_id, component_id=component_id, generation=generation)
        return row.order_id

    def _supersede(self, session: Session, component_id: str, kind: str, generation: int, item_id: str) -> None:
        """An open order of the same kind by an older owner is taken back: one of a kind runs at a time."""
        statement = select(OrderRow).where(
            OrderRow.component_id == component_id, OrderRow.item_id == item_id, OrderRow.kind == kind,
            OrderRow.generation < generation, OrderRow.finished_wall_ns == 0,
        )  # fmt: skip
        for row in session.scalars(statement):
            self._end(row, "a newer job gave it again")

    def _end(self, row: OrderRow, reason: str) -> None:
        row.state = OrderState.FAILED.value
        row.error = {"code": WITHDRAWN, "message": f"the order {row.kind} was withdrawn: {reason}"}
        row.finished_wall_ns = self._clock.wall_ns()

    async def read(self, order_id: str) -> OrderReport:
        """State, result and progress now. Raises NotFoundError."""
        row = await self._database.look(lambda session: session.get(OrderRow, order_id))
        if row is None:
            raise NotFoundError(f"there is no order {order_id!r}")
        return row.report()

    async def await_result(
        self, order_id: str, timeout_seconds: float, *, cancelled: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> OrderReport:  # fmt: skip
        """The successful report. Raises the reported error; PeerError after the time; Cancelled when ``cancelled()``.

        A cancelled or timed-out order stays given: :meth:`withdraw` takes it back.
        """
        first = await self._database.look(lambda session: self._describe(session, order_id))
        component_id, description = first

        def look(session: Session) -> OrderRow | None:
            row = session.get(OrderRow, order_id)
            if row is None:
                raise NotFoundError(f"there is no order {order_id!r}")
            if progress is not None and row.bytes_total:
                progress(row.bytes_done, row.bytes_total)
            return row if row.finished() else None

        try:
            row = await wait_for(
                self._database, self._news, look, about=(component_id, order_id), timeout_seconds=timeout_seconds,
                waiting_for=description, cancelled=cancelled,
            )  # fmt: skip
        except PeerError as error:
            raise await self._explain(error, component_id) from None
        if row.state == OrderState.FAILED.value:
            raise from_dict({key: str(value) for key, value in (row.error or {}).items()})
        return row.report()

    async def carry_out(  # noqa: PLR0917
        self, component_id: str, kind: str, generation: int, arguments: object, key: str, timeout_seconds: float, *,
        item_id: str | None = None, cancelled: Callable[[], bool] | None = None, progress: Progress | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """``give`` and ``await_result`` in one; withdraws the order when cancelled. Returns the result table."""
        order_id = await self.give(component_id, kind, generation, arguments, key, item_id)
        try:
            report = await self.await_result(order_id, timeout_seconds, cancelled=cancelled, progress=progress)
        except Cancelled:
            await self.withdraw(order_id, "its job was cancelled")
            raise
        return report.result

    async def withdraw(self, order_id: str, reason: str) -> None:
        """Take an unfinished order back: it is not listed any more. What the component has begun it may still end."""

        def work(session: Session) -> str | None:
            row = session.get(OrderRow, order_id)
            if row is None or row.finished():
                return None
            self._end(row, reason)
            return row.component_id

        component_id = await self._database.run(work)
        self._news.announce(component_id, order_id)

    def _describe(self, session: Session, order_id: str) -> tuple[str, str]:
        row = session.get(OrderRow, order_id)
        if row is None:
            raise NotFoundError(f"there is no order {order_id!r}")
        component = components.get(session, row.component_id)
        return row.component_id, f"{component.role} {component.hostname} to finish {row.kind}"

    async def _explain(self, error: PeerError, component_id: str) -> PeerError:
        row = await self._database.look(lambda session: components.get(session, component_id))
        silent = (self._clock.wall_ns() - row.last_heartbeat_wall_ns) / 1e9
        heard = f"it was last heard {silent:.0f} s ago" if row.last_heartbeat_wall_ns else "it was never heard"
        return PeerError(
            f"{error.message}; {heard}", code=error.code, possible_causes=error.possible_causes, remedy=error.remedy
        )


def _newest_generation(session: Session, component_id: str) -> int:
    """An order without an owner must not look older to the component than what it has seen."""
    given = session.scalar(select(func.max(OrderRow.generation)).where(OrderRow.component_id == component_id))
    item = items.of_machine(session, component_id)
    return max(given or 0, item.generation if item is not None else 0)
