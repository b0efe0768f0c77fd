"""What SQLite did to its files, in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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


class Deleted(NamedTuple):
    file: Path
    is_synced: bool


Operation = Opened | Written | Truncated | Synced | Flushed | Deleted


class Recorder(Watcher):
    """Notes every operation. `len(operations)` is a point in time: everything before it was asked
    of the disk before."""

    syncs_for_real = False

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def opened(self, file: Path) -> None:
        self.operations.append(Opened(file))

    def writes(self, file: Path, offset: int, data: bytes) -> None:
        self.operations.append(Written(file, offset, data))

    def truncates(self, file: Path, size: int) -> None:
        self.operations.append(Truncated(file, size))

    def syncs(self, file: Path) -> None:
        self.operations.append(Synced(file))

    def deletes(self, file: Path, is_synced: bool) -> None:
        self.operations.append(Deleted(file, is_synced))

    def flusher(self, log: Path) -> Callable[[int], None]:
        """Instead of the store's own `flush`, which syncs the write-ahead log past the VFS."""
        return lambda descriptor: self.operations.append(Flushed(log))
