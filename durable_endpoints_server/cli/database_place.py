"""A database as the place of a command: read directly, and asked by messages in its inbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson

from durable_endpoints.protocol.errors import ConfigurationError
from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints_server import report
from durable_endpoints_server.clock import SystemClock
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.listing import newest_runs
from durable_endpoints_server.store.location import sqlite_path
from durable_endpoints_server.store.ownership import DispatcherRole
from durable_endpoints_server.store.sqlite_inbox import leave_message
from durable_endpoints_server.store.sqlite_reader import SqliteReader

T = TypeVar("T")

_PATIENCE = 5.0
"""Seconds to wait for the process that serves the file to carry out what was asked of it, and to
look for runs that a filter passes."""
_PAUSE = 0.05


class DatabasePlace:
    """A `Place` that is a file. Raises `ConfigurationError` if there is none."""

    def __init__(self, database: str) -> None:
        self._path: Path = sqlite_path(database)
        self.name = str(self._path)
        if not self._path.exists():
            raise ConfigurationError(
                f"there is no database at {self._path}; name the application's with --database"
            )

    def list_runs(
        self, statuses: Sequence[str], function_id: str | None, limit: int, before: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        wanted = [status for status in Status if not statuses or status.label in statuses]

        async def ask(reader: SqliteReader) -> tuple[list[dict[str, Any]], str | None]:
            page = await newest_runs(reader, wanted, function_id, limit, before, _PATIENCE)
            return [report.summary(line) for line in page.lines], page.next

        return self._read(ask)

    def run(self, run_id: str) -> dict[str, Any] | None:
        return self._read(lambda reader: report.run_in_full(reader, run_id))

    def status(self, run_id: str) -> Status | None:
        run = self._read(lambda reader: reader.run(run_id))
        return None if run is None else run.status

    def stream(self, run_id: str) -> list[dict[str, Any]] | None:
        return self._read(lambda reader: report.stream_of_run(reader, run_id))

    def requests(self, limit: int) -> list[dict[str, Any]]:
        async def ask(reader: SqliteReader) -> list[dict[str, Any]]:
            return [report.request(line) for line in await reader.requests(limit)]

        return self._read(ask)

    def retry(self, run_id: str) -> str:
        return self._ask_for("retry", run_id, lambda now: now is not Status.PARKED)

    def cancel(self, run_id: str) -> str:
        return self._ask_for("cancel", run_id, lambda now: now.is_final)

    def send_event(self, event: NewEvent) -> str:
        data = orjson.Fragment(event.data)
        self._leave("event", {"id": event.id, "name": event.name, "data": data, "ts": event.ts})
        return str(event.id)

    def send_signal(self, name: str, data: bytes) -> str:
        if not self._is_served:
            raise ConfigurationError(
                f"no process serves {self._path} now, and a signal is not kept: it is for a run "
                "that waits when it is sent"
            )
        self._leave("signal", {"name": name, "data": orjson.Fragment(data)})
        return "Left for the application, which says in its log if no run waits for it."

    def _ask_for(self, kind: str, run_id: str, done: Callable[[Status], bool]) -> str:
        """Leave a message, and wait a moment for the application to carry it out."""
        self._leave(kind, {"run_id": run_id})
        if not self._is_served:
            return (
                f"No application serves {self._path} now. It will {kind} the run when one starts."
            )
        deadline = time.monotonic() + _PATIENCE
        while True:
            status = self.status(run_id)
            if status is None or done(status):
                return f"{run_id} is {'gone' if status is None else status.label} now."
            if time.monotonic() > deadline:
                return f"The application was asked to {kind} {run_id}; it is {status.label} still."
            time.sleep(_PAUSE)

    @property
    def _is_served(self) -> bool:
        return DispatcherRole(self._path).is_held_elsewhere

    def _leave(self, kind: str, message: dict[str, Any]) -> None:
        leave_message(self._path, SystemClock().now(), kind, orjson.dumps(message))

    def _read(self, ask: Callable[[SqliteReader], Awaitable[T]]) -> T:
        async def work() -> T:
            reader = SqliteReader(self._path)
            try:
                return await ask(reader)
            finally:
                reader.close_readers()

        return asyncio.run(work())
