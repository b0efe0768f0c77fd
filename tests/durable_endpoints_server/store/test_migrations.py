"""The schema's history: recorded, whole, and refused where this version cannot know it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints_server.store import migrations
from durable_endpoints_server.store.migrations import Migration, available, migrate
from durable_endpoints_server.store.sqlite import SqliteStore

SCHEMA = (
    "select type, name, tbl_name, sql from sqlite_schema where name not like 'sqlite_%' "
    "order by type, name"
)
RECORDED = "select number, name, checksum from schema_migrations order by number"


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(str(tmp_path / "runs.db"))
    yield connection
    connection.close()


def test_migrations_are_numbered_without_gaps() -> None:
    found = available("sqlite")
    assert [migration.number for migration in found] == list(range(1, len(found) + 1))
    assert found[0].name == "0001_initial"


def test_a_new_file_records_its_version(tmp_path: Path, connection: apsw.Connection) -> None:
    SqliteStore(tmp_path / "runs.db").close_now()
    assert connection.execute(RECORDED).fetchall() == [
        (migration.number, migration.name, migration.checksum) for migration in available("sqlite")
    ]


def test_a_fresh_schema_equals_the_migrated_one(
    tmp_path: Path, connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file gets there version by version, with a restart after each."""
    whole = available("sqlite")
    for count in range(1, len(whole) + 1):
        monkeypatch.setattr(migrations, "available", lambda backend, n=count: whole[:n])
        migrate(connection, "runs.db")
    monkeypatch.undo()
    SqliteStore(tmp_path / "fresh.db").close_now()
    fresh = apsw.Connection(str(tmp_path / "fresh.db"))
    assert fresh.execute(SCHEMA).fetchall() == connection.execute(SCHEMA).fetchall()
    assert fresh.execute(RECORDED).fetchall() == connection.execute(RECORDED).fetchall()
    fresh.close()


def test_a_second_start_changes_nothing(tmp_path: Path, connection: apsw.Connection) -> None:
    SqliteStore(tmp_path / "runs.db").close_now()
    before = connection.execute("pragma schema_version").fetchall()
    SqliteStore(tmp_path / "runs.db").close_now()
    assert connection.execute("pragma schema_version").fetchall() == before


def test_nothing_of_the_connections_own_code_is_kept_in_the_file(
    tmp_path: Path, connection: apsw.Connection
) -> None:
    SqliteStore(tmp_path / "runs.db").close_now()
    kinds = connection.execute("select distinct type from sqlite_schema").fetchall()
    assert {kind for (kind,) in kinds} == {"table", "index"}


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path, connection: apsw.Connection) -> None:
    SqliteStore(tmp_path / "runs.db").close_now()
    connection.execute("insert into schema_migrations values (999, '0999_later', 'x')")
    before = connection.execute(SCHEMA).fetchall()
    with pytest.raises(StorageError, match="newer version") as refusal:
        SqliteStore(tmp_path / "runs.db")
    assert str(tmp_path / "runs.db") in str(refusal.value)
    assert "0999_later" in str(refusal.value)
    assert "upgrade" in str(refusal.value)
    assert connection.execute(SCHEMA).fetchall() == before


def test_a_file_of_another_history_is_refused(tmp_path: Path, connection: apsw.Connection) -> None:
    SqliteStore(tmp_path / "runs.db").close_now()
    connection.execute("update schema_migrations set checksum = 'x' where number = 1")
    with pytest.raises(StorageError, match="another form of 0001_initial"):
        SqliteStore(tmp_path / "runs.db")


def test_an_older_file_is_brought_up_to_date_with_its_rows(
    tmp_path: Path, connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    SqliteStore(tmp_path / "runs.db").close_now()
    connection.execute("insert into inbox (at, kind, data) values (1, 'event', '{}')")
    later = Migration(99, "0099_later", "alter table inbox add column sender text; ")
    monkeypatch.setattr(migrations, "available", lambda backend: [*available(backend), later])
    SqliteStore(tmp_path / "runs.db").close_now()
    assert connection.execute("select kind, sender from inbox").fetchall() == [("event", None)]
    assert connection.execute(RECORDED).fetchall()[-1] == (99, "0099_later", later.checksum)


def test_a_migration_that_fails_leaves_nothing_of_itself(
    tmp_path: Path, connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    SqliteStore(tmp_path / "runs.db").close_now()
    before = connection.execute(SCHEMA).fetchall()
    broken = Migration(99, "0099_broken", "create table half (x); create table runs (x);")
    monkeypatch.setattr(migrations, "available", lambda backend: [*available(backend), broken])
    with pytest.raises(StorageError, match=r"runs\.db"):
        SqliteStore(tmp_path / "runs.db")
    assert connection.execute(SCHEMA).fetchall() == before
    monkeypatch.undo()
    SqliteStore(tmp_path / "runs.db").close_now()  # and the file is as good as before
