"""certificates that were issued, and which of them are revoked"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("component_id", sa.String(length=64), nullable=False),
        sa.Column("issued_wall_ns", sa.BigInteger(), nullable=False),
        sa.Column("expiry_wall_ns", sa.BigInteger(), nullable=False),
        sa.Column("revoked_wall_ns", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["component_id"], ["components.component_id"], name=op.f("fk_certificates_component_id_components")
        ),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_certificates")),
    )
    with op.batch_alter_table("certificates", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_certificates_component_id"), ["component_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_certificates_revoked_wall_ns"), ["revoked_wall_ns"], unique=False)
    op.execute(
        "INSERT INTO certificates (serial, component_id, issued_wall_ns, expiry_wall_ns, revoked_wall_ns, reason) "
        "SELECT certificate_serial, component_id, enrolled_wall_ns, certificate_expiry_wall_ns, 0, '' "
        "FROM components WHERE certificate_serial <> ''"
    )


def downgrade() -> None:
    op.drop_table("certificates")
