"""Alembic's entry: runs the revisions on the connection that the caller put into the configuration."""

from __future__ import annotations

from alembic import context

from failback.configuration_server.database.tables import metadata
from failback.runtime import faults

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
    transactional_ddl=True,  # SQLite too: the engine begins its transactions itself
)
with context.begin_transaction():
    context.run_migrations()
    faults.point("migration.applied")
