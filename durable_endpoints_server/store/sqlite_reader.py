"""Reading a SQLite file of runs: the questions of `sqlite_reads.sql`, from any process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import orjson

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints.protocol.matching import text_of, value_at
from durable_endpoints.protocol.streams import StreamRecord
from durable_endpoints_server.engine.matching import document_of
from durable_endpoints_server.engine.model import Event, Match, Run, Status, Stream
from durable_endpoints_server.store.base import (
    LISTED_AT_ONCE,
    Arrival,
    AttemptRecord,
    DueStep,
    Ended,
    Entry,
    InboxMessage,
    Invocation,
    KeyHolder,
    RequestRecord,
    Rollback,
    RunPage,
    RunSummary,
    StreamPage,
)
from durable_endpoints_server.store.sqlite_connection import add_views, connect, named, translated
from durable_endpoints_server.store.sqlite_rows import (
    read_event,
    read_match,
    read_record,
    read_run,
    read_step,
    read_stream,
)

T = TypeVar("T")

_READERS: Final = 2
_PAGE_RECORDS: Final = 1_000
_FOREVER: Final = 9e18
_FEW_BYTES: Final = 64 * 1024
_FEW_ROWS: Final = 100
_SOME_ROWS: Final = 20
_ANY: Final = 2**62
_LAST_TEXT: Final = chr(0x10FFFF)
"""After every other text."""


class SqliteReader:
    """The reading half of a `Store`. It may read a file that another process writes."""

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)
        self._threads = ThreadPoolExecutor(_READERS, "durable-endpoints-reader")
        self._local = threading.local()
        self._connections: list[apsw.Connection] = []

    async def run(self, run_id: str) -> Run | None:
        row = await self._ask_soon("run", run_id=run_id)
        return read_run(orjson.loads(row[0])) if row else None

    async def entry(self, run_id: str) -> Entry | None:
        row = await self._ask_soon("entry", run_id=run_id)
        if row is None:
            return None
        doc, steps, request, retries, root_path, app, stream = row
        memo = [read_step(step) for step in orjson.loads(steps)]
        return Entry(
            read_run(orjson.loads(doc)),
            memo,
            request,
            retries,
            root_path,
            app,
            read_stream(orjson.loads(stream)) if stream is not None else None,
        )

    async def stream_page(self, run_id: str, after: int, size: int) -> StreamPage | None:
        values = {"run_id": run_id, "after": after, "size": size, "limit": _PAGE_RECORDS}
        row = await self._ask("stream_page", **values)
        if row is None:
            return None
        status, tail, handed_over, records = row
        found = [read_record(doc) for doc in orjson.loads(records)]
        return StreamPage(Status(status), tail, handed_over, found)

    async def stream(self, run_id: str) -> Stream | None:
        row = await self._ask_soon("stream", run_id=run_id)
        return read_stream(orjson.loads(row[0])) if row and row[0] is not None else None

    async def version(self, run_id: str) -> str:
        row = await self._ask("version", run_id=run_id)
        return str(row[0]) if row else ""

    async def last_progress(self, run_id: str) -> StreamRecord | None:
        row = await self._ask("last_progress", run_id=run_id)
        return read_record(orjson.loads(row[0])) if row else None

    async def rollbacks(self, run_id: str) -> list[Rollback]:
        return [Rollback(*doc) for doc in await self._list("rollbacks", run_id=run_id)]

    async def step_chunks(
        self, run_id: str, step: str, first: int, before: int, size: int
    ) -> list[StreamRecord]:
        docs = await self._list(
            "step_chunks",
            run_id=run_id,
            step=step,
            first=first,
            before=before,
            size=size,
            limit=_PAGE_RECORDS,
        )
        return [read_record(doc) for doc in docs]

    async def ended(self, run_id: str) -> Ended | None:
        row = await self._ask_soon("ended", run_id=run_id)
        if row is None:
            return None
        doc, status_code, error, omitted, until_delivered, method, path, response = row
        return Ended(
            run=read_run(orjson.loads(doc)),
            status_code=status_code,
            response=response,
            error=error,
            omitted=omitted,
            until_delivered=bool(until_delivered),
            method=method,
            path=path,
        )

    async def key_holder(self, key: str) -> KeyHolder | None:
        row = await self._ask_soon("key_holder", key=key)
        return KeyHolder(*row) if row else None

    async def due_steps(self, now: int, limit: int) -> list[DueStep]:
        docs = await self._list_soon("due_steps", limit, now=now)
        return [DueStep(read_run(run), read_step(step)) for run, step in docs]

    async def due_deadlines(self, now: int, limit: int) -> list[Run]:
        return [read_run(doc) for doc in await self._list_soon("due_deadlines", limit, now=now)]

    async def next_due(self) -> int | None:
        row = await self._ask_soon("next_due")
        return None if row is None or row[0] == _FOREVER else int(row[0])

    async def in_status(
        self, status: Status, limit: int, without: Collection[str] = ()
    ) -> list[Run]:
        if status is Status.RUNNING:
            docs = await self._list("running", limit=limit)
            return [
                read_run(doc)._replace(steps=steps, memo_bytes=size, last_order=order)
                for doc, steps, size, order in docs
            ]
        apps = orjson.dumps(list(without)).decode()
        return [read_run(doc) for doc in await self._list("ready", limit=limit, without=apps)]

    async def running_since(self, owner: str, instant: int) -> list[str]:
        return await self._list("running_since", owner=owner, instant=instant)

    async def arrival(self, event: Event) -> Arrival:
        def ask(connection: apsw.Connection, most: int = _ANY) -> Arrival:
            row = _one(connection, "wait_paths", {"event": event.name, "id": event.id})
            assert row is not None
            paths = orjson.loads(row[1])
            if not paths:
                return Arrival(bool(row[0]), [])
            document = document_of(event)
            keys = {path: text_of(value_at(document, path)) if path else "" for path in paths}
            wanted = orjson.dumps(keys).decode()
            values = {"event": event.name, "id": event.id, "keys": wanted, "most": most}
            found = _one(connection, "waits_for", values)
            assert found is not None
            return Arrival(bool(row[0]), [read_match(doc) for doc in orjson.loads(found[0])])

        arrival = self._read_here(lambda connection: ask(connection, _FEW_ROWS))
        if arrival is None or len(arrival.matches) == _FEW_ROWS:
            arrival = await self._read(ask)
        return arrival

    async def waits_of(self, run_id: str) -> list[Match]:
        row = await self._ask_soon("waits_of", run_id=run_id)
        return [read_match(doc) for doc in orjson.loads(row[0])] if row else []

    async def invocation(self, run_id: str, step: str) -> Invocation | None:
        row = await self._ask_soon("invocation", run_id=run_id, step=step)
        return None if row is None else _read_invocation(orjson.loads(row[0]))

    async def settled_invocations(self) -> list[Invocation]:
        return [_read_invocation(doc) for doc in await self._list("settled_invocations")]

    async def orphans(self) -> list[Run]:
        return [read_run(doc) for doc in await self._list("orphans")]

    async def children(self, run_id: str) -> list[Run]:
        return [read_run(doc) for doc in await self._list("children", run_id=run_id)]

    async def unused_events(
        self, run_id: str, name: str, since: int, after: str, limit: int
    ) -> list[Event]:
        docs = await self._list_soon(
            "unused_events", limit, run_id=run_id, event=name, since=since, after=after
        )
        return [read_event(doc) for doc in docs]

    async def newest(self) -> int:
        row = await self._ask("newest")
        return int(row[0]) if row is not None else 0

    async def is_sweepable(
        self, runs_before: int, events_before: int, responses_before: int
    ) -> bool:
        row = await self._ask(
            "is_sweepable",
            runs_before=runs_before,
            events_before=events_before,
            responses_before=responses_before,
        )
        return row is not None and bool(row[0])

    async def unsettled_events(self, limit: int) -> list[Event]:
        return [read_event(doc) for doc in await self._list("unsettled_events", limit=limit)]

    async def known_events(self, ids: Sequence[str]) -> dict[str, str]:
        return dict(await self._list("known_events", ids=orjson.dumps(ids).decode()))

    async def awaited(self, names: Collection[str]) -> set[str]:
        return set(await self._list("awaited", names=orjson.dumps(sorted(names)).decode()))

    async def event(self, event_id: str) -> Event | None:
        row = await self._ask("event", id=event_id)
        return read_event(orjson.loads(row[0])) if row and row[0] is not None else None

    async def list_events(
        self, name: str | None, since: int, before: tuple[int, str], limit: int
    ) -> list[Event]:
        docs = await self._list(
            "list_events" if name is None else "list_events_named",
            event=name,
            since=since,
            before=before[0],
            before_id=before[1],
            limit=limit,
        )
        return [read_event(doc) for doc in docs]

    async def inbox(self, limit: int) -> list[InboxMessage]:
        docs = await self._list("inbox", limit=limit)
        return [InboxMessage(id, at, kind, data.encode()) for id, at, kind, data in docs]

    async def list_runs(
        self,
        statuses: Sequence[Status],
        function_id: str | None,
        limit: int,
        before: str | None = None,
        window: int = LISTED_AT_ONCE,
    ) -> RunPage:
        row = await self._ask(
            "list_runs",
            statuses=orjson.dumps([int(status) for status in statuses]).decode(),
            completed=Status.COMPLETED in statuses,
            function_id=function_id,
            limit=limit,
            before=_LAST_TEXT if before is None else before,
            window=window,
        )
        assert row is not None
        lines = [RunSummary(read_run(run), *rest) for run, *rest in orjson.loads(row[0])]
        return RunPage(lines, lines[-1].run.id if len(lines) == limit else row[1])

    async def attempts(self, run_id: str) -> list[AttemptRecord]:
        docs = await self._list("attempts", run_id=run_id)
        return [
            AttemptRecord(step, attempt, began_at, ended_at, error.encode())
            for step, attempt, began_at, ended_at, error in docs
        ]

    async def requests(self, limit: int) -> list[RequestRecord]:
        return [RequestRecord(*doc) for doc in await self._list("requests", limit=limit)]

    async def origins(self) -> list[str]:
        return list(await self._list("origins"))

    async def _ask_soon(self, name: str, **values: Any) -> tuple[Any, ...] | None:
        """A question about one run: asked here, unless the answer is large."""
        values["most"] = _FEW_BYTES
        row = self._read_here(lambda connection: _one(connection, name, values))
        if row is None:
            values["most"] = _ANY
            row = await self._ask(name, **values)
        return row

    async def _ask(self, name: str, **values: Any) -> tuple[Any, ...] | None:
        return await self._read(lambda connection: _one(connection, name, values))

    async def _list(self, name: str, **values: Any) -> list[Any]:
        row = await self._ask(name, **values)
        return orjson.loads(row[0]) if row else []

    async def _list_soon(self, name: str, limit: int, **values: Any) -> list[Any]:
        """A question with few answers nearly always: asked here, and again if there are more."""
        few = {**values, "limit": min(limit, _SOME_ROWS)}
        row = self._read_here(lambda connection: _one(connection, name, few))
        found: list[Any] = [] if row is None else orjson.loads(row[0])
        if row is None or _SOME_ROWS <= len(found) < limit:
            found = await self._list(name, **values, limit=limit)
        return found

    def _read_here(self, ask: Callable[[apsw.Connection], T]) -> T | None:
        """Read on the event loop's own thread: for a few rows by their key, which are in memory
        nearly always, the way to another thread and back takes several times as long. None if
        somebody holds a lock: it is not waited for here."""
        try:
            with translated(self._path):
                connection = self._connection()
                connection.set_busy_timeout(0)
                return ask(connection)
        except StorageError as error:
            if isinstance(error.__cause__, apsw.BusyError | apsw.LockedError):
                return None
            raise

    async def _read(self, ask: Callable[[apsw.Connection], T]) -> T:
        def work() -> T:
            with translated(self._path):
                return ask(self._connection())

        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _connection(self) -> apsw.Connection:
        known: apsw.Connection | None = getattr(self._local, "connection", None)
        if known is not None:
            return known
        connection = connect(self._path)
        add_views(connection)
        connection.execute("pragma wal_autocheckpoint = 0; pragma query_only = true")
        self._local.connection = connection
        self._connections.append(connection)
        return connection

    def close_readers(self) -> None:
        """End the reading threads. Blocks until they are done."""
        self._threads.shutdown(wait=True)
        for connection in self._connections:
            connection.close()
        self._connections.clear()


def _read_invocation(doc: Sequence[Any]) -> Invocation:
    return Invocation(read_run(doc[0]), read_step(doc[1]))


_QUESTIONS: Final = named("sqlite_reads.sql")


def _one(connection: apsw.Connection, name: str, values: dict[str, Any]) -> tuple[Any, ...] | None:
    return connection.execute(_QUESTIONS[name], values).fetchone()
