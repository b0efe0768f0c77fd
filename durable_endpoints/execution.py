"""One pass through a handler: its memo, its steps, and how it gives way when it must wait.

A step that is remembered returns its result; a new one runs its body, records what came of it, and
returns. What must wait *parks* on a future. When nothing runs and something is parked, the run
cannot go on in this pass: the execution *departs*. The handler is unwound, everything it says from
then on is discarded, and the middleware alone answers the client.

Acknowledgement is lazy: a step returns as soon as its result is on its way to the disk, and the
wait for the disk comes before the next body starts, before a departure, and before the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from enum import Enum
from threading import get_ident
from typing import Any, NoReturn, Protocol, TypeVar

from anyio.lowlevel import EventLoopToken

from durable_endpoints.call_sites import CallSites
from durable_endpoints.engines.base import Engine, Guide, Session
from durable_endpoints.errors import EngineError, LimitError, LostRunError
from durable_endpoints.handling import Handling
from durable_endpoints.hooks import NOTHING_AROUND, Around, Hook, RunInfo
from durable_endpoints.inputs import run_input
from durable_endpoints.memo import Memo
from durable_endpoints.options import EndpointOptions
from durable_endpoints.parking import Parking
from durable_endpoints.protocol.messages import StoredRequest
from durable_endpoints.protocol.ops import SignalTaken, StepOp, StepRecord, WaitForEvent
from durable_endpoints.protocol.step_ids import HANDLER_STEP, StepId, StepIds
from durable_endpoints.protocol.streams import RecordKind
from durable_endpoints.replays import check_replay
from durable_endpoints.results import JSON, Codec
from durable_endpoints.unwinding import Suspended

T = TypeVar("T")

_PATIENCE = 10_000
"""Milliseconds to wait for the step that an engine wants, where nothing else goes on."""
_DUE_PATIENCE = 1.0
"""Seconds for which an engine may take to resolve what is due already."""


class Departure(Enum):
    """Why an execution gives way before its handler has ended."""

    WAITING = "everything waits"
    HANDOVER = "the server is shutting down"
    STOPPED = "the run has ended"
    LOST = "another execution holds the run"
    BROKEN = "the engine failed"


class StepScope:
    """Where code inside the body of a step stands."""

    __slots__ = ("attempt", "ended", "execution", "step")

    def __init__(self, execution: Execution, step: StepId, attempt: int) -> None:
        self.execution = execution
        self.step = step
        self.attempt = attempt
        self.ended = False
        """Whether this try of the step is over. Its thread may not be."""

    @property
    def engine(self) -> Engine:
        return self.execution.engine


class Keeper(Protocol):
    """Whoever ends an execution: see `ending.py`."""

    def departs(self) -> None:
        """The execution gives way: its handler is being unwound."""
        ...

    def leave_behind(self) -> None:
        """The handler does not end, and is not waited for any more."""
        ...


class Execution:
    """One pass through a handler, on one event loop. `step.py` builds the steps on it."""

    __slots__ = (
        "_acknowledged",
        "_bodies",
        "_closed",
        "_draining",
        "_guide",
        "_holds",
        "_inherited",
        "_max_steps",
        "_parking",
        "_path_params",
        "_pipes",
        "_quiet",
        "_recorded",
        "_request",
        "_steps",
        "_thread",
        "around",
        "calls",
        "departure",
        "engine",
        "error",
        "handling",
        "hooks",
        "ids",
        "in_use",
        "info",
        "is_open",
        "keeper",
        "last_step",
        "loop",
        "memo",
        "options",
        "session",
        "stop_reason",
        "token",
    )

    def __init__(
        self,
        engine: Engine,
        session: Session,
        info: RunInfo,
        options: EndpointOptions,
        request: StoredRequest,
        path_params: dict[str, Any],
        hooks: tuple[Hook, ...] = (),
        around: Around = NOTHING_AROUND,
        unacknowledged: int = 0,
        guide: Guide | None = None,
    ) -> None:
        """`request` and `path_params` make the run input; `unacknowledged` counts what the session
        has on its way to the disk that must be there before a body begins; `guide` says which
        bodies run, if not all of them may."""
        self.engine = engine
        self.session = session
        self.info = info
        self.options = options
        self.hooks = hooks
        self.around = around
        self._request = request
        self._path_params = path_params
        self.token: EventLoopToken | None = None
        """How the threads of a plain handler reach this event loop; None for an `async` one."""
        self.ids = StepIds()
        self.memo = Memo(session.memo)
        self.departure: Departure | None = None
        self.stop_reason = ""
        """Why the run has ended, or is lost: what the session said."""
        self.error: EngineError | None = None
        """What the engine failed with."""
        self.last_step: StepId | None = None
        """The step whose body ended last, for whoever has to explain a failure after it."""
        self.keeper: Keeper | None = None
        self.in_use: set[str] = set()
        """Names of steps that were called and have not ended."""
        self.calls = CallSites()
        self.handling = Handling()
        self.loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self.is_open = True
        """Whether steps are possible now: the handler runs, and is not being unwound. If not,
        `refuse`."""
        self._closed = False
        self._draining = False
        self._guide = guide
        self._max_steps = engine.max_steps
        self._steps = len(self.memo) - (self.memo.get(HANDLER_STEP.hash) is not None)
        self._inherited = unacknowledged
        self._recorded = unacknowledged
        self._acknowledged = 0
        self._pipes = 0
        self._bodies: set[asyncio.Task[Any]] = set()
        self._holds: dict[Callable[[], None], None] | None = None
        self._parking = Parking(self.loop)
        self._quiet: asyncio.Future[None] | None = None
        session.listener = self
        if session.stop_reason:  # while the request was on its way to its handler
            self.stopped(session.stop_reason)

    def inputs(self) -> dict[str, Any]:
        """The run input."""
        return run_input(self._request, self._path_params)

    # The handler

    def handler_ended(self) -> None:
        """Tasks of the handler's that still wait for a step wait in vain."""
        self.is_open = False
        for let_go in list(self._holds or ()):
            let_go()
        tasks = self._parking.tasks
        if self.departure is not None:
            tasks |= self._bodies
        for task in tasks:
            if task is not None and task is not self.handling.task and not self.is_in_thread:
                task.cancel()

    @property
    def is_in_thread(self) -> bool:
        """Whether the handler is a plain function."""
        return self.token is not None

    @property
    def runs_here(self) -> bool:
        """Whether the calling thread runs this execution's event loop."""
        return get_ident() == self._thread

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        """Call back on this event loop. From any thread."""
        self.loop.call_soon_threadsafe(callback, *args)

    # Recording

    def record(self, op: StepOp) -> StepRecord:
        """Send `op` on its way to the disk."""
        try:
            record = self.session.record(op)
        except LimitError as error:
            error.where = self.calls.where(op.step)
            raise
        except EngineError as error:
            raise self.break_off(error) from None
        self._recorded += 1
        if self._guide is not None and self._guide.is_done:
            self.depart(Departure.WAITING)
        return record

    async def in_order(self) -> None:
        """Return once what was recorded last has its place in the order of completion: a replay
        hands out results in that order, and this execution must not do so in another one."""
        if self.session.is_raced:
            await self.ask(self.session.in_order())

    # Streaming

    def push(self, step: str, attempt: int, value: bytes, kind: RecordKind) -> bool:
        """Stream one JSON value of a try of a step, or of the handler's own code. From any thread.
        Whether it is new: no earlier execution has streamed it.

        A handler that is being unwound is not heard. Raises `LimitError`.
        """
        if self.departure is not None:
            return False
        if not step and self.memo.is_replaying:
            return False  # an earlier execution has come as far, and has streamed it
        try:
            return self.session.push(step, attempt, [value], kind)
        except LostRunError:
            return False  # the session tells in its own way

    def name_pipe(self) -> str:
        """The name of the step that a pipe outside a step makes: by the order of the calls."""
        self._pipes += 1
        return "stream.pipe" if self._pipes == 1 else f"stream.pipe {self._pipes}"

    def withdraw(self, step: StepId) -> None:
        """What this try of a step has streamed is not followed by an outcome: withdraw it."""
        try:
            self.session.withdraw(step.hash)
        except EngineError:
            pass  # whatever comes next meets the same failure

    # Bodies

    @property
    def is_closed(self) -> bool:
        """Whether the response is on disk."""
        return self._closed

    async def refuse(self, has_run: bool = False) -> NoReturn:
        """Stop whoever wants a step that is not possible any more, or whose body `has_run` in
        vain."""
        await self.handling.refuse(self, has_run)

    def give_up(self) -> None:
        """Wait no longer for the handler to give way: leave it where it is."""
        if self.handling.give_up():
            if self.keeper is not None:
                self.keeper.leave_behind()
            self.handling.forget_frames()

    def count_step(self, step: StepId) -> None:
        """One more step. Raises `LimitError` before its body runs, not after."""
        if self._steps >= self._max_steps:
            raise LimitError(
                f"a run may have {self._max_steps:,} steps at the most (max_steps): let one step "
                "do more, or raise the setting",
                where=self.calls.where(step),
            )
        self._steps += 1

    def try_start(self) -> bool:
        """Begin a body at once, if nothing has to be waited for before."""
        if self._guide is not None or self._acknowledged < self._required or self._draining:
            return False
        if not self.session.is_sure:
            return False
        self._parking.begin()
        return True

    async def start_body(self, step: StepId) -> None:
        """Begin the body of `step` as soon as that is possible: what came before it is on disk, the
        run is still this execution's, and the step is one of those that run in it, where that is
        not all of them."""
        if self._guide is not None and not self._guide.runs(step):
            if not self.is_open:
                await self.refuse()
            await self._park(step.hash)
        session = self.session
        while self._acknowledged < self._required or self._draining or not session.is_sure:
            if self._draining:
                await self.park_for_handover()
            recorded = self._recorded
            self._parking.begin()
            try:
                await session.acknowledge()
                if not session.is_sure:
                    await session.make_sure()
            except EngineError as error:
                raise self.break_off(error) from None
            finally:
                self.end_body()
            self._acknowledged = max(self._acknowledged, recorded)
            if not self.is_open:
                await self.refuse()
        self._parking.begin()

    @property
    def _required(self) -> int:
        """How much of what was recorded must be on disk before the next body begins."""
        return self._recorded if self.options.checkpoint == "each" else self._inherited

    def end_body(self) -> None:
        """A body has ended, in whatever way."""
        parking = self._parking
        parking.end(self)
        if self._quiet is not None and not parking.running and not self._quiet.done():
            self._quiet.set_result(None)

    async def bodies_end(self) -> None:
        """Return when no body runs any more, and what came of the last one is recorded."""
        while self._parking.running and self.departure is None:
            if self._quiet is None or self._quiet.done():
                self._quiet = self.loop.create_future()
            await asyncio.shield(self._quiet)  # others may wait for it as well
            await asyncio.sleep(0)

    async def ask(self, question: Awaitable[T]) -> T:
        """Ask the engine something. Meanwhile the handler counts as going on."""
        self._parking.begin()
        try:
            answer = await question
        except EngineError as error:
            raise self.break_off(error) from None
        finally:
            self.end_body()
        if not self.is_open:
            await self.refuse()
        return answer

    async def open_signal(self, op: WaitForEvent, replace: bool) -> StepRecord | SignalTaken:
        """Open a wait for a signal, unless another run waits for it, and shall not be replaced.

        A step that this returns may be resolved already: `take` it then. Else it is to be parked on
        before anything else is awaited.
        """
        try:
            opened = await self.ask(self.session.open_signal(op, replace))
        except LimitError as error:
            error.where = self.calls.where(op.step)
            raise
        self._recorded += 1
        if isinstance(opened, StepRecord) and opened.is_final:
            self.memo.update(opened)
        # The wait may have ended between the engine's answer and now, while nobody was parked.
        return self.memo.get(op.step.hash) or opened

    def hold_on(self) -> Callable[[], None]:
        """Do not depart, although everything waits, before what this returns is called, or the
        handler has ended."""
        self._parking.begin()

        holds = self._holds
        if holds is None:
            holds = self._holds = {}

        def let_go() -> None:
            if let_go in holds:
                del holds[let_go]
                self.end_body()

        holds[let_go] = None
        return let_go

    @property
    def patience(self) -> int:
        """Milliseconds for which the client that waits for this execution waits on; 0 if none
        does."""
        if self.info.reentry or self._draining:
            return 0
        waited = self.engine.now() - self.session.began_at
        return max(0, self.options.respond_within - waited)

    def run_from_thread(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on this event loop, and wait for it in the calling thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def give_up_try(self, step: StepId) -> None:
        """A body has ended without anything to record: cancelled, say."""
        try:
            self.withdraw(step)
        finally:
            self.end_body()

    def give_up_try_soon(self, step: StepId) -> None:
        """The same from a thread."""
        self.call_soon(self.give_up_try, step)

    def enter_task(self) -> asyncio.Task[Any]:
        """Note that the current task runs a body, so that it can be stopped."""
        task = asyncio.current_task(self.loop)
        assert task is not None
        self._bodies.add(task)
        return task

    def leave_task(self, task: asyncio.Task[Any]) -> None:
        self._bodies.discard(task)

    # Parking

    async def park(self, record: StepRecord) -> StepRecord:
        """Wait until an open step is resolved, or its retry is due."""
        if not self.is_open:
            await self.refuse()
        if record.due is None or record.due > self.engine.now():
            return await self._park(record.id.hash)
        # It is due already: the engine is about to say so, if not in this very moment.
        let_go = self.hold_on()
        timer = self.loop.call_later(_DUE_PATIENCE, let_go)
        try:
            return await self._park(record.id.hash)
        finally:
            timer.cancel()
            let_go()

    async def park_for_handover(self) -> None:
        """Wait until nothing else goes on in this execution, and let another one begin then."""
        await self._park("", for_handover=True)

    async def take(self, record: StepRecord, codec: Codec = JSON) -> Any:
        """The remembered result of a final step, when its turn has come."""
        try:
            return await self.memo.take(record, codec, self.calls.where)
        finally:
            self._parking.stir(self)

    async def _park(self, key: str, for_handover: bool = False) -> StepRecord:
        main, in_thread = self.handling.task, self.is_in_thread
        return await self._parking.park(self, key, main, in_thread, for_handover)

    @property
    def has_handler_ended(self) -> bool:
        """Whether the handler has returned, or raised."""
        return self.handling.has_ended

    def nothing_goes_on(self, handover: bool) -> None:
        if self._guide is not None and not handover:
            if (chosen := self._guide.choose()) is not None:
                self._parking.resolve(chosen)
                return
            if self._guide.is_looking:
                self.engine.call_later(_PATIENCE, self._stop_looking)
                return
        self.depart(Departure.HANDOVER if handover else Departure.WAITING)

    def _stop_looking(self) -> None:
        if self._guide is not None and self._guide.is_looking:
            self.depart(Departure.WAITING)

    # Departing

    def depart(self, departure: Departure) -> None:
        """Unwind the handler. From here on nothing that it says or does counts.

        Where the handler itself waits, the wait raises; where it waits for tasks of its own
        (gather, a task group), only a cancellation unwinds those properly.
        """
        if self.departure is not None or self._closed:
            return
        self.departure = departure
        self.is_open = False
        if self.keeper is not None:
            self.keeper.departs()
        if self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)
        if self.handling.has_ended:
            return
        direct = [parked for parked in self._parking.waiting if parked.is_direct]
        for parked in direct:
            parked.future.set_exception(self.handling.signal())
        if direct and departure is Departure.WAITING:
            self.check_replay()
        if not direct:
            self.handling.cancel()

    def check_replay(self) -> None:
        """The handler's own code goes no further: look at what it has called."""
        check_replay(self.info, self.memo, self.calls)

    def break_off(self, error: EngineError) -> Suspended:
        """The engine failed: unwind, and let the middleware say so. Returns what to raise."""
        self.error = error
        self.depart(Departure.LOST if isinstance(error, LostRunError) else Departure.BROKEN)
        return Suspended()

    @property
    def is_draining(self) -> bool:
        """Whether the server is about to end."""
        return self._draining

    def drain(self) -> None:
        """The server is about to end: start no new body, and depart when those running are done."""
        self._draining = True

    def close(self) -> None:
        """The response is on disk: no step is possible any more."""
        self._closed = True
        self.is_open = False

    # What the session says

    def resolved(self, step: StepRecord) -> bool:
        if self.departure is not None or self._closed:
            return False
        if not self._parking.resolve(step):
            self.memo.update(step)
        self._parking.stir(self)
        return True

    def stopped(self, reason: str) -> None:
        self.stop_reason = reason
        self.depart(Departure.LOST if reason == "lost" else Departure.STOPPED)
