"""machines that are replicated by periodic comparison; bandwidth limit of a policy"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0036"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("items", schema=None) as batch_op:
        batch_op.add_column(sa.Column("comparison_minutes", sa.BigInteger(), nullable=False, server_default="0"))
    with op.batch_alter_table("policies", schema=None) as batch_op:
        batch_op.add_column(sa.Column("bandwidth", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    with op.batch_alter_table("policies", schema=None) as batch_op:
        batch_op.drop_column("bandwidth")
    with op.batch_alter_table("items", schema=None) as batch_op:
        batch_op.drop_column("comparison_minutes")
