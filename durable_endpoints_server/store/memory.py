"""A store in memory: the same conditional writes, in plain Python, for tests and simulations.

It acknowledges at once and forgets everything with the process.
"""

from __future__ import annotations

import asyncio
from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Sequence

from durable_endpoints.protocol.ops import StepKind, StepRecord, StepState
from durable_endpoints.protocol.streams import RecordKind, StreamRecord
from durable_endpoints_server.engine.facts import Change
from durable_endpoints_server.engine.model import Event, Match, Run, Status, Stream, Wait
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
    Lane,
    RefusedError,
    RequestRecord,
    Rollback,
    RunPage,
    StreamPage,
    Ticket,
    with_exact_usage,
)
from durable_endpoints_server.store.memory_tables import MemoryTables, Row

_IDLE = (Status.WAITING, Status.READY)


class MemoryStore(MemoryTables):
    """A `Store` that keeps everything in dictionaries."""

    # Writing

    def submit(self, change: Change, lane: Lane | None = None) -> Ticket:
        return _Done(None if self.apply(change) else RefusedError())

    @property
    def is_healthy(self) -> bool:
        return True

    def leave_message(self, at: int, kind: str, data: bytes) -> None:
        number = max(self._inbox, default=0) + 1
        self._inbox[number] = InboxMessage(number, at, kind, data)

    # Reading

    def begun(self) -> list[Run]:
        """All runs, in the order in which they began. From any thread."""
        return [row.run for row in list(self._rows.values())]

    async def run(self, run_id: str) -> Run | None:
        row = self._rows.get(run_id)
        return None if row is None else row.run

    async def entry(self, run_id: str) -> Entry | None:
        row = self._rows.get(run_id)
        if row is None:
            return None
        memo = sorted(row.steps.values(), key=lambda step: step.order)
        new = row.new
        return Entry(row.run, memo, row.request, new.retries, new.root_path, new.app, row.stream)

    async def stream_page(self, run_id: str, after: int, size: int) -> StreamPage | None:
        row = self._rows.get(run_id)
        if row is None:
            return None
        begin = bisect(row.records, after, key=lambda record: record.last)
        records = _that_weigh(size, row.records[begin:])
        stream = row.stream if row.stream is not None else Stream()
        return StreamPage(row.run.status, stream.tail, stream.handed_over, records)

    async def stream(self, run_id: str) -> Stream | None:
        row = self._rows.get(run_id)
        return None if row is None else row.stream

    async def rollbacks(self, run_id: str) -> list[Rollback]:
        return [
            Rollback(record.position, record.step, record.first)
            for record in self._records(run_id)
            if record.kind is RecordKind.ROLLBACK
        ]

    async def step_chunks(
        self, run_id: str, step: str, first: int, before: int, size: int
    ) -> list[StreamRecord]:
        return _that_weigh(
            size,
            (
                record
                for record in self._records(run_id)
                if first <= record.position < before
                and not record.kind.is_end
                and record.step == step
            ),
        )

    async def ended(self, run_id: str) -> Ended | None:
        row = self._rows.get(run_id)
        if row is None:
            return None
        ended = row.ended
        return Ended(
            run=row.run,
            status_code=ended and ended.status_code,
            response=row.response,
            error=ended and ended.error,
            omitted=row.omitted,
            until_delivered=ended is not None and ended.until_delivered,
            method=row.new.method,
            path=row.new.path,
        )

    async def key_holder(self, key: str) -> KeyHolder | None:
        run_id = self._keys.get(key)
        if run_id is None:
            return None
        new = self._rows[run_id].new
        return KeyHolder(run_id, new.key_scope, new.fingerprint)

    async def due_steps(self, now: int, limit: int) -> list[DueStep]:
        due = [DueStep(row.run, step) for row, step in self._timers() if _instant(step.due) <= now]
        return sorted(due, key=lambda item: _instant(item.step.due))[:limit]

    async def due_deadlines(self, now: int, limit: int) -> list[Run]:
        due = [run for run in self._with_deadline() if _instant(run.deadline) <= now]
        return sorted(due, key=lambda run: _instant(run.deadline))[:limit]

    async def next_due(self) -> int | None:
        instants = [_instant(step.due) for _, step in self._timers()]
        instants += [_instant(run.deadline) for run in self._with_deadline()]
        return min(instants, default=None)

    async def in_status(
        self, status: Status, limit: int, without: Collection[str] = ()
    ) -> list[Run]:
        rows = [
            row
            for row in self._rows.values()
            if row.run.status is status and row.new.app not in without
        ]
        if status is Status.RUNNING:
            rows.sort(key=lambda row: row.run.id)
            return [with_exact_usage(row.run, row.steps.values()) for row in rows[:limit]]
        return sorted((row.run for row in rows), key=lambda run: run.ready_at or 0)[:limit]

    async def running_since(self, owner: str, instant: int) -> list[str]:
        return [
            row.run.id
            for row in self._rows.values()
            if row.run.status is Status.RUNNING
            and row.run.owner == owner
            and row.run.began_at <= instant
        ]

    async def arrival(self, event: Event) -> Arrival:
        waits = [
            self._match(row, wait)
            for row in self._rows.values()
            if event.id not in row.used_events
            for wait in row.waits.values()
            if wait.alternative.event == event.name
        ]
        return Arrival(event.id in self._events, waits)

    async def waits_of(self, run_id: str) -> list[Match]:
        row = self._rows.get(run_id)
        return [] if row is None else [self._match(row, wait) for wait in row.waits.values()]

    async def invocation(self, run_id: str, step: str) -> Invocation | None:
        row = self._rows.get(run_id)
        found = None if row is None else row.steps.get(step)
        return None if row is None or found is None else Invocation(row.run, found)

    async def settled_invocations(self) -> list[Invocation]:
        unfinished = {(run.parent_run, run.parent_step) for run in self._unfinished_children()}
        return [
            Invocation(row.run, step)
            for row in self._rows.values()
            if row.run.status < Status.PARKED
            for step in row.steps.values()
            if step.kind is StepKind.INVOKE
            and step.state is StepState.PENDING
            and (row.run.id, step.id.hash) not in unfinished
        ]

    async def orphans(self) -> list[Run]:
        return [
            run
            for run in self._unfinished_children()
            if (parent := self._rows.get(run.parent_run or "")) is None
            or parent.run.status.is_final
        ]

    async def children(self, run_id: str) -> list[Run]:
        runs = [row.run for row in self._rows.values() if row.run.parent_run == run_id]
        return sorted(runs, key=lambda run: (run.began_at, run.id))

    async def unused_events(
        self, run_id: str, name: str, since: int, after: str, limit: int
    ) -> list[Event]:
        row = self._rows.get(run_id)
        used = set() if row is None else row.used_events
        events = [
            event
            for event, *_ in self._events.values()
            if event.name == name
            and (event.received_at, event.id) > (since, after)
            and event.id not in used
        ]
        return sorted(events, key=lambda event: (event.received_at, event.id))[:limit]

    async def unsettled_events(self, limit: int) -> list[Event]:
        events = [fact.event for fact in self._events.values() if not fact.settled]
        return sorted(events, key=lambda event: event.received_at)[:limit]

    async def known_events(self, ids: Sequence[str]) -> dict[str, str]:
        known = self._events
        return {
            event_id: known[event_id].event.internal_id for event_id in ids if event_id in known
        }

    async def awaited(self, names: Collection[str]) -> set[str]:
        waits = (wait for row in self._rows.values() for wait in row.waits.values())
        return set(names) & {wait.alternative.event for wait in waits}

    async def event(self, event_id: str) -> Event | None:
        for fact in self._events.values():
            if fact.event.internal_id == event_id:
                return fact.event
        known = self._events.get(event_id)
        return None if known is None else known.event

    async def list_events(
        self, name: str | None, since: int, before: tuple[int, str], limit: int
    ) -> list[Event]:
        events = [
            fact.event
            for fact in self._events.values()
            if name in (None, fact.event.name)
            and fact.event.received_at >= since
            and (fact.event.received_at, fact.event.id) < before
        ]
        return sorted(events, key=lambda event: (event.received_at, event.id))[: -limit - 1 : -1]

    async def origins(self) -> list[str]:
        return sorted(self._origins)

    async def newest(self) -> int:
        instants = [fact.event.received_at for fact in self._events.values()]
        for row in self._rows.values():
            instants += (row.run.began_at, row.run.ended_at or 0)
        return max(instants, default=0)

    async def is_sweepable(
        self, runs_before: int, events_before: int, responses_before: int
    ) -> bool:
        return (
            bool(self._ended_before(runs_before))
            or any(seen.at < runs_before for seen in self._requests)
            or any(fact.event.received_at < events_before for fact in self._events.values())
            or bool(self._undelivered_before(responses_before))
        )

    async def inbox(self, limit: int) -> list[InboxMessage]:
        return [self._inbox[number] for number in sorted(self._inbox)[:limit]]

    async def list_runs(
        self,
        statuses: Sequence[Status],
        function_id: str | None,
        limit: int,
        before: str | None = None,
        window: int = LISTED_AT_ONCE,
    ) -> RunPage:
        reach = [
            self._rows[run_id]
            for run_id in sorted(self._rows, reverse=True)
            if (before is None or run_id < before)
            and (Status.COMPLETED in statuses or self._rows[run_id].run.status in statuses)
        ][:window]
        lines = [
            row.summary()
            for row in reach
            if row.run.status in statuses and function_id in (None, row.run.function_id)
        ][:limit]
        if len(lines) == limit:
            return RunPage(lines, lines[-1].run.id)
        return RunPage(lines, reach[-1].run.id if len(reach) == window else None)

    async def version(self, run_id: str) -> str:
        row = self._rows.get(run_id)
        return "" if row is None else row.new.version

    async def last_progress(self, run_id: str) -> StreamRecord | None:
        said = [one for one in self._records(run_id) if one.kind is RecordKind.PROGRESS]
        return said[-1] if said else None

    async def attempts(self, run_id: str) -> list[AttemptRecord]:
        row = self._rows.get(run_id)
        return [] if row is None else list(row.attempts)

    async def requests(self, limit: int) -> list[RequestRecord]:
        return self._requests[::-1][:limit]

    async def close(self) -> None:
        self.close_now()

    def close_now(self) -> None:
        pass

    def _records(self, run_id: str) -> list[StreamRecord]:
        row = self._rows.get(run_id)
        return [] if row is None else row.records

    def _unfinished_children(self) -> list[Run]:
        runs = [row.run for row in self._rows.values()]
        return [run for run in runs if run.parent_run is not None and not run.status.is_final]

    def _match(self, row: Row, wait: Wait) -> Match:
        return Match(row.run, row.steps[wait.step.hash], wait)

    def _timers(self) -> list[tuple[Row, StepRecord]]:
        return [
            (row, step)
            for row in self._rows.values()
            if row.run.status in _IDLE
            for step in row.steps.values()
            if step.due is not None
        ]

    def _with_deadline(self) -> list[Run]:
        idle = (*_IDLE, Status.PARKED)
        runs = (row.run for row in self._rows.values())
        return [run for run in runs if run.status in idle and run.deadline is not None]


def _that_weigh(size: int, records: Iterable[StreamRecord]) -> list[StreamRecord]:
    found: list[StreamRecord] = []
    for record in records:
        if size <= 0:
            break
        found.append(record)
        size -= record.weight
    return found


def _instant(value: int | None) -> int:
    assert value is not None
    return value


class _Done:
    """A ticket of a store that writes at once."""

    __slots__ = ("_failure",)

    def __init__(self, failure: Exception | None) -> None:
        self._failure = failure

    async def wait(self) -> None:
        if self._failure is not None:
            raise self._failure

    def then(self, callback: Callable[[], None]) -> None:
        if self._failure is None:
            asyncio.get_running_loop().call_soon(callback)
