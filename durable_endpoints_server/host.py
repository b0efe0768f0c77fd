"""The host: the services of one engine in one process, put together, started and stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from durable_endpoints.protocol.errors import EngineError, LostRunError
from durable_endpoints.protocol.ops import StepRecord
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.protocol.streams import StreamRecord
from durable_endpoints_server.children import Children
from durable_endpoints_server.clock import Clock, SystemClock
from durable_endpoints_server.dispatcher import Dispatcher
from durable_endpoints_server.engine.facts import (
    Change,
    RequestSeen,
    ResponseDelivered,
    RunEnded,
    states,
)
from durable_endpoints_server.engine.model import Policy, Run, Status, Stream
from durable_endpoints_server.engine.streams import with_stream
from durable_endpoints_server.engine.transitions import (
    Cancel,
    Decision,
    Expire,
    Retry,
    decide,
    register,
)
from durable_endpoints_server.events import EventService
from durable_endpoints_server.inbox import Inbox
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.recovery import Recovery
from durable_endpoints_server.retention import Sweeper
from durable_endpoints_server.signals import Signals
from durable_endpoints_server.store.base import Ended, Entry, Store, is_written, with_exact_usage
from durable_endpoints_server.streams import Streams
from durable_endpoints_server.tasks import TaskSet, on_loop
from durable_endpoints_server.timers import Timers
from durable_endpoints_server.waiters import Waiters

logger = logging.getLogger("durable_endpoints")

T = TypeVar("T")

_PAUSE = 0.01
"""Seconds before a run that was just being changed is looked at again."""
_LOOKS = 50
"""How often that is, of one that nobody in this process executes though the store says so."""
_RESTART = 1.0
"""Seconds before a service that failed is started again."""


@dataclass(frozen=True)
class HostOptions:
    """How an engine is run. Times in seconds."""

    owner: str
    """The name of this process in leases: unique for its lifetime."""
    policy: Policy = field(default_factory=Policy)
    max_executions: int = 100
    """Runs that are re-entered at once, at the most."""
    executes_runs: bool = True
    """Whether handlers run in this process, so that one of them may end it."""
    inbox_interval: float = 0.2
    sweep_interval: float = 60.0


class Host:
    """One engine in one process.

    Its services run on one event loop at a time; when that loop is gone, `attach` starts them on
    another one. What it holds in memory is only what is being executed.
    """

    def __init__(self, store: Store, options: HostOptions, clock: Clock | None = None) -> None:
        self.store = store
        self.clock = clock if clock is not None else SystemClock()
        self.policy = options.policy
        self.owner = options.owner
        self.executes_runs = options.executes_runs
        self.is_executed_elsewhere: Callable[[Run], bool] = lambda run: False
        """Whether a run that is RUNNING is executed outside this process, and so not lost when this
        process, or the one before it, ends. Set before `attach`."""
        self.tasks = TaskSet()
        self.live: dict[str, LiveRun] = {}
        self.draining = False
        self.attached_at = 0
        """When these services started: a run that was ready before may have ended a process."""
        self.waiters = Waiters(store, self.clock)
        self.streams = Streams(store)
        self.events = EventService(self)
        self.children = Children(self)
        self.signals = Signals(self)
        self.timers = Timers(self)
        self.recovery = Recovery(self)
        self.dispatcher = Dispatcher(self, options.max_executions, options.executes_runs)
        self._inbox = Inbox(self, options.inbox_interval)
        self._sweeper = Sweeper(self, options.sweep_interval)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._services: TaskSet | None = None

    # Lifecycle

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop on which the services run."""
        return self._loop

    async def attach(self) -> None:
        """Run the services on this event loop, unless they run on one that is alive."""
        loop = asyncio.get_running_loop()
        if self._loop is loop or (self._loop is not None and not self._loop.is_closed()):
            return
        self._loop = loop
        self.tasks = TaskSet()
        self._services = services = TaskSet()
        self.events.restart()
        self.children.restart()
        self.signals.restart()
        try:
            self.clock.reach(await self.store.newest())
            self.attached_at = self.clock.now()
            lost = await self.recovery.interrupt_lost_runs()
        except BaseException:
            self._loop = None
            raise
        if lost:
            logger.info("%d runs lost their execution and go on", lost)
        services.spawn(_keep_running(self.recovery.run), "recovery")
        services.spawn(_keep_running(self.dispatcher.run), "dispatcher")
        services.spawn(_keep_running(self.timers.run), "timers")
        services.spawn(_keep_running(self._inbox.run), "inbox")
        services.spawn(_keep_running(self._sweeper.run), "retention")
        self.recovery.settle_soon()

    def begin_drain(self) -> None:
        """Start nothing new. Whoever waits for a run is let go, to ask again elsewhere."""
        self.draining = True
        self.waiters.release_all()
        self.streams.release_all()

    async def stop(self) -> None:
        """Stop the services on this event loop, and write what was submitted."""
        self.begin_drain()
        if self._services is not None:
            await self._services.cancel()
        await self.tasks.cancel()
        await self.store.close()
        self._loop = None

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is being executed, or about to be, or being matched."""
        busy = self.dispatcher, self.events, self.children, self.signals
        return not self.live and not any(service.is_busy for service in busy)

    async def at_home(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something on the event loop of the services, while that is alive: the caller's may
        end before what follows from it."""
        home = self._loop
        return await work if home is None or home.is_closed() else await on_loop(home, work)

    def spawn_at_home(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run something on the event loop of the services: the caller's may end before it."""
        home = self._loop
        if home is None or home is asyncio.get_running_loop() or home.is_closed():
            self.tasks.spawn(work, name)
        else:
            home.call_soon_threadsafe(self.tasks.spawn, work, name)

    # Runs

    def register(self, new: NewRun, owner: str | None = None) -> LiveRun:
        """Begin a run that the caller executes, in this process or, as `owner`, elsewhere.
        `acknowledge` says when it is on disk."""
        owner = self.owner if owner is None else owner
        return self.adopt(register(new, owner, None, self.clock.now()), ())

    def resume(self, entry: Entry) -> LiveRun:
        """Hold a run again that is executed elsewhere, from what is stored of it."""
        run = with_exact_usage(entry.run, entry.memo)
        nothing = Change((), run.id, run.generation, states(Status.RUNNING))
        return self.adopt(Decision(run, nothing), entry.memo, entry.stream)

    def adopt(
        self, decision: Decision, memo: Sequence[StepRecord], stream: Stream | None = None
    ) -> LiveRun:
        """Take the lease that `decision` gives, for an execution that this event loop drives."""
        run = decision.run
        live = LiveRun(self, decision, memo, stream, is_remote=run.owner != self.owner)
        self.live[run.id] = live
        return live

    def forget(self, live: LiveRun) -> None:
        """The execution has left its run."""
        if self.live.get(live.id) is live:
            del self.live[live.id]
        if self.dispatcher.alone:
            self.dispatcher.nudge()

    def live_run(self, run_id: str) -> LiveRun | None:
        """The execution of this run in this process. One whose event loop is gone is given up."""
        live = self.live.get(run_id)
        if live is not None and live.is_stranded:
            self.live.pop(run_id, None)
            self.recovery.rescue_soon(run_id)
            return None
        return live

    def announce(self, run: Run, ended: RunEnded | None, due: int | None) -> None:
        """A change of a run is on disk: tell whoever has to act on it."""
        self.streams.look_again(run.id)
        if run.status is not Status.READY:
            self.waiters.tell_idle(run.id)
        if ended is not None and run.parent_run is not None:
            self.children.ended(run)
        if run.status is Status.READY:
            self.dispatcher.wake(run)
        elif run.status is Status.WAITING and due is not None:
            self.timers.arm(due if run.deadline is None else min(due, run.deadline))
        elif run.status is Status.WAITING and run.deadline is not None:
            self.timers.arm(run.deadline)
        elif run.status is Status.PARKED:
            self.waiters.look_again(run.id)
            if run.deadline is not None:
                self.timers.arm(run.deadline)
        elif ended is not None and self.waiters.wait_for(run.id):
            self.waiters.tell(
                Ended(
                    run=run,
                    status_code=ended.status_code,
                    response=ended.response,
                    error=ended.error,
                    omitted=ended.omitted,
                    until_delivered=ended.until_delivered,
                    method="",
                    path="",
                )
            )

    async def catch_up(self) -> None:
        """Return once everything received until now has ended the waits that it ends.

        Raises `StorageError` while that cannot be said.
        """
        await self.events.catch_up()
        await self.signals.catch_up()

    async def until_idle(self, run_id: str) -> None:
        """Return when the run does nothing for now, or when nobody shall stay to see that."""
        if not (self.draining or self.dispatcher.alone):
            await self.waiters.until_idle(run_id)

    async def cancel(self, run_id: str, reason: str) -> bool:
        """End a run without a result, and then those that it has invoked, and theirs. False if it
        has ended already, or is unknown."""
        is_ended = await self._command(run_id, Cancel(reason))
        if is_ended:
            await self.children.end(run_id)
        return is_ended

    async def retry(self, run_id: str) -> bool:
        """Give a parked run another chance. False if it is not parked."""
        return await self._command(run_id, Retry())

    async def _command(self, run_id: str, command: Cancel | Retry) -> bool:
        looks = 0
        while True:
            live = self.live_run(run_id)
            if live is not None and isinstance(command, Cancel):
                try:
                    await live.stop(command)
                except LostRunError:
                    await asyncio.sleep(_PAUSE)
                    continue
                return True
            run = await self.store.run(run_id)
            if run is None:
                return False
            if run.status is Status.RUNNING and isinstance(command, Cancel) and looks < _LOOKS:
                # Its execution has just left, and what that wrote last is on its way: an end that
                # does not know of it would give its positions in the stream log away again.
                looks += 1
                await asyncio.sleep(_PAUSE)
                continue
            try:
                if await self.command_idle(run, command):
                    return True
            except LostRunError:
                return False

    async def command_idle(self, run: Run, command: Cancel | Retry | Expire) -> bool:
        """Let `command` happen to a run that nobody executes, and tell whoever has to act on it.
        False if the run changed meanwhile. Raises `LostRunError` if it is not possible."""
        decision = decide(run, command, self.clock.now(), self.policy)
        change = decision.change
        records: tuple[StreamRecord, ...] = ()
        if decision.run.status.is_final and (stream := await self.store.stream(run.id)):
            # An execution that vanished may have left something open.
            change, records = with_stream(change, stream)
        if not await is_written(self.store.submit(change)):
            return False
        self.streams.publish(run.id, records)
        fact = decision.change.facts[0]
        self.announce(decision.run, fact if isinstance(fact, RunEnded) else None, None)
        if isinstance(fact, RunEnded):
            self.children.abandoned(run.id)
        return True

    def delivered(self, run_id: str) -> None:
        """A response that was kept only until delivered has reached somebody."""
        self.store.submit(Change((ResponseDelivered(run_id),)))

    def track(self, seen: RequestSeen) -> None:
        """Keep a line about a request. Nobody waits for it, and nobody misses one that is lost."""
        try:
            self.store.submit(Change((seen,)))
        except EngineError:
            pass


async def _keep_running(serve: Callable[[], Awaitable[None]]) -> None:
    """Run a service until it is cancelled; one that fails is started again."""
    while True:
        try:
            await serve()
        except Exception:
            name = asyncio.current_task()
            logger.exception("%s failed, and is started again", name.get_name() if name else "?")
            await asyncio.sleep(_RESTART)
