"""The invariants, checked after every write, and after everything that a client is told.

The checker sees each change as it is written and keeps books of its own about what must never
change again. It knows the programs, but none of the engine's rules: what it says follows from the
promises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from durable_endpoints.protocol.ops import StepKind, StepRecord, StepState
from durable_endpoints.protocol.streams import OUTSIDE, RecordKind, StreamRecord
from durable_endpoints_server.engine.facts import (
    Change,
    ChildCreated,
    EventReceived,
    EventUsed,
    Fact,
    RunChanged,
    RunCreated,
    RunEnded,
    StepResolved,
    StepWritten,
    Streamed,
    StreamSkipped,
    WaitOpened,
)
from durable_endpoints_server.engine.model import Event, Policy, Run, Status
from tests.simulation.model.disk import Disk, read
from tests.simulation.model.loop import Future
from tests.simulation.oracle import Oracle, tries_of
from tests.simulation.programs import (
    Program,
    Scenario,
    Sleep,
    Step,
    Wait,
    WaitAny,
    programs,
    walk,
)

_WAITS = (StepKind.WAIT, StepKind.WAIT_ANY)


class ViolationError(AssertionError):
    """A promise was broken."""


def label_of(run_id: str) -> str:
    """The label of a run: ids are labels with a number behind the request's."""
    root, _, below = run_id.partition("/")
    label = root.partition("#")[0]
    return f"{label}/{below}" if below else label


def _line(change: Change) -> str:
    """A change in a line of a trace."""
    return f"{change.run_id} at generation {change.generation}: " + ", ".join(
        type(fact).__name__ + _detail(fact) for fact in change.facts
    )


def _detail(fact: Fact) -> str:
    if isinstance(fact, StepWritten | StepResolved):
        step = fact.step
        shown = step.value if step.state is StepState.DONE else step.due
        return f"({step.id} {step.state.name.lower()} {step.attempt} {shown!r})"
    if isinstance(fact, RunChanged | RunEnded | RunCreated | ChildCreated):
        run = fact.run
        return f"({run.id} {run.status.label} {run.generation} {run.reason})"
    if isinstance(fact, EventReceived):
        return f"({fact.event.id} {fact.event.name} at {fact.event.received_at})"
    if isinstance(fact, Streamed):
        said = (f"{r.position}:{r.kind.name.lower()}:{r.step}" for r in fact.records)
        return f"({' '.join(said)})"
    return ""


class _Books:
    """What the checker remembers of one run."""

    def __init__(self, run: Run, program: Program) -> None:
        self.run = run
        self.program = program
        self.nodes = {name: n for n in walk(program.nodes) if (name := getattr(n, "name", ""))}
        self.final: dict[str, StepRecord] = {}
        self.opened: dict[str, StepRecord] = {}
        self.orders: set[int] = set()
        self.used: dict[str, str] = {}
        """Events that were used, and the steps that they resolved first."""
        self.timed_out: dict[str, int] = {}
        """Waits that ended without an event, and their deadlines."""
        self.ended: RunEnded | None = None
        self.tail = 0
        self.shown: dict[int, tuple[object, ...]] = {}
        """What readers have got, by position."""
        self.bodies: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.lost = 0
        """Executions in a row that ended otherwise than by themselves."""


class Checker:
    """The books of one history."""

    def __init__(self, scenario: Scenario, policy: Policy) -> None:
        self.oracle = Oracle(scenario)
        self.accepted = {label: Future() for label in self.oracle.labels}
        """Done once the run with the label is on disk, with its id."""
        self.parked: Callable[[str], None] = lambda run_id: None
        self.seen: Counter[str] = Counter()
        """Kinds of facts and states that occurred."""
        self.say: Callable[[str], None] = lambda text: None
        self._policy = policy
        self._programs = programs(scenario)
        self._books: dict[str, _Books] = {}
        self._keys: dict[str, str] = {}
        self._events: dict[Disk, dict[str, Event]] = {}
        self.keeps: Callable[[Disk, str], bool] = lambda disk, run_id: True
        """Whether a run is kept on a disk: another partition may have a stand-in of it."""

    # What is written

    def written(self, disk: Disk, change: Change, by_replaced: bool) -> None:
        """Look at a change that was written."""
        self.say(f"written: {_line(change)}")
        if by_replaced:
            raise ViolationError(f"a process that was replaced has changed {change.run_id}")
        for fact in change.facts:
            self.seen[type(fact).__name__] += 1
            look = _LOOKS.get(type(fact))
            if look is not None:
                look(self, disk, change, fact)

    def _created(self, disk: Disk, change: Change, fact: RunCreated | ChildCreated) -> None:
        run, new = fact.run, fact.new
        if not self.keeps(disk, run.id):
            return
        if run.id in self._books:
            if isinstance(fact, RunCreated):
                raise ViolationError(f"run {run.id} was created twice")
            return
        if new.key is not None:
            if new.key in self._keys:
                raise ViolationError(f"key {new.key} has two runs, {run.id} and another one")
            self._keys[new.key] = run.id
        label = label_of(run.id)
        program = self._programs[label]
        self._books[run.id] = _Books(run, program)
        deadline = program.max_runtime and run.began_at + program.max_runtime
        if run.deadline != deadline:
            raise ViolationError(f"run {run.id} ends at {run.deadline}, not at {deadline}")
        self.accepted[label].set(run.id)

    def _changed(self, disk: Disk, change: Change, fact: RunChanged | RunEnded) -> None:
        if not self.keeps(disk, fact.run.id):
            return
        books, after = self._books[fact.run.id], fact.run
        before = books.run
        self.seen[after.status.label] += 1
        if before.status.is_final:
            raise ViolationError(
                f"run {after.id} was {before.status.label}, and is now {after.status.label}"
            )
        if after.generation < before.generation:
            raise ViolationError(f"run {after.id} went back to generation {after.generation}")
        if after.status is Status.RUNNING and after.generation == before.generation:
            raise ViolationError(f"run {after.id} has two executions of one generation")
        if before.status is Status.PARKED and after.status is Status.READY:
            if after.reason != "retried":
                raise ViolationError(f"run {after.id} left the park, and nobody wanted that")
            books.lost = 0
        self._count_losses(books, before, after)
        books.run = after
        if after.status is Status.PARKED and before.status is not Status.PARKED:
            self.parked(after.id)
        if isinstance(fact, RunEnded):
            books.ended = fact
            if after.reason == "timed_out":
                assert after.deadline is not None
                if (after.ended_at or 0) < after.deadline:
                    raise ViolationError(f"run {after.id} timed out before its deadline")

    def _count_losses(self, books: _Books, before: Run, after: Run) -> None:
        """A run is parked when it has taken its process down too often, and no sooner."""
        if before.status is not Status.RUNNING:
            return
        most = self._policy.quarantine_after + self._policy.park_after
        is_parked = after.reason == "interrupted_too_often"
        counts = after.interruptions, after.lone_interruptions
        if is_parked or counts > (before.interruptions, before.lone_interruptions):
            books.lost += 1
        elif after.status is Status.WAITING:
            books.lost = 0
        if is_parked and books.lost < most:
            raise ViolationError(f"run {after.id} is parked after {books.lost} interruptions")
        if not is_parked and books.lost >= most:
            raise ViolationError(f"run {after.id} was interrupted {books.lost} times: {after}")

    def _step(self, disk: Disk, change: Change, fact: StepWritten | StepResolved) -> None:
        books, said = self._books[change.run_id], fact.step
        key = said.id.hash
        kept = self._row(disk, change.run_id).steps[key]
        known = books.final.get(key)
        if known is not None:
            if kept != known:
                raise ViolationError(f"step {key} of {change.run_id} was {known}, is now {kept}")
            if isinstance(fact, StepResolved):
                raise ViolationError(f"step {key} of {change.run_id} was resolved twice")
            return
        if said.state is StepState.RETRYING and said.due is not None:
            books.attempts[key] += 1
            self._check_backoff(said)
        self._check_outside(disk, change.run_id, fact)
        if not kept.is_final:
            self._check_opened(books, kept)
            books.opened.setdefault(key, kept)
            return
        if kept.state is StepState.FAILED or kept.kind is StepKind.RUN:
            books.attempts[key] += 1
        if kept.order in books.orders or kept.order == 0:
            raise ViolationError(f"step {key} of {change.run_id} is {kept.order}th, as another")
        books.orders.add(kept.order)
        books.final[key] = kept
        self._check_final(disk, change, books, kept)

    def _check_backoff(self, step: StepRecord) -> None:
        """It is tried again when the policy says, give or take the jitter, and no sooner."""
        least = 0.8 * self._policy.retry_base * 2 ** (step.attempt - 1)
        if (step.due or 0) - step.began_at < least:
            raise ViolationError(f"{step.id} failed {step.attempt} times, and is due in no time")

    def _check_outside(self, disk: Disk, run_id: str, fact: StepWritten | StepResolved) -> None:
        """What the handler's own code has streamed is permanent with the next thing it does."""
        step, stream = fact.step, self._row(disk, run_id).stream
        is_news = step.state is not StepState.RETRYING or step.due is not None
        is_own = isinstance(fact, StepWritten) and step.kind is not StepKind.HANDLER
        if is_own and is_news and stream is not None and OUTSIDE in stream.open:
            raise ViolationError(f"{step.id} of {run_id} is written, and what came before is not")

    def _check_opened(self, books: _Books, step: StepRecord) -> None:
        node = books.nodes.get(step.id.name)
        if step.state is StepState.PENDING:
            if isinstance(node, Sleep) and step.due != step.began_at + node.duration:
                raise ViolationError(f"sleep {step.id} from {step.began_at} ends at {step.due}")
            if isinstance(node, Wait | WaitAny) and step.due != step.began_at + node.timeout:
                raise ViolationError(f"wait {step.id} from {step.began_at} ends at {step.due}")

    def _check_final(self, disk: Disk, change: Change, books: _Books, step: StepRecord) -> None:
        key, opened = step.id.hash, books.opened.get(step.id.hash)
        ended_at = step.ended_at or 0
        if step.kind is StepKind.SLEEP:
            assert opened is not None
            assert opened.due is not None
            if ended_at < opened.due:
                raise ViolationError(f"sleep {step.id} ended {opened.due - ended_at} ms early")
        elif step.kind in _WAITS:
            assert opened is not None
            self._check_wait(self._events.get(disk, {}), change, books, step, opened)
        elif step.kind is StepKind.SIGNAL and step.value == b"null":
            assert opened is not None
            if ended_at < (opened.due or 0):
                raise ViolationError(f"signal {step.id} timed out early")
        elif step.kind is StepKind.INVOKE:
            self._check_invocation(disk, change.run_id, key, step)

    def _check_wait(
        self,
        events: Mapping[str, Event],
        change: Change,
        books: _Books,
        step: StepRecord,
        opened: StepRecord,
    ) -> None:
        key, deadline = step.id.hash, opened.due or 0
        used = [fact.event_id for fact in change.facts if isinstance(fact, EventUsed)]
        if step.value == b"null":
            if (step.ended_at or 0) < deadline:
                raise ViolationError(f"wait {key} of {change.run_id} timed out early")
            books.timed_out[key] = deadline
            for received in events.values():
                self._check_missed(books, key, deadline, received)
            return
        got = orjson.loads(step.value or b"null")
        got = got["event"] if step.kind is StepKind.WAIT_ANY else got
        event = events.get(got["id"])
        if event is None:
            raise ViolationError(f"wait {key} of {change.run_id} got {got}, which is not on disk")
        if event.id not in used:
            raise ViolationError(f"wait {key} of {change.run_id} got {event.id}, recorded {used}")
        if not self._suits(books, key, event) or event.received_at >= deadline:
            raise ViolationError(
                f"wait {key} of {change.run_id}, which ends at {deadline}, got {event}"
            )
        first = books.used.setdefault(event.id, key)
        if first != key and event.received_at < opened.began_at:
            raise ViolationError(
                f"event {event.id} resolved {first} and then {key} of {change.run_id}, which did "
                "not wait when it came"
            )

    def _suits(self, books: _Books, key: str, event: Event) -> bool:
        """Whether an event may end a wait of a run, by name, content and time of its begin."""
        node = books.nodes[key]
        if not isinstance(node, Wait | WaitAny) or event.received_at < books.run.began_at:
            return False
        names = (node.event,) if isinstance(node, Wait) else node.events
        return event.name in names and node.key in (None, orjson.loads(event.data)["key"])

    def _check_missed(self, books: _Books, key: str, deadline: int, event: Event) -> None:
        if (
            event.received_at < deadline
            and event.id not in books.used
            and self._suits(books, key, event)
        ):
            raise ViolationError(
                f"wait {key} of {books.run.id} timed out at {deadline}, though event {event.id} "
                f"came at {event.received_at}"
            )

    def _check_invocation(self, disk: Disk, run_id: str, key: str, step: StepRecord) -> None:
        child = self._books.get(f"{run_id}/{key}")
        if child is None or child.ended is None:
            raise ViolationError(f"{key} of {run_id} ended before the run that it invoked")
        is_done = child.run.status is Status.COMPLETED
        if (step.state is StepState.DONE) != is_done or (
            is_done and step.value != child.ended.response
        ):
            raise ViolationError(f"{key} of {run_id} is {step}; its child {child.ended}")

    def _wait_opened(self, disk: Disk, change: Change, fact: WaitOpened) -> None:
        if fact.step.hash in self._books[change.run_id].final:
            raise ViolationError(f"wait {fact.step} of {change.run_id} was opened after its end")

    def _received(self, disk: Disk, change: Change, fact: EventReceived) -> None:
        event = fact.event
        known = self._events.setdefault(disk, {}).setdefault(event.id, event)
        if known != event and not fact.one_of_many:
            raise ViolationError(f"event {event.id} was received twice")
        for books in self._books.values():
            for key, deadline in books.timed_out.items() if self.keeps(disk, books.run.id) else ():
                self._check_missed(books, key, deadline, known)

    def _streamed(self, disk: Disk, change: Change, fact: Streamed) -> None:
        books = self._books[change.run_id]
        for record in fact.records:
            if record.position != books.tail + 1:
                raise ViolationError(
                    f"position {record.position} of {change.run_id} follows {books.tail}"
                )
            books.tail = record.last
        if fact.stream.tail != books.tail:
            raise ViolationError(f"{change.run_id} counts to {fact.stream.tail}, not {books.tail}")

    def _skipped(self, disk: Disk, change: Change, fact: StreamSkipped) -> None:
        self._books[change.run_id].tail += fact.positions

    def _row(self, disk: Disk, run_id: str) -> Any:
        return disk.store._rows[run_id]

    # What executions do, and are told

    def body_begins(self, run_id: str, generation: int, name: str, before: Sequence[str]) -> None:
        """The body of a step is about to run. The results `before` have to be on disk."""
        books = self._books.get(run_id)
        if before and (books is None or not books.final.keys() >= set(before)):
            raise ViolationError(f"{name} of {run_id} began before {before} were on disk")
        if books is None:
            return
        books.bodies[name] += 1
        is_current = books.run.generation == generation
        if is_current and books.run.status is Status.RUNNING and name in books.final:
            raise ViolationError(f"the body of {name} of {run_id} began after its result was kept")

    def was_told(self, run_id: str, results: Sequence[str]) -> None:
        """An execution was told that these results, and its run, are on disk."""
        books = self._books.get(run_id)
        if books is None or not books.final.keys() >= set(results):
            raise ViolationError(f"{results} of {run_id} were acknowledged, and are not on disk")

    def answered(self, run_id: str, content: object) -> None:
        """A client has got the last byte of the response of a run."""
        books = self._books.get(run_id)
        if books is None or books.ended is None:
            raise ViolationError(f"a client has the response of {run_id}, and the engine does not")
        if content != (books.ended.response or books.run.status.label):
            raise ViolationError(f"a client got {content!r} of {run_id}: {books.ended}")

    def end_of(self, run_id: str) -> Run | None:
        """How a run has ended, if it has."""
        books = self._books.get(run_id)
        return books.run if books is not None and books.ended is not None else None

    def id_of_key(self, key: str) -> str | None:
        return self._keys.get(key)

    def read(self, run_id: str, records: Sequence[StreamRecord]) -> None:
        """A reader has got these."""
        books = self._books[run_id]
        for record in records:
            shown = books.shown.setdefault(record.position, tuple(record))
            if shown != tuple(record):
                raise ViolationError(f"position {record.position} of {run_id} changed")

    # Loss of power

    def power_was_lost(self, disk: Disk) -> None:
        """What was not synced may be gone; what was acknowledged is there."""
        for run_id, books in self._books.items():
            if not self.keeps(disk, run_id):
                continue
            row = disk.store._rows.get(run_id)
            if row is None:
                raise ViolationError(f"run {run_id} is gone")
            if any(row.steps.get(key) != step for key, step in books.final.items()):
                raise ViolationError(f"results of {run_id} are gone")
            books.tail = 0 if row.stream is None else row.stream.tail

    # At rest

    def check_end(self, disks: Sequence[Disk]) -> None:
        """Nothing goes on any more: everything has ended as the oracle says."""
        rows: dict[str, Any] = {}
        for disk in disks:
            for run_id, row in disk.store._rows.items():
                if self.keeps(disk, run_id):
                    rows[run_id] = row
                elif row.ended is None:
                    raise ViolationError(f"the stand-in of {run_id} has not ended")
        for run_id, books in self._books.items():
            label, run, row = label_of(run_id), books.run, rows[run_id]
            if books.ended is None or row.ended != books.ended:
                raise ViolationError(f"run {run_id} has not ended: {row.run}, {row.steps}")
            is_late = run.status is Status.FAILED and run.reason == "timed_out"
            end = "timed_out" if is_late else run.status.label
            answer = self._answer(books.ended)
            wrong = self.oracle.wrong_end(label, end, answer)
            wrong = wrong or self.oracle.wrong_stream(label, end, self._permanent(run_id, row))
            if wrong:
                raise ViolationError(wrong)
            self._check_bodies(books, end)
        for disk in disks:
            unsettled = read(disk.store.unsettled_events(1))
            if unsettled:
                raise ViolationError(f"event {unsettled[0].id} was never settled")

    def _answer(self, ended: RunEnded) -> object:
        if ended.response is None:
            return None
        answer = orjson.loads(ended.response)
        return answer["error"] if isinstance(answer, dict) else answer

    def _check_bodies(self, books: _Books, end: str) -> None:
        for name, node in books.nodes.items():
            if not isinstance(node, Step) or name not in books.final:
                continue
            tries = tries_of(node, books.program.retries)
            if books.attempts[name] != tries:
                raise ViolationError(
                    f"{books.attempts[name]} tries of {name} of {books.run.id} count, not {tries}"
                )

    def _permanent(self, run_id: str, row: Any) -> Mapping[str, str]:
        """The text of a log that is committed, as a reader makes it of the records."""
        open_: dict[str, list[tuple[int, str]]] = {}
        text: dict[str, str] = {OUTSIDE: ""}
        self.read(run_id, row.records)
        for record in row.records:
            if record.kind is RecordKind.DATA:
                chunks = [(record.position, orjson.loads(chunk)) for chunk in record.chunks()]
                open_.setdefault(record.step, []).extend(chunks)
            elif record.kind.is_end:
                chunks = open_.pop(record.step, [])
                if record.kind is RecordKind.COMMIT:
                    text[record.step] = text.get(record.step, "") + "".join(
                        chunk for position, chunk in chunks if position >= record.first
                    )
        if open_:
            raise ViolationError(f"chunks of {sorted(open_)} of {run_id} are neither")
        return {step: said for step, said in text.items() if said or step == OUTSIDE}


_LOOKS: dict[type[Fact], Callable[[Checker, Disk, Change, Any], None]] = {
    RunCreated: Checker._created,
    ChildCreated: Checker._created,
    RunChanged: Checker._changed,
    RunEnded: Checker._changed,
    StepWritten: Checker._step,
    StepResolved: Checker._step,
    WaitOpened: Checker._wait_opened,
    EventReceived: Checker._received,
    Streamed: Checker._streamed,
    StreamSkipped: Checker._skipped,
}
