"""Power is lost at some point of a recorded workload: what of it is still there, and goes on?"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import apsw
import httpx

from durable_endpoints.client import Transcript, open_stream
from durable_endpoints.client.events import Chunk, Metadata, StreamEvent
from durable_endpoints_server import owner
from durable_endpoints_server.store import sqlite_log
from durable_endpoints_server.store.sqlite import Synchronous
from tests.chaos.disk.power import Disk
from tests.chaos.disk.recording import Operation, Recorder
from tests.chaos.disk.watching import watched
from tests.chaos.disk.workload import (
    STEPS,
    STORIES,
    TOLD,
    Place,
    Seen,
    ask,
    expected,
    insist,
    kind_of,
    play,
    served,
    tell,
    text_of,
)

_NAME = "endpoints.db"
CHECKPOINT = 30
"""Pages, instead of SQLite's 1,000: so that losses hit many checkpoints of the log."""
_PATIENCE = 20
"""Seconds for everything to end after one loss."""


class Recording(NamedTuple):
    """A workload that was played once, undisturbed."""

    operations: Sequence[Operation]
    seen: Seen
    synchronous: Synchronous
    place: Place


class Lost(NamedTuple):
    """What was not there any more after a loss, though somebody had seen it."""

    answers: int
    """Answers that a client had, and that their run does not have."""
    bodies: int
    """Bodies that ran again, though a later step had begun."""
    events: int
    """Events and signals that were acknowledged."""
    chunks: int
    """Chunks that a reader had as permanent, and that the log does not have."""


async def record(
    folder: Path,
    synchronous: Synchronous,
    place: Place = "embedded",
    failing: Collection[int] = (),
) -> Recording:
    """Play the workload on a disk that notes everything, and whose n-th syncs fail that `failing`
    names."""
    recorder = Recorder(failing)
    seen = Seen(lambda: len(recorder.operations))
    log = folder / f"{_NAME}-wal"
    with (
        watched(recorder),
        recorder.behind(log),
        patch.object(sqlite_log, "_CHECKPOINT", CHECKPOINT),
    ):
        await play(folder / _NAME, seen, synchronous, place)
    assert {answer.run: answer.text for answer in seen.answers} == {
        answer.run: expected(answer.run) for answer in seen.answers
    }
    return Recording(recorder.operations, seen, synchronous, place)


async def check(
    recording: Recording, cuts: Sequence[int], seed: int, fate: float | None = None
) -> list[Lost]:
    """Lose the power at each of `cuts`, which are ordered. Raises `AssertionError` for everything
    that must not be, whatever the setting; what was lost is returned. `fate` is how likely a write
    survives that was not synced: by default, it differs from loss to loss."""
    disk, at = Disk(), 0
    lost: list[Lost] = []
    for cut in cuts:
        disk.take(recording.operations[at:cut])
        at = cut
        contents = disk.after_power_loss(random.Random(f"{seed} {cut}"), fate)
        with tempfile.TemporaryDirectory() as name:
            for file, content in contents.items():
                (Path(name) / file).write_bytes(content)
            try:
                async with asyncio.timeout(_PATIENCE):
                    lost.append(await _AfterLoss(recording, cut, Path(name) / _NAME).check())
            except BaseException as error:
                error.add_note(f"power was lost after operation {cut}, seed {seed}")
                raise
    return lost


class _AfterLoss:
    def __init__(self, recording: Recording, cut: int, database: Path) -> None:
        seen = recording.seen
        self._synchronous, self._place = recording.synchronous, recording.place
        self._database = database
        self._before = seen
        self._answers = [answer for answer in seen.answers if answer.at <= cut]
        self._bodies = [body for body in seen.bodies if body.at <= cut]
        self._frames = [frame for frame in seen.frames if frame.at <= cut]
        self._sent = [run for run, at in seen.sent.items() if at <= cut]

    async def check(self) -> Lost:
        self._check_file()
        after = Seen()
        begun = dict.fromkeys(body.run for body in self._bodies if "-of-" not in body.run)
        with _other_boot():
            database, synchronous, place = self._database, self._synchronous, self._place
            async with served(database, after, synchronous, place) as client:
                chunks = sum([await self._streams(client, run) for run in STORIES])
                events = await self._acknowledged_events(client, after)
                unsent = [run for run in begun if kind_of(run) in TOLD]
                sending = asyncio.gather(*(insist(run) for run in unsent if run not in self._sent))
                # A client repeats its request, with its key, until it is answered.
                await asyncio.gather(*(ask(client, after, run) for run in begun))
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        for answer in after.answers:
            assert answer.text == expected(answer.run), answer
        answered = {answer.run for answer in self._answers}
        bodies = Counter(body.run for body in after.bodies)
        return Lost(
            answers=sum(1 for run in answered if bodies[run]),
            bodies=self._repeated(after),
            events=events,
            chunks=chunks,
        )

    def _check_file(self) -> None:
        if not self._database.exists():
            return
        connection = apsw.Connection(str(self._database))
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert connection.execute("pragma foreign_key_check").fetchall() == []
        connection.close()

    def _repeated(self, after: Seen) -> int:
        """How many bodies ran again that were acknowledged: with each step on disk before the next
        one begins, those of which a later one had begun."""
        reached: dict[str, int] = {}
        for body in self._bodies:
            if kind_of(body.run) != "background":
                order = STEPS[kind_of(body.run)].index(body.step)
                reached[body.run] = max(order, reached.get(body.run, 0))
        again = {(body.run, body.step) for body in after.bodies}
        return sum(STEPS[kind_of(run)].index(name) < reached.get(run, 0) for run, name in again)

    async def _acknowledged_events(self, client: httpx.AsyncClient, after: Seen) -> int:
        """Runs whose event was acknowledged hear it without being sent it again."""
        lost = 0
        for run in self._sent:
            try:
                async with asyncio.timeout(2):
                    await ask(client, after, run)
            except TimeoutError:
                lost += 1
                await tell(run)
        return lost

    async def _streams(self, client: httpx.AsyncClient, run: str) -> int:
        """A reader goes on behind what it has, and another one reads from the beginning: both end
        up with the same text, and no position means two things. Returns how many chunks are gone
        that a reader had."""
        before = [frame for frame in self._frames if frame.run == run]
        if not before:
            return 0
        url = before[-1].url
        if (await client.get(url, headers={"accept": "text/event-stream"})).status_code == 404:
            assert self._synchronous != "full", f"{run} is lost"
            return sum(isinstance(frame.event, Chunk) for frame in before)
        whole = await _read(client, url, "")
        last = before[-1].event
        rest = await _read(client, url, "" if isinstance(last, Metadata) else last.position)
        had = [frame.event for frame in before]
        if self._synchronous == "full":
            assert _transcript(whole).committed_text == text_of(run)
            assert _transcript([*had, *rest]).committed_text == text_of(run)
        return _missing(had, whole)


def _missing(before: list[StreamEvent], whole: list[StreamEvent]) -> int:
    """How many chunks a reader had as permanent, and the log does not have. Raises if a position
    was given away again."""
    now: dict[str, list[StreamEvent]] = {}
    for event in whole:
        if not isinstance(event, Metadata):
            now.setdefault(event.position, []).append(event)
    for event in before:
        if isinstance(event, Chunk) and event.position in now:
            assert event in now[event.position], f"{event} has become {now[event.position]}"
    permanent = _transcript(before).committed_chunks
    return sum(chunk.position not in now for chunk in permanent)


def _transcript(events: Iterable[StreamEvent]) -> Transcript:
    transcript = Transcript()
    for event in events:
        transcript.feed(event)
    return transcript


async def _read(client: httpx.AsyncClient, url: str, position: str) -> list[StreamEvent]:
    async with open_stream(url, client=client, last_event_id=position or None) as events:
        return [event async for event in events]


@contextmanager
def _other_boot() -> Iterator[None]:
    """The machine was started anew."""
    with patch.object(owner, "_boot_id", lambda: "another boot"):
        yield
