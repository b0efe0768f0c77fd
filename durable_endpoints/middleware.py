"""`DurableEndpointsMiddleware`: the door of an application, as pure ASGI middleware."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Unpack

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from durable_endpoints._context import place_here, stand_at
from durable_endpoints.application import Application
from durable_endpoints.body import RequestBody
from durable_endpoints.capture import RUN_ID_HEADER
from durable_endpoints.door import SCOPE_KEY, Door
from durable_endpoints.engines.base import Engine, is_call
from durable_endpoints.errors import ConfigurationError
from durable_endpoints.following import accepts_stream
from durable_endpoints.hooks import Hook, mistake_in
from durable_endpoints.lifespan import fail_startup, run_lifespan
from durable_endpoints.options import (
    AsyncResponse,
    Checkpoint,
    EndpointOptions,
    IdempotencyKey,
    IdempotencyScope,
    OnUnavailable,
    RedirectUrl,
)
from durable_endpoints.protocol.durations import Duration
from durable_endpoints.proxy import wait_for_run
from durable_endpoints.reentry import REENTRY_KEY, Pass
from durable_endpoints.requests import header
from durable_endpoints.settings import Settings, SettingsArguments

logger = logging.getLogger("durable_endpoints")

_UNSUPPORTED = frozenset(
    {"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"}
)
"""Extensions by which a response would end, or be sent, past the door."""


class DurableEndpointsMiddleware:
    """Makes the decorated handlers of an application durable; all others pass through.

        app.add_middleware(DurableEndpointsMiddleware)

    Add it *first*, so that it is the innermost of your middlewares: then those outside see ordinary
    responses, and what they add to a response (compression, CORS, session cookies) is not kept with
    it. It is correct anywhere.

    The arguments are all optional:

    - `engine`: an engine of your own making, from `durable_endpoints.testing` for instance.
    - `hooks`: objects whose methods run around executions and steps.
    - `retries`, `async_response`, `async_redirect_url`, `checkpoint`, `respond_within`,
      `max_runtime`, `omit_request_body`, `omit_response_body`, `idempotency_scope`,
      `idempotency_key`, `sse`, `cancellable`, `on_unavailable`: defaults for the endpoints of this
      application, as in `@endpoint`.
    - every field of `durable_endpoints.settings.Settings`: `database`, `public_url`,
      `track_all_endpoints` and so on, which else come from `DURABLE_ENDPOINTS_…` variables.
    - `reentry_app`: where requests are sent in again, if the middleware cannot find out.

    A wrong argument or variable fails the application's start with a `ConfigurationError`, and
    without a lifespan every request: a server would take an exception in here for an application
    that has no lifespan, and go on.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        engine: Engine | None = None,
        hooks: Sequence[Hook] = (),
        reentry_app: ASGIApp | None = None,
        retries: int | None = None,
        async_response: AsyncResponse | None = None,
        async_redirect_url: RedirectUrl | None = None,
        checkpoint: Checkpoint | None = None,
        respond_within: Duration | None = None,
        max_runtime: Duration | None = None,
        omit_request_body: bool | None = None,
        omit_response_body: bool | None = None,
        idempotency_scope: IdempotencyScope | None = None,
        idempotency_key: IdempotencyKey | None = None,
        sse: bool | None = None,
        cancellable: bool | None = None,
        on_unavailable: OnUnavailable | None = None,
        **settings: Unpack[SettingsArguments],
    ) -> None:
        self.app = app
        self._mistake: ConfigurationError | None = None
        loaded, defaults = Settings(), EndpointOptions()
        try:
            loaded = Settings.load(settings)
            defaults = defaults.change(
                retries=retries,
                async_response=async_response,
                async_redirect_url=async_redirect_url,
                checkpoint=checkpoint,
                respond_within=respond_within,
                max_runtime=max_runtime,
                omit_request_body=omit_request_body,
                omit_response_body=omit_response_body,
                idempotency_scope=idempotency_scope,
                idempotency_key=idempotency_key,
                sse=sse,
                cancellable=cancellable,
                on_unavailable=on_unavailable,
            )
            _check_parts(engine, hooks)
        except ConfigurationError as error:
            self._mistake, hooks, engine = error, (), None
        self._application = Application(self, loaded, defaults, hooks, engine, reentry_app)
        self._body_limit = loaded.max_request_body
        self._enter = self._tracked if loaded.track_all_endpoints else self._request
        if self._mistake is not None:
            self._enter = self._refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and SCOPE_KEY not in scope:
            await self._enter(scope, receive, send)
        elif scope["type"] != "lifespan":
            await self.app(scope, receive, send)
        elif self._mistake is not None:
            await receive()
            await fail_startup(self._mistake, send)
        else:
            await run_lifespan(self._application, self.app, scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request: through a door if it may become a run, else past it."""
        application = self._application
        routes = application.routes or application.see(scope)
        if REENTRY_KEY in scope:
            visit: Pass = scope.pop(REENTRY_KEY)
            door = Door(application, scope, visit.body, send)
            door.reentry, door.on_left = visit.reentry, visit.leave
            await self._through(door, receive)
        elif (
            application.may_be_called
            and is_call(scope["headers"])
            and await application.answer_call(scope, receive, send)
        ):
            return
        elif scope["path"].endswith(application.wait_paths) and application.serves_wait(scope):
            await wait_for_run(application, scope, receive, send)
        elif routes.may_be_durable(scope):
            streams = accepts_stream(scope["headers"])
            if streams:
                # The response is one frame of a stream, and nobody there decodes it.
                scope["headers"] = [
                    pair for pair in scope["headers"] if pair[0] != b"accept-encoding"
                ]
            body = RequestBody(receive, self._body_limit)
            door = Door(application, scope, body, send)
            door.accepts_stream = streams
            if scope.get("extensions"):
                scope["extensions"] = {
                    name: value
                    for name, value in scope["extensions"].items()
                    if name not in _UNSUPPORTED
                }
            await self._through(door, body.receive)
        else:
            scope[SCOPE_KEY] = outside = application.outside
            previous = place_here()
            stand_at(outside)
            try:
                await self.app(scope, receive, send)
            finally:
                stand_at(previous)

    async def _through(self, door: Door, receive: Receive) -> None:
        """Let the application answer, and after that the door, if a run was begun or refused."""
        door.scope[SCOPE_KEY] = door
        previous = place_here()
        stand_at(door)
        error: BaseException | None = None
        try:
            await self.app(door.scope, receive, door.send)
        except BaseException as raised:
            error = raised
        try:
            if door.ending is not None:
                await door.ending.conclude(error)
            elif door.refusal is not None:
                await door.refusal()
            elif isinstance(error, ClientDisconnect) and door.body.is_broken_off:
                # Nobody is there to be answered, and nothing has failed.
                logger.info("a client left before its request to %r was there", door.scope["path"])
            elif error is not None:
                raise error
        finally:
            # Without these the request would be garbage that refers to itself, and wait for the
            # collector; at some thousand requests a second that is felt.
            door.is_over, door.ending = True, None
            del door.scope[SCOPE_KEY]
            stand_at(previous)

    async def _tracked(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request of an application that tracks them all."""
        status, run_id = 500, None
        began = time.perf_counter_ns()

        async def observe(message: Message) -> None:
            nonlocal status, run_id
            if message["type"] == "http.response.start":
                status = message["status"]
                run_id = header(message.get("headers", []), RUN_ID_HEADER)
            await send(message)

        is_reentry, root_path = REENTRY_KEY in scope, scope.get("root_path", "")
        try:
            await self._request(scope, receive, observe)
        finally:
            if not is_reentry:
                elapsed = (time.perf_counter_ns() - began) // 1_000
                await self._application.track(scope, root_path, status, run_id, elapsed)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._mistake is not None
        raise self._mistake


def _check_parts(engine: object, hooks: object) -> None:
    """Raise `ConfigurationError` for what is no engine, and for hooks that are none."""
    if engine is not None and not hasattr(engine, "register"):
        raise ConfigurationError(
            f"engine={engine!r} is no engine: give one of durable_endpoints.testing, or leave it "
            "out; where runs are kept is database="
        )
    given = hooks if isinstance(hooks, list | tuple) else None
    if given is None or not all(isinstance(hook, Hook) for hook in given):
        raise ConfigurationError(f"hooks={hooks!r}: give a list of instances of Hook, [MyHook()]")
    for hook in given:
        if (mistake := mistake_in(hook)) is not None:
            raise ConfigurationError(f"hooks=[…]: {mistake}")
