"""The engine at an Inngest server: a run begins here, and goes on as the server says.

What its wire has no words for is done in this process, as far as that is possible: streams of a
run's first execution, idempotency keys, cancellation. What is not possible is an error that says
so: see docs/inngest.md.
"""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from durable_endpoints.engines.base import Executor, KeyHolder, Outcome, Script, Session
from durable_endpoints.engines.base import StreamReader as Reader
from durable_endpoints.engines.inngest import calling, ops, origins
from durable_endpoints.engines.inngest.log import StreamLog
from durable_endpoints.engines.inngest.outcomes import Outcomes
from durable_endpoints.engines.inngest.realtime import RealtimeReader
from durable_endpoints.engines.inngest.recent import Recent
from durable_endpoints.engines.inngest.server import Server
from durable_endpoints.engines.inngest.session import FirstSession
from durable_endpoints.engines.inngest.tokens import Tokens
from durable_endpoints.engines.remote.dialing import is_local
from durable_endpoints.engines.remote.keys import keyring
from durable_endpoints.errors import (
    ConfigurationError,
    EngineClosedError,
    EngineError,
    LimitError,
    StorageError,
)
from durable_endpoints.protocol.checkpoints import Question, RunEvent, UnknownRunError
from durable_endpoints.protocol.messages import StoredRequest, StoredResponse
from durable_endpoints.protocol.ops import NewEvent, StepRecord, StepState
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.protocol.streams import StreamStart
from durable_endpoints.protocol.tokens import Grant
from durable_endpoints.sealing import Keyring
from durable_endpoints.settings import Settings
from durable_endpoints.unkept import UnkeptSession
from durable_endpoints_server.engine.model import Policy

logger = logging.getLogger("durable_endpoints")

_MAX_STEPS = 1_000
"""Steps of a run that an Inngest server keeps."""
_MAX_RESULT = 4 * 1024 * 1024
_MAX_REQUEST = 3_000_000
"""Bytes of a request, sealed, that fit into one checkpoint."""
_KEPT = 20_000
"""Runs whose tokens and keys this process remembers."""
_ANYWHERE = 10**15
"""A position beyond all others: the server numbers none."""


class InngestEngine:
    """An `Engine` at the Inngest server of `settings.server_url`."""

    def __init__(self, settings: Settings) -> None:
        assert settings.server_url is not None
        self.settings = settings
        self.policy = Policy(
            max_steps=min(settings.max_steps, _MAX_STEPS),
            max_result=min(settings.max_result, _MAX_RESULT),
            max_memo=settings.max_memo,
            max_stream=settings.max_stream,
            retry_base=settings.retry_base,
            retry_factor=settings.retry_factor,
            retry_cap=settings.retry_cap,
        )
        self.calls = calling.Calls(settings)
        self.tokens = Tokens(_KEPT)
        self._is_local = is_local(settings.server_url)
        self._keyring: Keyring | None = None
        self._servers: dict[asyncio.AbstractEventLoop, Server] = {}
        self._users = 0
        """How many applications run it for good."""
        self._is_draining = False
        self._outcomes = Outcomes(self)
        self._here: dict[str, FirstSession] = {}
        """Runs that are executed by the request that began them."""
        self._tries = Recent[dict[str, StepRecord]](_KEPT)
        """Steps of runs that have failed here, and are to be tried again: the server does not tell
        how often that was."""
        self._holders = Recent[KeyHolder](_KEPT)
        self._has_warned = False

    @property
    def script(self) -> Script | None:
        return None

    # Lifecycle

    async def start(self, for_good: bool = False) -> None:
        """Begin to serve on this event loop.

        Raises `ConfigurationError` for settings that an Inngest server cannot be served with.
        """
        loop = asyncio.get_running_loop()
        if self._keyring is None:
            self._check()
            self._keyring = await loop.run_in_executor(None, keyring, self.settings)
        self._servers = {
            one: server for one, server in self._servers.items() if not one.is_closed()
        }
        if not self._servers:
            self._is_draining = False
        if loop not in self._servers:
            self._servers[loop] = Server(self.settings)
        if for_good:
            self._users += 1

    def _check(self) -> None:
        settings, name = self.settings, "DURABLE_ENDPOINTS_PUBLIC_URL"
        if not self._is_local and settings.public_url is None:
            raise ConfigurationError(
                f"the Inngest server {settings.server_url} calls this application back, and has to "
                f"know where it is: set {name} to the URL by which the server reaches it"
            )
        if settings.track_all_endpoints:
            raise ConfigurationError(
                "track_all_endpoints: an Inngest server keeps no lines about requests that are no "
                "runs. Leave the setting out"
            )

    def begin_drain(self) -> None:
        self._is_draining = True
        for loop, server in self._servers.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(server.drain.set)

    async def stop(self) -> None:
        self._users = max(0, self._users - 1)
        if self._users:
            return
        here = asyncio.get_running_loop()
        servers, self._servers = self._servers, {}
        for loop, server in servers.items():
            if loop is here:
                await server.close()
            elif not loop.is_closed():
                asyncio.run_coroutine_threadsafe(server.close(), loop)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        return self.server.background.spawn(coroutine, name)

    @property
    def is_running(self) -> bool:
        return any(not loop.is_closed() for loop in self._servers)

    @property
    def is_draining(self) -> bool:
        """Whether this process is about to end."""
        return self._is_draining

    @property
    def server(self) -> Server:
        """The server, for the running event loop."""
        server = self._servers.get(asyncio.get_running_loop())
        if server is None:
            raise EngineClosedError("the engine is not running")
        return server

    @asynccontextmanager
    async def _reached(self) -> AsyncIterator[Server]:
        """The server, for an event loop that may serve no application."""
        server = self._servers.get(asyncio.get_running_loop())
        if server is not None:
            yield server
            return
        server = Server(self.settings)
        try:
            yield server
        finally:
            await server.close()

    @property
    def is_healthy(self) -> bool:
        server = self._servers.get(asyncio.get_running_loop())
        return server is not None and server.is_healthy

    @property
    def max_steps(self) -> int:
        return self.policy.max_steps

    @property
    def max_result(self) -> int:
        return self.policy.max_result

    def now(self) -> int:
        return time.time_ns() // 1_000_000

    def call_later(self, delay: int, callback: Callable[[], None]) -> Callable[[], None]:
        return asyncio.get_running_loop().call_later(delay / 1_000, callback).cancel

    # Runs

    def add_executor(self, root_path: str, executor: Executor, is_whole: bool) -> None:
        """The server calls the application itself."""

    async def answer_call(
        self, scope: Scope, receive: Receive, send: Send, execute: Executor
    ) -> None:
        await calling.answer(self, scope, receive, send, execute)

    @property
    def is_admitting(self) -> bool:
        return self.is_running and not self.is_draining

    async def admit(self) -> None:
        if self.is_draining:
            raise EngineClosedError("this server is shutting down")

    def register(self, new: NewRun) -> Session:
        packed = orjson.loads(new.request)
        if len(packed["sealed"]) > _MAX_REQUEST:
            raise LimitError(
                f"the request has more than the {_MAX_REQUEST * 3 // 4:,} bytes that an Inngest "
                "server keeps with a run: store the body elsewhere, and send a reference"
            )
        shown = packed["event"]
        body = b"" if new.omit_request_body else shown["body"].encode("latin-1")
        event = RunEvent(**{**shown, "fn": new.function_id, "body": body})
        request = {
            "sealed": packed["sealed"],
            "function_id": new.function_id,
            "retries": new.retries,
            "max_runtime": new.max_runtime,
            "began_at": self.now() - new.elapsed,
        }
        session = FirstSession(self, new, event, orjson.dumps(request))
        self._here[new.id] = session
        if new.key is not None:
            self._warn_of_keys()
            self._holders.keep(new.key, KeyHolder(new.id, new.key_scope, new.fingerprint))
        return session

    def proceed_without(self, session: Session | None, error: EngineError) -> UnkeptSession | None:
        if not isinstance(error, StorageError):
            return None
        if isinstance(session, FirstSession):
            session.renounce()
        run_id = session.id if session is not None else ""
        return UnkeptSession(run_id, self.now(), error.explanation)

    def left(self, session: FirstSession) -> None:
        """The first execution of a run is over."""
        self._here.pop(session.id, None)
        if not session.is_known:  # its client was told that there is no run: the key is free
            for key in [key for key, held in self._holders.items() if held.run_id == session.id]:
                del self._holders[key]

    def tried(self, run_id: str, step: StepRecord) -> None:
        """A try of a step has ended."""
        tries = self._tries.get(run_id, {})
        if step.state is StepState.RETRYING:
            self._tries.keep(run_id, {**tries, step.id.hash: step._replace(due=None)})
        elif tries.pop(step.id.hash, None) is not None and not tries:
            del self._tries[run_id]

    def tries_of(self, run_id: str) -> list[StepRecord]:
        """The steps of a run that are to be tried again, as far as this process knows."""
        return list(self._tries.get(run_id, {}).values())

    def executes(self, run_id: str) -> bool:
        """Whether the request that began a run executes it, in this process."""
        return run_id in self._here

    def log_of(self, run_id: str) -> StreamLog | None:
        """The stream of a run that is executed here."""
        session = self._here.get(run_id)
        return None if session is None else session.log

    def pack_request(self, run_id: str, request: StoredRequest) -> bytes:
        """The request, sealed, and beside it what the server may show, and needs to call back."""
        event = origins.event_of(request, self.settings.public_url)
        sealed = self.keyring.seal(run_id, "request", request.pack())
        shown = {**event._asdict(), "body": event.body.decode("latin-1")}
        return orjson.dumps({"event": shown, "sealed": b64encode(sealed).decode()})

    def pack_response(self, run_id: str, response: StoredResponse) -> bytes:
        return response.pack()

    async def key_holder(self, key: str) -> KeyHolder | None:
        return self._holders.get(key)

    def _warn_of_keys(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "an Inngest server keeps no Idempotency-Keys: this process knows those of the "
                "requests that it has had since it was started, and other replicas do not"
            )

    # Outcomes

    async def outcome(self, run_id: str, timeout: int) -> Outcome | None:
        return await self._outcomes.of(run_id, timeout)

    async def until_idle(self, run_id: str) -> None:
        """Only invoked runs are asked for, and none is invoked here."""

    async def cancel(self, run_id: str, reason: str) -> bool:
        outcome = await self.outcome(run_id, 0)
        if outcome is None or outcome.is_final:
            return False
        try:
            await self.server.ask(Question("DELETE", f"/v1/runs/{run_id}"))
        except UnknownRunError:
            return False
        if (session := self._here.get(run_id)) is not None:
            session.stop("cancelled")
        return True

    def delivered(self, run_id: str) -> None:
        """The server keeps the response, sealed, as long as it keeps the run."""

    # Events and signals

    async def send_event(self, event: NewEvent) -> str:
        async with self._reached() as server:
            await server.send(ops.event_of(event))
        return event.id

    async def send_signal(self, name: str, data: bytes) -> bool:
        async with self._reached() as server:
            return await server.send_signal(name, data)

    # Streams

    def read_stream(self, run_id: str, start: StreamStart) -> Reader:
        return RealtimeReader(self, run_id, start)

    async def stream_tail(self, run_id: str) -> int:
        return _ANYWHERE

    # Keys

    @property
    def keyring(self) -> Keyring:
        """The application's own keys."""
        if self._keyring is None:
            raise EngineClosedError("the engine is not running")
        return self._keyring

    def sign_run(self, run_id: str, may_cancel: bool = False) -> str:
        return self.tokens.sign(self.keyring, run_id, may_cancel)

    def verify_run(self, run_id: str, token: str) -> Grant | None:
        return self.tokens.verify(self.keyring, run_id, token)

    def track(self, method: str, route: str, status: int, elapsed: int, run_id: str | None) -> None:
        """The server keeps no lines about requests: `track_all_endpoints` is refused."""


_shared: dict[tuple[str | None, ...], InngestEngine] = {}


def running_inngest_engine(settings: Settings) -> InngestEngine | None:
    """The one that runs in this process: the only one, or the one of these settings."""
    running = {key: engine for key, engine in _shared.items() if engine.is_running}
    if len(running) > 1:
        return running.get(_identity(settings))
    return next(iter(running.values()), None)


def inngest_engine(settings: Settings) -> InngestEngine:
    """The engine of this process for the server, the keys and the address of `settings`."""
    key = _identity(settings)
    if key not in _shared:
        _shared[key] = InngestEngine(settings)
    return _shared[key]


def _identity(settings: Settings) -> tuple[str | None, ...]:
    """What applications have to agree on if they share an engine."""
    return (
        settings.server_url,
        settings.signing_key,
        settings.sealing_key,
        settings.event_key,
        settings.public_url,
    )
