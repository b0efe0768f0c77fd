"""`VirtualEngine`: the embedded engine in memory, with a clock and a script of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, TypeVar, Unpack
from weakref import WeakSet

import httpx
from starlette.types import ASGIApp

from durable_endpoints.asgi_transport import AppTransport
from durable_endpoints.client import Transcript
from durable_endpoints.engines.base import Session, StreamReader
from durable_endpoints.engines.embedded import EmbeddedEngine
from durable_endpoints.engines.stand_in import standing_in
from durable_endpoints.errors import EngineError, StorageError
from durable_endpoints.events import new_event
from durable_endpoints.protocol.durations import Duration, parse_duration
from durable_endpoints.protocol.ops import NewEvent, StepRecord
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.protocol.streams import StreamStart
from durable_endpoints.sealing import Keyring
from durable_endpoints.settings import Settings, SettingsArguments
from durable_endpoints.signals import encoded_signal
from durable_endpoints.testing import looking
from durable_endpoints.testing.blocking import BlockingEngine
from durable_endpoints.testing.clock import VirtualClock
from durable_endpoints.testing.lifespan import running
from durable_endpoints.testing.process import disk, lose_process
from durable_endpoints.testing.reconnecting import Reconnecting
from durable_endpoints.testing.script import Script, When
from durable_endpoints.testing.standstill import Watch, WatchedReader
from durable_endpoints_server.clock import SystemClock
from durable_endpoints_server.engine.facts import Change
from durable_endpoints_server.engine.model import Run
from durable_endpoints_server.store.base import Ended
from durable_endpoints_server.store.memory import MemoryStore
from durable_endpoints_server.tasks import TaskSet
from durable_endpoints_server.waiters import Waiters, is_settled

T = TypeVar("T")

_SECRET = "a key for tests, and for nothing else"
_DISK_PATIENCE = 0.5
"""Seconds for a store to write what a lost process has left."""


class VirtualEngine(EmbeddedEngine):
    """An engine for one test: in memory, with a clock that stands still until you move it.

    `settings` are those of the middleware (`retry_base="1s"`, `max_steps=100` …), but for those of
    the database. With `auto_advance`, time passes by itself whenever a client waits for its run
    and everything else waits too: then a request that follows redirects is answered at once, after
    a sleep of 24 hours. What shall come before a timeout has to be there before the client waits.
    A `supervised` process that crashes is followed by a new one at once.

    What arranges something (`fail`, `replace`, `crash_at`) is called; what does or finds out
    something is awaited, on any event loop. `sync` has the same for tests without one.
    """

    def __init__(
        self,
        *,
        auto_advance: bool = False,
        supervised: bool = False,
        **settings: Unpack[SettingsArguments],
    ) -> None:
        super().__init__(Settings.load(settings, environ={}))
        self.auto_advance = auto_advance
        self.supervised = supervised
        self.clock = VirtualClock()
        self.store = MemoryStore()
        self.sync = BlockingEngine(self)
        """The awaitable methods of this engine, blocking: for tests that are plain functions."""
        self._script = Script(self._lose)
        self._passing = 0
        """How many are letting time pass."""
        self._keyring = Keyring([_SECRET], [_SECRET])
        self._watch = Watch(self)
        self._transports: WeakSet[AppTransport] = WeakSet()
        self._changing: set[asyncio.Task[None]] = set()
        """Processes that are being cleared away, or started."""
        self._in_use = ExitStack()
        self._uses = 0

    # Using it

    @contextmanager
    def use(self) -> Iterator[VirtualEngine]:
        """Let every application whose middleware was given no engine use this one meanwhile.

        `with VirtualEngine() as engine:` is the same. An application that has been started, by its
        lifespan, keeps the engine with which it was until it ends.

        Warns in the end of a `fail`, `replace` or `crash_at` whose step never came.
        """
        self._uses += 1
        try:
            with standing_in(self):
                yield self
        finally:
            self._uses -= 1
        if not self._uses:
            self._script.check_met()

    def __enter__(self) -> VirtualEngine:
        self._in_use.enter_context(self.use())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._in_use.__exit__(kind, error, trace)

    @asynccontextmanager
    async def client(
        self, app: ASGIApp, *, lifespan: bool = False, reconnects: bool = False, **options: Any
    ) -> AsyncIterator[httpx.AsyncClient]:
        """A client for `app`, with this engine in use and running as long as it is open.

        With `lifespan`, the application is started before and shut down afterwards. A client that
        `reconnects` does what a good one does when the process crashes: it gives each request an
        `Idempotency-Key`, and repeats one whose connection broke. `options` are those of
        `httpx.AsyncClient`. An exception that a server would log is logged, and not raised in the
        test.
        """
        options = {"base_url": "http://testserver", "timeout": 30, **options}
        async with AsyncExitStack() as stack:
            stack.enter_context(self.use())
            await self.start(for_good=True)
            stack.push_async_callback(self._leave)
            state = await stack.enter_async_context(running(app)) if lifespan else None
            transport = AppTransport(app, state=state)
            self._transports.add(transport)
            way = Reconnecting(transport, self.settle) if reconnects else transport
            yield await stack.enter_async_context(httpx.AsyncClient(transport=way, **options))

    async def _leave(self) -> None:
        await self._settled_down()
        executors, default = self._executors, self._default
        await self.stop()
        if not self.is_running:
            # Another client may use the same application, which has begun its runs.
            self._executors, self._default = executors, default

    # Time

    async def advance(self, duration: Duration) -> None:
        """Let virtual time pass, alarm by alarm, and let whatever happens then happen."""
        await self._at_home(lambda: self._advance(parse_duration(duration)))

    async def _advance(self, duration: int) -> None:
        with self._letting_pass():
            await self._settle()
            end = self.clock.now() + duration
            while (instant := self.clock.next_alarm()) is not None and instant <= end:
                self.clock.move_to(instant)
                await self._settle()
            self.clock.move_to(end)
            await self._settle()

    async def settle(self, patience: float = 5.0) -> None:
        """Return when nothing goes on any more: every run waits, or has ended.

        A run that does real input and output is waited for, up to `patience` seconds.
        """
        await self._at_home(lambda: self._settle(patience))

    async def _settle(self, patience: float = 5.0) -> bool:
        deadline = asyncio.get_running_loop().time() + patience
        quiet = 0
        while quiet < 3 and asyncio.get_running_loop().time() < deadline:
            for _ in range(60):
                await asyncio.sleep(0)
            if self.is_quiet:
                quiet += 1
            else:
                quiet = 0
                await asyncio.sleep(0.001)
        return quiet == 3

    async def pass_time(self) -> None:
        """Let time pass until the next alarm, once nothing goes on any more."""
        await self._at_home(self._pass_time)

    async def _pass_time(self) -> None:
        with self._letting_pass():
            if await self._settle() and (instant := self.clock.next_alarm()) is not None:
                self.clock.move_to(instant)
                await self._settle()

    @property
    def is_passing(self) -> bool:
        """Whether somebody is letting time pass."""
        return self._passing > 0

    @contextmanager
    def _letting_pass(self) -> Iterator[None]:
        self._passing += 1
        try:
            yield
        finally:
            self._passing -= 1

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is being executed, or about to be."""
        return not self._changing and (self._host is None or self._host.is_quiet)

    async def finish(self, run_id: str | None = None, within: Duration = "366d") -> httpx.Response:
        """Let time pass, alarm by alarm, until the run has ended, and return its response, as
        `response` does.

        Raises `TimeoutError` if that takes longer than `within`, or would take for ever.
        """
        run = await self.run(run_id)
        return await self._at_home(lambda: self._finish(run.id, parse_duration(within)))

    async def _finish(self, run_id: str, within: int) -> httpx.Response:
        end = self.clock.now() + within
        with self._letting_pass():
            while True:
                is_quiet = await self._settle()
                if (response := await self.response(run_id)) is not None:
                    return response
                instant = self.clock.next_alarm()
                if not is_quiet or instant is None or instant > end or self._host is None:
                    raise TimeoutError(await self._why_not(run_id, is_quiet, instant))
                self.clock.move_to(instant)

    async def _why_not(self, run_id: str, is_quiet: bool, instant: int | None) -> str:
        what = f"run {run_id} has not ended: {await self.waits_of(run_id)}"
        if self._host is None:
            return f"{what}, and the process has crashed: await engine.restart()"
        if not is_quiet:
            return f"{what}, and was doing so for seconds of real time"
        if instant is None:
            return f"{what}, and no passing of time brings that"
        return f"{what}, and that comes later than `within` says"

    async def waits_of(self, run_id: str) -> str:
        """What a run that does not go on waits for, in words."""
        entry = await self.store.entry(run_id)
        return "it is unknown" if entry is None else looking.waits_of(entry.run, entry.memo)

    # Events and signals

    async def send_event(
        self,
        event: NewEvent | str,
        data: Any = None,
        *,
        id: str | None = None,
        ts: int | None = None,
    ) -> str:
        """Send an event, as `durable_endpoints.send_event` does, and let what it wakes run.

        That takes a millisecond of virtual time, so that a request which begins afterwards has
        missed it. Returns the event's id.
        """
        if isinstance(event, NewEvent):  # from the application: an engine like any other
            return await self._at_home(lambda: self._publish(event))
        new = new_event(event, data, id, ts)
        return await self._at_home(lambda: self._send_event(new))

    async def _send_event(self, event: NewEvent) -> str:
        sent = await self._publish(event)
        await self._settle()
        self.clock.move_to(self.clock.now() + 1)
        return sent

    async def _publish(self, event: NewEvent) -> str:
        return await self._deliver(lambda: EmbeddedEngine.send_event(self, event))

    async def send_signal(self, name: str, data: Any = None) -> bool:
        """Send a signal, as `durable_endpoints.send_signal` does, and let the run that takes it go
        on. Returns whether there is one."""
        if isinstance(data, bytes):  # from the application: an engine like any other
            return await self._at_home(lambda: self._signal(name, data))
        encoded = encoded_signal(name, data)
        return await self._at_home(lambda: self._send_signal(name, encoded))

    async def _send_signal(self, name: str, data: bytes) -> bool:
        taken = await self._signal(name, data)
        await self._settle()
        return taken

    async def _signal(self, name: str, data: bytes) -> bool:
        return await self._deliver(lambda: EmbeddedEngine.send_signal(self, name, data))

    async def _deliver(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send something to the process, or to a new one if there is none."""
        if self._host is None:
            await self.start()
        try:
            return await send()
        except StorageError:
            if not self.supervised:
                raise
            await self._settle()  # as a sender does that does not give up
            return await send()

    # What goes wrong

    def fail(
        self,
        step: str,
        *,
        times: int | None = 1,
        error: Exception | type[Exception] | None = None,
        run_id: str | None = None,
    ) -> None:
        """Let the next `times` tries of a step fail with `error`, without its body being run;
        with `times=None`, all of them."""
        self._script.fail(step, times, error, run_id)

    def replace(
        self,
        step: str,
        *,
        returns: Any = ...,
        with_: Callable[..., Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        """Do something else instead of a step's body, each time: return a value, or call a
        function, plain or `async`, with the body's arguments."""
        self._script.replace(step, returns, with_, run_id)

    def crash_at(self, step: str, when: When = "after", *, run_id: str | None = None) -> None:
        """Lose the process once, at a step: `"before"` its body starts, `"after"` it ran and
        before anything of that is on disk, or when its outcome is on disk and `"recorded"`. For a
        step without a body these are: before it is begun, ended and not on disk, ended.

        Clients in flight get a connection error, see `crash`.
        """
        self._script.crash_at(step, when, run_id)

    async def crash(self) -> None:
        """Lose the process: nothing is executed or written any more, and all clients of `client`
        that are in flight get `httpx.RemoteProtocolError`. The next request, or `restart`, is a
        new process on the same store, with the same application object.

        A `TestClient` has no connection to lose: it is sent to `/wait`. Python code cannot be
        stopped dead: what is being executed is unwound as for a wait, so its `finally` blocks run.
        """
        await self._at_home(self._crash)

    async def _crash(self) -> None:
        self._lose()
        await self._settled_down()

    async def restart(self) -> None:
        """Begin a new process on the same store, losing the one that runs, if one does; and let
        the runs go on that were interrupted."""
        await self._at_home(self._restart)

    async def _restart(self) -> None:
        await self._crash()
        await self.start()
        await self._settle()

    def _lose(self) -> None:
        host = self._host
        if host is None:
            return
        if asyncio._get_running_loop() is None and host.loop is not None:  # the body of a step
            asyncio.run_coroutine_threadsafe(self._lose_soon(), host.loop).result()
            return
        self._host = None
        for transport in list(self._transports):
            transport.cut()
        self._change(lose_process(host))
        self._change(self._begin_again() if self.supervised else self._until_written())

    async def _begin_again(self) -> None:
        await self._until_written()
        await self.start()

    async def _until_written(self) -> None:
        """Return when what the lost process has submitted is on disk: a real one's is there or not
        when the next one looks, and does not come later."""
        try:
            await asyncio.wait_for(self.store.submit(Change(())).wait(), _DISK_PATIENCE)
        except (EngineError, TimeoutError):
            pass  # a store that a test made to fail, or to say nothing

    def _change(self, change: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(change)
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)

    async def _lose_soon(self) -> None:
        self._lose()

    async def _settled_down(self) -> None:
        await asyncio.gather(*self._changing)

    # Looking

    def runs(self) -> list[Run]:
        """All runs, in the order in which they began: `id`, `function_id`, `status` …"""
        return self.store.begun()

    async def run(self, run_id: str | None = None) -> Run:
        """A run as it stands in the store; without an id, the only one. Raises `KeyError`, as all
        of these do, for an unknown one."""
        if run_id is not None and (run := await self.store.run(run_id)) is not None:
            return run
        return looking.find_run(self.runs(), run_id)

    async def memo(self, run_id: str | None = None) -> dict[str, StepRecord]:
        """What is remembered of a run's steps, by their names: those that are done or have failed,
        in that order, then those that are open."""
        entry = await self.store.entry((await self.run(run_id)).id)
        memo = sorted(entry.memo, key=lambda step: not step.is_final) if entry is not None else []
        return {str(step.id): step for step in memo}

    async def values(self, run_id: str | None = None) -> dict[str, Any]:
        """The results of a run's finished steps, by their names, as JSON decodes them: what the
        engine holds, encoded if a hook encodes it."""
        return looking.values_of(list((await self.memo(run_id)).values()))

    async def attempts(
        self, step: str | None = None, run_id: str | None = None
    ) -> list[looking.Attempt]:
        """The tries of a step, or of all steps, that have ended: first those that failed."""
        run = await self.run(run_id)
        return await looking.attempts_of(self.store, run.id, step)

    async def stream(self, run_id: str | None = None) -> Transcript:
        """What a run has streamed and not withdrawn: `text`, `committed_text`, `chunks` …"""
        run = await self.run(run_id)
        return await looking.transcript_of(self.store, run.id)

    async def response(self, run_id: str | None = None) -> httpx.Response | None:
        """The response of a run that has ended, as `/wait` gives it; None before that."""
        run = await self.run(run_id)
        ended = await self.store.ended(run.id)
        if ended is None or not is_settled(ended):
            return None
        return looking.response_of(self._outcome(ended))

    # As an engine

    @property
    def script(self) -> Script:
        return self._script

    def _open(self) -> None:
        with self._opening:
            if self._host is None:
                store = disk(self.store, self._script, self._lose)
                host = self._new_host(store, self.clock)
                # Clients are real, and so is the time for which they wait at `/wait`.
                host.waiters = Waiters(store, SystemClock())
                self._host = host

    def now(self) -> int:
        return self.clock.now()

    def call_later(self, delay: int, callback: Callable[[], None]) -> Callable[[], None]:
        return self.clock.call_at(self.clock.now() + delay, callback).cancel

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        tasks = self._host.tasks if self._host is not None else TaskSet()
        return tasks.spawn(coroutine, name)

    def register(self, new: NewRun) -> Session:
        # A request takes no virtual time, however long it takes on this machine.
        return super().register(new._replace(elapsed=0))

    async def _wait(self, run_id: str, timeout: int) -> Ended | None:
        waiting = super()._wait(run_id, timeout)
        return await (waiting if timeout <= 0 else self._watch.over(run_id, waiting))

    def read_stream(self, run_id: str, start: StreamStart) -> StreamReader:
        return WatchedReader(super().read_stream(run_id, start), run_id, self._watch)

    async def _at_home(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work` on the event loop on which the services run. If that is gone, as after each
        request of a `TestClient` without a lifespan, they run on this one meanwhile."""
        host = self._host
        if host is None or host.loop is asyncio.get_running_loop():
            return await work()
        if host.loop is None or host.loop.is_closed():
            await self.start()
            return await work()

        async def there() -> T:
            return await work()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), host.loop))
