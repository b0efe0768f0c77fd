"""`@endpoint`, the decorator that makes a handler durable, and `configure` for its options."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar, Unpack, overload

import anyio.from_thread
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from durable_endpoints._context import current, place_here
from durable_endpoints.activation import activate
from durable_endpoints.calls import is_async, name_of, unwrap
from durable_endpoints.door import Door, Outside
from durable_endpoints.errors import ConfigurationError, NotInRunError
from durable_endpoints.execution import Execution, StepScope
from durable_endpoints.options import (
    OPTIONS,
    AsyncResponse,
    Changes,
    Checkpoint,
    EndpointOptions,
    IdempotencyKey,
    IdempotencyScope,
    OnUnavailable,
    RedirectUrl,
    unknown_option,
)
from durable_endpoints.protocol.durations import Duration
from durable_endpoints.protocol.places import definition
from durable_endpoints.routes import MARK, note_decorated
from durable_endpoints.settings import SETTINGS

P = ParamSpec("P")
T = TypeVar("T")


class Endpoint:
    """A decorated handler and the options that were given for it."""

    def __init__(self, function: Callable[..., Any], given: dict[str, Any]) -> None:
        self.function = function
        self.given = given
        self.name = name_of(function)
        self.wrapper: Callable[..., Any] = function


@overload
def endpoint(handler: Callable[P, T], /) -> Callable[P, T]: ...
@overload
def endpoint(
    *,
    function_id: str | None = None,
    retries: int | None = None,
    async_response: AsyncResponse | None = None,
    async_redirect_url: RedirectUrl | None = None,
    omit_request_body: bool | None = None,
    omit_response_body: bool | None = None,
    checkpoint: Checkpoint | None = None,
    respond_within: Duration | None = None,
    max_runtime: Duration | None = None,
    idempotency_scope: IdempotencyScope | None = None,
    idempotency_key: IdempotencyKey | None = None,
    sse: bool | None = None,
    cancellable: bool | None = None,
    on_unavailable: OnUnavailable | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def endpoint(handler: Callable[..., Any] | None = None, /, **given: Any) -> Any:
    """Make a Starlette or FastAPI handler durable.

    Put it directly above the `def`, below the route's decorator. The handler keeps its signature,
    its dependencies, its models and its place in OpenAPI; `async def` and `def` both work.

    What is not given comes from the middleware, or is the default:

    - `function_id`: the endpoint's name; default `"{METHOD} {route template}"`.
    - `retries` (3): tries of a step, and of the handler itself, after the first; 0 to 20.
    - `async_response` (`"redirect"`): what a client gets whose run goes on without it: a 303 to
      where it can wait, a JSON `"token"`, or what `(request, run_id, token) -> Response` makes.
    - `async_redirect_url`: that place, if it is not the mounted `endpoint_proxy()`: a path, an
      absolute URL, or `(run_id, token) -> str`.
    - `omit_request_body`, `omit_response_body`: do not keep the request beyond the run's end; do
      not keep the response beyond its delivery.
    - `checkpoint` (`"each"`): each step's result is on disk before the next body begins.
      `"background"`: they overlap, and all of them are on disk before the answer leaves.
    - `respond_within` (`"50s"`): a client that has waited this long is told where to wait, while
      the same execution goes on.
    - `max_runtime`: a run older than this, waits included, fails as timed out. No limit by default.
    - `idempotency_scope`: `(request) -> str`, who the caller is, for `Idempotency-Key`.
    - `idempotency_key`: `(request) -> str | None`, what counts as the request's key in place of the
      header (which counts where it gives None): the id of a webhook's event, for instance. Two
      requests to the same URL with equal keys are then the same, whatever their bodies say. It may
      read the body, be async, and raise an `HTTPException` to refuse the request.
    - `sse` (True): a client that accepts `text/event-stream` gets the run's stream. False for an
      endpoint that answers with an event stream of its own.
    - `cancellable` (False): whoever holds the run's token may cancel it, by `DELETE` at `/wait`.
    - `on_unavailable` (`"fail"`): a request for which no run can be begun, because the server
      (`server_url`) is away, is answered with 503. `"proceed"`: it goes on without a run. Its steps
      just run, once; what would have to wait, a failed step too, is answered with 503; nothing is
      streamed; and its response says why in `Durable-Degraded`. One with an `Idempotency-Key` is
      answered with 503 all the same: the key asks for what cannot be promised then.

    Raises `ConfigurationError` for a wrong option, and for what cannot be a durable handler: a
    generator, a class, a WebSocket handler.
    """
    _check_are_options(given)
    EndpointOptions().change(**given)
    if handler is None:
        return functools.partial(_decorate, given=given)
    return _decorate(handler, given)


def configure(**changes: Unpack[Changes]) -> None:
    """Change options of the endpoint for this run, from inside its handler or a step.

    Takes `retries`, `async_response`, `async_redirect_url`, `omit_request_body`,
    `omit_response_body` and `checkpoint`, as `@endpoint` does. A replay calls it again, so it
    should depend on nothing but the request and the results of steps.

    Raises `ConfigurationError` for any other option, `NotInRunError` outside a run.
    """
    place = current.place
    execution: Execution | None = getattr(place, "execution", None)
    if execution is None:
        raise NotInRunError(
            "configure() is called outside a run: call it in a decorated handler, or in a step of "
            "one; what shall hold for all runs goes into @endpoint(…) or the middleware"
        )
    _check_are_options(changes)
    fixed = changes.keys() - Changes.__annotations__.keys()
    if fixed:
        raise ConfigurationError(
            f"configure() cannot change {min(fixed)!r} during a run: give it to @endpoint"
        )
    execution.options = execution.options.change(**changes)


def _check_are_options(given: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for what is unknown, or an option of the whole application."""
    for name in sorted(given.keys() - set(OPTIONS)):
        if name in SETTINGS or name in ("engine", "hooks"):
            raise ConfigurationError(
                f"{name!r} is set for the whole application, not for one endpoint: "
                f"add_middleware(DurableEndpointsMiddleware, {name}=…)"
            )
        raise ConfigurationError(unknown_option(name, OPTIONS))


def _decorate(handler: Callable[..., Any], given: dict[str, Any]) -> Callable[..., Any]:
    _check_handler(handler)
    described = Endpoint(handler, given)
    wrapper = _async_wrapper(described) if is_async(handler) else _sync_wrapper(described)
    functools.update_wrapper(wrapper, handler)
    inner = unwrap(handler)
    if inner is not handler:
        # A partial has no name of its own, and frameworks want one.
        wrapper.__name__ = getattr(inner, "__name__", type(inner).__name__)
        wrapper.__qualname__ = name_of(handler)
        wrapper.__module__ = inner.__module__
        wrapper.__doc__ = inner.__doc__
    elif not hasattr(handler, "__name__"):
        wrapper.__name__ = type(handler).__name__  # a callable object: what FastAPI calls it
    setattr(wrapper, MARK, described)
    described.wrapper = wrapper
    note_decorated(inner)
    return wrapper


def _check_handler(handler: Any) -> None:
    inner = unwrap(handler)
    if isinstance(inner, staticmethod | classmethod):
        raise ConfigurationError(
            f"@endpoint goes below @{type(inner).__name__}, directly above the `def`"
        )
    if inspect.isclass(inner):
        raise ConfigurationError(
            f"@endpoint on the class {inner.__name__}: decorate its methods (get, post, …) instead"
        )
    if not callable(inner):
        raise ConfigurationError(
            f"@endpoint decorates a handler, not {inner!r}: options are given by name, as in "
            '@endpoint(function_id="report")'
        )
    if hasattr(inner, MARK):
        raise ConfigurationError(
            f"{name_of(inner)} is decorated with @endpoint twice: keep the one directly above the "
            "`def`, with all options"
        )
    if any(_is_websocket(annotation) for annotation in _annotations(inner)):
        raise ConfigurationError(_no_websockets(name_of(inner)))
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ConfigurationError(
            f"{name_of(inner)} is a generator: its body runs after the response has begun, when "
            "nothing can be suspended or tried again. Do the durable work in a handler that "
            "returns its response"
        )


def _no_websockets(name: str) -> str:
    return (
        f"{name} is a WebSocket handler: a conversation cannot be sent in again. Do the durable "
        "work in an HTTP endpoint"
    )


def _annotations(function: Any) -> Iterable[Any]:
    return getattr(function, "__annotations__", {}).values()


def _is_websocket(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.rpartition(".")[2] == "WebSocket"
    return isinstance(annotation, type) and issubclass(annotation, WebSocket)


def _async_wrapper(described: Endpoint) -> Callable[..., Any]:
    handler = described.function

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        door = _door(described, args, kwargs)
        if door is None or door.execution is not None:
            return await handler(*args, **kwargs)  # in a test, or called by another handler
        execution = await activate(door, described)
        call = functools.partial(handler, *args, **kwargs)
        return await execution.handling.run(execution, call)

    return wrapper


def _sync_wrapper(described: Endpoint) -> Callable[..., Any]:
    handler = described.function

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        door = _door(described, args, kwargs)
        if door is None or door.execution is not None:
            return handler(*args, **kwargs)
        execution = anyio.from_thread.run(activate, door, described, True)
        call = functools.partial(handler, *args, **kwargs)
        return execution.handling.run_in_thread(execution, call)

    return wrapper


def _door(described: Endpoint, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Door | None:
    """The door of this request; None outside any, and inside a run: then it is a plain call."""
    place = place_here()
    if isinstance(place, StepScope):
        return None
    if place is None:
        if any(isinstance(value, WebSocket) for value in (*args, *kwargs.values())):
            raise ConfigurationError(
                _no_websockets(described.name), where=definition(unwrap(described.function))
            )
        if _is_request(args, kwargs):
            raise ConfigurationError(
                f"{described.name} is a durable endpoint, but the application has no "
                "DurableEndpointsMiddleware, so nothing of it would be durable: "
                "app.add_middleware(DurableEndpointsMiddleware)",
                where=definition(unwrap(described.function)),
            )
        return None
    if isinstance(place, Outside):
        raise ConfigurationError(
            f"{described.name} was called in a request that is not for a decorated handler. If "
            "another handler calls it, decorate that one, or call the work inside it. If its route "
            "is one that the application's route table does not show, mount it with endpoint_app()",
            where=definition(unwrap(described.function)),
        )
    if place.is_over:
        raise NotInRunError(
            f"{described.name} is called after its request is over: a task that outlives its "
            "request cannot begin a run of its own. Call it before the handler returns"
        )
    door: Door = place
    return door


def _is_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a web framework calls, rather than a test or other code."""
    if any(isinstance(value, HTTPConnection) for value in (*args, *kwargs.values())):
        return True
    frame = sys._getframe(2)
    for _ in range(12):
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("starlette.", "fastapi.")):
            return True
        if frame.f_code.co_qualname == "WorkerThread.run":  # anyio's, for plain handlers
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False
