"""Facts as rows of the `writes` view, and JSON documents of the reading views as values again.

The kinds and the letters are those of `sqlite_writes.sql`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson

from durable_endpoints.protocol.ops import Alternative, StepKind, StepRecord, StepState
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.protocol.streams import RecordKind, StreamRecord
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
from durable_endpoints_server.engine.model import Event, Match, Run, Status, Stream, Wait

WIDTH: Final = 23
_LETTERS: Final = WIDTH - 5

Cells = tuple[Any, ...]
_Rows = tuple[tuple[int, Cells], ...]


def rows_of(change: Change) -> list[Cells]:
    """One row per fact, in order, without the last cell: the change's place in its batch, which
    is not known yet."""
    facts, run_id, generation, states, _ = change
    rows: list[Cells] = []
    for fact in facts:
        for kind, cells in _ENCODERS[type(fact)](fact):
            rows.append((kind, run_id, generation, states, *cells, *_PADDING[len(cells)]))
    return rows


_PADDING: Final = [(None,) * (_LETTERS - used) for used in range(_LETTERS + 1)]


def _run_created(fact: RunCreated) -> _Rows:
    run, new = fact
    cells = (
        run.function_id,
        new.version,
        run.owner,
        run.lease_until,
        run.began_at,
        run.deadline,
        run.omit_request_body,
        new.retries,
        new.method,
        new.path,
        new.root_path,
        new.key,
        new.key_scope,
        new.fingerprint,
        new.labels,
        new.request,
        new.app,
    )
    return ((1, cells),)


def _child_created(fact: ChildCreated) -> _Rows:
    run, new = fact
    cells = (
        run.id,
        run.function_id,
        new.version,
        run.status,
        run.generation,
        run.began_at,
        run.deadline,
        run.ready_at,
        run.omit_request_body,
        new.retries,
        new.method,
        new.path,
        new.root_path,
        run.parent_step,
        run.depth,
        new.labels,
        new.request,
        new.app,
    )
    return ((18, cells),)


def _run_ended(fact: RunEnded) -> _Rows:
    run = fact.run
    cells = (
        run.status,
        run.ended_at,
        run.reason,
        run.steps,
        run.memo_bytes,
        run.last_order,
        fact.status_code,
        fact.omitted,
        fact.error,
        fact.until_delivered,
        run.omit_request_body,
        fact.response,
    )
    return ((2, cells),)


def _run_changed(fact: RunChanged) -> _Rows:
    run = fact.run
    cells = (
        run.status,
        run.generation,
        run.owner,
        run.lease_until,
        run.ready_at,
        run.reason,
        run.interruptions,
        run.lone_interruptions,
        run.steps,
        run.memo_bytes,
        run.last_order,
    )
    return ((3, cells),)


def _step(fact: StepWritten | StepResolved) -> _Rows:
    id, *fields = fact.step
    return ((4, (*id, *fields)),)


def _step_resolved(fact: StepResolved) -> _Rows:
    return (*_step(fact), (5, (fact.step.id.hash,)))


def _wait_opened(fact: WaitOpened) -> _Rows:
    wanted = fact.alternative
    path, text = wanted.pairs[0] if wanted.pairs else ("", "")
    cells = (
        fact.step.hash,
        wanted.label,
        wanted.event,
        path,
        text,
        orjson.dumps(wanted.pairs),
        wanted.expression,
        fact.deadline,
    )
    return ((6, cells),)


def _streamed(fact: Streamed) -> _Rows:
    stream = fact.stream
    state = (
        stream.tail,
        stream.size,
        orjson.dumps(stream.open),
        stream.outside,
        stream.outside_committed,
        stream.handed_over,
        stream.is_wary,
    )
    return (
        *((15, (*record[:-1], record.weight, record.data)) for record in fact.records),
        (16, state),
    )


def _attempt(fact: AttemptFailed) -> _Rows:
    return ((7, (str(fact.step), fact.attempt, fact.began_at, fact.ended_at, fact.error)),)


def _event(fact: EventReceived) -> _Rows:
    event, settled, one_of_many = fact
    return ((8, (*event[:5], settled, one_of_many, event.internal_id, event.extra)),)


_ENCODERS: Final[Mapping[type[Fact], Callable[[Any], _Rows]]] = {
    RunCreated: _run_created,
    ChildCreated: _child_created,
    RunEnded: _run_ended,
    RunChanged: _run_changed,
    StepWritten: _step,
    StepResolved: _step_resolved,
    WaitOpened: _wait_opened,
    AttemptFailed: _attempt,
    Streamed: _streamed,
    StreamSkipped: lambda fact: ((17, tuple(fact)),),
    EventReceived: _event,
    EventUsed: lambda fact: ((9, tuple(fact)),),
    EventSettled: lambda fact: ((10, tuple(fact)),),
    ResponseDelivered: lambda fact: ((11, tuple(fact)),),
    InboxTaken: lambda fact: ((12, tuple(fact)),),
    RequestSeen: lambda fact: ((13, tuple(fact)),),
    OriginTrusted: lambda fact: ((19, tuple(fact)),),
    Sweep: lambda fact: ((14, tuple(fact)),),
}


def read_run(doc: Sequence[Any]) -> Run:
    return Run(
        id=doc[0],
        function_id=doc[1],
        status=Status(doc[2]),
        generation=doc[3],
        owner=doc[4],
        lease_until=doc[5],
        began_at=doc[6],
        deadline=doc[7],
        ready_at=doc[8],
        ended_at=doc[9],
        reason=doc[10],
        interruptions=doc[11],
        lone_interruptions=doc[12],
        omit_request_body=bool(doc[13]),
        parent_run=doc[14],
        parent_step=doc[15],
        depth=doc[16],
        steps=doc[17],
        memo_bytes=doc[18],
        last_order=doc[19],
    )


def read_step(doc: Sequence[Any]) -> StepRecord:
    return StepRecord(
        id=StepId(doc[0], doc[1], doc[2]),
        kind=StepKind(doc[3]),
        state=StepState(doc[4]),
        attempt=doc[5],
        order=doc[6],
        value=None if doc[7] is None else doc[7].encode(),
        error=None if doc[8] is None else doc[8].encode(),
        due=doc[9],
        began_at=doc[10],
        ended_at=doc[11],
    )


def read_stream(doc: Sequence[Any]) -> Stream:
    tail, size, opened, outside, outside_committed, handed_over, is_wary = doc
    return Stream(
        tail, size, orjson.loads(opened), outside, outside_committed, handed_over, bool(is_wary)
    )


def read_record(doc: Sequence[Any]) -> StreamRecord:
    position, count, kind, step, attempt, first, data = doc
    return StreamRecord(
        position, count, RecordKind(kind), step, attempt, first, data.encode("utf-8")
    )


def read_match(doc: Sequence[Any]) -> Match:
    run, step = read_run(doc[0]), read_step(doc[1])
    pairs = tuple((path, text) for path, text in orjson.loads(doc[4]))
    alternative = Alternative(doc[2], doc[3], pairs, doc[5])
    return Match(run, step, Wait(run.id, step.id, step.kind, alternative, doc[6]))


def read_event(doc: Sequence[Any]) -> Event:
    id, name, data, ts, received_at, internal_id, extra = doc
    return Event(id, name, data.encode(), ts, received_at, internal_id, extra.encode())
