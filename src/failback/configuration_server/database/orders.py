"""Orders: work that a component has to do once. Given and awaited through :mod:`failback.configuration_server.registry`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from failback.configuration_server.database.base import Base, Count, Id, Name, Table, WallNs
from failback.model.components import Order, OrderReport, OrderState
from failback.model.ids import OrderId


class OrderRow(Base):
    """``key`` is the giver's: the same key finds the same order again."""

    __tablename__ = "orders"
    __table_args__ = (Index("ix_orders_component_state", "component_id", "state"),)

    order_id: Mapped[Id] = mapped_column(primary_key=True)
    key: Mapped[Name] = mapped_column(unique=True)
    component_id: Mapped[str] = mapped_column(ForeignKey("components.component_id"))
    item_id: Mapped[str | None] = mapped_column(String(64), index=True)
    kind: Mapped[str] = mapped_column(String(64))
    generation: Mapped[Count]
    arguments: Mapped[Table]
    state: Mapped[str] = mapped_column(String(16), default=OrderState.PENDING.value)
    result: Mapped[Table]
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    bytes_done: Mapped[Count]
    bytes_total: Mapped[Count]
    given_wall_ns: Mapped[WallNs]
    finished_wall_ns: Mapped[WallNs]

    def order(self) -> Order:
        return Order(OrderId(self.order_id), self.kind, self.generation, dict(self.arguments))

    def report(self) -> OrderReport:
        return OrderReport(
            OrderId(self.order_id),
            OrderState(self.state),
            dict(self.result),
            self.error,
            self.bytes_done,
            self.bytes_total,
        )

    def finished(self) -> bool:
        return self.state in (OrderState.SUCCEEDED.value, OrderState.FAILED.value)
