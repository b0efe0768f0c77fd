"""Growing a database: the runs of a real workload, copied with ids and times of their own."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import apsw

from benchmarks.growth import workload
from durable_endpoints_server.store.sqlite import SqliteStore

SPAN = 6 * 86_400_000
"""Milliseconds over which the runs are spread, up to now: less than the retention."""
_COPIES = 500
"""In one transaction."""
_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_TABLES = ("runs", "payloads", "steps", "attempts", "waits", "event_uses", "streams", "chunks")

_NEW = {
    "id": "fresh.id",
    "run_id": "fresh.id",
    "parent_run": (
        "(select other.id from fresh as other "
        "where other.template = old.parent_run and other.copy = fresh.copy)"
    ),
    "idempotency_key": "iif(fresh.n % 10 = 0, lower(hex(randomblob(32))), null)",
    "text": "old.text || '-' || fresh.copy",
    "pairs": """cast(replace(old.pairs, '"]]', '-' || fresh.copy || '"]]') as blob)""",
    "event_id": "fresh.copy || substr(old.event_id, 11)",
}
"""Columns whose values are a run's own. Times are shifted; all others stay as they are."""
_TIMES = frozenset(
    ("began_at", "ended_at", "ready_at", "deadline", "due", "ts", "received_at", "at")
)


class Growing:
    """A database that is filled with copies of a workload."""

    def __init__(self, path: Path, template: Path, most: int) -> None:
        """`most` is the number of runs that it will have in the end, at the most."""
        SqliteStore(path).close_now()
        self._connection = apsw.Connection(str(path))
        self._connection.execute("attach ? as old_runs", (str(template),))
        self._connection.execute(
            "create temp table fresh (id text primary key, template text, n integer, copy text, "
            "shift integer) without rowid; "
            "create index fresh_template on fresh (template, copy)"
        )
        self._templates: list[tuple[str, int]] = list(
            self._connection.execute("select id, began_at from old_runs.runs order by id")
        )
        assert len(self._templates) == workload.SIZE
        self.began = int(time.time() * 1_000) - SPAN
        self.step = SPAN / most
        """Milliseconds between two runs."""
        self.runs = 0
        self.swept = 0
        """How many of the oldest are not there any more, at the most: some have not ended."""

    def grow_to(self, runs: int) -> None:
        self._connection.execute("pragma journal_mode = off; pragma synchronous = off")
        while self.runs < runs:
            copies = min(_COPIES, -(-(runs - self.runs) // len(self._templates)))
            self._copy(copies)
        self._connection.execute("pragma journal_mode = wal")

    def sizes(self) -> list[tuple[str, int]]:
        """Bytes of each table and index, the largest first."""
        return list(
            self._connection.execute(
                "select name, sum(pgsize) from dbstat group by name order by 2 desc"
            )
        )

    def some_runs(self, count: int) -> list[str]:
        """The ids of runs from all times."""
        last = self.began + int(self.runs * self.step) - 60_000
        instants = (random.randrange(self.began, last) for _ in range(count))
        return [
            run
            for at in instants
            for (run,) in self._connection.execute(
                "select id from runs where id >= ? limit 1", (_time_part(at),)
            )
        ]

    def some_awaited(self, count: int) -> list[str]:
        """What some of the waits for an event compare."""
        found = self._connection.execute(
            "select text from waits order by random() limit ?", (count,)
        )
        return [text for (text,) in found]

    def some_keys(self, count: int) -> list[str]:
        found = self._connection.execute(
            "select idempotency_key from runs where idempotency_key > lower(hex(randomblob(2))) "
            "limit ?",
            (count,),
        )
        return [key for (key,) in found]

    def close(self) -> None:
        self._connection.close()

    def _copy(self, copies: int) -> None:
        connection = self._connection
        with connection:
            connection.execute("delete from fresh")
            connection.executemany(
                "insert into fresh values (?, ?, ?, ?, ?)", self._fresh_runs(copies)
            )
            for table in _TABLES:
                self._copy_table(table, "run_id" if table != "runs" else "id")
            connection.execute(
                "insert into events (id, name, data, ts, received_at, settled) "
                "select fresh.copy || substr(old.id, 11), old.name, old.data, "
                "old.ts + fresh.shift, old.received_at + fresh.shift, 1 "
                "from old_runs.events as old join fresh on fresh.template = ("
                "select run_id from old_runs.event_uses where event_id = old.id)"
            )

    def _copy_table(self, table: str, run: str) -> None:
        found = self._connection.execute("select name from pragma_table_info(?)", (table,))
        columns = [str(name) for (name,) in found]
        values = [
            f"old.{column} + fresh.shift"
            if column in _TIMES
            else _NEW[column]
            if column in _NEW and not (column == "id" and run != "id")
            else f"old.{column}"
            for column in columns
        ]
        self._connection.execute(
            f"insert into main.{table} ({', '.join(columns)}) select {', '.join(values)} "
            f"from fresh cross join old_runs.{table} as old on old.{run} = fresh.template "
            "order by fresh.id"
        )

    def _fresh_runs(self, copies: int) -> Iterator[tuple[str, str, int, str, int]]:
        for _ in range(copies):
            name = _time_part(int(self.began + self.runs * self.step))
            for template, began in self._templates:
                at = int(self.began + self.runs * self.step)
                chance = os.urandom(8).hex().upper()
                yield _time_part(at) + chance, template, self.runs, name, at - began
                self.runs += 1


def _time_part(at: int) -> str:
    """The first ten characters of a ULID."""
    return "".join(_DIGITS[at >> shift & 31] for shift in range(45, -1, -5))
