"""Protected items: a machine with an on-premises origin and a cloud twin, its disks, and where its protection stands.

``live_side`` says where the machine runs; ``replicating`` whether its stream is wanted (agent, process server and master target
are told to carry it). Assignments are computed from these rows alone. ``generation`` is the fence of jobs: the
newest job of the item took it with :func:`take_generation`; an older owner's :func:`fenced` raises, so a stale owner changes
nothing.
"""

from __future__ import annotations

from sqlalchemy import JSON, ForeignKey, String, UniqueConstraint, false, select
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from failback.configuration_server.database.base import Base, Count, Id, Name, Sentence, Table, WallNs
from failback.errors import NotFoundError, StaleEpochError
from failback.model.bandwidth import BandwidthLimit
from failback.model.components import SyncMode
from failback.runtime import records

CLOUD = "cloud"
ON_PREMISES = "onprem"
"""Values of ``live_side``; the same words as a fabric's ``site`` in the configuration."""


class ItemRow(Base):
    __tablename__ = "items"

    item_id: Mapped[Id] = mapped_column(primary_key=True)
    name: Mapped[Name] = mapped_column(unique=True)
    """The ARM resource name."""
    friendly_name: Mapped[Name]
    machine_id: Mapped[str | None] = mapped_column(ForeignKey("components.component_id"), unique=True)
    """Component id of its mobility service; None until one is matched."""

    on_premises_fabric: Mapped[str] = mapped_column(String(255), default="")
    on_premises_fabric_id: Mapped[str] = mapped_column(String(255), default="")
    on_premises_name: Mapped[str] = mapped_column(String(255), default="")
    on_premises_hardware_id: Mapped[str] = mapped_column(String(64), default="")
    cloud_fabric: Mapped[str] = mapped_column(String(255), default="")
    cloud_fabric_id: Mapped[str] = mapped_column(String(255), default="")
    cloud_name: Mapped[str] = mapped_column(String(255), default="")
    cloud_hardware_id: Mapped[str] = mapped_column(String(64), default="")
    firmware: Mapped[str] = mapped_column(String(16), default="")
    os_family: Mapped[str] = mapped_column(String(64), default="")

    live_side: Mapped[str] = mapped_column(String(16), default=CLOUD)
    direction: Mapped[str] = mapped_column(String(32), default="RecoveryToPrimary")
    """Direction of the protection or failover last asked for, in Azure Site Recovery's words."""
    protection_state: Mapped[str] = mapped_column(String(64), default="UnplannedFailoverCommitted")
    protection_stage: Mapped[str] = mapped_column(String(64), default="")
    """Finer than the state while one is entered: attaching, comparing, differential, releasing ..."""
    replication_health: Mapped[str] = mapped_column(String(16), default="None")
    """None | Normal | Warning | Critical; written by the monitors."""

    replicating: Mapped[bool] = mapped_column(default=False)
    epoch: Mapped[Count]
    """The epoch in force; 0 before the first."""
    epoch_highest: Mapped[Count]
    """The highest epoch ever issued: the next one is above it, none is used twice (D2)."""
    epoch_floor: Mapped[Count]
    """Streams below it are refused for ever (raised by a failback: the left side can never write again)."""
    pass_id: Mapped[str] = mapped_column(String(64), default="")
    group_id: Mapped[str] = mapped_column(String(64), default="")
    process_server_id: Mapped[str | None] = mapped_column(ForeignKey("components.component_id"))
    master_target_id: Mapped[str | None] = mapped_column(ForeignKey("components.component_id"))
    retention_volume: Mapped[str] = mapped_column(String(255), default="")
    datastore: Mapped[str] = mapped_column(String(255), default="")
    policy_name: Mapped[str] = mapped_column(String(255), default="")
    bandwidth: Mapped[Table]
    """The encoded BandwidthLimit of its stream; empty: that of its policy."""
    comparison_minutes: Mapped[Count] = mapped_column(server_default="0")
    """Above 0: it is replicated by periodic comparison, chosen by the operator, and not captured."""

    generation: Mapped[Count]
    current_job_id: Mapped[str | None] = mapped_column(String(64))
    """The one unfinished job of the item."""
    chosen_point_id: Mapped[str] = mapped_column(String(64), default="")
    chosen_point_wall_ns: Mapped[WallNs]
    layer_key: Mapped[str] = mapped_column(String(64), default="")
    """Key of the disposable layer that the on-premises machine runs on while a failback waits for commit or cancel."""
    last_failover_wall_ns: Mapped[WallNs]
    abandoned_reason: Mapped[Sentence]
    """Why the protection was given up, when it was."""
    created_wall_ns: Mapped[WallNs]
    other_disks: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """Matches of disks that the machine had beside the protected ones when the replication began; None: not noted yet."""

    disks: Mapped[list[ItemDiskRow]] = relationship(
        order_by="ItemDiskRow.index", cascade="all, delete-orphan", lazy="selectin"
    )

    def live_hardware_id(self) -> str:
        """SMBIOS UUID of the side that may speak for this machine."""
        return self.cloud_hardware_id if self.live_side == CLOUD else self.on_premises_hardware_id


class ItemDiskRow(Base):
    """One disk on both sides; ``path`` is its name on premises while it is not a replica."""

    __tablename__ = "item_disks"
    __table_args__ = (UniqueConstraint("item_id", "index", name="uq_item_disks_item_index"),)

    disk_id: Mapped[Id] = mapped_column(primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("items.item_id", ondelete="CASCADE"), index=True)
    index: Mapped[int]
    device_match: Mapped[str] = mapped_column(String(255), default="")
    """How the agent finds it (``DiskFacts.device_match``)."""
    serial: Mapped[str] = mapped_column(String(255), default="")
    is_system: Mapped[bool] = mapped_column(default=False)
    path: Mapped[Sentence]
    format: Mapped[str] = mapped_column(String(32), default="raw")
    size_bytes: Mapped[Count]
    on_premises_target: Mapped[str] = mapped_column(String(64), default="")
    cloud_target: Mapped[str] = mapped_column(String(255), default="")
    """The cloud fabric's name of the disk."""
    cloud_size_bytes: Mapped[Count]
    create: Mapped[bool] = mapped_column(default=False)
    """It is missing on premises: the master target makes it on the datastore."""
    sync: Mapped[str] = mapped_column(String(16), default=SyncMode.NONE.value)
    """How the pass ``items.pass_id`` brings it in step: value of SyncMode."""
    sync_from_bytes: Mapped[Count] = mapped_column(server_default="0")
    """Full: only from this place on (a disk that grew)."""
    removed: Mapped[bool] = mapped_column(default=False, server_default=false())
    """The machine has it no more; its replica is kept for the points from before."""


def get(session: Session, item_id: str) -> ItemRow:
    """The item's row. Raises NotFoundError."""
    row = session.get(ItemRow, item_id)
    if row is None:
        raise NotFoundError(f"no protected item has the id {item_id!r}", remedy="failback item list")
    return row


def named(session: Session, name_or_id: str) -> ItemRow:
    """An item by ARM name, by id, or by friendly name when that is unique. Raises NotFoundError."""
    row = session.scalars(select(ItemRow).where((ItemRow.name == name_or_id) | (ItemRow.item_id == name_or_id))).first()
    if row is not None:
        return row
    rows = session.scalars(select(ItemRow).where(ItemRow.friendly_name == name_or_id)).all()
    if len(rows) == 1:
        return rows[0]
    raise NotFoundError(f"there is no protected item {name_or_id!r}", remedy="failback item list; failback item import")


def all_items(session: Session) -> list[ItemRow]:
    return list(session.scalars(select(ItemRow).order_by(ItemRow.name)))


def of_machine(session: Session, machine_id: str) -> ItemRow | None:
    return session.scalars(select(ItemRow).where(ItemRow.machine_id == machine_id)).first()


def bandwidth_of(row: ItemRow, of_policy: BandwidthLimit) -> BandwidthLimit:
    """Its own limit, which may be *none* by name, else that of its policy."""
    return records.decode(row.bandwidth, BandwidthLimit, f"bandwidth of {row.name}") if row.bandwidth else of_policy


def take_generation(session: Session, item_id: str) -> int:
    """Become the item's newest job owner: returns a generation above every one before."""
    row = get(session, item_id)
    row.generation += 1
    return row.generation


def fenced(session: Session, item_id: str, generation: int) -> ItemRow:
    """The item's row, to be written by the owner of ``generation``. Raises StaleEpochError for an older owner."""
    row = get(session, item_id)
    if row.generation != generation:
        raise StaleEpochError(
            f"a newer job owns {row.name} (generation {row.generation}, not {generation}): nothing was changed",
            possible_causes="two configuration-server processes ran the same job, or the job was restarted",
            remedy="failback job list",
        )
    return row


def issue_epoch(row: ItemRow) -> int:
    """Begin a new epoch: above every epoch ever issued for the item (D2, D6)."""
    row.epoch = row.epoch_highest = max(row.epoch_highest, row.epoch_floor, row.epoch) + 1
    return row.epoch
