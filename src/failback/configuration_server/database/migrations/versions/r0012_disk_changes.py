"""disks that grow, join or leave while their machine is protected"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("items") as table:
        table.add_column(sa.Column("other_disks", sa.JSON(), nullable=True))
    with op.batch_alter_table("item_disks") as table:
        table.add_column(sa.Column("removed", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("sync_from_bytes", sa.BigInteger(), nullable=False, server_default="0"))
