"""What SQLite did to its files, in order."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple
from unittest.mock import patch

import apsw

from durable_endpoints_server.store import sqlite_log
from tests.chaos.disk.watching import Watcher


class Opened(NamedTuple):
    file: Path


class Written(NamedTuple):
    file: Path
    offset: int
    data: bytes


class Truncated(NamedTuple):
    file: Path
    size: int


class Synced(NamedTuple):
    file: Path


class Flushed(NamedTuple):
    """Synced by the store itself, which knows nothing of folders."""

    file: Path


class Dropped(NamedTuple):
    """A sync has failed, and what it should have brought to the platters is not tried again: the
    system still shows it to whoever reads, but takes it for written."""

    file: Path


class Deleted(NamedTuple):
    file: Path
    is_synced: bool


Operation = Opened | Written | Truncated | Synced | Flushed | Dropped | Deleted


_SQLITE: Final = "SQLite"
_STORE: Final = "the store"
"""Who syncs the write-ahead log, each by a descriptor of its own."""


class Recorder(Watcher):
    """Notes every operation. `len(operations)` is a point in time: everything before it was asked
    of the disk before.

    The n-th syncs fail that `failing` names, counted from 1. As on Linux, each descriptor of the
    file is told so once, with its next sync, and after that all is well again.
    """

    syncs_for_real = False

    def __init__(self, failing: Collection[int] = ()) -> None:
        self.operations: list[Operation] = []
        self.syncs_asked = 0
        self._failing = set(failing)
        self._errors: Counter[Path] = Counter()
        self._told: Counter[tuple[Path, str]] = Counter()

    def opened(self, file: Path) -> None:
        self.operations.append(Opened(file))

    def writes(self, file: Path, offset: int, data: bytes) -> None:
        self.operations.append(Written(file, offset, data))

    def truncates(self, file: Path, size: int) -> None:
        self.operations.append(Truncated(file, size))

    def syncs(self, file: Path) -> None:
        if self._fails(Synced(file), _SQLITE):
            raise apsw.IOError("input/output error")

    def deletes(self, file: Path, is_synced: bool) -> None:
        self.operations.append(Deleted(file, is_synced))

    @contextmanager
    def behind(self, log: Path) -> Iterator[None]:
        """Meanwhile the store, too, writes and syncs this write-ahead log for the record only: it
        does so past the VFS."""

        def flush(descriptor: int) -> None:
            if self._fails(Flushed(log), _STORE):
                raise OSError(errno.EIO, "input/output error")

        def put(descriptor: int, data: bytes, offset: int) -> None:
            self.operations.append(Written(log, offset, data))

        with patch.multiple(sqlite_log, flush=flush, put=put):
            yield

    def fail_next(self) -> None:
        """Let the next sync fail."""
        self._failing.add(self.syncs_asked + 1)

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Meanwhile a process is ended that, in the record, was killed before. The next one hears
        of no error that there was earlier."""
        kept, self.operations = self.operations, []
        yield
        self.operations = kept
        for file, errors in self._errors.items():
            self._told[file, _SQLITE] = self._told[file, _STORE] = errors

    def _fails(self, sync: Synced | Flushed, by: str) -> bool:
        file = sync.file
        self.syncs_asked += 1
        if self.syncs_asked in self._failing:
            self._errors[file] += 1
            self.operations.append(Dropped(file))
        else:
            self.operations.append(sync)
        is_news = self._told[file, by] != self._errors[file]
        self._told[file, by] = self._errors[file]
        return is_news
