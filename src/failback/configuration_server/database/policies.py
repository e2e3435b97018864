"""Replication policies. The failback policy is made at first start and is not edited."""

from __future__ import annotations

from sqlalchemy.orm import Mapped, Session, mapped_column

from failback.configuration_server.database.base import Base, Name, Table, WallNs
from failback.model.bandwidth import NO_LIMIT, BandwidthLimit
from failback.model.policy import DEFAULT_THINNING, ReplicationPolicy, ThinningStep
from failback.runtime import records

FAILBACK_POLICY_NAME = "failback"
"""15 minutes threshold, 24 hours of points, app-consistent points every 60 minutes; applied to a reprotect by itself."""


class PolicyRow(Base):
    __tablename__ = "policies"

    name: Mapped[Name] = mapped_column(primary_key=True)
    recovery_point_threshold_minutes: Mapped[int] = mapped_column(default=15)
    recovery_point_history_minutes: Mapped[int] = mapped_column(default=1440)
    app_consistent_frequency_minutes: Mapped[int] = mapped_column(default=60)
    crash_consistent_seconds: Mapped[int] = mapped_column(default=300)
    redo_window_seconds: Mapped[int] = mapped_column(default=3600)
    thinning: Mapped[Table]
    """``{"steps": [[older_than_minutes, every_minutes], ...]}``; empty: the default."""
    bandwidth: Mapped[Table]
    """The encoded BandwidthLimit of each stream under the policy that has none of its own; empty: none."""
    editable: Mapped[bool] = mapped_column(default=True)
    created_wall_ns: Mapped[WallNs]

    def policy(self) -> ReplicationPolicy:
        return ReplicationPolicy(
            self.name,
            self.recovery_point_threshold_minutes,
            self.recovery_point_history_minutes,
            self.app_consistent_frequency_minutes,
            self.crash_consistent_seconds,
            self.redo_window_seconds,
            tuple(ThinningStep(*step) for step in self.thinning["steps"]) if self.thinning else DEFAULT_THINNING,
        )

    def bandwidth_limit(self) -> BandwidthLimit:
        return (
            records.decode(self.bandwidth, BandwidthLimit, f"bandwidth of {self.name}") if self.bandwidth else NO_LIMIT
        )


def bandwidth_of(session: Session, name: str) -> BandwidthLimit:
    """The limit that holds for each machine under the policy without one of its own."""
    row = session.get(PolicyRow, name or FAILBACK_POLICY_NAME)
    return row.bandwidth_limit() if row is not None else NO_LIMIT


def policy_of(session: Session, name: str) -> ReplicationPolicy:
    """The named policy; the failback policy's figures when it does not exist (any more)."""
    row = session.get(PolicyRow, name or FAILBACK_POLICY_NAME)
    return row.policy() if row is not None else ReplicationPolicy(FAILBACK_POLICY_NAME)
