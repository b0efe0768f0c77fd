"""The floor: the same commits as a durable endpoint with three steps makes, and nothing else.

No run context, no memo, no fencing errors, no sealing, no redirects: a handler that keeps its
request, three results and its response in SQLite, in three awaited commits, through one writer
thread that writes each batch with one statement. What is slower than this is the price of the SDK;
what is slower than the bare handler and not than this is the price of the disk.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from typing import Any, Protocol

import apsw
import orjson
from ulid import ULID

_SCHEMA = """
pragma journal_mode = wal;
pragma synchronous = full;
create table runs (id text primary key, request blob, response blob, status int) without rowid;
create table steps (run text, name text, value blob, primary key (run, name)) without rowid;
create view inbox as select null as kind, null as run, null as name, null as value;
create trigger new_run instead of insert on inbox when new.kind = 0 begin
    insert into runs values (new.run, new.value, null, 0);
end;
create trigger new_step instead of insert on inbox when new.kind = 1 begin
    insert into steps select new.run, new.name, new.value
    where exists (select 1 from runs where id = new.run and status = 0);
end;
create trigger completion instead of insert on inbox when new.kind = 2 begin
    update runs set status = 1, response = new.value where id = new.run and status = 0;
end;
"""

Row = tuple[int, str, str, bytes]


class Floor:
    """A table of results behind one writer thread with group commit."""

    def __init__(self, path: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = apsw.Connection(path, statementcachesize=256)
        list(self._connection.execute(_SCHEMA))
        self._rows: list[Row] = []
        self._futures: list[asyncio.Future[None]] = []
        self._batches: queue.SimpleQueue[tuple[list[Row], list[asyncio.Future[None]]] | None] = (
            queue.SimpleQueue()
        )
        self._busy = False
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def add(self, *rows: Row) -> asyncio.Future[None]:
        """Write rows; the future is done when they are on disk."""
        self._rows += rows
        future = self._loop.create_future()
        self._futures.append(future)
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._hand_over)
        return future

    def close(self) -> None:
        self._batches.put(None)
        self._thread.join()
        self._connection.close()

    def _hand_over(self) -> None:
        self._batches.put((self._rows, self._futures))
        self._rows, self._futures = [], []

    def _write(self) -> None:
        while (batch := self._batches.get()) is not None:
            rows, futures = batch
            values = ",".join(["(?,?,?,?)"] * len(rows))
            flat: list[Any] = [value for row in rows for value in row]
            self._connection.execute(f"insert into inbox values {values}", flat)
            self._loop.call_soon_threadsafe(self._done, futures)

    def _done(self, futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            if not future.done():
                future.set_result(None)
        self._busy = bool(self._rows)
        if self._busy:
            self._hand_over()


def commits(path: str, count: int) -> list[float]:
    """Milliseconds that each of some commits of one small row takes, one after the other."""
    connection = apsw.Connection(path)
    connection.execute("pragma journal_mode = wal; pragma synchronous = full")
    connection.execute("create table if not exists t (id integer primary key, value blob)")
    times: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        connection.execute("insert into t (value) values (randomblob(100))")
        times.append((time.perf_counter() - began) * 1e3)
    connection.close()
    return times


class Writes(Protocol):
    """A floor, in this process or elsewhere."""

    def add(self, *rows: Row) -> asyncio.Future[None]: ...


async def three_steps(floor: Writes, request: bytes, n: int) -> dict[str, int]:
    """What the benchmark's durable handler does, by hand."""
    run = str(ULID())
    value, acknowledged = n, None
    for number in range(3):
        if acknowledged is not None:
            await acknowledged
        value = orjson.loads(orjson.dumps(value + 1))
        row = (1, run, f"step-{number}", orjson.dumps(value))
        acknowledged = floor.add(*([(0, run, "", request), row] if number == 0 else [row]))
    answer = {"value": value}
    await floor.add((2, run, "", orjson.dumps(answer)))
    return answer
