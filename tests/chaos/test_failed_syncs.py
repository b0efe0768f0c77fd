"""A sync that fails, and after it a loss of power: what was acknowledged is there all the same.

Linux takes what a failing sync could not write for written, shows it to whoever reads, and says
nothing with the next sync. The disk of `tests/chaos/disk` does the same.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import apsw
import pytest

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints_server.engine.facts import Change, EventReceived
from durable_endpoints_server.engine.model import Event
from durable_endpoints_server.store import sqlite_log
from durable_endpoints_server.store.sqlite import SqliteStore
from tests.chaos.disk.checking import CHECKPOINT
from tests.chaos.disk.power import Disk
from tests.chaos.disk.recording import Dropped, Recorder, Written
from tests.chaos.disk.watching import watched

pytestmark = pytest.mark.anyio

_NAME = "runs.db"
_CHANGES = 60
_KILLED_AFTER = 40
_SYNCS = 70
"""Syncs that are asked for meanwhile, at least."""
_ALL = {"before", "relaxed", "after"}


class Acknowledged(NamedTuple):
    """A change that is on disk, as its sender knows from some operation of the disk on."""

    at: int
    name: str


def event(name: str, is_relaxed: bool) -> Change:
    change = Change((EventReceived(Event(name, "e", b"{}", 1_000, 1_000), settled=True),))
    return change._replace(is_relaxed=is_relaxed)


@contextmanager
def recorded(recorder: Recorder, log: Path) -> Iterator[None]:
    with (
        watched(recorder),
        recorder.behind(log),
        patch.object(sqlite_log, "_CHECKPOINT", CHECKPOINT),
    ):
        yield


async def submit(
    store: SqliteStore,
    recorder: Recorder,
    chance: random.Random,
    names: range,
    found: list[Acknowledged],
) -> None:
    """Changes of both kinds, one after the other."""
    for n in names:
        is_relaxed = chance.random() < 0.5
        try:
            await store.submit(event(f"{n}", is_relaxed)).wait()
        except StorageError:
            continue
        if not is_relaxed:
            found.append(Acknowledged(len(recorder.operations), f"{n}"))
        if chance.random() < 0.1:
            await asyncio.sleep(0.04)  # then the store syncs what is relaxed


def start(database: Path) -> SqliteStore:
    """As a supervisor does, until no sync fails on the way."""
    while True:
        try:
            return SqliteStore(database)
        except StorageError:
            pass


async def start_after_kill(store: SqliteStore, recorder: Recorder, folder: Path) -> SqliteStore:
    """A new process, which finds all that the killed one has written, synced or not."""
    left = folder / "killed" / _NAME
    left.parent.mkdir()
    for end in ("", "-wal"):
        shutil.copy(folder / f"{_NAME}{end}", f"{left}{end}")
    with recorder.unheard():
        await store.close()
    return start(left)


async def play(
    folder: Path, failing: Collection[int], seed: int
) -> tuple[Recorder, list[Acknowledged]]:
    """Changes, with a kill in the middle: what the system has in memory survives that."""
    recorder, found, chance = Recorder(failing), list[Acknowledged](), random.Random(seed)
    folder.mkdir()
    with recorded(recorder, Path(f"{_NAME}-wal")):
        store = start(folder / _NAME)
        await submit(store, recorder, chance, range(_KILLED_AFTER), found)
        store = await start_after_kill(store, recorder, folder)
        await submit(store, recorder, chance, range(_KILLED_AFTER, _CHANGES), found)
        await store.close()
    return recorder, found


def left(recorder: Recorder, at: int, folder: Path) -> set[str]:
    """The names of the changes that are there after a loss of power: of what was not synced,
    nothing is left."""
    disk = Disk()
    disk.take(recorder.operations[:at])
    folder.mkdir()
    for name, content in disk.after_power_loss(random.Random(at), 0.0).items():
        (folder / name).write_bytes(content)
    connection = apsw.Connection(str(folder / _NAME))
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    found = {str(name) for (name,) in connection.execute("select id from events")}
    connection.close()
    return found


@pytest.mark.parametrize("who", ["the store", "the next commit", "a checkpoint"])
async def test_what_is_acknowledged_after_a_failed_sync_does_not_lie_behind_a_hole(
    tmp_path: Path, who: str
) -> None:
    recorder = Recorder()
    with recorded(recorder, Path(f"{_NAME}-wal")):
        store = start(tmp_path / _NAME)
        await store.submit(event("before", is_relaxed=False)).wait()
        if who == "a checkpoint":
            # The log may begin anew with this one, which is synced by itself.
            await store.submit(event("before, too", is_relaxed=False)).wait()
            with patch.object(sqlite_log, "_CHECKPOINT", 1):
                recorder.fail_next()
                await store.submit(event("relaxed", is_relaxed=True)).wait()
        else:
            await store.submit(event("relaxed", is_relaxed=True)).wait()
            recorder.fail_next()
        if who == "the next commit":
            with pytest.raises(StorageError, match="the disk reports an error"):
                await store.submit(event("refused", is_relaxed=False)).wait()
        await until_dropped(recorder)
        await insist(store, event("after", is_relaxed=False))
        assert left(recorder, len(recorder.operations), tmp_path / "left") >= _ALL
        await store.close()


async def test_a_process_that_is_started_after_a_kill_leaves_no_hole_behind(tmp_path: Path) -> None:
    recorder = Recorder()
    with recorded(recorder, Path(f"{_NAME}-wal")):
        store = start(tmp_path / _NAME)
        await store.submit(event("before", is_relaxed=False)).wait()
        await store.submit(event("relaxed", is_relaxed=True)).wait()
        recorder.fail_next()
        await until_dropped(recorder)
        store = await start_after_kill(store, recorder, tmp_path)
        await store.submit(event("after", is_relaxed=False)).wait()
        assert left(recorder, len(recorder.operations), tmp_path / "left") == _ALL
        await store.close()


async def test_a_log_that_the_system_has_forgotten_too_is_written_no_more(tmp_path: Path) -> None:
    """What was acknowledged before is there at the next start."""
    recorder = Recorder()
    with recorded(recorder, Path(f"{_NAME}-wal")):
        store = start(tmp_path / _NAME)
        await store.submit(event("before", is_relaxed=False)).wait()
        await store.submit(event("relaxed", is_relaxed=True)).wait()
        recorder.fail_next()
        await until_dropped(recorder)
        log = tmp_path / f"{_NAME}-wal"
        last = [one for one in recorder.operations if isinstance(one, Written)][-1]
        assert last.file.name == log.name
        with log.open("r+b") as file:
            file.seek(last.offset)
            file.write(bytes(len(last.data)))
        for _ in range(3):
            with pytest.raises(StorageError, match="start the application again"):
                await store.submit(event("after", is_relaxed=False)).wait()
        assert not store.is_healthy
        await store.close()
        again = start(tmp_path / _NAME)
        await again.submit(event("after", is_relaxed=False)).wait()
        assert left(recorder, len(recorder.operations), tmp_path / "left") == {"before", "after"}
        await again.close()


async def until_dropped(recorder: Recorder) -> None:
    async with asyncio.timeout(10):
        while not any(isinstance(one, Dropped) for one in recorder.operations):
            await asyncio.sleep(0.002)


async def insist(store: SqliteStore, change: Change) -> None:
    """Submit it until it is acknowledged: the error is told once more, by another descriptor."""
    async with asyncio.timeout(10):
        while True:
            try:
                await store.submit(change).wait()
                return
            except StorageError:
                await asyncio.sleep(0.002)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_nothing_acknowledged_is_lost_whichever_syncs_fail_and_whenever_the_power_does(
    tmp_path: Path,
) -> None:
    chance, drops = random.Random(5), 0
    for n in range(8):
        first = chance.randrange(4, _SYNCS)
        failing = range(first, first + chance.choice((1, 1, 2, 3)))
        recorder, acknowledged = await play(tmp_path / f"{n}", failing, n)
        drops += any(isinstance(one, Dropped) for one in recorder.operations)
        end = len(recorder.operations)
        for cut in sorted({*chance.sample(range(end // 3, end), 6), end}):
            found = left(recorder, cut, tmp_path / f"{n} {cut}")
            assert {one.name for one in acknowledged if one.at <= cut} <= found, (failing, cut)
    assert drops > 5
