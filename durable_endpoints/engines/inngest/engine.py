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
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from contextvars import Context
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import orjson
from starlette.types import Receive, Scope, Send

from durable_endpoints.checkpoint_client import (
    TRIES,
    Address,
    Asker,
    CheckpointClient,
    Tries,
    http_client,
)
from durable_endpoints.engines.base import Executor, KeyHolder, Outcome, Script, Session
from durable_endpoints.engines.base import StreamReader as Reader
from durable_endpoints.engines.inngest import calling, origins
from durable_endpoints.engines.inngest.log import StreamLog
from durable_endpoints.engines.inngest.realtime import RealtimeReader, topic_question
from durable_endpoints.engines.inngest.responses import Responses
from durable_endpoints.engines.inngest.session import FirstSession
from durable_endpoints.engines.remote.dialing import is_local
from durable_endpoints.engines.remote.keys import keyring
from durable_endpoints.errors import (
    ConfigurationError,
    EngineClosedError,
    EngineError,
    LimitError,
    StorageError,
)
from durable_endpoints.ids import began_at
from durable_endpoints.protocol import signing
from durable_endpoints.protocol.checkpoints import (
    CheckpointError,
    CheckpointRefusedError,
    CheckpointRun,
    Question,
    RunEvent,
    UnknownRunError,
)
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

T = TypeVar("T")

_MAX_STEPS = 1_000
"""Steps of a run that an Inngest server keeps."""
_MAX_RESULT = 4 * 1024 * 1024
_MAX_REQUEST = 3_000_000
"""Bytes of a request, sealed, that fit into one checkpoint."""
_KEPT = 20_000
"""Runs whose tokens and keys this process remembers."""
_KEPT_OUTCOMES = 50
_ANYWHERE = 10**15
"""A position beyond all others: the server numbers none."""
_POLL = 1.0
_LATE = 60_000
"""Milliseconds in which a server has a record of each run that it knows."""
_STATES = {"COMPLETED": "completed", "FAILED": "failed", "CANCELLED": "cancelled"}


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
        self._url = settings.server_url
        self._is_local = is_local(self._url)
        self._keyring: Keyring | None = None
        self._http: Any = None
        self._checkpoints: CheckpointClient | None = None
        self._asker: Asker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._users = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._here: dict[str, FirstSession] = {}
        """Runs that are executed by the request that began them."""
        self._runs: OrderedDict[str, CheckpointRun] = OrderedDict()
        self._tries: OrderedDict[str, dict[str, StepRecord]] = OrderedDict()
        """Steps of runs that have failed here, and are to be tried again: the server does not tell
        how often that was."""
        self._holders: OrderedDict[str, KeyHolder] = OrderedDict()
        self._outcomes: OrderedDict[str, Outcome] = OrderedDict()
        """How runs have ended that were asked for last: the server's records may be behind."""
        self._drain = asyncio.Event()
        self._failed_at = 0.0
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
        if self._loop is not loop:
            proxies = {"trust_env": False} if self._is_local else {}
            self._http = http_client("AsyncClient", **proxies)
            key, fallback = self.settings.signing_key, self.settings.signing_key_fallback
            self._checkpoints = CheckpointClient(
                self._url, signing_key=key, signing_key_fallback=fallback, client=self._http
            )
            self._asker = Asker(Address(self._url, key, fallback), self._http)
            self._loop, self._drain = loop, asyncio.Event()
        if for_good:
            self._users += 1

    def _check(self) -> None:
        settings, name = self.settings, "DURABLE_ENDPOINTS_PUBLIC_URL"
        if not self._is_local and settings.public_url is None:
            raise ConfigurationError(
                f"the Inngest server {self._url} calls this application back, and has to know "
                f"where it is: set {name} to the URL by which the server reaches it"
            )
        if settings.track_all_endpoints:
            raise ConfigurationError(
                "track_all_endpoints: an Inngest server keeps no lines about requests that are no "
                "runs. Leave the setting out"
            )

    def begin_drain(self) -> None:
        self._drain.set()

    async def stop(self) -> None:
        self._users = max(0, self._users - 1)
        if self._users:
            return
        for task in list(self._tasks):
            task.cancel()
        if self._http is not None and self._loop is asyncio.get_running_loop():
            await self._http.aclose()
        self._http = self._checkpoints = self._asker = self._loop = None

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed: %s", task.get_name(), error, exc_info=error)

    @property
    def is_running(self) -> bool:
        return self._http is not None

    @property
    def is_draining(self) -> bool:
        """Whether this process is about to end."""
        return self._drain.is_set()

    # The server

    @property
    def checkpoints(self) -> CheckpointClient:
        """How runs are reported."""
        if self._checkpoints is None:
            raise EngineClosedError("the engine is not running")
        return self._checkpoints

    async def ask(self, question: Question, tries: int = TRIES) -> bytes:
        """Put a question to the server. Raises `StorageError`, and `UnknownRunError`."""
        if self._asker is None:
            raise EngineClosedError("the engine is not running")
        try:
            answer = await self._asker.ask(question, Tries(most=tries))
        except CheckpointRefusedError as error:
            raise StorageError(
                f"the server takes no such key: {error}. Set DURABLE_ENDPOINTS_SIGNING_KEY, and "
                "for events DURABLE_ENDPOINTS_EVENT_KEY, to one of its own",
                where="",
            ) from None
        except UnknownRunError:
            raise
        except CheckpointError as error:
            raise self.failed(error) from error
        return answer

    def failed(self, error: CheckpointError) -> StorageError:
        """The server did not do its part; what to raise."""
        self._failed_at = time.monotonic()
        return StorageError(str(error), where="")

    @property
    def is_healthy(self) -> bool:
        return not self._failed_at or time.monotonic() - self._failed_at > 10

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
            _remember(self._holders, new.key, KeyHolder(new.id, new.key_scope, new.fingerprint))
        return session

    def proceed_without(self, session: Session | None, error: EngineError) -> UnkeptSession | None:
        if not isinstance(error, StorageError):
            return None
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
            _remember(self._tries, run_id, {**tries, step.id.hash: step._replace(due=None)})
        elif tries.pop(step.id.hash, None) is not None and not tries:
            del self._tries[run_id]

    def tries_of(self, run_id: str) -> list[StepRecord]:
        """The steps of a run that are to be tried again, as far as this process knows."""
        return list(self._tries.get(run_id, {}).values())

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

    def keep_tokens(self, run: CheckpointRun) -> None:
        """The server has told what opens a run."""
        _remember(self._runs, run.run_id, run)

    async def outcome(self, run_id: str, timeout: int) -> Outcome | None:
        if (ended := self._outcomes.get(run_id)) is not None:
            return ended
        outcome = await self._outcome(run_id, timeout)
        if outcome is not None and outcome.is_final:
            _remember(self._outcomes, run_id, outcome, _KEPT_OUTCOMES)
        return outcome

    async def _outcome(self, run_id: str, timeout: int) -> Outcome | None:
        deadline = time.monotonic() + timeout / 1_000
        while (left := deadline - time.monotonic()) > 0 and not self.is_draining:
            known = self._runs.get(run_id)
            if known is None or not known.token:
                break
            outcome = await self._unless_draining(self._output(known, left), left)
            if outcome is None:
                break
            if outcome.is_final:
                return outcome
        while True:
            outcome = await self._standing(run_id)
            if outcome is None or outcome.is_final or self.is_draining:
                return outcome
            if (left := deadline - time.monotonic()) <= 0:
                return outcome
            await self._unless_draining(asyncio.sleep(min(left, _POLL)), left)

    async def _output(self, run: CheckpointRun, patience: float) -> Outcome | None:
        """What the server answers to a client that waits; None if that does not tell."""
        url = f"{self._url}/v1/http/runs/{run.run_id}/output?{urlencode({'token': run.token})}"
        try:
            response = await self._http.get(url, timeout=patience + 1)
        except Exception as error:
            if _is_timeout(error):
                return _running(run.run_id)
            raise StorageError(f"the server does not answer: {error}", where="") from None
        if response.status_code in (401, 403, 404):
            return None  # the token is too old, for instance
        raw = [(bytes(name), bytes(value)) for name, value in response.headers.raw]
        responses = Responses(run.run_id, self.keyring)
        return responses.outcome(response.status_code, raw, response.content)

    async def _standing(self, run_id: str) -> Outcome | None:
        """How a run stands now."""
        if run_id in self._here:
            return _running(run_id)
        try:
            answer = await self.ask(Question("GET", f"/v1/runs/{run_id}"), tries=1)
        except UnknownRunError:
            return None
        except StorageError as error:
            cause = error.__cause__
            if isinstance(cause, CheckpointError) and cause.status == 500:
                # This is how an Inngest server says that it has no record of a run: not any more,
                # or not yet, because it writes these late.
                is_young = self.now() - began_at(run_id) < _LATE
                return _running(run_id) if is_young and run_id in self._runs else None
            raise
        run = orjson.loads(answer).get("data") or {}
        status = _STATES.get(str(run.get("status", "")).upper())
        if status is None:
            return _running(run_id)
        outcome = Responses(run_id, self.keyring).told(run.get("output"))
        if outcome is not None and outcome.is_final:
            return outcome
        if status == "completed":
            known = self._runs.get(run_id)
            found = await self._output(known, 5) if known is not None and known.token else None
            if found is not None and found.is_final:
                return found
            missing = "the server has no response of this run that can be read"
            return _running(run_id)._replace(status="failed", error=missing)
        return _running(run_id)._replace(status=status)

    async def _unless_draining(self, waiting: Awaitable[T], left: float) -> T | None:
        """What is waited for, for so many seconds, unless this process ends."""
        task = asyncio.ensure_future(waiting)
        drain = asyncio.ensure_future(self._drain.wait())
        try:
            await asyncio.wait([task, drain], timeout=left, return_when="FIRST_COMPLETED")
            return task.result() if task.done() else None
        finally:
            task.cancel()
            drain.cancel()

    async def until_idle(self, run_id: str) -> None:
        """Only invoked runs are asked for, and none is invoked here."""

    async def cancel(self, run_id: str, reason: str) -> bool:
        outcome = await self.outcome(run_id, 0)
        if outcome is None or outcome.is_final:
            return False
        try:
            await self.ask(Question("DELETE", f"/v1/runs/{run_id}"))
        except UnknownRunError:
            return False
        if (session := self._here.get(run_id)) is not None:
            session.stop("cancelled")
        return True

    def delivered(self, run_id: str) -> None:
        """The server keeps the response, sealed, as long as it keeps the run."""

    # Events and signals

    async def send_event(self, event: NewEvent) -> str:
        ts = {} if event.ts is None else {"ts": event.ts}
        data = orjson.Fragment(event.data)
        await self.send({"id": event.id, "name": event.name, "data": data, **ts})
        return event.id

    async def send(self, event: dict[str, Any]) -> None:
        """Send an event to the server, which counts its id once. Raises `StorageError`."""
        key = quote(self.settings.event_key or "NO_EVENT_KEY_SET", safe="")
        try:
            answer = orjson.loads(
                await self.ask(Question("POST", f"/e/{key}", orjson.dumps(event)))
            )
        except UnknownRunError as error:
            raise StorageError(f"the server takes no events: {error}", where="") from None
        if answer.get("status", 200) != 200:
            raise StorageError(f"the server did not take an event: {answer}", where="")

    async def send_signal(self, name: str, data: bytes) -> bool:
        body = orjson.dumps({"signal": name, "data": orjson.Fragment(data)})
        try:
            await self.ask(Question("POST", "/v1/signals", body))
        except UnknownRunError:
            return False
        return True

    # Streams

    def read_stream(self, run_id: str, start: StreamStart) -> Reader:
        return RealtimeReader(self, run_id, start)

    async def stream_tail(self, run_id: str) -> int:
        return _ANYWHERE

    async def publish(self, run_id: str, frames: AsyncIterator[bytes]) -> None:
        """Pass frames on to whoever reads the run's stream. That is no one's duty: what fails is
        logged."""
        try:
            response = await self._http.post(
                f"{self._url}/v1/realtime/publish/tee?channel={run_id}",
                content=frames,
                headers={**self._bearer(), "content-type": "application/octet-stream"},
            )
            if response.status_code >= 300:
                logger.warning(
                    "run %s: its stream was refused with %d", run_id, response.status_code
                )
        except Exception as error:
            logger.warning("run %s: its stream was cut: %r", run_id, error)

    async def subscribe(self, run_id: str) -> AsyncIterator[bytes]:
        """What comes in a run's stream, from now on, as long as the server passes it on."""
        while not self.is_draining:
            try:
                token = await self._stream_token(run_id)
                async with AsyncExitStack() as stack:
                    response = await stack.enter_async_context(
                        self._http.stream(
                            "GET", f"{self._url}/v1/realtime/sse?token={token}", timeout=None
                        )
                    )
                    if response.status_code == 200:
                        async for piece in response.aiter_bytes():
                            yield piece
            except Exception as error:
                logger.debug("run %s: its stream was lost: %r", run_id, error)
            await asyncio.sleep(_POLL)

    async def _stream_token(self, run_id: str) -> str:
        known = self._runs.get(run_id)
        if known is not None and known.realtime_token:
            # It is good for some minutes, and then another one is.
            self._runs[run_id] = known._replace(realtime_token="")
            return known.realtime_token
        return str(orjson.loads(await self.ask(topic_question(run_id)))["jwt"])

    # Keys

    def _bearer(self) -> dict[str, str]:
        key = self.settings.signing_key
        return {"authorization": f"Bearer {signing.hashed(key)}"} if key else {}

    @property
    def keyring(self) -> Keyring:
        """The application's own keys."""
        if self._keyring is None:
            raise EngineClosedError("the engine is not running")
        return self._keyring

    def sign_run(self, run_id: str, may_cancel: bool = False) -> str:
        """A token of ours, around the server's own: so any replica can ask the server."""
        known = self._runs.get(run_id)
        theirs = known.token if known is not None else ""
        return f"{self.keyring.sign_run(f'{run_id}~{theirs}', may_cancel)}~{theirs}"

    def verify_run(self, run_id: str, token: str) -> Grant | None:
        ours, _, theirs = token.partition("~")
        grant = self.keyring.verify_run(f"{run_id}~{theirs}", ours)
        if grant is not None and theirs and run_id not in self._runs:
            self.keep_tokens(CheckpointRun(run_id, token=theirs))
        return grant

    def track(self, method: str, route: str, status: int, elapsed: int, run_id: str | None) -> None:
        """The server keeps no lines about requests: `track_all_endpoints` is refused."""


_shared: dict[str, InngestEngine] = {}


def running_inngest_engine(settings: Settings) -> InngestEngine | None:
    """The one for this server that runs in this process."""
    engine = _shared.get(settings.server_url or "")
    return engine if engine is not None and engine.is_running else None


def inngest_engine(settings: Settings) -> InngestEngine:
    """The engine of this process for the server that `settings` name."""
    assert settings.server_url is not None
    if settings.server_url not in _shared:
        _shared[settings.server_url] = InngestEngine(settings)
    return _shared[settings.server_url]


def _remember(kept: OrderedDict[str, T], key: str, value: T, most: int = _KEPT) -> None:
    kept[key] = value
    while len(kept) > most:
        kept.popitem(last=False)


def _running(run_id: str) -> Outcome:
    return Outcome(run_id, "running", "", None, "", False, "", "", "")


def _is_timeout(error: Exception) -> bool:
    return any(kind.__name__ == "TimeoutException" for kind in type(error).__mro__)
