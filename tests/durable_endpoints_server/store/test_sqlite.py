"""What is SQLite's own: one statement a batch, pragmas, several readers, a file that fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from durable_endpoints.protocol.errors import EngineClosedError, StorageError
from durable_endpoints.protocol.ops import StepDone, StepKind
from durable_endpoints.protocol.runs import Complete
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints_server.engine.facts import Change, EventReceived, Streamed, states
from durable_endpoints_server.engine.model import Event, Status
from durable_endpoints_server.engine.streams import Chunk, append, started
from durable_endpoints_server.engine.transitions import decide, register
from durable_endpoints_server.store.base import Lane, RefusedError
from durable_endpoints_server.store.sqlite import SqliteStore
from tests.durable_endpoints_server.helpers import POLICY, new_run

pytestmark = pytest.mark.anyio

T0 = 1_000_000


class Trace:
    """Every statement of every connection that is opened."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def watch(self, connection: apsw.Connection) -> None:
        connection.exec_trace = self._note

    def _note(self, cursor: Any, statement: str, bindings: Any) -> bool:
        self.statements.append(statement)
        return True

    @property
    def writes(self) -> list[str]:
        return [statement for statement in self.statements if "insert" in statement]


@pytest.fixture
def trace() -> Any:
    trace = Trace()
    apsw.connection_hooks.append(trace.watch)
    yield trace
    apsw.connection_hooks.remove(trace.watch)


@pytest.fixture
async def store(trace: Trace, tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "runs.db")
    trace.statements.clear()
    yield store
    await store.close()


def event(name: str) -> Change:
    return Change((EventReceived(Event(name, "e", b"{}", T0, T0), settled=True),))


async def a_whole_run(store: SqliteStore, run_id: str, steps: int = 3) -> None:
    """A run whose every change is submitted in one turn."""
    lane = Lane()
    decision = register(new_run(run_id), "me", None, T0)
    store.submit(decision.change, lane)
    for n in range(steps):
        step = StepId(hash_name(f"s{n}"), f"s{n}", 0)
        decision = decide(decision.run, StepDone(step, StepKind.RUN, b"1"), T0, POLICY)
        store.submit(decision.change, lane)
    decision = decide(decision.run, Complete(200, b"the response"), T0, POLICY)
    await store.submit(decision.change, lane).wait()


# Statements


async def test_a_batch_is_one_statement(store: SqliteStore, trace: Trace) -> None:
    await asyncio.gather(*(a_whole_run(store, f"r{n}") for n in range(40)))
    assert len(trace.statements) == 1  # 40 registrations, 120 steps, 40 completions
    for n in range(40):
        entry = await store.entry(f"r{n}")
        assert entry is not None
        assert (entry.run.status, len(entry.memo)) == (Status.COMPLETED, 3)


async def test_a_large_batch_is_one_transaction_of_few_statements(
    store: SqliteStore, trace: Trace
) -> None:
    tickets = [store.submit(event(f"e{n}")) for n in range(2_000)]
    await tickets[-1].wait()
    assert len(trace.writes) == 4  # 512 rows each
    assert len(trace.statements) == 6  # and the transaction around them
    assert await store.unsettled_events(1) == []
    assert (await store.arrival(Event("e1999", "e", b"{}", T0, T0))).known


async def test_few_different_statements_are_prepared(store: SqliteStore, trace: Trace) -> None:
    for size in range(1, 130):
        tickets = [store.submit(event(f"e{size}-{n}")) for n in range(size)]
        await tickets[-1].wait()
    assert len(trace.statements) == 129
    assert len(set(trace.statements)) < 60


async def test_a_question_is_one_statement(store: SqliteStore, trace: Trace) -> None:
    await a_whole_run(store, "r")
    await store.entry("r")  # the first opens a connection
    await store.entry("r")
    trace.statements.clear()
    assert await store.entry("r") is not None
    assert await store.ended("r") is not None
    assert len((await store.list_runs(list(Status), None, 10)).lines) == 1
    asked = [statement for statement in trace.statements if "select" in statement]
    assert len([statement for statement in asked if "temp view" not in statement]) == 3


# Atomicity


async def test_a_change_of_many_facts_is_written_whole_or_not(store: SqliteStore) -> None:
    decision = register(new_run("r"), "me", None, T0)
    await store.submit(decision.change).wait()
    stale = decide(decision.run, Complete(200, b"x"), T0, POLICY).change
    await store.submit(decide(decision.run, Complete(201, b"y"), T0, POLICY).change).wait()
    late = Change((*event("e").facts, *stale.facts), *stale[1:])
    with pytest.raises(RefusedError):
        await store.submit(late).wait()
    ended = await store.ended("r")
    assert ended is not None
    assert (ended.status_code, ended.response) == (201, b"y")
    assert not (await store.arrival(Event("e", "e", b"{}", T0, T0))).known


async def test_one_row_that_sqlite_refuses_does_not_fail_the_batch(store: SqliteStore) -> None:
    lane = Lane()
    good, later = event("good"), event("later")
    bad = Change((EventReceived(Event("bad", None, b"{}", T0, T0), settled=True),))  # type: ignore[arg-type]
    tickets = [store.submit(good), store.submit(bad, lane), store.submit(later, lane)]
    await tickets[0].wait()
    for ticket in tickets[1:]:
        with pytest.raises(StorageError, match="NOT NULL"):
            await ticket.wait()
    assert (await store.arrival(Event("good", "e", b"{}", T0, T0))).known
    assert not (await store.arrival(Event("later", "e", b"{}", T0, T0))).known
    assert store.is_healthy


async def test_a_large_batch_that_fails_leaves_nothing_of_its_first_statement(
    store: SqliteStore, trace: Trace
) -> None:
    other = apsw.Connection(str(store._path))
    other.execute(
        "create trigger full before insert on events when new.id = 'e900' "
        "begin select raise(abort, 'no more'); end"
    )
    tickets = [store.submit(event(f"e{n}")) for n in range(1_000)]
    with pytest.raises(StorageError, match="no more"):
        await tickets[900].wait()
    await tickets[999].wait()
    count = "select count(*), count(distinct id) from events"
    assert other.execute(count).fetchall() == [(999, 999)]
    other.close()


# The file


@pytest.mark.parametrize(("setting", "number"), [("full", 2), ("normal", 1)])
async def test_pragmas_of_the_writer(tmp_path: Path, setting: Any, number: int) -> None:
    store = SqliteStore(tmp_path / "runs.db", setting)
    try:
        assert store._writer.execute("pragma synchronous").fetchall() == [(number,)]
        assert store._writer.execute("pragma journal_mode").fetchall() == [("wal",)]
    finally:
        await store.close()


async def test_a_reader_sees_what_was_acknowledged(store: SqliteStore) -> None:
    for n in range(30):
        await a_whole_run(store, f"r{n}", steps=1)
        runs = await asyncio.gather(*(store.run(f"r{n}") for _ in range(4)))
        assert {run is not None and run.status for run in runs} == {Status.COMPLETED}


async def test_a_locked_file_is_a_storage_error_that_says_so(store: SqliteStore) -> None:
    store._writer.set_busy_timeout(20)
    other = apsw.Connection(str(store._path))
    other.execute("begin immediate")
    with pytest.raises(StorageError, match="another program holds a lock"):
        await store.submit(event("e")).wait()
    assert not store.is_healthy
    other.execute("rollback")
    other.close()
    await store.submit(event("e")).wait()
    assert store.is_healthy


async def test_closing_keeps_what_was_submitted(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "runs.db")
    for n in range(600):
        store.submit(event(f"e{n}"))
    await store.close()
    with pytest.raises(EngineClosedError):
        store.submit(event("late"))
    again = SqliteStore(tmp_path / "runs.db")
    assert (await again.arrival(Event("e599", "e", b"{}", T0, T0))).known
    await again.close()


async def test_nothing_is_left_beside_the_file_after_closing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "runs.db")
    await a_whole_run(store, "r")
    await store.run("r")
    await store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["runs.db"]


# Relaxed changes


def relaxed(name: str) -> Change:
    return event(name)._replace(is_relaxed=True)


def pragma_of(store: SqliteStore) -> int:
    """What the writing connection syncs: 1 `normal`, 2 `full`."""
    return int(store._writer.execute("pragma synchronous").fetchone()[0])  # type: ignore[index]


async def test_only_a_batch_that_is_relaxed_altogether_is_written_relaxed(
    store: SqliteStore,
) -> None:
    pragmas = []
    write = store._commits._write

    def noted(changes: Any, is_relaxed: bool) -> Any:
        found = write(changes, is_relaxed)
        pragmas.append((len(changes), pragma_of(store)))
        return found

    store._commits._write = noted
    await store.submit(event("durable")).wait()
    await store.submit(relaxed("relaxed")).wait()
    await store.submit(relaxed("relaxed too")).wait()
    await store.submit(event("durable again")).wait()
    store.submit(relaxed("one of a mixed batch"))
    await store.submit(event("the other one")).wait()
    await store.submit(relaxed("last")).wait()
    assert pragmas == [(1, 2), (1, 1), (1, 1), (1, 2), (2, 2), (1, 1)]


async def test_a_store_that_is_relaxed_altogether_stays_so(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "runs.db", "normal")
    await store.submit(relaxed("relaxed")).wait()
    await store.submit(event("durable")).wait()
    assert pragma_of(store) == 1
    await store.close()


async def test_what_was_written_relaxed_is_synced_soon(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[float] = []
    monkeypatch.setattr(
        "durable_endpoints_server.store.sqlite_log.flush",
        lambda file: flushed.append(time.monotonic()),
    )
    await store.submit(relaxed("relaxed")).wait()
    written = time.monotonic()
    async with asyncio.timeout(5):
        while not flushed:
            await asyncio.sleep(0.001)
    assert 0 < flushed[0] - written < 1
    await store.submit(event("durable")).wait()
    await asyncio.sleep(0.1)
    assert len(flushed) == 1, "a durable commit syncs by itself"
    await store.submit(relaxed("at the end")).wait()
    await store.close()
    assert len(flushed) == 2


async def test_a_sync_that_fails_is_told_and_tried_again(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("durable_endpoints_server.store.group_commit._SYNC_AGAIN", 0.01)
    tries = 0

    def flush(file: int) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("durable_endpoints_server.store.sqlite_log.flush", flush)
    await store.submit(relaxed("relaxed")).wait()
    async with asyncio.timeout(5):
        while tries < 1:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)
        assert not store.is_healthy
        while tries < 3:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.1)
    assert tries == 3
    assert "could not be brought to the disk" in caplog.text


async def test_a_hundred_thousand_chunks_are_read_page_by_page(store: SqliteStore) -> None:
    """Each page costs what it holds, not what comes after it."""
    decision = register(new_run("r"), "me", None, T0)
    await store.submit(decision.change).wait()
    chunks = [Chunk("s", 1, b"%d" % n) for n in range(100_000)]
    stream, records = append(started(1), chunks)
    fact = Streamed(tuple(records), stream)
    await store.submit(Change((fact,), "r", 1, states(Status.RUNNING))).wait()
    after, pages = 0, 0
    began = time.perf_counter()
    while (page := await store.stream_page("r", after, 256 * 1024)) and page.records:
        assert page.records[0].position == after + 1
        after = page.records[-1].last
        pages += 1
    assert after == 100_000
    assert 30 < pages < 60
    assert time.perf_counter() - began < 10
