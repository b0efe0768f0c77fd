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
from durable_endpoints.protocol.streams import StreamRecord
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
from durable_endpoints_server.engine.model import Event, Policy, Run, Status, Stream
from durable_endpoints_server.owner import is_same_boot
from tests.simulation.model.books import (
    Books,
    Loss,
    ViolationError,
    check_ended,
    check_new,
    check_run,
    label_of,
)
from tests.simulation.model.details import stamp_of
from tests.simulation.model.disk import Disk, read
from tests.simulation.model.loop import Future
from tests.simulation.model.steps import (
    check_again,
    check_end,
    check_failure,
    check_kind,
    check_opened,
)
from tests.simulation.model.streams import View, check_log, text_of
from tests.simulation.model.telling import told_change
from tests.simulation.model.waits import check_missed, check_wait
from tests.simulation.oracle import Oracle, tries_of
from tests.simulation.programs import (
    Scenario,
    Send,
    Step,
    programs,
)

_WAITS = (StepKind.WAIT, StepKind.WAIT_ANY)


class Checker:
    """The books of one history."""

    def __init__(self, scenario: Scenario, policy: Policy) -> None:
        self.oracle = Oracle(scenario)
        self.accepted = {label: Future() for label in self.oracle.labels}
        """Done once the run with the label is on disk, with its id."""
        self.parked: Callable[[str], None] = lambda run_id: None
        self.seen: Counter[str] = Counter()
        """Kinds of facts and states that occurred."""
        self._policy = policy
        self._programs = programs(scenario)
        self._books: dict[str, Books] = {}
        self._keys: dict[str, str] = {}
        self._events: dict[Disk, dict[str, Event]] = {}
        self._serving: dict[Disk, str] = {}
        """The processes, by their names in leases."""
        self._failed: dict[Disk, int] = {}
        """How many batches had failed when they were started."""
        self._requested: dict[str, int] = {}
        self.keeps: Callable[[Disk, str], bool] = lambda disk, run_id: True
        """Whether a run is kept on a disk: another partition may have a stand-in of it."""

    # What is written

    def written(self, disk: Disk, change: Change, by_replaced: bool) -> None:
        """Look at a change that was written."""
        if disk.loop.trace is not None:
            disk.loop.say(f"written: {told_change(change)}")
        if by_replaced:
            raise ViolationError(f"a process that was replaced has changed {change.run_id}")
        books = self._books.get(change.run_id)
        if books is not None and self.keeps(disk, change.run_id):
            stream = self._row(disk, change.run_id).stream
            if stream is not None:
                check_log(books, change, stream)
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
        self._books[run.id] = Books(run, program)
        check_new(fact, program, self._serving[disk])
        if run.began_at != self._requested.get(run.id, run.began_at):
            raise ViolationError(f"run {run.id} began at {run.began_at}, and not when it did")
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
        has_left_park = before.status is Status.PARKED and after.status is Status.READY
        if has_left_park and after.reason != "retried":
            raise ViolationError(f"run {after.id} left the park, and nobody wanted that")
        self._check_late(disk, books, f"the end of run {after.id}", after.deadline)
        if before.status is Status.PARKED:
            books.parked_until = disk.clock.now()
        row = self._row(disk, after.id)
        if books.loss is not None and disk.failed > self._failed[disk]:
            books.loss = books.loss._replace(
                alone=None
            )  # those that are lost were looked for again
        steps = list(row.steps.values())
        check_run(books, change, after, steps, self._serving[disk], self._policy)
        books.run, books.loss = after, None
        if after.status is Status.PARKED and before.status is not Status.PARKED:
            self.parked(after.id)
        if isinstance(fact, RunEnded):
            books.ended = fact
            check_ended(after.id, fact, row.request)
            if row.waits or any(step.due is not None for step in steps):
                raise ViolationError(f"run {after.id} has ended, and waits for {steps}")
            if after.reason == "timed_out":
                assert after.deadline is not None
                if (after.ended_at or 0) < after.deadline:
                    raise ViolationError(f"run {after.id} timed out before its deadline")

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
        now = disk.clock.now()
        check_kind(books, kept)
        has_failed = said.state is StepState.FAILED
        if said.state is StepState.RETRYING and said.due is not None:
            has_failed = True
        elif not said.is_final and key in books.opened:
            self._check_late(disk, books, f"{kept.id} of {change.run_id}", books.due.get(key))
            check_again(books, kept, now)
        if has_failed or (kept.kind is StepKind.RUN and kept.is_final):
            books.tries[key] += 1
        if has_failed:
            check_failure(books, change, said, self._policy)
        if kept.began_at != books.began.setdefault(key, said.began_at):
            raise ViolationError(f"{kept.id} of {change.run_id} began anew: {kept}")
        if not kept.is_final:
            if kept.state is StepState.PENDING:
                check_opened(books, kept, now)
            books.opened.setdefault(key, kept)
            return
        check_end(books, said, kept)
        if kept.order in books.orders or kept.order == 0:
            raise ViolationError(f"step {key} of {change.run_id} is {kept.order}th, as another")
        books.orders.add(kept.order)
        books.final[key] = kept
        self._check_final(disk, change, books, kept)

    def _check_late(self, disk: Disk, books: Books, what: str, due: int | None) -> None:
        if due is not None and disk.is_late(max(due, books.parked_until)):
            raise ViolationError(f"{what} was due at {due}, and it is {disk.clock.now()}")

    def _check_final(self, disk: Disk, change: Change, books: Books, step: StepRecord) -> None:
        key, opened = step.id.hash, books.opened.get(step.id.hash)
        if any(waiting == key for waiting, _ in self._row(disk, change.run_id).waits):
            raise ViolationError(f"{key} of {change.run_id} has ended, and still waits")
        if opened is not None and step.value == b"null":
            self._check_late(disk, books, f"{key} of {change.run_id}", opened.due)
        ended_at = step.ended_at or 0
        if step.kind is StepKind.SLEEP:
            assert opened is not None
            assert opened.due is not None
            if ended_at < opened.due:
                raise ViolationError(f"sleep {step.id} ended {opened.due - ended_at} ms early")
        elif step.kind in _WAITS:
            assert opened is not None
            check_wait(books, change, step, opened, self._events.get(disk, {}))
        elif step.kind is StepKind.SIGNAL and step.value == b"null":
            assert opened is not None
            if ended_at < (opened.due or 0):
                raise ViolationError(f"signal {step.id} timed out early")
        elif step.kind is StepKind.INVOKE:
            self._check_invocation(disk, change.run_id, key, step)

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
        books, key = self._books[change.run_id], fact.step.hash
        if key in books.final:
            raise ViolationError(f"wait {fact.step} of {change.run_id} was opened after its end")
        wait = self._row(disk, change.run_id).waits[key, fact.alternative.label]
        if wait.deadline != books.opened[key].due or wait.alternative != fact.alternative:
            raise ViolationError(f"{change.run_id} waits for {wait}, and it is {fact}")

    def _received(self, disk: Disk, change: Change, fact: EventReceived) -> None:
        event = fact.event
        self._check_sent(change, event)
        known = self._events.setdefault(disk, {}).setdefault(event.id, event)
        if known != event and not fact.one_of_many:
            raise ViolationError(f"event {event.id} was received twice")
        for books in self._books.values():
            for key, deadline in books.timed_out.items() if self.keeps(disk, books.run.id) else ():
                check_missed(books, key, deadline, known)

    def _check_sent(self, change: Change, event: Event) -> None:
        """An event that a step has sent says when that was, or what the sender said."""
        if not change.run_id:
            return
        books, name = self._books[change.run_id], event.id.rpartition(":")[2]
        send, step = books.nodes[name], books.final[name]
        assert isinstance(send, Send)
        stamp = stamp_of(send)
        if event.received_at != step.ended_at or event.ts != (stamp or step.ended_at):
            raise ViolationError(f"{name} of {change.run_id} has sent {event} at {step.ended_at}")

    def _used(self, disk: Disk, change: Change, fact: EventUsed) -> None:
        if fact.event_id not in self._events.get(disk, {}):
            raise ViolationError(f"{change.run_id} has used {fact.event_id}, which is not on disk")

    def _streamed(self, disk: Disk, change: Change, fact: Streamed) -> None:
        books = self._books[change.run_id]
        for record in fact.records:
            if record.position != books.tail + 1:
                raise ViolationError(
                    f"position {record.position} of {change.run_id} follows {books.tail}"
                )
            if record.position <= books.highest:
                raise ViolationError(
                    f"position {record.position} of {change.run_id} is used again, and readers may "
                    "have what was there before the loss of power"
                )
            books.tail = books.highest = record.last
        if fact.stream.tail != books.tail:
            raise ViolationError(f"{change.run_id} counts to {fact.stream.tail}, not {books.tail}")

    def _skipped(self, disk: Disk, change: Change, fact: StreamSkipped) -> None:
        self._books[change.run_id].tail += fact.positions

    def _row(self, disk: Disk, run_id: str) -> Any:
        return disk.store._rows[run_id]

    # What processes do, and executions are told

    def launched(self, disk: Disk, owner: str, went_back: bool) -> None:
        """A process has been started. Whatever an earlier one executed has lost it. If the clock
        went back with the start, what comes now may seem to be older than what has timed out."""
        self._serving[disk], self._failed[disk] = owner, disk.failed
        kept = [books for books in self._books.values() if self.keeps(disk, books.run.id)]
        running = [books for books in kept if books.run.status is Status.RUNNING]
        if went_back:
            for books in kept:
                books.timed_out.clear()
        for books in running:
            rebooted = not is_same_boot(books.run.owner, owner)
            books.loss = Loss(len(running) == 1, rebooted)

    def requested(self, run_id: str, began_at: int) -> None:
        """A request has come, and its run is about to be registered."""
        self._requested[run_id] = began_at

    def body_begins(self, run_id: str, generation: int, name: str, before: Sequence[str]) -> None:
        """The body of a step is about to run. The results `before` have to be on disk."""
        books = self._books.get(run_id)
        if before and (books is None or not books.final.keys() >= set(before)):
            raise ViolationError(f"{name} of {run_id} began before {before} were on disk")
        if books is None:
            return
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

    def unfinished(self) -> str:
        """The runs that have not ended, and what they wait for."""
        return ", ".join(
            f"{run_id} is {books.run.status.label}, and waits for "
            f"{sorted(books.opened.keys() - books.final.keys())}"
            for run_id, books in self._books.items()
            if books.ended is None
        )

    def read(self, run_id: str, records: Sequence[StreamRecord]) -> None:
        """A reader has got these."""
        books = self._books[run_id]
        for record in records:
            shown = books.shown.setdefault(record.position, tuple(record))
            if shown != tuple(record):
                raise ViolationError(f"position {record.position} of {run_id} changed")

    def has_read(self, run_id: str, view: View) -> None:
        """A reader has read a stream to its end."""
        if view.open:
            raise ViolationError(f"a reader of {run_id} has {view.open}, which is neither")
        self._check_text(run_id, view.permanent)

    def _check_text(self, run_id: str, text: Mapping[str, str]) -> None:
        wrong = self.oracle.wrong_stream(label_of(run_id), _end_of(self._books[run_id].run), text)
        if wrong:
            raise ViolationError(wrong)

    def claimed(self, run_id: str, memo: Sequence[StepRecord]) -> None:
        """An execution has got what is remembered of a run: in the order of completion."""
        orders = [step.order for step in memo if step.is_final]
        if orders != sorted(orders):
            raise ViolationError(f"run {run_id} goes on with steps that ended as {orders}")

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
            stream = Stream() if row.stream is None else row.stream
            books.tail, books.handed_over = stream.tail, stream.handed_over
            books.ledger.follow(stream)

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
            answer, end = self._answer(books.ended), _end_of(run)
            wrong = self.oracle.wrong_end(label, end, answer)
            if wrong:
                raise ViolationError(wrong)
            self.read(run_id, row.records)
            self._check_text(run_id, text_of(row.records))
            self._check_bodies(books, end)
            told = [
                (str(f.step), f.attempt, f.began_at, f.ended_at, f.error) for f in books.failures
            ]
            if told != [tuple(attempt) for attempt in row.attempts]:
                raise ViolationError(f"the tries of {run_id} that failed: {row.attempts}, {told}")
        for disk in disks:
            unsettled = read(disk.store.unsettled_events(1))
            if unsettled:
                raise ViolationError(f"event {unsettled[0].id} was never settled")

    def _answer(self, ended: RunEnded) -> object:
        if ended.response is None:
            return None
        answer = orjson.loads(ended.response)
        return answer["error"] if isinstance(answer, dict) else answer

    def _check_bodies(self, books: Books, end: str) -> None:
        for name, node in books.nodes.items():
            if not isinstance(node, Step) or name not in books.final:
                continue
            tries = tries_of(node, books.program.retries)
            if books.tries[name] != tries:
                raise ViolationError(
                    f"{books.tries[name]} tries of {name} of {books.run.id} count, not {tries}"
                )


def _end_of(run: Run) -> str:
    """How a run has ended, as the oracle says it."""
    is_late = run.status is Status.FAILED and run.reason == "timed_out"
    return "timed_out" if is_late else run.status.label


_LOOKS: dict[type[Fact], Callable[[Checker, Disk, Change, Any], None]] = {
    RunCreated: Checker._created,
    ChildCreated: Checker._created,
    RunChanged: Checker._changed,
    RunEnded: Checker._changed,
    StepWritten: Checker._step,
    StepResolved: Checker._step,
    WaitOpened: Checker._wait_opened,
    EventReceived: Checker._received,
    EventUsed: Checker._used,
    Streamed: Checker._streamed,
    StreamSkipped: Checker._skipped,
}
