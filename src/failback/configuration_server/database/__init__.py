"""The configuration server's database: typed tables, one file per group, and short transactions over them.

Rules: times are wall nanoseconds (``BigInteger``), identifiers are the texts of :mod:`failback.model.ids`, enums are stored
by value. Every transaction is short and either :meth:`Database.read` or :meth:`Database.write`; nobody holds one across
an await. Rows stay readable after their transaction (they are not expired), but they are only a copy then.
Schema changes are Alembic revisions under ``migrations``; :meth:`Database.upgrade` applies them at start.

::

    database = Database(url); database.upgrade()
    with database.write() as session:
        item = items.named(session, "ledger")
        item.protection_state = "Protected"
    rows = await database.run(lambda session: items.all_items(session))       # from async code: in a worker thread
"""

from failback.configuration_server.database.engine import Database

__all__ = ["Database"]
