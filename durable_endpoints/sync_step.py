"""`step.sync`: the same steps for plain `def` handlers, which run in a worker thread.

Bodies run in the caller's own thread; only what comes before and after them, and every wait, hops
to the event loop.
"""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import anyio.from_thread
from starlette.responses import Response

from durable_endpoints import opening, sending, signals
from durable_endpoints._context import current
from durable_endpoints.bodies import (
    NeedsNewExecutionError,
    NotBegunError,
    StepOptions,
    begin_here,
    fail,
    first_attempt,
    recall,
    run_step,
    start,
    step_options,
    succeed,
    told_of_call,
)
from durable_endpoints.calls import is_async, name_of
from durable_endpoints.child_request import Params
from durable_endpoints.errors import StepError, UsageError
from durable_endpoints.events import Event, new_event
from durable_endpoints.execution import Execution, StepScope
from durable_endpoints.fetching import Fetch, Headers, as_response
from durable_endpoints.invoking import invoke, prepare
from durable_endpoints.protocol import failures
from durable_endpoints.protocol.durations import Duration, parse_duration, parse_instant
from durable_endpoints.protocol.ops import SendEvent, Sleep, StepKind, WaitForEvent
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.protocol.values import encode
from durable_endpoints.reporting import Log, progress
from durable_endpoints.results import JSON, RESPONSES, Codec, codec_of
from durable_endpoints.signals import (
    OnConflict,
    Signal,
    check_wait,
    encoded_signal,
    send_encoded,
)
from durable_endpoints.unwinding import CancelledInsideError
from durable_endpoints.waits import EventPattern, Match, alternative_of, alternatives_of
from durable_endpoints.where import checked, here_in_thread, name_step, required

if TYPE_CHECKING:
    import httpx

P = ParamSpec("P")
T = TypeVar("T")


class SyncRunner:
    """`run`, with the settings of one step."""

    def __init__(self, options: StepOptions) -> None:
        self._options = options

    def run(self, id: str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `step.run`, for a plain function, in the calling thread."""
        if is_async(fn):
            raise UsageError(
                f"step.sync.run({id!r}) was given the coroutine function {name_of(fn)}, which a "
                f"plain `def` handler cannot await: write `await step.run({id!r}, …)` in an "
                "`async def` handler, or give a plain function"
            )
        execution = here_in_thread("step.sync.run", id)
        if execution is None:
            return _call_outside(id, fn, *args, **kwargs)
        codec = codec_of(id, fn)
        step = name_step(execution, id)
        result: T = run_step_here(execution, step, self._options, fn, args, kwargs, codec)
        return result

    def fetch(
        self,
        id: str,
        method: str,
        url: httpx.URL | str,
        *,
        params: Mapping[str, Any] | Sequence[tuple[str, Any]] | None = None,
        headers: Headers | None = None,
        json: Any = None,
        data: Mapping[str, Any] | None = None,
        content: str | bytes | None = None,
        timeout: Duration | None = None,
        client: httpx.Client | None = None,
    ) -> httpx.Response:
        """As `step.fetch`, in the calling thread. There `timeout` is for each wait for the network
        until the headers are there, and for the whole from then on."""
        body = {"json": json, "data": data, "content": content}
        given = {"params": params, "headers": headers, **body}
        fetch = Fetch(id, method, url, given, timeout, self._options, client)
        execution = here_in_thread("step.sync.fetch", id)
        if execution is None:
            return as_response(_call_outside(id, fetch.send_blocking))
        fetched = name_step(execution, id)
        send, options = fetch.in_run(execution, fetched).send_blocking, fetch.options
        response: httpx.Response = run_step_here(
            execution, fetched, options, send, (), {}, RESPONSES
        )
        return response


class SyncStep(SyncRunner):
    """The namespace `step.sync`."""

    def __init__(self) -> None:
        super().__init__(StepOptions())
        self.log = Log()
        """As `step.log`, which blocks nobody."""

    progress = staticmethod(progress)

    def options(self, *, retries: int | None = None, timeout: Duration | None = None) -> SyncRunner:
        """As `step.options`. With a timeout, the body runs in a thread of its own."""
        return SyncRunner(step_options(retries, timeout))

    @overload
    def invoke(
        self,
        id: str,
        endpoint: Callable[..., Awaitable[Response]] | Callable[..., Response],
        *,
        params: Params | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        method: str | None = None,
        timeout: Duration | None = None,
    ) -> httpx.Response: ...
    @overload
    def invoke(
        self,
        id: str,
        endpoint: Callable[..., Coroutine[Any, Any, T]],
        *,
        params: Params | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        method: str | None = None,
        timeout: Duration | None = None,
    ) -> T: ...
    @overload
    def invoke(
        self,
        id: str,
        endpoint: Callable[..., T],
        *,
        params: Params | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        method: str | None = None,
        timeout: Duration | None = None,
    ) -> T: ...
    def invoke(
        self,
        id: str,
        endpoint: Callable[..., Any],
        *,
        params: Params | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        method: str | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        """As `step.invoke`."""
        what = "step.sync.invoke"
        execution = required(here_in_thread(what, id), what, id)
        call = prepare(execution, id, endpoint, params, json, headers, method, timeout)
        return on_loop(execution, invoke, call)

    def sleep(self, id: str, duration: Duration) -> None:
        """As `step.sleep`."""
        milliseconds = checked(parse_duration, id, duration)
        execution = here_in_thread("step.sync.sleep", id)
        if execution is None:
            time.sleep(milliseconds / 1_000)
        else:
            op = Sleep(name_step(execution, id), duration=milliseconds)
            on_loop(execution, opening.sleep, op)

    def sleep_until(self, id: str, when: datetime | str) -> None:
        """As `step.sleep_until`."""
        instant = checked(parse_instant, id, when)
        execution = here_in_thread("step.sync.sleep_until", id)
        if execution is None:
            time.sleep(max(0, instant / 1_000 - time.time()))
        else:
            on_loop(execution, opening.sleep, Sleep(name_step(execution, id), until=instant))

    def wait_for_event(
        self,
        id: str,
        *,
        event: str,
        timeout: Duration,
        match: Match | None = None,
        if_exp: str | None = None,
    ) -> Event | None:
        """As `step.wait_for_event`."""
        milliseconds = checked(parse_duration, id, timeout)
        what = "step.sync.wait_for_event"
        execution = required(here_in_thread(what, id), what, id)
        alternative = alternative_of("", event, match, if_exp, execution.inputs)
        step = name_step(execution, id)
        op = WaitForEvent(step, StepKind.WAIT, (alternative,), milliseconds)
        result: Event | None = on_loop(execution, opening.wait, op)
        return result

    def wait_for_any(
        self,
        id: str,
        events: Sequence[str] | Mapping[str, str | EventPattern],
        *,
        timeout: Duration,
        match: Match | None = None,
    ) -> tuple[str, Event] | None:
        """As `step.wait_for_any`."""
        milliseconds = checked(parse_duration, id, timeout)
        what = "step.sync.wait_for_any"
        execution = required(here_in_thread(what, id), what, id)
        alternatives = alternatives_of(events, match, execution.inputs)
        step = name_step(execution, id)
        op = WaitForEvent(step, StepKind.WAIT_ANY, alternatives, milliseconds)
        result: tuple[str, Event] | None = on_loop(execution, opening.wait_any, op)
        return result

    def wait_for_signal(
        self,
        id: str,
        *,
        signal: str,
        timeout: Duration,
        on_conflict: OnConflict = "fail",
    ) -> Signal | None:
        """As `step.wait_for_signal`."""
        milliseconds = checked(parse_duration, id, timeout)
        what = "step.sync.wait_for_signal"
        execution = required(here_in_thread(what, id), what, id)
        check_wait(id, signal, on_conflict)
        step = name_step(execution, id)
        found: Signal | None = on_loop(
            execution, signals.wait, step, signal, milliseconds, on_conflict
        )
        return found

    def send_signal(self, id: str, signal: str, data: Any = None) -> bool:
        """As `step.send_signal`."""
        what = "step.sync.send_signal"
        execution = required(here_in_thread(what, id), what, id)
        args = execution.engine, signal, encoded_signal(signal, data)
        step, options = name_step(execution, id), StepOptions()
        sent: bool = on_loop(execution, run_step, step, options, send_encoded, args, {})
        return sent

    def send_event(
        self,
        id: str,
        name: str,
        data: Any = None,
        *,
        event_id: str | None = None,
        ts: int | None = None,
    ) -> str:
        """As `step.send_event`."""
        execution = here_in_thread("step.sync.send_event", id)
        if execution is None:
            return sending.send_event_blocking(name, data, id=event_id, ts=ts)
        event = new_event(name, data, event_id, ts)
        step = name_step(execution, id)
        if event_id is None:
            event = event._replace(id=f"{execution.info.run_id}:{step.hash}")
        sent: str = on_loop(execution, opening.send, SendEvent(step, event, encode(event.id)))
        return sent


def on_loop(
    execution: Execution, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any
) -> Any:
    """Call a coroutine function on the execution's event loop; the calling thread waits."""
    if execution.token is not None:
        return anyio.from_thread.run(function, execution, *args, token=execution.token)
    # A thread that an `async` handler has started.
    return execution.run_from_thread(function(execution, *args))


def run_step_here(
    execution: Execution,
    step: StepId,
    options: StepOptions,
    body: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    codec: Codec = JSON,
) -> Any:
    """A whole step, in the caller's thread."""
    if options.timeout is not None or execution.around.step:
        # A thread of its own can be left behind when its time is over, and be begun from the
        # event loop, where the hooks are.
        return on_loop(execution, run_step, step, options, body, args, kwargs, codec)
    record = recall(execution, step, StepKind.RUN)
    if record is not None and record.is_final:
        return on_loop(execution, Execution.take, record, codec)
    attempt = on_loop(execution, first_attempt, step, record)
    try:
        while True:
            on_loop(execution, start, step, attempt)
            began = time.perf_counter_ns()
            try:
                value = _run_body(execution, step, attempt, body, args, kwargs)
            except NotBegunError:
                execution.call_soon(execution.end_body)
            except NeedsNewExecutionError:
                execution.give_up_try_soon(step)
                on_loop(execution, Execution.park_for_handover)
            except Exception as error:
                elapsed = (time.perf_counter_ns() - began) // 1_000
                told = told_of_call(execution, step, body, args, kwargs, error)
                attempt = on_loop(execution, fail, step, attempt, told, elapsed, options)
            except BaseException:
                execution.give_up_try_soon(step)
                raise
            else:
                elapsed = (time.perf_counter_ns() - began) // 1_000
                return on_loop(execution, succeed, step, attempt, value, elapsed, codec)
    finally:
        execution.in_use.discard(step.name)


def _run_body(
    execution: Execution,
    step: StepId,
    attempt: int,
    body: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    scope, place = StepScope(execution, step, attempt), current.place
    current.place = scope
    try:
        if (script := execution.engine.script) is not None:
            body = script.body_of(execution.info.run_id, step, body)
        return begin_here(execution, body, *args, **kwargs)
    except CancelledError as error:
        raise CancelledInsideError(f"step {str(step)!r}") from error
    finally:
        current.place = place
        scope.ended = True


def _call_outside(id: str, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Outside any request a step is just a call; only the error is the one of a run."""
    try:
        return fn(*args, **kwargs)
    except (UsageError, StepError):
        raise
    except Exception as error:
        description = failures.describe(error)
        raise StepError(
            id, description.name, description.message, 1, raised_at=description.at
        ) from error
