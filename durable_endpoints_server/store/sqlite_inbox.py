"""Leaving a message in a database that another process serves."""

from __future__ import annotations

from pathlib import Path

from durable_endpoints_server.store.sqlite_connection import connect, translated


def leave_message(path: Path, at: int, kind: str, data: bytes) -> None:
    """Append to the inbox: the process that serves the file carries it out.

    Blocks until it is on disk. Raises `StorageError`.
    """
    connection = connect(str(path))
    try:
        with translated(str(path)):
            connection.execute("pragma synchronous = full")
            connection.execute(
                "insert into inbox (at, kind, data) values (?, ?, ?)", (at, kind, data)
            )
    finally:
        connection.close()
