"""The embedded engine: the server's own services in the application's process.

It is the only module of the SDK that imports the server, and it is imported itself only when the
first application needs it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import orjson

from durable_endpoints.engines.base import (
    Executor,
    KeyHolder,
    Outcome,
    Reentry,
    Script,
    Session,
    StreamReader,
)
from durable_endpoints.errors import ConfigurationError, EngineClosedError, EngineError
from durable_endpoints.protocol import failures
from durable_endpoints.protocol.messages import StoredRequest, StoredResponse
from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints.protocol.runs import Fail, NewRun
from durable_endpoints.protocol.streams import Silence, StreamStart
from durable_endpoints.protocol.tokens import Grant
from durable_endpoints.sealing import Keyring, UnsealError, key_file
from durable_endpoints.settings import Settings
from durable_endpoints_server.clock import Clock, SystemClock
from durable_endpoints_server.engine.facts import RequestSeen
from durable_endpoints_server.engine.model import Policy
from durable_endpoints_server.host import Host, HostOptions
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.owner import new_owner
from durable_endpoints_server.store.base import NO_RECORDS, Ended, Entry, Store
from durable_endpoints_server.store.location import sqlite_path
from durable_endpoints_server.store.opening import open_database
from durable_endpoints_server.store.sqlite_inbox import leave_message
from durable_endpoints_server.stream_reader import Reader
from durable_endpoints_server.waiters import is_settled

logger = logging.getLogger("durable_endpoints")

_TAKEOVER = 250
"""Milliseconds."""


class EmbeddedEngine:
    """An `Engine` in this process. Middlewares that name the same database share one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opening = threading.Lock()
        self._host: Host | None = None
        self._keyring: Keyring | None = None
        self._executors: dict[str, Executor] = {}
        self._default: Executor | None = None
        self._users = 0
        """How many applications run it for good."""
        self._close: Callable[[], None] | None = None

    @property
    def script(self) -> Script | None:
        return None

    # Lifecycle

    async def start(self, for_good: bool = False) -> None:
        if self._host is None:
            await asyncio.get_running_loop().run_in_executor(None, self._open)
        try:
            await self.host.attach()
        except BaseException:
            if not self._users:
                await self.stop()
            raise
        if for_good:
            self._users += 1
        if self._executors:
            self.host.dispatcher.set_executor(self._execute, self._can_execute)

    def begin_drain(self) -> None:
        if self._host is not None:
            self._host.begin_drain()

    async def stop(self) -> None:
        self._users = max(0, self._users - 1)
        if self._users or self._host is None:
            return
        host, self._host = self._host, None
        self._executors, self._default = {}, None
        await host.stop()
        if self._close is not None:
            self._close()

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        return self.host.tasks.spawn(coroutine, name)

    @property
    def is_running(self) -> bool:
        return self._host is not None

    @property
    def host(self) -> Host:
        if self._host is None:
            raise EngineClosedError("the engine is not running")
        return self._host

    def _open(self) -> None:
        with self._opening:
            if self._host is not None:
                return

            path = sqlite_path(self._settings.database)
            database = open_database(path, self._settings.synchronous, self._settings.drain_timeout)
            try:
                self._keyring = _keyring(self._settings, path)
            except BaseException:
                database.close()
                raise
            self._host = self._new_host(database.store)
            self._close = database.close

    def _new_host(self, store: Store, clock: Clock | None = None) -> Host:
        settings = self._settings
        policy = Policy(
            max_steps=settings.max_steps,
            max_result=settings.max_result,
            max_memo=settings.max_memo,
            max_stream=settings.max_stream,
            retry_base=settings.retry_base,
            retry_factor=settings.retry_factor,
            retry_cap=settings.retry_cap,
            run_retention=settings.retention,
            event_retention=settings.event_retention,
        )
        options = HostOptions(new_owner(), policy, settings.max_executions)
        return Host(store, options, clock)

    # Runs

    @property
    def is_healthy(self) -> bool:
        return self.host.store.is_healthy

    @property
    def max_steps(self) -> int:
        return self._settings.max_steps

    @property
    def max_result(self) -> int:
        return self._settings.max_result

    def now(self) -> int:
        return self.host.clock.now()

    def call_later(self, delay: int, callback: Callable[[], None]) -> Callable[[], None]:
        clock = self.host.clock
        return clock.call_at(clock.now() + delay, callback).cancel

    def add_executor(self, root_path: str, executor: Executor, is_whole: bool) -> None:
        if self._executors.get(root_path, executor) != executor:
            logger.warning(
                "two applications of this process share the database %s: what is still to be done "
                "for requests of either goes on in the one that was started last. Give each one a "
                "database of its own",
                self._settings.database,
            )
        self._executors[root_path] = executor
        if is_whole:
            self._default = executor
        if self._host is not None:
            self._host.dispatcher.set_executor(self._execute, self._can_execute)

    @property
    def is_admitting(self) -> bool:
        host = self._host
        return host is not None and not host.draining and not host.dispatcher.alone

    async def admit(self) -> None:
        if self.host.draining:
            raise EngineClosedError("this server is shutting down")
        if self.host.dispatcher.alone:
            await self.host.dispatcher.admit()

    def register(self, new: NewRun) -> Session:
        return self.host.register(new)

    def proceed_without(self, session: Session | None, error: EngineError) -> None:
        """Never: a store that fails may hold the run, and executes it once it works again."""

    def pack_request(self, run_id: str, request: StoredRequest) -> bytes:
        return self.keyring.seal(run_id, "request", request.pack())

    def pack_response(self, run_id: str, response: StoredResponse) -> bytes:
        return self.keyring.seal(run_id, "response", response.pack())

    async def key_holder(self, key: str) -> KeyHolder | None:
        holder = await self.host.store.key_holder(key)
        return None if holder is None else KeyHolder(*holder)

    async def outcome(self, run_id: str, timeout: int) -> Outcome | None:
        ended = await self._wait(run_id, timeout)
        return None if ended is None else self._outcome(ended)

    async def _wait(self, run_id: str, timeout: int) -> Ended | None:
        if self._users:
            return await self.host.waiters.wait(run_id, timeout)
        # Without a lifespan the services run on the loop of some request, which may end: then
        # whoever still waits takes them over.
        while True:
            turn = min(timeout, _TAKEOVER)
            ended = await self.host.waiters.wait(run_id, turn)
            timeout -= turn
            if ended is None or is_settled(ended) or timeout <= 0 or self.host.draining:
                return ended
            await self.host.attach()

    def read_stream(self, run_id: str, start: StreamStart) -> StreamReader:
        if self._users:
            return Reader(self.host.streams, run_id, start)
        return _TakingOver(self.host, run_id, start)

    async def stream_tail(self, run_id: str) -> int:
        page = await self.host.store.stream_page(run_id, NO_RECORDS, 1)
        return 0 if page is None else page.tail

    async def until_idle(self, run_id: str) -> None:
        await self.host.until_idle(run_id)

    async def cancel(self, run_id: str, reason: str) -> bool:
        return await self.host.cancel(run_id, reason)

    def delivered(self, run_id: str) -> None:
        self.host.delivered(run_id)

    async def send_event(self, event: NewEvent) -> str:
        return await self.host.events.publish(event)

    async def send_signal(self, name: str, data: bytes) -> bool:
        return await self.host.signals.send(name, data)

    def track(self, method: str, route: str, status: int, elapsed: int, run_id: str | None) -> None:
        now = self.host.clock.now()
        self.host.track(RequestSeen(now, method, route, status, elapsed, run_id))

    # Keys

    @property
    def keyring(self) -> Keyring:
        if self._keyring is None:
            raise EngineClosedError("the engine is not running")
        return self._keyring

    def sign_run(self, run_id: str, may_cancel: bool = False) -> str:
        return self.keyring.sign_run(run_id, may_cancel)

    def verify_run(self, run_id: str, token: str) -> Grant | None:
        return self.keyring.verify_run(run_id, token)

    def _outcome(self, ended: Ended) -> Outcome:
        run, response = ended.run, None
        if ended.response is not None:
            packed = self.keyring.unseal(run.id, "response", ended.response)
            response = StoredResponse.unpack(packed)
        return Outcome(
            run_id=run.id,
            status=run.status.label,
            reason=run.reason,
            response=response,
            omitted=ended.omitted,
            until_delivered=ended.until_delivered,
            error=str(failures.decode(ended.error)) if ended.error else "",
            method=ended.method,
            path=ended.path,
        )

    async def _execute(self, live: LiveRun, entry: Entry) -> None:
        """Hand a claimed run to the application it came from."""
        if live.has_left:
            return  # it was ended, or taken away, while the claim was being written
        if entry.request is None:
            await live.end(Fail("request_missing", None))
            return
        try:
            packed = self.keyring.unseal(live.id, "request", entry.request)
        except UnsealError as error:
            logger.error("run %s is parked: %s", live.id, error)
            await live.park("request_sealed")
            return
        request = StoredRequest.unpack(packed)
        executor = self._executor_for(entry)
        assert executor is not None
        await executor(Reentry(live, live.run.function_id, request, entry.retries))

    def _can_execute(self, entry: Entry) -> bool:
        return self._executor_for(entry) is not None

    def _executor_for(self, entry: Entry) -> Executor | None:
        """The application that the run began in: the one at its root path, else the one that was
        started as a whole. A mounted application is not known before its first request; where there
        are only such, the runs of one are left as they are until then."""
        return self._executors.get(entry.root_path, self._default)


class _TakingOver(Reader):
    """A reader where no lifespan keeps the services running: when the loop of the request that they
    run on has ended, they go on here."""

    def __init__(self, host: Host, run_id: str, start: StreamStart) -> None:
        super().__init__(host.streams, run_id, start)
        self._host = host

    async def next(self, patience: int) -> bytes | Silence:
        while patience > _TAKEOVER:
            found = await super().next(_TAKEOVER)
            if found is not Silence.YET or self.was_poked:
                return found
            patience -= _TAKEOVER
            await self._host.attach()
        return await super().next(patience)


_shared: dict[Path, EmbeddedEngine] = {}


def embedded_engine(settings: Settings) -> EmbeddedEngine:
    """The engine of this process for the database that `settings` names."""
    path = sqlite_path(settings.database)
    if path not in _shared:
        _shared[path] = EmbeddedEngine(settings)
    return _shared[path]


def running_engine(settings: Settings) -> EmbeddedEngine | None:
    """The engine that runs in this process: the only one, or the one of these settings."""
    running = {path: engine for path, engine in _shared.items() if engine.is_running}
    if len(running) > 1:
        return running.get(sqlite_path(settings.database))
    return next(iter(running.values()), None)


def leave_event(settings: Settings, event: NewEvent) -> None:
    """Leave an event for the process that serves the database. Blocks until it is on disk."""
    path = sqlite_path(settings.database)
    if not path.exists():
        raise ConfigurationError(
            f"the event has nowhere to go: there is no database at {path}. Set "
            "DURABLE_ENDPOINTS_DATABASE to the application's"
        )
    message = {
        "id": event.id,
        "name": event.name,
        "data": orjson.Fragment(event.data),
        "ts": event.ts,
    }
    leave_message(path, SystemClock().now(), "event", orjson.dumps(message))


def _keyring(settings: Settings, database: Path) -> Keyring:
    """Configured keys, and where there are none, the secret of the key file."""
    signing = [key for key in (settings.signing_key, settings.signing_key_fallback) if key]
    sealing = [key for key in (settings.sealing_key, settings.sealing_key_fallback) if key]
    if not signing or not sealing:
        secret = key_file(Path(f"{database}.key"))
        signing, sealing = signing or [secret], sealing or [secret]
    return Keyring(signing, sealing)
