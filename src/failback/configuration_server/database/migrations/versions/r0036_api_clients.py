"""clients of the API, with secrets and roles; whose a token is"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0036"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_clients",
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("role", sa.String(length=32), nullable=False),
        sa.Column("secret_argon2", sa.Text(), nullable=False),
        sa.Column("created_wall_ns", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=255), nullable=False),
        sa.Column("deleted_wall_ns", sa.BigInteger(), nullable=False),
        sa.Column("last_sign_in_wall_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("client_id", name=op.f("pk_api_clients")),
    )
    with op.batch_alter_table("api_tokens") as table:
        table.add_column(sa.Column("client_id", sa.String(length=64), nullable=True))
        table.create_foreign_key(
            op.f("fk_api_tokens_client_id_api_clients"), "api_clients", ["client_id"], ["client_id"]
        )
        table.create_index(op.f("ix_api_tokens_client_id"), ["client_id"])


def downgrade() -> None:
    with op.batch_alter_table("api_tokens") as table:
        table.drop_index(op.f("ix_api_tokens_client_id"))
        table.drop_constraint(op.f("fk_api_tokens_client_id_api_clients"), type_="foreignkey")
        table.drop_column("client_id")
    op.drop_table("api_clients")
