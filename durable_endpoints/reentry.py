"""Re-entry: the original request goes into the application once more, with nobody waiting.

It goes in where requests come in, so that middlewares, dependencies and exception handlers do what
they always do. It is marked by an object in the scope: no header from the network can be that.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from starlette.types import Message

from durable_endpoints.body import StoredBody
from durable_endpoints.capture import Capture
from durable_endpoints.door import PUBLIC_SCOPE_KEY
from durable_endpoints.engines.base import Reentry
from durable_endpoints.errors import EngineError
from durable_endpoints.protocol import failures
from durable_endpoints.protocol.ops import StepKind, StepRetry
from durable_endpoints.protocol.runs import Complete, Fail
from durable_endpoints.protocol.step_ids import HANDLER_STEP
from durable_endpoints.requests import scope_of

if TYPE_CHECKING:
    from durable_endpoints.application import Application

logger = logging.getLogger("durable_endpoints")

REENTRY_KEY = "durable_endpoints.reentry"

_PASSING = (408, 425, 429)
"""Statuses below 500 that say: try again later."""

_EXPIRED = (
    "Authentication that expires can remember() its result, or go by "
    'scope["durable_endpoints"]["started_at"]'
)
_NO_ROUTE = (
    "No route takes the original request: it was moved or removed, or another application has the "
    "same name at the server; give each one its own (DURABLE_ENDPOINTS_APP)"
)
_HINTS = {404: _NO_ROUTE, 405: _NO_ROUTE}
"""What to do, by the status that the application answered."""


class Pass:
    """One re-entry."""

    def __init__(self, application: Application, reentry: Reentry) -> None:
        self.reentry = reentry
        self.body = StoredBody(reentry.request.body)
        self._was_reached = False
        """Whether the handler's own code was entered."""
        self._application = application
        self._status: int | None = None
        limit = application.settings.max_response_body
        method = reentry.request.method
        self._answer = Capture(self._drop, reentry.session.id, method, limit)
        self._left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Send the request in, and return when this execution has left its run.

        The application may go on after that, with background tasks for instance.
        """
        session = self.reentry.session
        if any(step.id == HANDLER_STEP and step.due is not None for step in session.memo):
            await session.suspend()  # something else has woken the run: the handler's time is later
            return
        name = f"run {session.id} ({self.reentry.function_id})"
        app = self._application.engine.spawn(self._enter(), name)
        app.add_done_callback(lambda _: self._end())
        try:
            await self._left
        except asyncio.CancelledError:
            app.cancel()
            await asyncio.wait([app])
            raise
        if not self._was_reached:
            await self._refused(app)

    def leave(self) -> None:
        """The execution, which was reached, has left its run."""
        self._was_reached = True
        self._end()

    def _end(self) -> None:
        if not self._left.done():
            self._left.set_result(None)

    async def send(self, message: Message) -> None:
        """Nobody listens; the answer is noted for the case that the handler is not reached."""
        if not self._was_reached:
            self._answer.take(message)
        if message["type"] == "http.response.start" and self._status is None:
            self._status = message["status"]

    async def _drop(self, message: Message) -> None:
        """There is nobody to whom the captured answer would be passed on."""

    async def _enter(self) -> None:
        session = self.reentry.session
        scope = scope_of(self.reentry.request, self._application.state)
        scope[REENTRY_KEY] = self
        scope[PUBLIC_SCOPE_KEY] = {
            "reentry": True,
            "run_id": session.id,
            "started_at": session.began_at,
        }
        await self._application.entrance(scope, self.body.receive, self.send)

    @property
    def _is_answer(self) -> bool:
        """Whether what the application said instead of the handler is its answer: a 422, say.

        It is, for a run that another one has invoked, on its first pass: there was none in which a
        request was let in that is not any more. What may be over soon is tried again all the same.
        """
        status = self._status
        is_first = self.reentry.session.generation == 1
        return (
            is_first
            and self._answer.is_complete
            and status is not None
            and status < 500
            and status not in _PASSING
        )

    async def _keep_answer(self) -> None:
        session, answer = self.reentry.session, self._answer
        if answer.too_large:
            completion = Complete(answer.status, None, "too_large")
        else:
            packed = self._application.engine.pack_response(session.id, answer.response())
            completion = Complete(answer.status, packed)
        try:
            await session.end(completion)
        except EngineError as error:
            logger.error("run %s: %s", session.id, error)
            await session.abandon()

    async def _refused(self, app: asyncio.Task[None]) -> None:
        """Something before the handler answered: an expired login, a route that is gone.

        That is never the run's result. The pass is tried again like a failed handler, and if it
        stays so, the run fails with that reason.
        """
        hint = _EXPIRED
        if app.cancelled():
            what = "it was cancelled"
        elif (error := app.exception()) is not None:
            what = f"it raised {failures.describe(error)}"
        elif self._is_answer:
            await self._keep_answer()
            return
        else:
            what = f"the application answered {self._status}"
            hint = _HINTS.get(self._status or 0, hint)
        session = self.reentry.session
        known = [step for step in session.memo if step.id == HANDLER_STEP]
        attempt = known[0].attempt + 1 if known else 1
        retries = self.reentry.retries
        failure = failures.Failure(
            "ReentryRefused",
            f"the re-entry was refused before the handler was reached: {what}. {hint}",
        )
        logger.warning(
            "run %s (%s): %s; try %d of %d",
            session.id,
            self.reentry.function_id,
            failure.message,
            attempt,
            retries + 1,
        )
        try:
            if attempt > retries:
                await session.end(Fail("refused_before_handler", failure.encode()))
            else:
                session.record(StepRetry(HANDLER_STEP, StepKind.HANDLER, failure.encode(), attempt))
                await session.suspend()
        except EngineError as engine_error:
            logger.error("run %s: %s", session.id, engine_error)
            await session.abandon()
