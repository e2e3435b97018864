"""replication groups"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "replication_groups",
        sa.Column("group_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("frequency_seconds", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.Column("problem_since_wall_ns", sa.BigInteger(), nullable=False),
        sa.Column("created_wall_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("group_id", name=op.f("pk_replication_groups")),
        sa.UniqueConstraint("name", name=op.f("uq_replication_groups_name")),
    )
    op.create_table(
        "group_points",
        sa.Column("point_id", sa.String(length=64), nullable=False),
        sa.Column("group_id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("wall_ns", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("marks", sa.JSON(), nullable=False),
        sa.Column("held_milliseconds", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"],
            ["replication_groups.group_id"],
            name=op.f("fk_group_points_group_id_replication_groups"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("point_id", name=op.f("pk_group_points")),
    )
    op.create_index("ix_group_points_group_state", "group_points", ["group_id", "state", "wall_ns"], unique=False)
