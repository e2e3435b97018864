"""Jobs, their tasks and their errors: the truth that the API shows (the executor behind the job engine keeps its own).

Names and states are Azure Site Recovery's (facts: reprotect is ``SwitchReplicationGroupProtection``, and so on). A task row is
also the memory of its step: ``result`` is written before the next task begins.
"""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from failback.configuration_server.database.base import Base, Count, Id, Name, Sentence, Table, WallNs


class JobRow(Base):
    """``state``: NotStarted | InProgress | Succeeded | Failed | Cancelled | Cancelling | CompletedWithInformation | Suspended."""

    __tablename__ = "jobs"

    job_id: Mapped[Id] = mapped_column(primary_key=True)
    key: Mapped[Name] = mapped_column(unique=True)
    scenario: Mapped[str] = mapped_column(String(64))
    friendly_name: Mapped[Name]
    item_id: Mapped[str | None] = mapped_column(String(64), index=True)
    """No foreign key: a job outlives a removed item."""
    target_name: Mapped[str] = mapped_column(String(255), default="")
    target_instance_type: Mapped[str] = mapped_column(String(64), default="ProtectionEntity")
    parent_job_id: Mapped[str | None] = mapped_column(String(64))
    inputs: Mapped[Table]
    state: Mapped[str] = mapped_column(String(32), default="NotStarted", index=True)
    state_description: Mapped[Sentence]
    generation: Mapped[Count]
    """The generation under which it owns its item (``items.generation``)."""
    attempt: Mapped[int] = mapped_column(default=1)
    """1, and one more at each restart."""
    owner: Mapped[str] = mapped_column(String(64), default="")
    """Executor id of the process that runs it."""
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    custom_details: Mapped[Table]
    started_by: Mapped[str] = mapped_column(String(255), default="")
    created_wall_ns: Mapped[WallNs] = mapped_column(index=True)
    started_wall_ns: Mapped[WallNs]
    ended_wall_ns: Mapped[WallNs]

    tasks: Mapped[list[TaskRow]] = relationship(order_by="TaskRow.index", cascade="all, delete-orphan", lazy="selectin")
    errors: Mapped[list[JobErrorRow]] = relationship(
        order_by="JobErrorRow.error_id", cascade="all, delete-orphan", lazy="selectin"
    )


class TaskRow(Base):
    """``state``: NotStarted | InProgress | Succeeded | Failed | Other (with a description such as ``Skipped``)."""

    __tablename__ = "tasks"
    __table_args__ = (UniqueConstraint("job_id", "index", name="uq_tasks_job_index"), Index("ix_tasks_name", "name"))

    row_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.job_id", ondelete="CASCADE"), index=True)
    index: Mapped[int]
    name: Mapped[Name]
    """The step's name; unique within the job."""
    task_id: Mapped[Name]
    """Azure Site Recovery's taskId."""
    friendly_name: Mapped[Name]
    task_type: Mapped[str] = mapped_column(String(64), default="TaskDetails")
    parent_name: Mapped[str] = mapped_column(String(255), default="")
    """Name of the group task that this is a child of; empty at the top."""
    child_scenario: Mapped[str] = mapped_column(String(64), default="")
    state: Mapped[str] = mapped_column(String(32), default="NotStarted")
    state_description: Mapped[Sentence]
    """What it is doing or waiting for, in a sentence."""
    generation: Mapped[Count]
    result: Mapped[Table]
    custom_details: Mapped[Table]
    bytes_done: Mapped[Count]
    bytes_total: Mapped[Count]
    bytes_per_second: Mapped[float] = mapped_column(default=0.0)
    eta_seconds: Mapped[float | None]
    started_wall_ns: Mapped[WallNs]
    ended_wall_ns: Mapped[WallNs]


class JobErrorRow(Base):
    __tablename__ = "job_errors"

    error_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.job_id", ondelete="CASCADE"), index=True)
    task_name: Mapped[str] = mapped_column(String(255), default="")
    attempt: Mapped[int] = mapped_column(default=1)
    code: Mapped[Name]
    message: Mapped[Sentence]
    possible_causes: Mapped[Sentence]
    recommended_action: Mapped[Sentence]
    retryable: Mapped[bool] = mapped_column(default=False)
    severity: Mapped[str] = mapped_column(String(16), default="Error")
    created_wall_ns: Mapped[WallNs]
