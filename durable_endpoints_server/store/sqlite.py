"""The SQLite store: one file, one writing thread, group commit, `synchronous=FULL` (but for relaxed
changes).

SQLite comes with apsw, so its version is known: the one of the operating system may have the bug
that could lose commits when a WAL was reset (fixed in 3.51.3). One thread and one connection do
all writes and all checkpoints; reads go to connections of their own, in other threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import apsw

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints_server.engine.facts import Change
from durable_endpoints_server.store.base import Lane, Ticket
from durable_endpoints_server.store.group_commit import GroupCommit, WriteError
from durable_endpoints_server.store.migrations import migrate
from durable_endpoints_server.store.sqlite_connection import (
    COMMON_ERRORS,
    connect,
    text,
    translate,
    translated,
)
from durable_endpoints_server.store.sqlite_log import Log
from durable_endpoints_server.store.sqlite_reader import SqliteReader
from durable_endpoints_server.store.sqlite_rows import WIDTH, Cells, rows_of

logger = logging.getLogger("durable_endpoints")

Synchronous = Literal["full", "normal"]

_SIZES: Final = (*range(1, 33), *range(36, 65, 4), *range(72, 129, 8), *range(160, 513, 32))
"""Rows of the statements that are used."""
_CHECK_INTERVAL: Final = 1.0
"""Seconds between two looks at whether the file is still in its place."""
_CELLS_PER_STATEMENT: Final = 512 * WIDTH
_NOTHING: Final = (None,) * WIDTH
_ROW: Final = "(" + ",".join("?" * WIDTH) + ")"


class SqliteStore(SqliteReader):
    """A `Store` on one SQLite file, which one process at a time may write.

    `synchronous` is SQLite's: with `normal`, a loss of power may cost the last commits, a crash of
    the process never does. Raises `StorageError` when the file cannot be opened and written.
    """

    def __init__(self, path: Path | str, synchronous: Synchronous = "full") -> None:
        super().__init__(path)
        self._refused: list[int] = []
        self._writer = self._open_writer(synchronous)
        place = os.stat(self._path)
        self._place = place.st_dev, place.st_ino
        self._check_at = 0.0
        self._synchronous: Synchronous = synchronous
        self._durable: Synchronous = synchronous
        self._log = self._open_log()
        self._commits = GroupCommit(self._write, "durable-endpoints-writer", self._sync)

    def submit(self, change: Change, lane: Lane | None = None) -> Ticket:
        return self._commits.submit(rows_of(change), lane, change.is_relaxed)

    @property
    def is_healthy(self) -> bool:
        return self._commits.is_healthy

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.close_now)

    def close_now(self) -> None:
        """`close`, for a thread or an exit handler. Blocks until everything is written."""
        self._commits.close()
        self.close_readers()
        try:
            self._log.mend()
        except OSError as error:
            logger.warning("%s", self._broken(error))
            # Nothing is moved out of a log that has a hole.
            self._writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        try:
            self._writer.close()
        except apsw.Error as error:
            # What was acknowledged stays in the log beside the file, where the next process has it.
            logger.warning("the database was not put in order: %s", translate(error, self._path))
        self._log.close()

    def _open_writer(self, synchronous: Synchronous) -> apsw.Connection:
        connection = connect(self._path, create=True)
        with translated(self._path):
            if connection.readonly("main"):
                raise StorageError(
                    f"{self._path}: it cannot be written: check the permissions and the mount"
                )
            connection.execute("pragma journal_mode = wal")
            connection.execute(f"pragma synchronous = {synchronous}")
            # macOS: an fsync that reaches the platters. No effect elsewhere.
            connection.execute("pragma fullfsync = on; pragma checkpoint_fullfsync = on")
            migrate(connection, self._path)
            connection.create_scalar_function("refused", self._note_refusal, 1)
            connection.execute(text("sqlite_writes.sql"))
        return connection

    def _open_log(self) -> Log:
        try:
            with translated(self._path):
                return Log(self._writer)
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: OSError) -> StorageError:
        return StorageError(f"{self._path}: the disk reports an error ({error})")

    def _write(self, changes: Sequence[list[Cells]], is_relaxed: bool) -> Collection[int]:
        cells: list[Any] = []
        for n, rows in enumerate(changes):
            for row in rows:
                cells += row
                cells.append(n)
        self._refused = []
        if (gone := self._gone()) is not None:
            raise WriteError(gone, common=True)
        try:
            self._log.mend()
        except OSError as error:
            raise WriteError(self._broken(error), common=True) from error
        try:
            self._set_synchronous("normal" if is_relaxed else self._durable)
            if len(cells) <= _CELLS_PER_STATEMENT:
                self._insert(cells)
            else:
                with self._writer:
                    for start in range(0, len(cells), _CELLS_PER_STATEMENT):
                        self._insert(cells[start : start + _CELLS_PER_STATEMENT])
        except apsw.Error as error:
            self._log.doubt(error)
            common = isinstance(error, COMMON_ERRORS)
            raise WriteError(translate(error, self._path), common) from error
        return set(self._refused) if self._refused else ()

    def _set_synchronous(self, synchronous: Synchronous) -> None:
        """A commit syncs the write-ahead log with `full`, and leaves that for later with
        `normal`."""
        if synchronous != self._synchronous:
            self._writer.execute(f"pragma synchronous = {synchronous}")
            self._synchronous = synchronous

    def _sync(self) -> None:
        if self._durable == "full":
            self._log.sync()

    def _connection(self) -> apsw.Connection:
        if (gone := self._gone()) is not None:
            raise gone
        return super()._connection()

    def _gone(self) -> StorageError | None:
        """SQLite goes on with a file that was deleted or replaced, and that nobody would find."""
        now = time.monotonic()
        if now < self._check_at:
            return None
        self._check_at = now + _CHECK_INTERVAL
        try:
            found = os.stat(self._path)
        except OSError:
            found = None
        if found is not None and (found.st_dev, found.st_ino) == self._place:
            return None
        self._check_at = 0.0  # until the process is started anew
        return StorageError(
            f"{self._path}: the database was moved, deleted or replaced while it was in use. Put "
            "it back, and start the application again"
        )

    def _insert(self, cells: list[Any]) -> None:
        rows = len(cells) // WIDTH
        size = next(size for size in _SIZES if size >= rows)
        # Rows of no kind fill up, so that there are few different statements to prepare.
        self._writer.execute(_insert_statement(size), [*cells, *_NOTHING * (size - rows)])

    def _note_refusal(self, *arguments: Any) -> int:
        self._refused.append(arguments[0])
        return 1


@cache
def _insert_statement(rows: int) -> str:
    return "insert into writes values " + ",".join([_ROW] * rows)
