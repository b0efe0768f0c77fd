"""`step`: what a handler calls to have its work remembered.

The methods are plain functions that return coroutines: the index of a name that is used repeatedly
is taken when a step is *called*, so that two calls count in the order in which they are written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from starlette.responses import Response

from durable_endpoints import opening, sending, signals
from durable_endpoints.bodies import StepOptions, run_step, step_options
from durable_endpoints.calls import StepCall, call
from durable_endpoints.child_request import Params
from durable_endpoints.errors import StepError, UsageError
from durable_endpoints.events import Event, new_event
from durable_endpoints.fetching import Fetch, Headers, as_response
from durable_endpoints.invoking import invoke, prepare
from durable_endpoints.protocol import failures
from durable_endpoints.protocol.durations import Duration, parse_duration, parse_instant
from durable_endpoints.protocol.ops import SendEvent, Sleep, StepKind, WaitForEvent
from durable_endpoints.protocol.values import encode
from durable_endpoints.reporting import Log, progress
from durable_endpoints.results import RESPONSES, codec_of
from durable_endpoints.signals import (
    OnConflict,
    Signal,
    check_wait,
    encoded_signal,
    send_encoded,
)
from durable_endpoints.sync_step import SyncStep
from durable_endpoints.waits import EventPattern, Match, alternative_of, alternatives_of
from durable_endpoints.where import checked, here_on_loop, name_step, required, run_here

if TYPE_CHECKING:
    import httpx

P = ParamSpec("P")
T = TypeVar("T")


class StepRunner:
    """`run`, with the settings of one step."""

    def __init__(self, options: StepOptions) -> None:
        self._options = options

    # `Coroutine`, because with `Awaitable` mypy finds no type for an async function with an `Any`
    # in its signature: both overloads fit, and differ in what they make of the function.
    @overload
    def run(
        self, id: str, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> StepCall[T]: ...
    @overload
    def run(
        self, id: str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> StepCall[T]: ...
    def run(self, id: str, fn: Any = None, /, *args: Any, **kwargs: Any) -> StepCall[Any]:
        """Run `fn(*args, **kwargs)` once, and remember what it returns under the name `id`.

        `fn` is a coroutine function, or a plain one, which runs in a worker thread. Its result is
        kept as JSON: without an annotation it is a JSON value; with one, what the annotation says,
        pydantic models, dataclasses, datetimes, enums and so on. The await gives it back as it is
        decoded from that, the first time as in a replay.
        When it raises, it is tried again with exponential back-off, up to the endpoint's retries;
        then the await raises `StepError` with the original as its cause. `NonRetriableError` ends
        the tries at once, `RetryAfterError` says when the next one may be.

        Raises `UsageError` for a name in use, a result or an annotation that cannot be kept, and a
        call outside a run or inside another step. Outside any request it just calls `fn`.
        """
        execution = here_on_loop("step.run", id)
        if execution is None:
            return _call_outside(id, fn, args, kwargs)
        codec = codec_of(id, fn)
        called = name_step(execution, id)
        call = run_step(execution, called, self._options, fn, args, kwargs, codec)
        return execution.calls.gave(called, call)

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
        client: httpx.AsyncClient | None = None,
    ) -> StepCall[httpx.Response]:
        """Make an HTTP request once, and remember its response under the name `id`.

        The await gives an `httpx.Response` with status, headers and decoded body, the first time as
        in a replay; its `url` has no query, user or password. Any status is a result but 408, 425,
        429 and those from 500 on: these are tried again, as is a request that gets no answer, with
        exponential back-off or when `Retry-After` (or `retry-after-ms`) says. When the tries are
        used up, the await raises `StepError`, as it does at once for a URL that is not valid.

        `method` to `content` are as in httpx; `content` is bytes or a text. POST and PATCH carry an
        `Idempotency-Key` of the run and the step, the same in each try, unless `headers` have one:
        a service that knows it does the work once. `timeout` is for one try in all, from the
        connection to the last byte; by default that of `step.options`, or 30 seconds. `client` is
        an `httpx.AsyncClient` of yours, with its redirects, cookies and so on; without one, each
        try has a new one, which follows redirects: to another origin without your headers. Where
        the URL comes from somebody else, give a client that follows none, and looks at the address.

        Raises `UsageError` for a request that cannot be made, and `LimitError` for a response of
        more than a step remembers (`max_result`). Outside any request it makes the call once.
        """
        body = {"json": json, "data": data, "content": content}
        given = {"params": params, "headers": headers, **body}
        fetch = Fetch(id, method, url, given, timeout, self._options, client)
        execution = here_on_loop("step.fetch", id)
        if execution is None:
            return _fetch_outside(id, fetch)
        fetched = name_step(execution, id)
        send = fetch.in_run(execution, fetched).send
        call = run_step(execution, fetched, fetch.options, send, (), {}, RESPONSES)
        return execution.calls.gave(fetched, call)


class Step(StepRunner):
    """The namespace `step`."""

    def __init__(self) -> None:
        super().__init__(StepOptions())
        self.sync = SyncStep()
        """The same for plain `def` handlers: blocking."""
        self.log = Log()
        """Lines for the run's readers and for Python's log: `step.log.info("sent", id=7)`."""

    progress = staticmethod(progress)

    @property
    def run_id(self) -> str:
        """The id of the run, in its handler and in the bodies of its steps: the same in each
        execution, and in the header `Durable-Run-Id`. Good in log lines, and in keys by which
        another service knows that it was asked before.

        Raises `NotInRunError` outside a run.
        """
        return run_here("step.run_id").info.run_id

    def options(self, *, retries: int | None = None, timeout: Duration | None = None) -> StepRunner:
        """Settings for one step: `step.options(retries=0, timeout="10s").run(…)`.

        `retries` as in `@endpoint`; `timeout` bounds each try, and one that takes longer fails
        with `TimeoutError`. A plain function cannot be stopped: its thread goes on unheard.
        """
        return StepRunner(step_options(retries, timeout))

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
    ) -> StepCall[httpx.Response]: ...
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
    ) -> StepCall[T]: ...
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
    ) -> StepCall[T]: ...
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
    ) -> StepCall[Any]:
        """Run another decorated endpoint of this application durably, as a run of its own, and
        return what it answers.

        `endpoint` is the decorated function. It is asked by its route, and goes through its
        dependencies: `params` fill the path, and what the path does not name becomes the query (a
        list gives its name several times, None is left out); `json` is the body, a JSON value, a
        model or a dataclass; `headers` are added to the credentials of this request, which the
        other one inherits (`authorization`, `cookie`, `proxy-authorization`, `x-api-key`);
        `method` chooses where the endpoint has several.

        The await gives what the endpoint is annotated to return, read from its answer: a
        `Response` gives an `httpx.Response`, any other type a value of it; without an annotation
        JSON is parsed, and anything else is an `httpx.Response`.

        The endpoint has its own retries, and none are added to them here: if it fails, is
        cancelled, or answers with a status of 400 or more, the await raises `StepError`. So it
        does after `timeout`, and then the endpoint's run is cancelled; so are those of a run that
        ends before they have. The endpoint runs to one end, whatever happens to this run.

        Raises `UsageError` for what is no endpoint of this application, and for `params` that do
        not fit its path; `LimitError` if more than 32 runs were to be below each other.
        """
        what = "step.invoke"
        execution = required(here_on_loop(what, id), what, id)
        call = prepare(execution, id, endpoint, params, json, headers, method, timeout)
        return execution.calls.gave(call.step, invoke(execution, call))

    def sleep(self, id: str, duration: Duration) -> StepCall[None]:
        """Go on after `duration` (`"30s"`, `"1h30m"`, a `timedelta`, seconds), however long that
        is and whatever happens to this process. Never ends early."""
        milliseconds = checked(parse_duration, id, duration)
        execution = here_on_loop("step.sleep", id)
        if execution is None:
            return asyncio.sleep(milliseconds / 1_000)
        step = name_step(execution, id)
        call = opening.sleep(execution, Sleep(step, duration=milliseconds))
        return execution.calls.gave(step, call)

    def sleep_until(self, id: str, when: datetime | str) -> StepCall[None]:
        """Go on at `when`: a `datetime` with a time zone, or ISO 8601 text with one."""
        instant = checked(parse_instant, id, when)
        execution = here_on_loop("step.sleep_until", id)
        if execution is None:
            return asyncio.sleep(max(0, instant / 1_000 - time.time()))
        step = name_step(execution, id)
        return execution.calls.gave(step, opening.sleep(execution, Sleep(step, until=instant)))

    def wait_for_event(
        self,
        id: str,
        *,
        event: str,
        timeout: Duration,
        match: Match | None = None,
        if_exp: str | None = None,
    ) -> StepCall[Event | None]:
        """Wait for an event by name, and return it, or None after `timeout`.

        `match="data.x"` wants the event's `data.x` to equal this request's own input `x` (path,
        query, JSON object or form); `match={"data.x": value}` wants it to equal `value`. `if_exp`
        is a CEL condition over the event under the name `async` and the run's input under
        `event.data` (needs the extra `cel`). An event that came since the request began counts.
        """
        milliseconds = checked(parse_duration, id, timeout)
        what = "step.wait_for_event"
        execution = required(here_on_loop(what, id), what, id)
        alternative = alternative_of("", event, match, if_exp, execution.inputs)
        step = name_step(execution, id)
        op = WaitForEvent(step, StepKind.WAIT, (alternative,), milliseconds)
        return execution.calls.gave(step, opening.wait(execution, op))

    def wait_for_any(
        self,
        id: str,
        events: Sequence[str] | Mapping[str, str | EventPattern],
        *,
        timeout: Duration,
        match: Match | None = None,
    ) -> StepCall[tuple[str, Event] | None]:
        """Wait for the first of several events: its name and the event, or None after `timeout`.

        `events` is a list of event names, or a mapping from names of your own to event names or
        to `{"event": …, "match": …, "if_exp": …}`. `match` is for those that have none of their
        own. The others are waited for no longer.
        """
        milliseconds = checked(parse_duration, id, timeout)
        what = "step.wait_for_any"
        execution = required(here_on_loop(what, id), what, id)
        alternatives = alternatives_of(events, match, execution.inputs)
        step = name_step(execution, id)
        op = WaitForEvent(step, StepKind.WAIT_ANY, alternatives, milliseconds)
        return execution.calls.gave(step, opening.wait_any(execution, op))

    def wait_for_signal(
        self,
        id: str,
        *,
        signal: str,
        timeout: Duration,
        on_conflict: OnConflict = "fail",
    ) -> StepCall[Signal | None]:
        """Wait for a signal, and return it, or None after `timeout`.

        A signal is for one run: name it after what this run alone waits for, an id for instance.
        If another run waits for the same one, this one fails with a `StepError` that names it; or,
        with `on_conflict="replace"`, the other one goes on with None. A signal that was sent before
        the wait began does not count: `send_signal` has told its sender so.
        """
        milliseconds = checked(parse_duration, id, timeout)
        what = "step.wait_for_signal"
        execution = required(here_on_loop(what, id), what, id)
        check_wait(id, signal, on_conflict)
        step = name_step(execution, id)
        call = signals.wait(execution, step, signal, milliseconds, on_conflict)
        return execution.calls.gave(step, call)

    def send_signal(self, id: str, signal: str, data: Any = None) -> StepCall[bool]:
        """Send a signal as a step, and return whether a run was waiting for it, and has it: as
        `send_signal` does, but not again in a replay. It is tried again if the engine fails.

        Should the process end between the sending and the remembering, it is sent once more: then
        most often nobody waits any more, and it returns False.
        """
        execution = here_on_loop("step.send_signal", id)
        if execution is None:
            return signals.send_signal(signal, data)
        args = execution.engine, signal, encoded_signal(signal, data)
        step = name_step(execution, id)
        call = run_step(execution, step, StepOptions(), send_encoded, args, {})
        return execution.calls.gave(step, call)

    def send_event(
        self,
        id: str,
        name: str,
        data: Any = None,
        *,
        event_id: str | None = None,
        ts: int | None = None,
    ) -> StepCall[str]:
        """Send an event exactly once, and return its id.

        It is kept in the same write as the step. `event_id` deduplicates it (default: one made of
        the run's and the step's), `ts` says when it happened, in epoch milliseconds.
        """
        execution = here_on_loop("step.send_event", id)
        if execution is None:
            return sending.send_event(name, data, id=event_id, ts=ts)
        event = new_event(name, data, event_id, ts)
        step = name_step(execution, id)
        if event_id is None:
            event = event._replace(id=f"{execution.info.run_id}:{step.hash}")
        call = opening.send(execution, SendEvent(step, event, encode(event.id)))
        return execution.calls.gave(step, call)


async def _fetch_outside(id: str, fetch: Fetch) -> httpx.Response:
    return as_response(await _call_outside(id, fetch.send, (), {}))


async def _call_outside(
    id: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Outside any request a step is just a call; only the error is the one of a run."""
    try:
        return await call(fn, *args, **kwargs)
    except (UsageError, StepError):
        raise
    except Exception as error:
        description = failures.describe(error)
        raise StepError(
            id, description.name, description.message, 1, raised_at=description.at
        ) from error


step = Step()
