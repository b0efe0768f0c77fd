"""Opening a database as the one process that serves it."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from durable_endpoints.protocol.errors import ConfigurationError
from durable_endpoints_server.store import ownership
from durable_endpoints_server.store.file_system import check_file_system
from durable_endpoints_server.store.sqlite import SqliteStore, Synchronous


class OpenDatabase(NamedTuple):
    """A store, and how to let go of it and of the role to serve it: in any thread, blocking. The
    end of the process does it too."""

    store: SqliteStore
    close: Callable[[], None]


def open_database(path: Path, synchronous: Synchronous, drain_timeout: int) -> OpenDatabase:
    """Take the role to serve the file at `path`, and open it; make it if there is none.

    A process that just ends is waited for: `drain_timeout` milliseconds and some seconds. Blocks.
    Raises `ConfigurationError` for a path that cannot be, and `StorageError`.
    """
    if path.is_dir():
        raise ConfigurationError(f"the database {path} is a folder: name a file in it")
    _make_folder(path.parent)
    role = ownership.DispatcherRole(path)
    role.acquire(ownership.GRACE + drain_timeout / 1_000)
    try:
        store = SqliteStore(path, synchronous)
    except BaseException:
        role.release()
        raise
    check_file_system(path)

    def close() -> None:
        atexit.unregister(close)
        try:
            store.close_now()
        finally:
            role.release()

    atexit.register(close)
    return OpenDatabase(store, close)


def _make_folder(folder: Path) -> None:
    if folder.exists():
        return
    try:
        folder.mkdir(parents=True)
        if folder.name == ".durable":
            (folder / ".gitignore").write_text("*\n", "utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"the folder {folder} of the database cannot be made: {error.strerror}. Make it, or "
            "name another database (DURABLE_ENDPOINTS_DATABASE)"
        ) from error
