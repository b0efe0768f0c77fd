"""A SQLite VFS that lets somebody watch, delay or refuse what SQLite does to its files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw


class Watcher:
    """Is told before each operation on a file, on whichever thread does it.

    What it raises (an `apsw` error) SQLite gets instead. By default nothing happens.
    """

    syncs_for_real = True
    """Whether a sync reaches the real disk: of no use where the loss of power is played."""

    def opened(self, file: Path) -> None: ...

    def writes(self, file: Path, offset: int, data: bytes) -> None: ...

    def truncates(self, file: Path, size: int) -> None: ...

    def syncs(self, file: Path) -> None: ...

    def deletes(self, file: Path, is_synced: bool) -> None: ...


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Every database that this process opens meanwhile is watched."""
    vfs = _WatchedVfs(watcher, apsw.vfs_names()[0])
    try:
        yield
    finally:
        vfs.unregister()


class _WatchedVfs(apsw.VFS):
    def __init__(self, watcher: Watcher, base: str) -> None:
        super().__init__(f"watched-{id(self)}", base, makedefault=True)
        self._watcher = watcher
        self._base = base

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return _WatchedFile(self._watcher, self._base, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self._watcher.deletes(Path(filename), syncdir)
        super().xDelete(filename, syncdir)


class _WatchedFile(apsw.VFSFile):
    def __init__(
        self, watcher: Watcher, base: str, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        super().__init__(base, name, flags)
        self._watcher = watcher
        self._file = Path(name.filename() if isinstance(name, apsw.URIFilename) else name or "")
        watcher.opened(self._file)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._watcher.writes(self._file, offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        self._watcher.truncates(self._file, newsize)
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        self._watcher.syncs(self._file)
        if self._watcher.syncs_for_real:
            super().xSync(flags)
