"""The door: one request's way through the application, and the run that it may become.

The middleware makes a door for each request and leaves it in the context and in the scope. The
decorator *activates* it when its handler is reached; from then on the door captures the response,
and never tells the handler that the client has left.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.types import Message, Scope, Send

from durable_endpoints.body import RequestBody, StoredBody
from durable_endpoints.engines.base import Engine, Reentry
from durable_endpoints.execution import Execution
from durable_endpoints.protocol.step_ids import StepIds

if TYPE_CHECKING:
    from durable_endpoints.application import Application
    from durable_endpoints.ending import Ending
    from durable_endpoints.patience import Queue
    from durable_endpoints.remember import Remembered

SCOPE_KEY = "durable_endpoints.door"
"""Where the door stands in the scope: it tells nested middlewares, which share the dict, that the
request has one. A task that was started in a request inherits the context, not the scope."""

PUBLIC_SCOPE_KEY = "durable_endpoints"
"""Where authentication code finds, in a re-entry, when the original request came:
`{"reentry": True, "run_id": …, "started_at": epoch ms}`."""


class Outside:
    """Where code stands in a request that cannot become a run. One serves all of them."""

    __slots__ = ("application",)

    execution: Execution | None = None
    is_over = False

    def __init__(self, application: Application) -> None:
        self.application = application

    @property
    def engine(self) -> Engine:
        return self.application.engine

    @property
    def explanation(self) -> str:
        """Why a step is not possible here, for an error message."""
        return (
            "this request's handler is not decorated. Steps belong into a handler with @endpoint "
            "directly above its `def`, below the route's decorator"
        )


class Door:
    """Between the server and the application, for a request that may become a run."""

    __slots__ = (
        "_began",
        "accepts_stream",
        "application",
        "body",
        "ending",
        "execution",
        "is_over",
        "on_left",
        "queue",
        "reentry",
        "refusal",
        "remember_ids",
        "remembered",
        "scope",
        "send_out",
        "snapshot",
    )

    def __init__(
        self, application: Application, scope: Scope, body: RequestBody | StoredBody, send: Send
    ) -> None:
        self.application = application
        self.scope = scope
        """The scope that the application works on, and changes."""
        self.snapshot = dict(scope)
        """The scope as it came: the router updates the other one in place."""
        self.body = body
        self.send_out = send
        """Sends to the client itself."""
        self.accepts_stream = False
        """Whether the client asks for the run's stream."""
        self.reentry: Reentry | None = None
        self.execution: Execution | None = None
        self.ending: Ending | None = None
        self.refusal: Callable[[], Awaitable[None]] | None = None
        """What to answer instead of anything the application says, where no run was begun."""
        self.remembered: tuple[Remembered, ...] = ()
        """Values of dependencies that ran before the handler was reached."""
        self.remember_ids: StepIds | None = None
        self.on_left: Callable[[], None] | None = None
        """Called when the execution has left its run."""
        self.queue: Queue | None = None
        """Where its client waits for an answer."""
        self.is_over = False
        self._began = time.monotonic()

    def age(self) -> int:
        """Milliseconds since the request came."""
        return round((time.monotonic() - self._began) * 1_000)

    @property
    def engine(self) -> Engine:
        return self.application.engine

    @property
    def explanation(self) -> str:
        """Why a step is not possible here, for an error message."""
        if self.is_over:
            return "the request is over"
        return (
            "this request's handler has not been reached, or is not decorated. Steps belong into a "
            "handler with @endpoint directly above its `def`, below the route's decorator; in a "
            "dependency, use remember()"
        )

    def send(self, message: Message) -> Awaitable[None]:
        """What the application sends."""
        if self.ending is not None:
            return self.ending.send(message)
        return self.send_out(message) if self.refusal is None else _not_heard()


async def _not_heard() -> None:
    pass
