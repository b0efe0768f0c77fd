"""Activation: a decorated handler was reached, and its request becomes a run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
from starlette.datastructures import QueryParams

from durable_endpoints.answers import stream_headers
from durable_endpoints.body import RequestBody
from durable_endpoints.door import Door
from durable_endpoints.ending import Ending
from durable_endpoints.engines.base import Guide, KeyHolder, Outcome, Reentry, Session
from durable_endpoints.errors import ConfigurationError, EngineError, LimitError, LostRunError
from durable_endpoints.execution import Execution
from durable_endpoints.following import follow
from durable_endpoints.hooks import RunInfo, notify
from durable_endpoints.idempotency import NO_CLAIM, BadKeyError, Claim, claim_of, conflict
from durable_endpoints.ids import new_run_id
from durable_endpoints.options import EndpointOptions
from durable_endpoints.protocol import failures
from durable_endpoints.protocol.messages import StoredRequest
from durable_endpoints.protocol.ops import StepDone, StepKind
from durable_endpoints.protocol.runs import Fail, NewRun
from durable_endpoints.reply import Reply
from durable_endpoints.requests import header, printable, store_request
from durable_endpoints.stream_reply import StreamReply
from durable_endpoints.unkept import UnkeptSession, degradation, telling
from durable_endpoints.unwinding import Suspended

if TYPE_CHECKING:
    from durable_endpoints.endpoint import Endpoint


async def activate(door: Door, endpoint: Endpoint, in_thread: bool = False) -> Execution:
    """Begin the run of a request, or go on with the one that a re-entry belongs to.

    Raises `Suspended` when there is nothing for the handler to do: the request was refused, or
    repeats one that has a run already; `door.refusal` is what the client gets then.
    """
    options = door.application.options_of(endpoint)
    if door.reentry is not None:
        execution = _resume(door, door.reentry, options)
    else:
        execution = await _begin(door, endpoint, options)
    if in_thread:
        execution.token = anyio.lowlevel.current_token()
    if execution.hooks:
        await notify([hook.before_run(execution.info) for hook in execution.hooks])
    return execution


def _resume(door: Door, reentry: Reentry, options: EndpointOptions) -> Execution:
    session = reentry.session
    for value in door.remembered:  # of a dependency that an earlier version did not have
        session.record(StepDone(value.step, StepKind.REMEMBER, value.encoded))
    return _execution(
        door, session, reentry.request, reentry.function_id, options, 1, reentry.guide
    )


async def _begin(door: Door, endpoint: Endpoint, options: EndpointOptions) -> Execution:
    application, body = door.application, door.body
    assert isinstance(body, RequestBody)
    request = store_request(
        door.snapshot, body.whole() if body.is_complete else await body.complete()
    )
    body.in_run = True
    function_id = options.function_id or application.function_id(endpoint, door)
    registered: Session | None = None
    session: Session | None = None
    claim: Claim | None = None
    try:
        engine = application.running_engine() or await application.started_engine()
        if not engine.is_admitting:
            await engine.admit()
        if (
            options.idempotency_key is not None
            or header(request.headers, b"idempotency-key") is not None
        ):
            claim = await claim_of(door.scope, request, options, function_id)
        if claim is not None:
            if (holder := await engine.key_holder(claim.key)) is not None:
                raise _repeat(door, claim, holder, options)
        elif _wants_stream(door, options) and header(request.headers, b"last-event-id"):
            raise _cannot_resume(door)
        run_id = new_run_id()
        registered = engine.register(
            NewRun(
                run_id,
                function_id,
                application.settings.version,
                request.method,
                printable(request.path),
                engine.pack_request(run_id, request),
                printable(application.root_path(door.snapshot)),
                options.retries,
                options.max_runtime,
                options.omit_request_body,
                door.age(),
                *(claim or NO_CLAIM),
            )
        )
        session = application.coding.wrap(registered)
        for value in door.remembered:
            session.record(StepDone(value.step, StepKind.REMEMBER, value.encoded))
        proceeds = options.on_unavailable == "proceed"
        if claim is not None or proceeds or not engine.is_healthy:
            await _acknowledge(door, session, claim, options)
        if proceeds:
            degradation.reset()
    except BadKeyError as error:
        reply = Reply(door, "")
        detail = str(error)
        raise _refuse(door, lambda: reply.problem(400, "bad_idempotency_key", detail)) from None
    except EngineError as error:
        if options.on_unavailable == "proceed" and claim is None:
            unkept = application.engine.proceed_without(registered, error)
            if unkept is not None:
                return _go_on_without(door, unkept, request, function_id, options)
        if session is not None:
            await session.abandon()
        detail = error.explanation
        reply = Reply(door, "")
        raise _refuse(door, lambda: reply.unavailable(detail)) from None
    except (LimitError, ConfigurationError) as error:
        if session is not None:
            await _end_failed(session, error)
        raise
    except asyncio.CancelledError:
        if session is not None:
            door.engine.spawn(_give_back(session), "give a run back")
        raise
    unacknowledged = len(door.remembered)
    execution = _execution(door, session, request, function_id, options, unacknowledged)
    assert door.ending is not None
    if not door.ending.is_stream:  # whose client may wait as long as it takes
        door.queue = application.queues.of(engine, options.respond_within, execution.loop)
        door.queue.add(door.ending, session.began_at)
    return execution


def _go_on_without(
    door: Door,
    session: UnkeptSession,
    request: StoredRequest,
    function_id: str,
    options: EndpointOptions,
) -> Execution:
    """The endpoint wants to answer rather than to be durable."""
    degradation.tell(function_id, session.reason)
    door.send_out = telling(door.send_out, session.reason)
    for value in door.remembered:
        session.record(StepDone(value.step, StepKind.REMEMBER, value.encoded))
    return _execution(door, session, request, function_id, options, 0)


async def _end_failed(session: Session, error: LimitError | ConfigurationError) -> None:
    """What dependencies gave the run to remember is more than it may hold."""
    try:
        await session.end(Fail("exception", failures.describe(error).encode()))
    except EngineError:
        await session.abandon()


async def _give_back(session: Session) -> None:
    """Whoever sent the request gave up while its run was being registered."""
    try:
        await session.release("released")
    except EngineError:
        await session.abandon()


async def _acknowledge(
    door: Door, session: Session, claim: Claim | None, options: EndpointOptions
) -> None:
    """Wait until the run is on disk. Another request with the key may have been faster."""
    try:
        await session.acknowledge()
    except LostRunError:
        holder = None if claim is None else await door.engine.key_holder(claim.key)
        if claim is None or holder is None:
            raise
        raise _repeat(door, claim, holder, options) from None


def _execution(
    door: Door,
    session: Session,
    request: StoredRequest,
    function_id: str,
    options: EndpointOptions,
    unacknowledged: int,
    guide: Guide | None = None,
) -> Execution:
    application = door.application
    info = RunInfo(session.id, function_id, session.generation, door.reentry is not None)
    execution = Execution(
        application.engine,
        session,
        info,
        options,
        request,
        door.scope.get("path_params", {}),
        application.hooks,
        application.around,
        unacknowledged,
        guide,
    )
    door.execution = execution
    streams = (
        door.reentry is None
        and not isinstance(session, UnkeptSession)
        and _wants_stream(door, options)
    )
    reply = StreamReply(door, session, options) if streams else Reply(door, session.id)
    door.ending = Ending(door, execution, reply)
    application.entered(door)
    return execution


def _repeat(door: Door, claim: Claim, holder: KeyHolder, options: EndpointOptions) -> Suspended:
    """The key has a run: answer with that, if this is a repeat of the same request."""
    reply = Reply(door, holder.run_id)
    problem = conflict(claim, holder)
    if problem is not None:
        stranger = Reply(door, "")
        return _refuse(door, lambda: stranger.problem(422, "idempotency_key_reused", problem))

    async def join() -> None:
        try:
            outcome = await door.engine.outcome(holder.run_id, 0)
            if outcome is not None and _wants_stream(door, options):
                await _follow(door, outcome, options, reply)
                return
            if outcome is not None and outcome.status in ("running", "ready"):
                outcome = await door.engine.outcome(holder.run_id, options.respond_within)
        except EngineError as error:
            await reply.unavailable(error.explanation)
            return
        if outcome is None:
            await reply.unavailable("The run of this Idempotency-Key was just deleted.")
        elif outcome.status in ("completed", "failed", "cancelled", "parked"):
            await reply.outcome(outcome)
            if outcome.until_delivered:
                door.engine.delivered(holder.run_id)
        else:
            await reply.later(options)

    return _refuse(door, join)


def _wants_stream(door: Door, options: EndpointOptions) -> bool:
    return door.accepts_stream and options.sse and door.snapshot["method"] != "HEAD"


async def _follow(door: Door, outcome: Outcome, options: EndpointOptions, reply: Reply) -> None:
    """Answer a repeat with the stream of the run that it joins."""
    body = door.body
    assert isinstance(body, RequestBody)
    url = await reply.url(options, door.engine.sign_run(outcome.run_id, options.cancellable))
    instead = await follow(
        door.application,
        outcome,
        door.snapshot["headers"],
        QueryParams(),
        stream_headers(url),
        door.send_out,
        body.until_gone,
    )
    if instead is not None:
        await reply.plain(instead)


def _cannot_resume(door: Door) -> Suspended:
    """EventSource reconnects by itself, to the same URL: that shall not do the work again."""
    detail = (
        "Last-Event-ID goes with the URL of a run, which the stream named in Durable-Run-Url, or "
        "with the Idempotency-Key of the request that began it. Here it would begin another run."
    )
    reply = Reply(door, "")
    return _refuse(door, lambda: reply.problem(400, "bad_request", detail))


def _refuse(door: Door, answer: Any) -> Suspended:
    """No run begins: unwind to the middleware, which sends `answer` alone."""
    door.refusal = answer
    return Suspended()
