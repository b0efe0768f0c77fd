"""A server calls the application back: the HTTP request that is a re-entry, and its reply.

Whoever may call proves it by a signature over body and time (Inngest SDK protocol). It does not
cover the run or the path, so a call that was seen is not answered again; without a key, only this
machine may call. What the request itself says does not matter beyond that: the original one is kept
sealed with the run.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from base64 import b64decode
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import orjson
from starlette.types import Receive, Scope, Send

from durable_endpoints.engines.base import Executor, Reentry
from durable_endpoints.engines.inngest import ops, origins, reentry
from durable_endpoints.engines.inngest.channel import publish
from durable_endpoints.engines.inngest.outbox import REQUEST
from durable_endpoints.engines.inngest.realtime import Tee
from durable_endpoints.engines.inngest.reentry import Answer, Orders, ReentrySession
from durable_endpoints.engines.inngest.responses import Responses
from durable_endpoints.engines.remote.dialing import is_local
from durable_endpoints.errors import EngineError
from durable_endpoints.failing import error_response
from durable_endpoints.following import accepts_stream
from durable_endpoints.memo import exception_of
from durable_endpoints.protocol import failures, signing
from durable_endpoints.protocol.checkpoints import CheckpointError, UnknownRunError
from durable_endpoints.protocol.frames import metadata_frame, response_frame
from durable_endpoints.protocol.messages import StoredRequest, StoredResponse
from durable_endpoints.protocol.ops import StepRecord
from durable_endpoints.protocol.runs import Fail, NewRun
from durable_endpoints.protocol.step_ids import HANDLER_STEP, hash_name
from durable_endpoints.sealing import UnsealError
from durable_endpoints.settings import Settings
from durable_endpoints_server.engine.transitions import register

if TYPE_CHECKING:
    from durable_endpoints.engines.inngest.engine import InngestEngine

logger = logging.getLogger("durable_endpoints")

_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_REMEMBERED = 100_000


class Calls:
    """Says which calls are the server's."""

    def __init__(self, settings: Settings) -> None:
        self._keys = [key for key in (settings.signing_key, settings.signing_key_fallback) if key]
        self._seen: OrderedDict[tuple[str, ...], float] = OrderedDict()

    def admits(self, headers: Mapping[str, str], peer: str, body: bytes) -> str | None:
        """The key that has signed a call, if it is new; or an empty one, if there are no keys, and
        it comes from this machine. None if it is refused."""
        if not self._keys:
            is_here = is_local(f"http://[{peer}]" if ":" in peer else f"http://{peer}")
            return "" if is_here else None
        now = time.time()
        signature = headers[signing.SIGNATURE_HEADER]
        fitting = [key for key in self._keys if signing.verify([key], signature, body, int(now))]
        if not fitting:
            return None
        names = ("x-run-id", "x-request-id", "x-inngest-step-id", signing.SIGNATURE_HEADER)
        call = tuple(headers.get(name, "") for name in names)
        while self._seen and (
            len(self._seen) > _REMEMBERED or next(iter(self._seen.values())) < now
        ):
            self._seen.popitem(last=False)
        if call in self._seen:
            return None
        self._seen[call] = now + 2 * signing.TOLERANCE
        return fitting[0]


async def answer(
    engine: InngestEngine, scope: Scope, receive: Receive, send: Send, execute: Executor
) -> None:
    """Answer one call."""
    headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in reversed(scope["headers"])}
    body = await _read(receive)
    if body is None:
        await _reply(send, _refusal(413, "the body of a call is too large"))
        return
    peer = (scope.get("client") or ("", 0))[0]
    key = engine.calls.admits(headers, peer, body)
    if key is None:
        logger.warning(
            "a call from %s for run %.40r was refused: %s",
            peer,
            headers["x-run-id"],
            "its signature is not the server's, or it was seen before"
            if engine.settings.signing_key
            else "without a signing key, only this machine may call",
        )
        await _reply(send, _refusal(401, "Unauthorized"))
        return
    if not _ULID.fullmatch(headers["x-run-id"].upper()):
        await _reply(send, _refusal(400, "x-run-id is no ULID"), key)
        return
    call = _Call(engine, scope, headers["x-run-id"], _orders(headers), key)
    await call.answer(receive, send, execute)


class _Call:
    """A call that may be answered."""

    def __init__(
        self, engine: InngestEngine, scope: Scope, run_id: str, orders: Orders, key: str
    ) -> None:
        """`key` is the one that has signed it."""
        self._engine = engine
        self._key = key
        self._scope = scope
        self._run_id = run_id
        self._orders = orders
        self._responses = Responses(run_id, engine.keyring)
        self._streams = False
        """Whether the client of the original request reads a stream."""

    async def answer(self, receive: Receive, send: Send, execute: Executor) -> None:
        try:
            found = await self._open()
        except (EngineError, CheckpointError) as error:
            logger.error("run %s cannot go on: %s", self._run_id, error)
            found = reentry.problem(type(error).__name__, "the run cannot go on: see the log")
        if isinstance(found, Answer):
            await _reply(send, found, self._key)
            return
        session = found.session
        assert isinstance(session, ReentrySession)
        gone = asyncio.ensure_future(_until_gone(receive))
        tee = _LazyTee(self._engine, session)
        visit = asyncio.ensure_future(execute(found))
        either: list[asyncio.Future[Any]] = [visit, session.answer]
        try:
            await asyncio.wait(either, return_when="FIRST_COMPLETED")
            if visit.done() and not session.answer.done():
                visit.result()
                session.tell(reentry.problem("no_answer", "the execution ended without an answer"))
            await tee.finish()
            session.was_lost = gone.done()
            await _reply(send, session.answer.result(), self._key)
            session.is_sent.set()
            if self._streams and session.completion is not None and not session.was_lost:
                self._engine.spawn(self._tell_end(session), f"end the stream of {self._run_id}")
            await visit
        finally:
            gone.cancel()
            tee.close()
            session.is_sent.set()
            if not visit.done():
                visit.cancel()

    async def _open(self) -> Answer | Reentry:
        """The execution that the server asks for, or what to answer without one."""
        engine = self._engine
        try:
            actions = await engine.server.checkpoints.get_steps(self._run_id)
        except UnknownRunError:
            return _refusal(400, "the server does not know this run any more")
        kept = actions.pop(hash_name(REQUEST), None)
        if not isinstance(kept, dict) or not isinstance(kept.get("data"), dict):
            return _refusal(400, "this run was not begun by this application's SDK")
        told = kept["data"]
        sealed = b64decode(told["sealed"])
        try:
            packed = engine.keyring.unseal(self._run_id, "request", sealed)
        except UnsealError as error:
            logger.error("run %s cannot go on: %s", self._run_id, error)
            return reentry.problem("request_sealed", "no configured key opens its stored request")
        request = StoredRequest.unpack(packed)
        self._streams = accepts_stream(request.headers)
        memo = ops.remembered(actions)
        if (ended := await self._ended(told, memo)) is not None:
            return ended
        new = NewRun(
            self._run_id, told["function_id"], "", request.method, request.path, b"", "",
            told["retries"],
        )  # fmt: skip
        run = register(new, "here", None, engine.now()).run._replace(
            generation=2,
            began_at=told["began_at"],
            steps=len(memo),
            memo_bytes=sum(len(record.value or b"") for record in memo),
            last_order=len(memo),
        )
        done = {record.id.hash for record in memo}
        memo += [record for record in engine.tries_of(self._run_id) if record.id.hash not in done]
        session = ReentrySession(engine, run, memo, self._orders)
        return Reentry(session, new.function_id, request, new.retries, guide=session)

    async def _ended(self, told: dict[str, Any], memo: list[StepRecord]) -> Answer | None:
        """The failure of a run that has no other try, if this is one."""
        now = self._engine.now()
        if (limit := told["max_runtime"]) is not None and told["began_at"] + limit < now:
            return reentry.final(self._responses.failed_handler(Fail("timed_out", None), now))
        for record in memo:
            if record.id == HANDLER_STEP:
                error = record.error or b"{}"
                if "reason" in orjson.loads(error):
                    return reentry.final(record)
                failure = failures.decode(error)
                if failure.name == "ReentryRefused":
                    fail = Fail("refused_before_handler", error)
                else:
                    response = await error_response(self._scope, exception_of(failure))
                    fail = Fail("exception", error, response.status, response.pack())
                return reentry.final(self._responses.failed_handler(fail, now))
        return None

    async def _tell_end(self, session: ReentrySession) -> None:
        """Let those who read the run's stream at the server know the response."""
        assert session.completion is not None
        response = StoredResponse.unpack(session.completion)
        succeeded = session.answer.result().status == 206
        last = response_frame(response, succeeded, None)

        async def frames() -> AsyncIterator[bytes]:
            yield metadata_frame(session.id, "") + last

        await publish(self._engine, session.id, frames())


class _LazyTee:
    """A tee that is opened by the first thing that is streamed."""

    def __init__(self, engine: InngestEngine, session: ReentrySession) -> None:
        self._tee: Tee | None = None
        self._log = session.log
        self._opening = engine.spawn(self._open(engine, session), f"stream of {session.id}")

    async def _open(self, engine: InngestEngine, session: ReentrySession) -> None:
        await self._log.used.wait()
        self._tee = Tee(engine, session.id, self._log)

    def close(self) -> None:
        """Nothing more is streamed."""
        self._log.close()
        if not self._log.used.is_set():
            self._opening.cancel()

    async def finish(self) -> None:
        """Return when everything that was streamed is sent."""
        self.close()
        if self._log.used.is_set():
            await self._opening
        if self._tee is not None:
            await self._tee.finish()


async def _reply(send: Send, answer: Answer, key: str = "") -> None:
    headers = {
        "content-type": "application/json",
        "x-inngest-sdk": _sdk(),
        "x-inngest-sdk-handled": "true",
        "x-inngest-framework": "starlette",
        "x-inngest-req-version": "2",
    }
    if key:
        signature = signing.sign(key, answer.body, int(time.time()))
        headers[signing.SIGNATURE_HEADER] = signature
    if answer.may_retry is not None:
        headers["x-inngest-no-retry"] = "false" if answer.may_retry else "true"
    if answer.retry_after is not None:
        headers["retry-after"] = str(answer.retry_after)
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    raw.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


@cache
def _sdk() -> str:
    return f"durable-endpoints:v{version('durable-endpoints')}"


def _refusal(status: int, message: str) -> Answer:
    return Answer(status, orjson.dumps({"message": message}), may_retry=False)


def _orders(headers: Mapping[str, str]) -> Orders:
    target = headers.get("x-inngest-step-id", "")
    only_plans = headers.get("x-inngest-force-step-plan", "").lower() == "true"
    return Orders("" if target == "step" else target, only_plans)


async def _read(receive: Receive) -> bytes | None:
    """The body of a call; None if it is larger than any that the server was shown. (To look for a
    signature costs the more, the larger it is, and anybody may ask for that.)"""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(pieces)
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > origins.SHOWN:
            return None
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
