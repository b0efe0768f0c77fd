"""Schema migrations: numbered SQL files, applied in order, each in its own transaction.

An applied file must never change again; its checksum is kept, and a database that was made by
other files, or by a newer version, is refused.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

import apsw

from durable_endpoints.protocol.errors import StorageError

_TABLE = """
create table if not exists schema_migrations (
    number   integer primary key,
    name     text not null,
    checksum text not null
)
"""


class Migration(NamedTuple):
    """One file: `0001_initial.sql` is number 1."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return sha256(self.sql.encode("utf-8")).hexdigest()


def available(backend: str) -> list[Migration]:
    """All migrations of a backend, in order."""
    folder = files(__name__) / backend
    migrations = [
        Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text("utf-8"))
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    ]
    return sorted(migrations)


def migrate(connection: apsw.Connection, path: str) -> None:
    """Bring a SQLite database up to date. Raises `StorageError` if it cannot be."""
    connection.execute(_TABLE)
    migrations = {migration.number: migration for migration in available("sqlite")}
    applied = connection.execute("select number, name, checksum from schema_migrations").fetchall()
    for number, name, checksum in applied:
        if number not in migrations:
            raise StorageError(
                f"{path} was written by a newer version of durable-endpoints ({name}): "
                "upgrade this one, or name another file"
            )
        if migrations.pop(int(number)).checksum != checksum:
            raise StorageError(f"{path} has another form of {name} than this version: move it away")
    for migration in migrations.values():
        connection.execute("begin immediate")
        try:
            connection.execute(migration.sql)
            connection.execute(
                "insert into schema_migrations values (?, ?, ?)",
                (migration.number, migration.name, migration.checksum),
            )
        except BaseException:
            connection.execute("rollback")
            raise
        connection.execute("commit")
