"""What a store in memory keeps, and what each fact makes of it, if the fence of its change holds.

It is the shortest description of what the SQL of the other stores does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from durable_endpoints.protocol.ops import StepRecord
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.protocol.streams import StreamRecord
from durable_endpoints_server.engine.facts import (
    AttemptFailed,
    Change,
    ChildCreated,
    EventReceived,
    EventSettled,
    EventUsed,
    Fact,
    InboxTaken,
    OriginTrusted,
    RequestSeen,
    ResponseDelivered,
    RunChanged,
    RunCreated,
    RunEnded,
    StepResolved,
    StepWritten,
    Streamed,
    StreamSkipped,
    Sweep,
    WaitOpened,
)
from durable_endpoints_server.engine.model import Run, Stream, Wait
from durable_endpoints_server.store.base import (
    AttemptRecord,
    InboxMessage,
    RequestRecord,
    RunSummary,
)


class Row:
    """Everything that is kept of one run."""

    def __init__(self, run: Run, new: NewRun) -> None:
        self.run = run
        self.new = new
        self.request: bytes | None = new.request
        self.ended: RunEnded | None = None
        self.omitted = ""
        self.response: bytes | None = None
        self.steps: dict[str, StepRecord] = {}
        self.waits: dict[tuple[str, str], Wait] = {}
        self.attempts: list[AttemptRecord] = []
        self.used_events: set[str] = set()
        self.stream: Stream | None = None
        self.records: list[StreamRecord] = []

    def summary(self) -> RunSummary:
        due = [step.due for step in self.steps.values() if step.due is not None]
        code = self.ended.status_code if self.ended is not None else None
        return RunSummary(self.run, self.new.method, self.new.path, code, min(due, default=None))


class MemoryTables:
    """Rows of runs, keys, events and so on, in dictionaries."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._keys: dict[str, str] = {}
        self._events: dict[str, EventReceived] = {}
        self._requests: list[RequestRecord] = []
        self._inbox: dict[int, InboxMessage] = {}
        self._origins: set[str] = set()

    def apply(self, change: Change) -> bool:
        """Write `change`, or return False if its condition does not hold."""
        if not self._admits(change):
            return False
        for fact in change.facts:
            _APPLY[type(fact)](self, change.run_id, fact)
        return True

    def _admits(self, change: Change) -> bool:
        if change.generation is not None:
            row = self._rows.get(change.run_id)
            return row is not None and change.admits(row.run)
        for fact in change.facts:
            if isinstance(fact, RunCreated) and (
                fact.run.id in self._rows or (fact.new.key or "") in self._keys
            ):
                return False
            if (
                isinstance(fact, EventReceived)
                and not fact.one_of_many
                and fact.event.id in self._events
            ):
                return False
        return True

    def _run_created(self, run_id: str, fact: RunCreated) -> None:
        self._rows[run_id] = Row(fact.run, fact.new)
        if fact.new.key is not None:
            self._keys[fact.new.key] = run_id

    def _child_created(self, run_id: str, fact: ChildCreated) -> None:
        self._rows.setdefault(fact.run.id, Row(fact.run, fact.new))

    def _run_changed(self, run_id: str, fact: RunChanged) -> None:
        self._rows[run_id].run = fact.run

    def _run_ended(self, run_id: str, fact: RunEnded) -> None:
        row = self._rows[run_id]
        row.run, row.ended, row.response, row.omitted = fact.run, fact, fact.response, fact.omitted
        row.waits.clear()
        row.steps = {key: step._replace(due=None) for key, step in row.steps.items()}
        if fact.run.omit_request_body:
            row.request = None

    def _step_written(self, run_id: str, fact: StepWritten | StepResolved) -> None:
        steps, step = self._rows[run_id].steps, fact.step
        kept = steps.get(step.id.hash)
        if kept is None:
            steps[step.id.hash] = step
        elif not kept.is_final:
            steps[step.id.hash] = step._replace(id=kept.id, kind=kept.kind, began_at=kept.began_at)

    def _step_resolved(self, run_id: str, fact: StepResolved) -> None:
        self._step_written(run_id, fact)
        waits = self._rows[run_id].waits
        for key in [key for key in waits if key[0] == fact.step.id.hash]:
            del waits[key]

    def _streamed(self, run_id: str, fact: Streamed) -> None:
        row = self._rows[run_id]
        row.records += fact.records
        row.stream = fact.stream

    def _stream_skipped(self, run_id: str, fact: StreamSkipped) -> None:
        row = self._rows[run_id]
        stream = row.stream or Stream()
        row.stream = stream._replace(tail=stream.tail + fact.positions, is_wary=True)

    def _wait_opened(self, run_id: str, fact: WaitOpened) -> None:
        row = self._rows[run_id]
        kind = row.steps[fact.step.hash].kind
        wait = Wait(run_id, fact.step, kind, fact.alternative, fact.deadline)
        row.waits.setdefault((fact.step.hash, fact.alternative.label), wait)

    def _attempt_failed(self, run_id: str, fact: AttemptFailed) -> None:
        record = AttemptRecord(
            str(fact.step), fact.attempt, fact.began_at, fact.ended_at, fact.error
        )
        self._rows[run_id].attempts.append(record)

    def _event_received(self, run_id: str, fact: EventReceived) -> None:
        self._events.setdefault(fact.event.id, fact)

    def _event_used(self, run_id: str, fact: EventUsed) -> None:
        self._rows[run_id].used_events.add(fact.event_id)

    def _event_settled(self, run_id: str, fact: EventSettled) -> None:
        if fact.event_id in self._events:
            self._events[fact.event_id] = self._events[fact.event_id]._replace(settled=True)

    def _response_delivered(self, run_id: str, fact: ResponseDelivered) -> None:
        row = self._rows.get(fact.run_id)
        if row is not None and row.ended is not None and row.ended.until_delivered:
            row.response, row.omitted = None, "delivered"

    def _inbox_taken(self, run_id: str, fact: InboxTaken) -> None:
        self._inbox.pop(fact.id, None)

    def _request_seen(self, run_id: str, fact: RequestSeen) -> None:
        self._requests.append(RequestRecord(*fact))

    def _origin_trusted(self, run_id: str, fact: OriginTrusted) -> None:
        self._origins.add(fact.origin)

    def _sweep(self, run_id: str, fact: Sweep) -> None:
        for row in self._ended_before(fact.runs_before)[: fact.runs]:
            del self._rows[row.run.id]
            if row.new.key is not None:
                del self._keys[row.new.key]
        self._requests = [seen for seen in self._requests if seen.at >= fact.runs_before]
        for row in self._undelivered_before(fact.responses_before)[: fact.runs]:
            row.response, row.omitted = None, "delivered"
        for event in [e.event for e in self._events.values()]:
            if event.received_at < fact.events_before:
                del self._events[event.id]

    def _ended_before(self, instant: int) -> list[Row]:
        rows = [
            row
            for row in self._rows.values()
            if row.run.ended_at is not None and row.run.ended_at < instant
        ]
        return sorted(rows, key=lambda row: row.run.ended_at or 0)

    def _undelivered_before(self, instant: int) -> list[Row]:
        return [
            row
            for row in self._ended_before(instant)
            if row.ended is not None and row.ended.until_delivered and not row.omitted
        ]


_APPLY: dict[type[Fact], Callable[[MemoryTables, str, Any], None]] = {
    RunCreated: MemoryTables._run_created,
    ChildCreated: MemoryTables._child_created,
    RunChanged: MemoryTables._run_changed,
    RunEnded: MemoryTables._run_ended,
    StepWritten: MemoryTables._step_written,
    StepResolved: MemoryTables._step_resolved,
    Streamed: MemoryTables._streamed,
    StreamSkipped: MemoryTables._stream_skipped,
    WaitOpened: MemoryTables._wait_opened,
    AttemptFailed: MemoryTables._attempt_failed,
    EventReceived: MemoryTables._event_received,
    EventUsed: MemoryTables._event_used,
    EventSettled: MemoryTables._event_settled,
    ResponseDelivered: MemoryTables._response_delivered,
    InboxTaken: MemoryTables._inbox_taken,
    RequestSeen: MemoryTables._request_seen,
    OriginTrusted: MemoryTables._origin_trusted,
    Sweep: MemoryTables._sweep,
}
