"""The engine's process: what it knows while it lives, and how it finds out after a crash.

Stands for `host.py`, `dispatcher.py`, `timers.py`, `recovery.py` and `waiters.py`. The dispatcher's
regular look into the store is left out on purpose: it would hide a wake-up that was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from durable_endpoints.protocol.errors import EngineError, LostRunError, StorageError
from durable_endpoints.protocol.ops import FROM_OUTSIDE, StepKind, StepRecord
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints_server.engine.facts import RunEnded
from durable_endpoints_server.engine.model import Policy, Run, Status, Stream
from durable_endpoints_server.engine.streams import with_stream
from durable_endpoints_server.engine.transitions import (
    Cancel,
    Claim,
    Decision,
    Expire,
    Interrupt,
    Release,
    Resolve,
    Retry,
    decide,
    in_quarantine,
    register,
    resolve_all,
)
from durable_endpoints_server.owner import is_same_boot
from durable_endpoints_server.store.base import (
    DueStep,
    Ended,
    Entry,
    RefusedError,
    with_exact_usage,
)
from tests.simulation.model.children import Children
from tests.simulation.model.disk import Disk, read
from tests.simulation.model.events import Events, Signals
from tests.simulation.model.live import Live
from tests.simulation.model.loop import MS, Clock, Future, Loop, Process, Task

_PAUSE = 10 * MS
_MANY = 1_000


class Surroundings(NamedTuple):
    """What an engine runs on."""

    loop: Loop
    clock: Clock
    disk: Disk
    policy: Policy


class Engine:
    """One incarnation."""

    def __init__(
        self,
        surroundings: Surroundings,
        process: Process,
        owner: str,
        execute: Callable[[Live, Entry], Future],
        is_here: Callable[[str], bool] = lambda run_id: True,
        cancel_elsewhere: Callable[[str, str], None] = lambda run_id, reason: None,
    ) -> None:
        """`execute` sends the request of a claimed run in again, and returns what is done once that
        execution has left the run, and that is on disk or refused. `is_here` says whether a run is
        kept here, and not in another partition."""
        self.loop, self.clock, disk, self.policy = surroundings
        self.disk = disk.open(process)
        self.process = process
        self.owner = owner
        self.is_draining = False
        self.has_taken_over = False
        """Whether every run that an earlier process executed is given to others."""
        self.attached_at = self.clock.now()
        self.live: dict[str, Live] = {}
        self.is_here = is_here
        self._cancel_elsewhere = cancel_elsewhere
        self.events = Events(self)
        self.signals = Signals(self)
        self.children = Children(self)
        self.timers = Timers(self)
        self.recovery = Recovery(self)
        self.dispatcher = Dispatcher(self, execute)
        self._waiting: dict[str, list[Future]] = {}

    def spawn(self, task: Task) -> None:
        self.loop.spawn(self.process, task)

    def start(self) -> None:
        self.spawn(self._start())

    def _start(self) -> Task:
        yield from self.recovery.interrupt_lost_runs()
        self.has_taken_over = True
        self.dispatcher.fetch()
        self.spawn(self.timers.serve())
        self.recovery.settle_soon()

    def stale(self) -> int:
        """How long a read's answer is on its way: what it says may be out of date then."""
        return self.loop.latency(MS)

    # Runs

    def register(self, new: NewRun) -> Live:
        return self.adopt(register(new, self.owner, None, self.clock.now()), (), None)

    def adopt(self, decision: Decision, memo: Sequence[StepRecord], stream: Stream | None) -> Live:
        live = Live(self, decision, memo, stream)
        self.live[live.id] = live
        return live

    def forget(self, live: Live) -> None:
        if self.live.get(live.id) is live:
            del self.live[live.id]
        self.dispatcher.nudge()

    def announce(self, run: Run, ended: RunEnded | None, due: int | None) -> None:
        """A change of a run is on disk: tell whoever has to act on it."""
        if ended is not None and run.parent_run is not None:
            self.children.ended(run)
        if run.status is Status.READY:
            self.dispatcher.wake(run)
        elif run.status is Status.WAITING:
            instants = [instant for instant in (due, run.deadline) if instant is not None]
            if instants:
                self.timers.arm(min(instants))
        elif run.status is Status.PARKED and run.deadline is not None:
            self.timers.arm(run.deadline)
        if run.status is Status.PARKED or ended is not None:
            for waiter in self._waiting.pop(run.id, ()):
                waiter.set()

    def wait(self, run_id: str) -> Task:
        """Return how the run stands at its end, or when it is parked; None for an unknown one."""
        while True:
            told = Future()
            self._waiting.setdefault(run_id, []).append(told)
            ended: Ended | None = read(self.disk.store.ended(run_id))
            yield self.stale()
            if ended is None or ended.run.status.is_final or ended.run.status is Status.PARKED:
                return ended
            yield told

    def catch_up(self) -> Task:
        """Everything received until now has ended the waits that it ends."""
        yield from self.events.catch_up()
        yield from self.signals.catch_up()

    def cancel(self, run_id: str, reason: str) -> Task:
        """End a run without a result, and then those that it has invoked. False if it has ended
        already, or is unknown."""
        if not self.is_here(run_id):
            self._cancel_elsewhere(run_id, reason)
            yield 100 * _PAUSE
            return True
        is_ended = yield from self._command(run_id, Cancel(reason))
        if is_ended:
            yield from self.children.end(run_id)
        return is_ended

    def retry(self, run_id: str) -> Task:
        """Give a parked run another chance."""
        return (yield from self._command(run_id, Retry()))

    def _command(self, run_id: str, command: Cancel | Retry) -> Task:
        looks = 0
        while True:
            live = self.live.get(run_id)
            if live is not None and isinstance(command, Cancel):
                try:
                    yield from live.stop(command)
                except LostRunError:
                    yield _PAUSE
                    continue
                return True
            run = read(self.disk.store.run(run_id))
            yield self.stale()
            if run is None:
                return False
            if run.status is Status.RUNNING and isinstance(command, Cancel) and looks < 50:
                looks += 1
                yield _PAUSE
                continue
            try:
                if (yield from self.command_idle(run, command)):
                    return True
            except LostRunError:
                return False

    def command_idle(self, run: Run, command: Cancel | Retry | Expire) -> Task:
        """Let `command` happen to a run that nobody executes. False if it changed meanwhile."""
        decision = decide(run, command, self.clock.now(), self.policy)
        change = decision.change
        if decision.run.status.is_final:
            stream = read(self.disk.store.stream(run.id))
            yield self.stale()
            if stream is not None:
                change, _ = with_stream(change, stream)
        try:
            yield self.disk.submit(change)
        except RefusedError:
            return False
        fact = decision.change.facts[0]
        self.announce(decision.run, fact if isinstance(fact, RunEnded) else None, None)
        if isinstance(fact, RunEnded):
            self.children.abandoned(run.id)
        return True


class Dispatcher:
    """Claims runs that are ready; those in quarantine with nothing beside them."""

    def __init__(self, engine: Engine, send_in: Callable[[Live, Entry], Future]) -> None:
        self._engine = engine
        self._send_in = send_in
        self._queued: set[str] = set()
        self._queue: list[str] = []
        self._quarantine: list[str] = []
        self._running = 0
        self._is_alone = False

    def fetch(self) -> None:
        """Look for ready runs in the store: after a start, and when there is a new place."""
        for run in read(self._engine.disk.store.in_status(Status.READY, _MANY)):
            if run.id not in self._engine.live:
                self.wake(run)

    def wake(self, run: Run) -> None:
        if run.id in self._queued or not self._engine.is_here(run.id):
            return
        self._queued.add(run.id)
        is_suspect = in_quarantine(run, self._engine.policy)
        (self._quarantine if is_suspect else self._queue).append(run.id)
        self.nudge()

    def nudge(self) -> None:
        engine = self._engine
        if engine.is_draining:
            return
        while self._queue and not self._is_alone:
            self._running += 1
            engine.spawn(self._execute(self._queue.pop(0)))
        if self._quarantine and not self._queue and not self._is_alone:
            self._is_alone = True
            engine.spawn(self._execute_alone(self._quarantine.pop(0)))

    def _execute_alone(self, run_id: str) -> Task:
        for _ in range(1_200):
            if not self._engine.live and not self._running:
                break
            yield 50 * MS
        self._running += 1
        yield from self._execute(run_id)
        self._is_alone = False
        self.nudge()

    def _execute(self, run_id: str) -> Task:
        engine = self._engine
        self._queued.discard(run_id)
        try:
            while True:
                entry = read(engine.disk.store.entry(run_id))
                yield engine.stale()
                if entry is None or engine.is_draining or run_id in engine.live:
                    break
                if entry.run.status is not Status.READY:
                    break
                claim = Claim(engine.owner, None)
                decision = decide(entry.run, claim, engine.clock.now(), engine.policy)
                live = engine.adopt(decision, entry.memo, entry.stream)
                if (entry.run.ready_at or 0) <= engine.attached_at:
                    yield from live.written()
                yield self._send_in(live, entry)
                if not live.was_refused:
                    break
        except EngineError:
            engine.recovery.rescue_soon(run_id)
        self._running -= 1
        self.nudge()


class Timers:
    """Sleeps, retries, timeouts and deadlines of runs that nobody executes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._next: int | None = None
        self._bell = Future()

    def arm(self, due: int) -> None:
        """Something will be due at `due`."""
        if self._next is None or due < self._next:
            self._bell.set()

    def serve(self) -> Task:
        engine = self._engine
        while True:
            self._bell = bell = Future()
            self._next = None
            due = yield from self._fire_what_is_due()
            alarm = 0
            if due is not None:
                alarm = engine.clock.call_at(engine.process, due, bell.set)
            self._next = due
            yield bell
            engine.clock.cancel(alarm)

    def _fire_what_is_due(self) -> Task:
        engine = self._engine
        store = engine.disk.store
        try:
            while True:
                now = engine.clock.elapsed()
                expired = read(store.due_deadlines(now, _MANY))
                yield engine.stale()
                for run in expired:
                    yield from engine.command_idle(run, Expire())
                due = read(store.due_steps(now, _MANY))
                yield engine.stale()
                others = [one for one in due if one.step.kind not in FROM_OUTSIDE]
                if len(others) < len(due):
                    yield from self._resolve(others)
                    # What was received before the deadline beats the timeout.
                    yield from engine.catch_up()
                    due = read(store.due_steps(now, _MANY))
                    yield engine.stale()
                yield from self._resolve(due)
                if not expired and not due:
                    return read(store.next_due())
        except StorageError:
            return engine.clock.now() + 1_000

    def _resolve(self, due: Sequence[DueStep]) -> Task:
        engine = self._engine
        kept = yield from self._look_back(due)
        now = engine.clock.now()
        runs = {run.id: run for run, _ in due}
        resolutions: dict[str, list[Resolve]] = {}
        for run, step in due:
            resolution = kept.get((run.id, step.id.hash), Resolve(step))
            resolutions.setdefault(run.id, []).append(resolution)
        written: list[tuple[Run, Future]] = []
        for run_id, all_of_it in resolutions.items():
            after, change = resolve_all(runs[run_id], all_of_it, now, engine.policy)
            written.append((after, engine.disk.submit(change)))
        for after, ticket in written:
            try:
                yield ticket
            except RefusedError:
                continue
            engine.announce(after, None, None)

    def _look_back(self, due: Sequence[DueStep]) -> Task:
        """What waits get that time out, of events that came before them."""
        found: dict[tuple[str, str], Resolve] = {}
        used: dict[str, set[str]] = {}
        for run, step in due:
            if run.status is Status.READY and step.kind in (StepKind.WAIT, StepKind.WAIT_ANY):
                taken = used.setdefault(run.id, set())
                kept = yield from self._engine.events.kept_for(run, step, taken.__contains__)
                if kept is not None:
                    found[run.id, step.id.hash] = Resolve(step, *kept)
                    taken.add(kept[1])
        return found


class Recovery:
    """What an earlier process, or a failed write, left behind goes on."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stranded: set[str] = set()
        self._asked = self._settled = 0
        self._is_at_work = False
        self.is_failing = False

    def interrupt_lost_runs(self) -> Task:
        """Make every run whose execution is gone ready again, or park it."""
        engine = self._engine
        while True:
            running = read(engine.disk.store.in_status(Status.RUNNING, _MANY))
            lost = [run for run in running if run.id not in engine.live]
            try:
                yield from self.give_up([(run, self._loss(run, len(lost) == 1)) for run in lost])
                return
            except StorageError:
                yield 200 * MS  # the application does not start; somebody starts it again

    def _loss(self, run: Run, is_alone: bool) -> Interrupt:
        return Interrupt(is_alone, rebooted=not is_same_boot(run.owner, self._engine.owner))

    def give_up(self, lost: Sequence[tuple[Run, Interrupt | Release]]) -> Task:
        """Give runs that nobody executes any more to new executions."""
        engine = self._engine
        written: list[tuple[Run, Future]] = []
        for run, loss in lost:
            decision = decide(run, loss, engine.clock.now(), engine.policy)
            written.append((decision.run, engine.disk.submit(decision.change)))
        for run, ticket in written:
            try:
                yield ticket
            except RefusedError:
                continue
            engine.announce(run, None, None)

    def rescue_soon(self, run_id: str) -> None:
        """The execution of a run stopped because the store failed: release it once it works."""
        self._stranded.add(run_id)
        self._ring()

    def will_rescue(self, run_id: str) -> bool:
        return run_id in self._stranded

    @property
    def is_behind(self) -> bool:
        return self._settled < self._asked

    def settle_soon(self) -> None:
        """There may be events that are not matched, and runs that do not know of other's ends."""
        self._asked += 1
        self._ring()

    def _ring(self) -> None:
        if not self._is_at_work:
            self._is_at_work = True
            self._engine.spawn(self._serve())

    def _serve(self) -> Task:
        if self.is_behind:
            yield from self._try_again()
        pause = 200 * MS
        while self._stranded or self.is_behind:
            yield pause
            pause = min(2 * pause, 10_000 * MS)
            yield from self._try_again()
        self._is_at_work = False

    def _try_again(self) -> Task:
        self.is_failing = False
        try:
            for run_id in sorted(self._stranded):
                yield from self._rescue(run_id)
                self._stranded.discard(run_id)
            asked = self._asked
            if self.is_behind:
                yield from self._engine.events.settle_all()
                yield from self._engine.children.settle_all()
                self._settled = asked
        except EngineError:
            self.is_failing = True

    def _rescue(self, run_id: str) -> Task:
        engine = self._engine
        entry = read(engine.disk.store.entry(run_id))
        yield engine.stale()
        if entry is None or run_id in engine.live:
            return
        if entry.run.status is Status.READY:
            engine.announce(entry.run, None, None)
        if entry.run.status is not Status.RUNNING:
            return
        try:
            release = Release("interrupted")
            decision = decide(
                with_exact_usage(entry.run, entry.memo), release, engine.clock.now(), engine.policy
            )
            yield engine.disk.submit(decision.change)
        except (RefusedError, LostRunError):
            return
        engine.announce(decision.run, None, None)
