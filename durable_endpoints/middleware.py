"""`DurableEndpointsMiddleware`: the door of an application, as pure ASGI middleware."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Unpack

from starlette.types import ASGIApp, Receive, Scope, Send

from durable_endpoints._context import current
from durable_endpoints.application import Application
from durable_endpoints.body import RequestBody
from durable_endpoints.door import SCOPE_KEY, Door
from durable_endpoints.engines.base import Engine
from durable_endpoints.errors import ConfigurationError
from durable_endpoints.hooks import Hook
from durable_endpoints.lifespan import fail_startup, run_lifespan
from durable_endpoints.options import (
    AsyncResponse,
    Checkpoint,
    EndpointOptions,
    IdempotencyScope,
    RedirectUrl,
)
from durable_endpoints.protocol.durations import Duration
from durable_endpoints.proxy import wait_for_run
from durable_endpoints.reentry import REENTRY_KEY, Pass
from durable_endpoints.settings import Settings, SettingsArguments

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
      `max_runtime`, `omit_request_body`, `omit_response_body`, `idempotency_scope`: defaults for
      the endpoints of this application, as in `@endpoint`.
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
            )
        except ConfigurationError as error:
            self._mistake = error
        self._application = Application(self, loaded, defaults, hooks, engine, reentry_app)
        self._body_limit = loaded.max_request_body
        self._tracks = loaded.track_all_endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._mistake is not None:
            if scope["type"] != "lifespan":
                raise self._mistake
            await receive()
            await fail_startup(self._mistake, send)
        elif scope["type"] == "http" and SCOPE_KEY not in scope:
            await self._request(scope, receive, send)
        elif scope["type"] == "lifespan":
            await run_lifespan(self._application, self.app, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        door = Door(self._application, scope, receive, send)
        if not self._tracks:
            await self._pass_through(door, scope, receive, send)
            return
        began = time.perf_counter_ns()
        try:
            await self._pass_through(door, scope, receive, send)
        finally:
            if door.reentry is None:
                elapsed = (time.perf_counter_ns() - began) // 1_000
                await self._application.track(door, elapsed)

    async def _pass_through(self, door: Door, scope: Scope, receive: Receive, send: Send) -> None:
        application = self._application
        routes = application.routes or application.see(scope)
        visit = scope.pop(REENTRY_KEY, None)
        if isinstance(visit, Pass):
            door.reentry, door.body = visit.reentry, visit.body
            door.on_left = visit.leave
        elif scope["path"].endswith(application.wait_paths) and application.serves_wait(scope):
            await wait_for_run(door, scope, send)
            return
        elif routes.may_be_durable(scope):
            door.body = RequestBody(receive, self._body_limit)
            receive = door.receive
            if scope.get("extensions"):
                scope["extensions"] = {
                    name: value
                    for name, value in scope["extensions"].items()
                    if name not in _UNSUPPORTED
                }
        scope[SCOPE_KEY] = door
        previous = current.place
        current.place = door
        error: BaseException | None = None
        try:
            await self.app(scope, receive, door.send)
        except BaseException as raised:
            error = raised
        try:
            if door.ending is not None:
                if isinstance(visit, Pass):
                    visit.was_reached = True
                await door.ending.conclude(error)
            elif door.refusal is not None:
                await door.refusal()
            elif error is not None:
                raise error
        finally:
            door.is_over = True
            current.place = previous
