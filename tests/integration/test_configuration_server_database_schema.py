"""The schema comes from migrations, writers queue, and fences hold."""

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from failback.configuration_server.database import Database, items, tables
from failback.configuration_server.database.items import ItemRow
from failback.errors import ConfigurationError, NotFoundError, StaleEpochError


@pytest.fixture
def database(database_url: str):  # type: ignore[no-untyped-def]
    opened = Database(database_url)
    opened.upgrade()
    yield opened
    opened.close()


def _item(name: str = "ledger") -> ItemRow:
    return ItemRow(item_id=f"id-{name}", name=name, friendly_name=name)


def test_migrations_give_exactly_the_models(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
    database.upgrade()  # again: nothing to do


def test_a_newer_database_is_refused(database: Database) -> None:
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="9999"):
        database.upgrade()


def test_a_row_that_names_nobody_is_refused(database: Database) -> None:
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(ItemRow(item_id="x", name="x", friendly_name="x", process_server_id="nobody"))


def test_sqlite_is_set_up_for_durability(tmp_path: Path) -> None:
    database = Database.in_directory(tmp_path)
    with database.read() as session:
        pragmas = {name: session.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous", "foreign_keys")}  # noqa: E501  # fmt: skip
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    database.close()


def test_writers_of_several_threads_lose_no_update(database: Database) -> None:
    with database.write() as session:
        session.add(_item())

    def count() -> None:
        for _ in range(25):
            with database.write() as session:
                items.get(session, "id-ledger").epoch_floor += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert items.get(session, "id-ledger").epoch_floor == 100


def test_a_failed_transaction_changes_nothing(database: Database) -> None:
    with database.write() as session:
        session.add(_item())
    with pytest.raises(RuntimeError, match="on purpose"), database.write() as session:
        items.get(session, "id-ledger").epoch = 7
        session.flush()
        raise RuntimeError("on purpose")
    with database.read() as session:
        assert items.get(session, "id-ledger").epoch == 0


def test_rows_stay_readable_after_their_transaction(database: Database) -> None:
    with database.write() as session:
        item = _item()
        item.disks = [items.ItemDiskRow(disk_id="d1", index=0, path="/d1")]
        session.add(item)
    with database.read() as session:
        found = items.named(session, "ledger")
    assert found.disks[0].path == "/d1" and found.live_side == "cloud"


def test_only_the_newest_generation_may_write(database: Database) -> None:
    with database.write() as session:
        session.add(_item())
        session.flush()
        old = items.take_generation(session, "id-ledger")
        new = items.take_generation(session, "id-ledger")
    with database.read() as session:
        assert items.fenced(session, "id-ledger", new).name == "ledger"
        with pytest.raises(StaleEpochError):
            items.fenced(session, "id-ledger", old)


def test_epochs_are_never_used_twice() -> None:
    item = ItemRow(item_id="i", name="i", friendly_name="i", epoch=4, epoch_highest=6, epoch_floor=9)
    assert items.issue_epoch(item) == 10
    item.epoch = 2
    assert items.issue_epoch(item) == 11


def test_unknown_names_are_not_found(database: Database) -> None:
    with database.read() as session, pytest.raises(NotFoundError):
        items.named(session, "nobody")
