"""Opening SQLite, and saying in plain words what it complains about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Final

import apsw

from durable_endpoints.protocol.errors import StorageError

_BUSY_TIMEOUT: Final = 5_000

COMMON_ERRORS: Final = (
    apsw.FullError,
    apsw.IOError,
    apsw.ReadOnlyError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.CantOpenError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.NoMemError,
)
"""Errors of the file or the machine, which every other write would meet as well."""

_ADVICE: Final[tuple[tuple[type[apsw.Error], str], ...]] = (
    (apsw.FullError, "the disk is full: free some space, nothing else is needed"),
    (apsw.ReadOnlyError, "it cannot be written: check the permissions and the mount"),
    (apsw.CantOpenError, "it cannot be opened: check that the folder exists and may be written"),
    (apsw.NotADBError, "it is not a SQLite database: move it away, or name another file"),
    (apsw.CorruptError, "it is damaged: restore a backup, or move it away to begin anew"),
    (apsw.BusyError, "another program holds a lock on it: close that program"),
    (apsw.LockedError, "another program holds a lock on it: close that program"),
    (apsw.IOError, "the disk reports an error"),
)


def connect(path: str, create: bool = False) -> apsw.Connection:
    """Open the file. Raises `StorageError`, if it is not there too, unless it may `create` it."""
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    with translated(path):
        connection = apsw.Connection(path, flags=flags, statementcachesize=256)
        connection.set_busy_timeout(_BUSY_TIMEOUT)
        # A plan does not depend on the values that are bound: else SQLite, as it is compiled here,
        # plans most questions anew each time, which takes longer than to answer them.
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        return connection


def add_views(connection: apsw.Connection) -> None:
    """Add what reading needs. The schema must be there."""
    connection.execute(text("sqlite_connection.sql"))


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn SQLite's errors into `StorageError`s that say which file and what to do."""
    try:
        yield
    except apsw.Error as error:
        raise translate(error, path) from error


def translate(error: apsw.Error, path: str) -> StorageError:
    """The same error in words for whoever has to mend it."""
    if isinstance(error, apsw.SQLError) and "no such table" in str(error):
        return StorageError(f"{path}: it is not a database of durable-endpoints ({error})")
    if isinstance(error, apsw.SQLError) and "no such column" in str(error):
        return StorageError(
            f"{path}: another version of durable-endpoints wrote it ({error}): use the version of "
            "the application, or start the application with this one, which brings it up to date"
        )
    for kind, advice in _ADVICE:
        if isinstance(error, kind):
            return StorageError(f"{path}: {advice} ({error})")
    return StorageError(f"{path}: {error}")


@cache
def text(name: str) -> str:
    """One of the SQL files beside this module."""
    return (files("durable_endpoints_server.store") / name).read_text("utf-8")


@cache
def named(name: str) -> dict[str, str]:
    """The blocks of a SQL file, by the name in the `-- name:` line above each."""
    blocks = text(name).split("-- name: ")[1:]
    return {head.strip(): body for head, _, body in (block.partition("\n") for block in blocks)}
