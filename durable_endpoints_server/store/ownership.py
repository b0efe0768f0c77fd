"""The dispatcher role: one process at a time serves a SQLite file.

A lock on a file beside the database, which the operating system lets go of when the process ends,
however it ends. The owner writes who it is into it, for whoever has to wait. The database file
itself is never opened for this: closing a second handle on it would drop SQLite's own locks.
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from durable_endpoints.protocol.errors import StorageError

logger = logging.getLogger("durable_endpoints")

GRACE = 10.0
"""Seconds to wait for an owner that is just going, beyond the time it may take to drain: its server
lets go of connections, and of threads that cannot be stopped, before it closes the engine."""
_QUIETLY = 1.0
"""Seconds after which somebody who looks on should be told what is being waited for."""


class DispatcherRole:
    """Held from `acquire` to `release`, or to the end of the process."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._note = Path(f"{database}.owner")
        self._lock = FileLock(f"{database}.lock", thread_local=False)

    def acquire(self, patience: float = GRACE) -> None:
        """Take the role. Raises `StorageError`, naming the owner, if it is held for too long."""
        try:
            self._wait_for_lock(patience)
        except Timeout:
            raise StorageError(
                f"{self._database} is served by another process ({self._owner()}), and one file "
                "can have one only: stop that process, run a single worker, or name another "
                "database (DURABLE_ENDPOINTS_DATABASE)"
            ) from None
        except OSError as error:
            raise StorageError(
                f"{self._database}: its lock cannot be taken ({error.strerror or error}): check "
                "that its folder is one, and may be written"
            ) from error
        try:
            self._note.write_text(f"pid {os.getpid()} on {socket.gethostname()}\n", "utf-8")
        except OSError as error:
            self._lock.release()
            raise StorageError(
                f"{self._database}: its folder cannot be written ({error.strerror or error}): "
                "let this process write there, or name another database "
                "(DURABLE_ENDPOINTS_DATABASE)"
            ) from error

    def _wait_for_lock(self, patience: float) -> None:
        quietly = min(patience, _QUIETLY)
        try:
            self._lock.acquire(timeout=quietly, poll_interval=0.05)
        except Timeout:
            if patience == quietly:
                raise
            logger.warning(
                "%s is served by another process (%s): waiting %g s for that one to end",
                *(self._database, self._owner(), patience),
            )
            self._lock.acquire(timeout=patience - quietly, poll_interval=0.05)

    def release(self) -> None:
        """Let the next process in."""
        self._lock.release()

    @property
    def is_held_elsewhere(self) -> bool:
        """Whether some process serves the file now. For the command line."""
        try:
            self._lock.acquire(timeout=0)
        except (Timeout, OSError):
            return True
        self._lock.release()
        return False

    def _owner(self) -> str:
        try:
            return self._note.read_text("utf-8").strip() or "unknown"
        except OSError:
            return "unknown"
