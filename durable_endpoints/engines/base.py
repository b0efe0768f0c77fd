"""The seam between the SDK and an engine, wherever that engine runs.

An `Engine` serves the middlewares that name its database. A `Session` is one execution's hold on
one run; its methods are for the event loop on which the execution runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from starlette.types import Receive, Scope, Send

from durable_endpoints.protocol.errors import EngineError
from durable_endpoints.protocol.messages import Headers, StoredRequest, StoredResponse
from durable_endpoints.protocol.ops import (
    NewEvent,
    SignalTaken,
    StepOp,
    StepRecord,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete, Fail, Listener, NewRun
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.protocol.streams import RecordKind, Silence, StreamStart
from durable_endpoints.protocol.tokens import Grant

if TYPE_CHECKING:
    from durable_endpoints.unkept import UnkeptSession


class KeyHolder(NamedTuple):
    """The run that an idempotency key belongs to."""

    run_id: str
    scope: str
    fingerprint: str


class Outcome(NamedTuple):
    """How a run stands for whoever waits for it."""

    run_id: str
    status: str
    """`running`, `waiting`, `ready`, `parked`, `completed`, `failed` or `cancelled`."""
    reason: str
    response: StoredResponse | None
    omitted: str
    until_delivered: bool
    error: str
    """The failure in one line: class and message."""
    method: str
    path: str

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ("completed", "failed", "cancelled")


class Session(Protocol):
    """One execution's hold on a run."""

    @property
    def id(self) -> str:
        """The run's id."""
        ...

    @property
    def generation(self) -> int:
        """The fencing number of this execution."""
        ...

    @property
    def began_at(self) -> int:
        """When the original request came, on the engine's clock."""
        ...

    @property
    def memo(self) -> Sequence[StepRecord]:
        """What earlier executions left, in order of completion."""
        ...

    listener: Listener | None

    @property
    def stop_reason(self) -> str:
        """Why the run was taken from this execution: `cancelled`, `timed_out` or `lost`. Empty
        while it was not."""
        ...

    def record(self, op: StepOp) -> StepRecord:
        """Send `op` on its way to the disk, and return the step as it now is.

        Raises `LostRunError` or `LimitError`; then nothing was recorded.
        """
        ...

    async def open_signal(self, op: WaitForEvent, replace: bool) -> StepRecord | SignalTaken:
        """Record a wait for a signal, for which one run at a time may wait: another one that does
        is told, or, with `replace`, goes on without the signal.

        Raises as `record` does, and `StorageError`.
        """
        ...

    def watch(self, step: StepRecord) -> None:
        """Let a step that an earlier execution opened be resolved in this one."""
        ...

    @property
    def is_raced(self) -> bool:
        """Whether an open step may be resolved elsewhere, and the order in which it and what is
        recorded here have ended be another one there. Then `in_order` tells."""
        ...

    async def in_order(self) -> None:
        """Return once it is certain which steps have ended before the one that was recorded last:
        the listener has been told of those, and is told of others later. Raises as `acknowledge`
        does."""
        ...

    @property
    def is_sure(self) -> bool:
        """Whether no other execution can have been given the run, for all that is known here. A
        process that was stopped for a while may have lost it."""
        ...

    async def make_sure(self) -> None:
        """Ask whether the run is still this execution's. Raises `LostRunError` or
        `StorageError`."""
        ...

    def acknowledge(self) -> Coroutine[Any, Any, None]:
        """Return once everything recorded so far is on disk.

        Raises `LostRunError` or `StorageError`: then some of it is not, and never will be.
        """
        ...

    def push(
        self, step: str, attempt: int, values: list[bytes], kind: RecordKind = RecordKind.DATA
    ) -> bool:
        """Stream chunks, JSON values, of one try of a step (by its hash), or of none. From any
        thread; never waits. Whether they are new: outside steps, an earlier execution may have
        streamed them.

        Raises `LimitError` when data is too much, `LostRunError` when the run is no longer this
        execution's. Of progress and log lines, what is too much is left out.
        """
        ...

    def withdraw(self, step: str) -> None:
        """A try of a step was given up without an outcome: what it has streamed is withdrawn."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether a producer that can wait should, for `room`."""
        ...

    async def room(self) -> None:
        """Return when more chunks may come."""
        ...

    @property
    def stream_tail(self) -> int:
        """The last position of what this execution has streamed and recorded."""
        ...

    @property
    def stream_written(self) -> int:
        """The last of these positions that is known to be written."""
        ...

    def read_stream(self) -> StreamReader:
        """Read what this execution streams, and no later one. Its stream log is kept from then on,
        and not only from the first chunk."""
        ...

    async def suspend(self) -> None:
        """End this execution until an open step is resolved."""
        ...

    async def release(self, reason: str) -> None:
        """End this execution, and let another one begin at once."""
        ...

    async def park(self, reason: str) -> None:
        """Let the run stand still until somebody retries it."""
        ...

    async def end(self, command: Complete | Fail) -> None:
        """End the run. Returns when that, and every step before it, is on disk."""
        ...

    async def abandon(self) -> None:
        """The store failed: let another execution begin once it works again."""
        ...


class StreamReader(Protocol):
    """One reader of a run's stream, on one event loop. To be closed."""

    stops_at_outcome: bool
    """Whether the next frames shall end with the first commit or rollback of a step among them.
    It is reset then."""

    stays: bool
    """Whether it goes on while this process drains."""

    @property
    def position(self) -> int:
        """The last position that it has whole."""
        ...

    @property
    def id(self) -> str:
        """The position as the id of a frame; empty while it is not known."""
        ...

    async def next(self, patience: int) -> bytes | Silence:
        """The next frames, as soon as there are any, or why there are none after `patience` ms."""
        ...

    def poke(self) -> None:
        """Let `next` look once more and return."""
        ...

    def close(self) -> None:
        """Nothing more is read."""
        ...


class Guide(Protocol):
    """How an engine leads an execution that may run one body of a step at the most."""

    def runs(self, step: StepId) -> bool:
        """Whether the body of `step` shall run at once. If not, it waits to be chosen."""
        ...

    def choose(self) -> StepRecord | None:
        """Nothing goes on any more: which of the bodies that wait shall run. None: none of them."""
        ...

    @property
    def is_looking(self) -> bool:
        """Whether the execution shall go on for a while although nothing in it does: what is wanted
        may still come."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether the execution shall end, because it has recorded what it may."""
        ...


class Reentry(NamedTuple):
    """A run that shall be executed again, by sending its request into the application."""

    session: Session
    function_id: str
    request: StoredRequest
    retries: int
    """The endpoint's, when the run began."""
    guide: Guide | None = None
    """Who says which bodies run, if not all of them may."""


class Script(Protocol):
    """What an engine for tests does to the bodies of steps."""

    def body_of(self, run_id: str, step: StepId, body: Callable[..., Any]) -> Callable[..., Any]:
        """What is called instead of `body`, and may be `body` itself: a plain function for a plain
        one."""
        ...


Executor = Callable[[Reentry], Awaitable[None]]


@runtime_checkable
class CallsBack(Protocol):
    """What an engine has beside `Engine` that re-enters an application by HTTP requests."""

    async def answer_call(
        self, scope: Scope, receive: Receive, send: Send, execute: Executor
    ) -> None:
        """Answer a request that claims to be a re-entry: verify that, and `execute` it."""
        ...


_CALL = (b"x-run-id", b"x-inngest-signature")


def is_call(headers: Headers) -> bool:
    """Whether a request claims to be a re-entry (Inngest SDK protocol): it names a run, and has a
    signature, which may be empty."""
    found = {name: value for name, value in headers if name in _CALL}
    return len(found) == len(_CALL) and bool(found[_CALL[0]])


class Engine(Protocol):
    """Whoever keeps runs."""

    @property
    def script(self) -> Script | None:
        """In tests, what happens instead of the bodies of steps."""
        ...

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not stopped."""
        ...

    @property
    def is_healthy(self) -> bool:
        """Whether it answered in the last seconds: then a registration need not be awaited."""
        ...

    @property
    def max_steps(self) -> int: ...

    @property
    def max_result(self) -> int:
        """Bytes of one step's result, as JSON."""
        ...

    def now(self) -> int:
        """UTC epoch milliseconds on the engine's clock."""
        ...

    def call_later(self, delay: int, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back in `delay` milliseconds of the engine's time; returns how to cancel that."""
        ...

    async def start(self, for_good: bool = False) -> None:
        """Begin to serve on this event loop, unless it does already; `for_good` promises that the
        loop lives, and that `stop` will be called."""
        ...

    def begin_drain(self) -> None:
        """Begin no execution any more, and let go of whoever waits for a run."""
        ...

    async def stop(self) -> None:
        """Write what was recorded, and end the background tasks."""
        ...

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run in the background, in an empty context, until `stop` at the latest."""
        ...

    def add_executor(self, root_path: str, executor: Executor, is_whole: bool) -> None:
        """An application is ready for re-entries of runs that began below `root_path`, and if it
        is the `whole` of what this process serves, of all that nobody else claims."""
        ...

    async def admit(self) -> None:
        """Return when a new run may begin. Raises `EngineClosedError` while draining."""
        ...

    @property
    def is_admitting(self) -> bool:
        """Whether a new run may begin at once, without asking `admit`."""
        ...

    def register(self, new: NewRun) -> Session:
        """Begin a run. `Session.acknowledge` says when it is on disk, and raises `LostRunError`
        if its idempotency key was taken meanwhile."""
        ...

    def proceed_without(self, session: Session | None, error: EngineError) -> UnkeptSession | None:
        """The session of a request that goes on although its run could not be begun, because of
        `error`; None if this engine does not allow that for such an error. `session` is what
        `register` gave, if it was called: a run that exists all the same is ended."""
        ...

    def pack_request(self, run_id: str, request: StoredRequest) -> bytes:
        """The request as this engine keeps it for re-entry: sealed."""
        ...

    def pack_response(self, run_id: str, response: StoredResponse) -> bytes:
        """The response as this engine keeps it."""
        ...

    async def key_holder(self, key: str) -> KeyHolder | None:
        """The run that an idempotency key belongs to."""
        ...

    async def outcome(self, run_id: str, timeout: int) -> Outcome | None:
        """How the run stands, at its end or after `timeout` ms. None for an unknown run."""
        ...

    def read_stream(self, run_id: str, start: StreamStart) -> StreamReader:
        """Begin to read the stream of a run."""
        ...

    async def stream_tail(self, run_id: str) -> int:
        """The last position of the run's stream; 0 if there is none."""
        ...

    async def until_idle(self, run_id: str) -> None:
        """Return when a run does nothing for now: it waits, is parked or has ended; or when nobody
        shall stay to see that, because this process ends, or another run must be alone in it."""
        ...

    async def cancel(self, run_id: str, reason: str) -> bool:
        """End a run without a result. False if it has ended already, or is unknown."""
        ...

    def delivered(self, run_id: str) -> None:
        """A response that was to be kept only until delivered was delivered."""
        ...

    async def send_event(self, event: NewEvent) -> str:
        """Receive an event; returns its id once it is on disk."""
        ...

    async def send_signal(self, name: str, data: bytes) -> bool:
        """Give a signal, with JSON, to the run that waits for it. True once that is on disk, False
        if no run waits. Raises `StorageError` if neither can be said."""
        ...

    def sign_run(self, run_id: str, may_cancel: bool) -> str:
        """The token that opens this run, and if it `may_cancel`, can end it."""
        ...

    def verify_run(self, run_id: str, token: str) -> Grant | None:
        """What `token` may do with this run; None if it does not open it."""
        ...

    def track(self, method: str, route: str, status: int, elapsed: int, run_id: str | None) -> None:
        """Keep a line about a request; `elapsed` in microseconds."""
        ...
